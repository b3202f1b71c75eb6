"""The endpoints of paths that run no model: documents about the server and its models.

An endpoint is a function of the application's `Serving`, of the path's target, and of one exchange.
It sends its answer through the exchange; an exception becomes the answer instead.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from starlette.types import Receive, Scope, Send

from modelserve.errors import Forbidden, ModelNotFound, ModelNotReady, ServerShuttingDown
from modelserve.exchange.body import read_body
from modelserve.exchange.exchange import Exchange
from modelserve.lifespan import Serving
from modelserve.metrics.figures import Figures
from modelserve.models.load_reports import not_ready
from modelserve.models.registry import Entry, State
from modelserve.protocols.codec import Codec, ModelRef
from modelserve.protocols.tensorflow import signature_document, status_document
from modelserve.protocols.triton import config_document, statistics_document
from modelserve.protocols.v2 import wants_ready_only
from modelserve.version import __version__
from modelserve.wire.headers import JSON
from modelserve.wire.json import to_json

__all__ = [
    "NO_CODEC",
    "NO_MODEL",
    "Endpoint",
    "Open",
    "Request",
    "Target",
    "check_controllable",
    "config_of",
    "index_of",
    "load_model",
    "server_document",
    "statistics_of",
]

_INDEX_BYTES: Final = 1 << 16
_EXTENSIONS: Final = [
    "model_repository_extension",
    "binary_tensor_data",
    "generate",
    "model_configuration",
    "statistics",
]
# TensorFlow Serving's states of models that cannot be used.
_TENSORFLOWS: Final = {State.LOADING: "LOADING", State.UNLOADING: "UNLOADING"}
NO_MODEL: Final = ModelRef("")  # for a path that names no model
NO_CODEC: Final = Codec()  # for paths that run no model: it only writes errors


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a path.

    Attributes:
        endpoints: By method; None runs the model. Empty for an unknown path.
        ref: The model that the path names, and its version if it names one.
        codec: The protocol of a path that runs a model; for any other path, it writes the errors.
        verb: The verb's name in metrics and in the log; "" for a path that runs no model.
        hook: The plan of the model that is run.
        always: It is answered during a drain, too.
        public: It needs no token.
        opens: Converts a gRPC call into what the pipeline reads; None for all other requests.
    """

    endpoints: Mapping[str, "Endpoint | None"]
    ref: ModelRef = NO_MODEL
    codec: Codec = NO_CODEC
    verb: str = ""
    hook: str = "predict"
    always: bool = False
    public: bool = False
    opens: "Open | None" = None


Request: TypeAlias = tuple[Target, Scope, Receive, Send]
Open: TypeAlias = Callable[[Target, Scope, Receive, Send], Request]
Endpoint: TypeAlias = Callable[[Serving, Target, Exchange], Awaitable[None]]


