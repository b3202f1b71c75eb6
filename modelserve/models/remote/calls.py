"""The common part of calls to a predictor: request, answer and errors.

The predictor's error sentence and status reach the client, its address never does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

from modelserve.errors import PredictorError
from modelserve.limits import TIMEOUT_HEADER
from modelserve.wire.head import HookHeaders, Scope

if TYPE_CHECKING:
    from modelserve.models.predictor import PredictorConfig

__all__ = [
    "COPIED_OF_ERRORS",
    "NOT_COPIED",
    "Answer",
    "Caller",
    "Complaints",
    "Incoming",
    "shown",
]

logger = logging.getLogger("modelserve")

_FORWARDED: Final = (
    "accept",
    "authorization",
    "b3",
    "content-type",
    "traceparent",
    "tracestate",
    "x-b3-flags",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-request-id",
)
# Hop-by-hop and body headers of the predictor, not copied to our response.
NOT_COPIED: Final = frozenset(
    (
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "inference-header-content-length",
        "keep-alive",
        "server",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    )
)
COPIED_OF_ERRORS: Final[tuple[str, ...]] = ("retry-after", "www-authenticate")
_TIME_LIMIT: Final = TIMEOUT_HEADER.decode()


class Caller(Protocol):
    """One way to call predictors, with the connections of one model in one event loop."""

    async def predict(
        self, config: PredictorConfig, name: str, payload: Any, incoming: Incoming
    ) -> Answer:
        """Send a payload to the model of that name; return the answer.

        Cancellation ends the call. Raises PredictorError, and InvalidInput for a payload that
        cannot be sent.
        """

    async def is_ready(self, config: PredictorConfig, name: str) -> bool:
        """Return whether the predictor says that the model is ready. Raises PredictorError."""

    async def close(self) -> None:
        """Close the connections."""


class Incoming(NamedTuple):
    """The facts about the request whose payload is forwarded.

    Attributes:
        headers: The headers that may be forwarded, by lower-case name.
        version: The version of the model that its path names.
        verb: The last part of its path.
        time_limit: Seconds that our client gives the request.
    """

    headers: dict[str, str]
    version: str | None
    verb: str
    time_limit: str | None

    @classmethod
    def of(cls, headers: Any) -> Incoming:
        """Read a hook's headers: those of the server, a dict, or None."""
        given = {name.lower(): text for name, text in headers.items()} if headers else {}
        sent = {name: given[name] for name in _FORWARDED if name in given}
        version, verb = None, ""
        if isinstance(headers, HookHeaders) and headers.scope is not None:
            sent.setdefault("x-request-id", headers.request_id.decode())
            version, verb = _version_and_verb(headers.scope)
        return cls(sent, version, verb, given.get(_TIME_LIMIT))


def _version_and_verb(scope: Scope) -> tuple[str | None, str]:
    """Return the last parts of a path that ends in `/versions/VERSION/VERB` or `/VERB`."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    segments = ["", "", *path.decode("latin-1").partition("?")[0].split("/")]
    above, version, verb = segments[-3:]
    return (unquote(version) if above == "versions" else None), verb


class Answer(NamedTuple):
    """The hook's result, its content type unless that is the default, and other headers."""

    result: Any
    content_type: str | None
    headers: dict[str, str]


class Complaints(NamedTuple):
    """The errors of a call to a predictor. Only the log shows its address."""

    config: PredictorConfig

    def unreachable(self, problem: object) -> PredictorError:
        self.note(problem)
        return PredictorError("The predictor cannot be reached.", 503)

    def late(self, problem: object) -> PredictorError:
        self.note(problem)
        seconds = self.config.timeout
        return PredictorError(f"The predictor did not answer within {seconds:g} s.", 504)

    def unreadable(self) -> PredictorError:
        return PredictorError("The answer of the predictor cannot be read.", 502)

    def cut(self) -> PredictorError:
        return PredictorError("The answer of the predictor was cut short.", 502)

    def note(self, problem: object) -> None:
        logger.warning("Calling %s failed: %s", self.config.predictor_base_url, problem)


def shown(text: str | None, config: PredictorConfig) -> str | None:
    """Return a predictor's sentence, unless it reveals the predictor's address.

    A host name without a dot or port may be any word.
    """
    if text is None:
        return None
    parts = urlsplit(config.predictor_base_url)
    address = parts.netloc or parts.path.strip("/")  # gRPC has dns:///HOST
    is_revealed = address in text and any(sign in address for sign in ".:")
    return None if is_revealed or f"//{address}" in text else text
