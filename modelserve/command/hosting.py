"""Requirements of hosting platforms: a port in the environment, and paths.

Vertex AI sets AIP_HTTP_PORT, AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE. SageMaker calls `/ping` and
`/invocations`. These paths name no model, so the application must have exactly one.
"""

import logging
from collections.abc import Mapping
from typing import Final, Protocol
from urllib.parse import quote

from modelserve.command.environment import WrongVariable
from modelserve.lifespan import Serving
from modelserve.routes import is_built_in

__all__ = [
    "PORT_VARIABLES",
    "Hosted",
    "follow_environment",
    "follow_sagemaker",
    "port_in",
    "port_number",
    "predict_at",
]

logger = logging.getLogger("modelserve")

PORT_VARIABLES: Final = ("PORT", "AIP_HTTP_PORT")  # the first that is set counts
_READY: Final = "/v2/health/ready"


class Hosted(Protocol):
    """The parts of a model server that this module uses.

    Attributes:
        playground: Whether it has a page to try models in; None if the host decides.
    """

    playground: bool | None

    @property
    def serving(self) -> Serving:
        """Its models."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Its own paths, each with what it means."""

    def add_alias(self, path: str, means: str) -> None:
        """Add one. Raises ValueError."""

    def show_playground(self, shown: bool) -> None:
        """Show or hide the page."""


def port_in(environ: Mapping[str, str]) -> int | None:
    """Return the port that the platform requires. Raises WrongVariable.

    PORT (Knative, Cloud Run) comes before AIP_HTTP_PORT.
    """
    for variable in PORT_VARIABLES:
        text = environ.get(variable, "")
        if text:
            try:
                return port_number(text)
            except ValueError as exc:
                raise WrongVariable(variable, exc) from None
    return None


def port_number(text: str) -> int:
    """Parse a port. Raises ValueError."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a whole number")
    if int(text) > 65535:
        raise ValueError(f"{text} is not a port")
    return int(text)


def follow_environment(app: Hosted, environ: Mapping[str, str]) -> None:
    """Add the paths of Vertex AI's variables to an application.

    A path that is built in, or that the application has given a meaning, keeps it. Raises
    ValueError if there are several models, and for an invalid path.
    """
    health, predict = environ.get("AIP_HEALTH_ROUTE"), environ.get("AIP_PREDICT_ROUTE")
    if health and not _is_known(app, health):
        app.add_alias(health, _READY)
    if predict and not _is_known(app, predict):
        if app.serving.registry.names:
            predict_at(app, predict, asked_by="AIP_PREDICT_ROUTE")
        else:
            logger.warning("AIP_PREDICT_ROUTE=%s is ignored: there is no model", predict)


def follow_sagemaker(app: Hosted) -> None:
    """Add SageMaker's paths to an application. Raises ValueError as `predict_at` does.

    A path that the application has given a meaning keeps it.
    """
    if not _is_known(app, "/ping"):
        app.add_alias("/ping", _READY)
    if not _is_known(app, "/invocations"):
        predict_at(app, "/invocations", asked_by="--sagemaker")


def predict_at(app: Hosted, path: str, *, asked_by: str) -> None:
    """Let a path mean V1's predict of the application's one model.

    Raises ValueError, which names the option, unless there is exactly one model, and as `add_alias`
    does.
    """
    registry = app.serving.registry
    if len({*registry}) != 1:  # it may have a second name
        names = ", ".join(registry.names) or "none"
        raise ValueError(
            f"{asked_by} is for an application with one model; the models here: {names}."
            f" --alias {path}=/v1/models/NAME:predict says which one {path} means"
        )
    app.add_alias(path, f"/v1/models/{quote(registry.names[0], safe='')}:predict")


def _is_known(app: Hosted, path: str) -> bool:
    return path in app.aliases or is_built_in(path)