async def alive(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET / (KServe's liveness)."""
    await _answer(exchange, {"status": "alive"})


async def live(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/health/live."""
    await _answer(exchange, {"live": True})


async def ready(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/health/ready: not before every model is ready."""
    exchange.ignore_body()
    await serving.check_ready()
    await _answer(exchange, {"ready": True})


async def metrics(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /metrics, in Prometheus' text format or, by `Accept`, OpenMetrics."""
    exchange.ignore_body()
    content_type, body = await serving.expose(exchange.accept)
    exchange.check_reason()
    await exchange.send_document(200, [(b"content-type", content_type)], [body])


async def models(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v1/models and /v2/models, in the order of registration."""
    await _answer(exchange, {"models": serving.registry.names})


async def v1_models(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v1/models: KServe's list; with OpenAI's list if a model has one of its hooks."""
    document = {"models": serving.registry.names}
    listed = _openai_list(serving)
    await _answer(exchange, {**document, **listed} if listed["data"] else document)


async def openai_models(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /openai/v1/models: the models that have one of OpenAI's hooks."""
    await _answer(exchange, _openai_list(serving))


async def openai_model(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /openai/v1/models/NAME."""
    entry = await _usable_entry(serving, target, exchange)
    if not entry.plans.has_openai:
        raise ModelNotFound(entry.name)
    await _answer(exchange, _openai_entry(target.ref.name, entry))


def _openai_list(serving: Serving) -> dict[str, Any]:
    entries = serving.registry.entries.items()
    rows = [_openai_entry(name, entry) for name, entry in entries if entry.plans.has_openai]
    return {"object": "list", "data": rows}


def _openai_entry(name: str, entry: Entry) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": entry.created, "owned_by": "modelserve"}


async def model(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/models/NAME/ready; probes use it too, so it is 503 before a stop."""
    entry = await _usable_entry(serving, target, exchange)
    await _answer(exchange, {"name": entry.name, "ready": True})


async def v1_model(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v1/models/NAME; for probes too. With OpenAI's keys if the model has one of its hooks."""
    entry = await _usable_entry(serving, target, exchange)
    listed = _openai_entry(target.ref.name, entry) if entry.plans.has_openai else {}
    await _answer(exchange, {"name": entry.name, "ready": True, **listed})


async def _usable_entry(serving: Serving, target: Target, exchange: Exchange) -> Entry:
    """Return the model of a path. Raises ModelNotFound, ModelNotReady and, before a stop, a 503."""
    entry = serving.registry.get(target.ref.name, target.ref.version)
    if serving.stopping:
        raise ServerShuttingDown
    exchange.ignore_body()
    if not await entry.is_ready():
        raise not_ready(serving.registry, entry, debug=serving.debug)
    return entry


async def server(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2."""
    await _answer(exchange, server_document())


def server_document() -> dict[str, Any]:
    """Return V2's metadata of the server."""
    return {"name": "modelserve", "version": __version__, "extensions": _EXTENSIONS}


async def metadata(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/models/NAME."""
    entry = serving.registry.get(target.ref.name, target.ref.version)
    exchange.ignore_body()
    await _answer(exchange, await serving.registry.metadata(entry))


async def version_status(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v1/models/NAME/versions/VERSION (TensorFlow Serving's): 200 in any state."""
    entry = serving.registry.get(target.ref.name, target.ref.version)
    exchange.ignore_body()
    state, failure = await _state_of(entry, debug=serving.debug)
    await _answer(exchange, status_document(target.ref.version or "", state, failure))


async def signature(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v1/models/NAME/metadata (TensorFlow Serving's), with the declared inputs."""
    entry = serving.registry.get(target.ref.name, target.ref.version)
    exchange.ignore_body()
    about = await serving.registry.metadata(entry)
    version = target.ref.version or (entry.versions[-1] if entry.versions else None)
    document = signature_document(entry.name, version, about["inputs"], about["outputs"])
    await _answer(exchange, document)


async def config(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/models/NAME/config (Triton's)."""
    entry = serving.registry.get(target.ref.name, target.ref.version)
    exchange.ignore_body()
    await _answer(exchange, await config_of(serving, entry))


async def config_of(serving: Serving, entry: Entry) -> dict[str, Any]:
    """Return a model's configuration as Triton's."""
    about = await serving.registry.metadata(entry)
    return config_document(entry.name, about["platform"], about["inputs"], about["outputs"])


async def statistics(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/models/NAME/stats (Triton's), of all versions together."""
    entry = serving.registry.get(target.ref.name, target.ref.version)
    exchange.ignore_body()
    await _answer(exchange, await statistics_of(serving, [entry], target.ref.version))


async def all_statistics(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /v2/models/stats (Triton's); if a model has that name, its metadata."""
    if "stats" in serving.registry:
        await metadata(serving, replace(target, ref=ModelRef("stats")), exchange)
        return
    exchange.ignore_body()
    await _answer(exchange, await statistics_of(serving, dict.fromkeys(serving.registry)))


async def statistics_of(
    serving: Serving, entries: Iterable[Entry], version: str | None = None
) -> dict[str, Any]:
    """Return Triton's statistics of some models, of all versions together."""
    figures = await _figures(serving)
    return {"model_stats": [_statistics_of(entry, figures, version) for entry in entries]}


async def index(serving: Serving, target: Target, exchange: Exchange) -> None:
    """POST /v2/repository/index (Triton's), including models that are only in the directory.

    With `{"ready": true}` it contains only models that are ready.
    """
    length = exchange.get(b"content-length")
    share = serving.admission.budget.hold(0)
    try:
        body = await read_body(exchange.receive, _INDEX_BYTES, length, share)
    finally:
        share.close()
    exchange.ignore_body()
    await _answer(exchange, await index_of(serving, ready_only=wants_ready_only(body)))


async def index_of(serving: Serving, *, ready_only: bool) -> list[dict[str, str]]:
    """Return Triton's repository index."""
    rows = serving.registry.index(await serving.loading.source.names())
    return [row for row in rows if row["state"] == State.READY] if ready_only else rows


async def load(serving: Serving, target: Target, exchange: Exchange) -> None:
    """POST /v2/repository/models/NAME/load; the body is ignored.

    A client that leaves ends its own request, but not the load or other requests that wait for it.
    """
    check_controllable(serving)
    name = target.ref.name
    exchange.ignore_body()
    await load_model(serving, name)
    await _answer(exchange, {"name": name, "load": True})


async def load_model(serving: Serving, name: str) -> None:
    """Load a model by name. Raises ModelNotReady, ModelNotFound."""
    try:
        await serving.loading.load(name)
    except ModelNotReady as exc:
        raise exc if serving.debug else ModelNotReady(name) from None


async def unload(serving: Serving, target: Target, exchange: Exchange) -> None:
    """POST /v2/repository/models/NAME/unload; the body, and a client that leaves, as for `load`."""
    check_controllable(serving)
    name = target.ref.name
    exchange.ignore_body()
    await serving.loading.unload(name)
    await _answer(exchange, {"name": name, "unload": True})


async def _state_of(entry: Entry, *, debug: bool) -> tuple[str, str]:
    """Return a model's state in TensorFlow Serving's words, and why it was not loaded."""
    if await entry.is_ready():
        return "AVAILABLE", ""
    if entry.failure is not None and entry.state is State.UNAVAILABLE:
        return "END", entry.failure if debug else "loading failed"
    return _TENSORFLOWS.get(entry.state, "START"), ""


async def _figures(serving: Serving) -> Mapping[str, Figures]:
    """Return the figures of each model's requests, added up in a thread."""
    serving.telemetry.open()
    found: Mapping[str, Figures] = await serving.scraper.call(
        "statistics", serving.telemetry.figures
    )
    return found


def _statistics_of(
    entry: Entry, figures: Mapping[str, Figures], version: str | None = None
) -> dict[str, Any]:
    # perf_analyzer requires a whole number as the version, as Triton's are.
    version = version or (entry.versions[-1] if entry.versions else "1")
    return statistics_document(entry.name, version, figures.get(entry.series.name, Figures()))


def check_controllable(serving: Serving) -> None:
    """Raise Forbidden unless clients may load and unload models."""
    if not serving.is_controllable:
        raise Forbidden(
            "Loading and unloading models over HTTP is turned off;"
            " ModelServer(control=True) or --control turns it on."
        )


async def _answer(exchange: Exchange, value: Any) -> None:
    exchange.check_reason()
    await exchange.send_document(200, [JSON], [to_json(value)])
