"""The answers of paths that run no model, by their templates in the table of routes. Pure."""

from dataclasses import dataclass
from typing import Final

from modelserve.models.schemas import Schema
from modelserve.pages.components import ANY, array, nullable, record, string

__all__ = ["FIXED", "Fixed"]


@dataclass(frozen=True, slots=True)
class Fixed:
    """One such path.

    Attributes:
        name: The operation's name; the model's is appended.
        summary: A few words.
        answer: The schema of a 200.
        errors: The statuses of other answers, except those of every path.
        request: The schema of the request's body, which is optional.
        media: The types of the answer.
        needs: What the path requires: "openai" hooks, or "control" over the models.
    """

    name: str
    summary: str
    answer: Schema
    errors: tuple[int, ...] = ()
    request: Schema | None = None
    media: tuple[str, ...] = ("application/json",)
    needs: str = ""


_NAMES: Final = record({"models": array(string())})
_READY: Final = record({"name": string(), "ready": {"const": True}})
_ROWS: Final = array(ANY)
_LISTED: Final = record({"object": {"const": "list"}, "data": array({"type": "object"})})
_STATE: Final = record(
    {"version": string(), "state": string(), "status": record({"error_code": string()})}
)
_VERSIONS: Final = nullable(array(string()))

_METADATA: Final = record(
    {"name": string(), "versions": _VERSIONS, "platform": string(), "inputs": ANY, "outputs": ANY}
)
_CONFIG: Final = record(
    {"name": string(), "platform": string(), "input": _ROWS, "output": _ROWS},
    {"backend": string(), "max_batch_size": {"type": "integer"}},
)
_STATISTICS: Final = record({"model_stats": array({"type": "object"})})
_SIGNATURE: Final = record({"model_spec": {"type": "object"}, "metadata": {"type": "object"}})
_V1: Final = "/v1/models/{model}"
_V2: Final = "/v2/models/{model}"
_VERSION: Final = "/versions/{version}"
_OF_MODEL: Final = (404, 503)
_OF_HOOKS: Final = (404, 500)


def _v2(path: str, name: str, whose: str) -> dict[str, Fixed]:
    return {
        path: Fixed(f"v2_metadata{name}", f"Metadata {whose} (V2)", _METADATA, _OF_HOOKS),
        f"{path}/ready": Fixed(f"v2_ready{name}", f"Readiness {whose}", _READY, _OF_MODEL),
        f"{path}/config": Fixed(
            f"v2_config{name}", f"Configuration {whose} (Triton)", _CONFIG, _OF_HOOKS
        ),
        f"{path}/stats": Fixed(
            f"v2_stats{name}", f"Statistics {whose} (Triton)", _STATISTICS, (404,)
        ),
    }


FIXED: Final[dict[str, Fixed]] = {
    "/": Fixed("alive", "Liveness (KServe)", record({"status": {"const": "alive"}})),
    "/metrics": Fixed(
        "metrics",
        "Metrics for Prometheus",
        string(),
        media=("text/plain", "application/openmetrics-text"),
    ),
    "/openapi.json": Fixed("openapi", "This document", {"type": "object"}),
    "/v1/models": Fixed("v1_models", "The names of the models (V1)", _NAMES),
    _V1: Fixed("v1_ready", "Readiness of the model (V1)", _READY, _OF_MODEL),
    f"{_V1}/metadata": Fixed(
        "v1_metadata", "Metadata of the model (TensorFlow Serving)", _SIGNATURE, _OF_HOOKS
    ),
    f"{_V1}{_VERSION}": Fixed(
        "v1_state_version",
        "State of a version (TensorFlow Serving)",
        record({"model_version_status": array(_STATE)}),
        (404,),
    ),
    f"{_V1}{_VERSION}/metadata": Fixed(
        "v1_metadata_version", "Metadata of a version (TensorFlow Serving)", _SIGNATURE, _OF_HOOKS
    ),
    "/openai/v1/models": Fixed("openai_models", "The models (OpenAI)", _LISTED, needs="openai"),
    "/openai/v1/models/{model}": Fixed(
        "openai_model",
        "The model (OpenAI)",
        record({"id": string(), "object": {"const": "model"}}),
        _OF_MODEL,
        needs="openai",
    ),
    "/v2": Fixed(
        "v2_server",
        "The server (V2)",
        record({"name": string(), "version": string(), "extensions": array(string())}),
    ),
    "/v2/health/live": Fixed("v2_live", "Liveness (V2)", record({"live": {"const": True}})),
    "/v2/health/ready": Fixed(
        "v2_ready", "Readiness of all models (V2)", record({"ready": {"const": True}}), (503,)
    ),
    "/v2/models": Fixed("v2_models", "The names of the models (V2)", _NAMES),
    "/v2/models/stats": Fixed("v2_stats", "Statistics of all models (Triton)", _STATISTICS),
    **_v2(_V2, "", "of the model"),
    **_v2(_V2 + _VERSION, "_version", "of a version"),
    "/v2/repository/index": Fixed(
        "v2_index",
        "The models and their states (Triton)",
        array(record({key: string() for key in ("name", "version", "state", "reason")})),
        (400, 408, 413),
        request=record({}, {"ready": {"type": "boolean"}}),
    ),
    "/v2/repository/models/{model}/load": Fixed(
        "v2_load",
        "Load the model (Triton)",
        record({"name": string(), "load": {"const": True}}),
        (404, 503),
        needs="control",
    ),
    "/v2/repository/models/{model}/unload": Fixed(
        "v2_unload",
        "Unload the model (Triton)",
        record({"name": string(), "unload": {"const": True}}),
        (404, 500),
        needs="control",
    ),
}
