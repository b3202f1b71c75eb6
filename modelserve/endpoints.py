"""What is behind each path: documents about the server and its models, and running a model.

An endpoint is a function of the application's `Serving`, of what the path means, and of one
request. It writes its answer through the `Reply`; what it raises becomes the answer instead. It
may return the rest of its work, to be awaited.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, NamedTuple

from modelserve.concurrency.flight import Phase
from modelserve.errors import ServerNotReady
from modelserve.exchange.exchange import JSON, Reply
from modelserve.exchange.streams import Stream
from modelserve.lifespan import Serving
from modelserve.models.inference import Call, infer
from modelserve.models.registry import Entry, State
from modelserve.protocols import v2
from modelserve.protocols.cloudevents import around
from modelserve.protocols.codec import Codec, Named
from modelserve.version import __version__
from modelserve.wire.encoders import to_json
from modelserve.wire.head import HookHeaders, Request, check_length, read_body, uncompressed

__all__ = ["Decoded", "Endpoint", "Rest", "Target", "respond", "run_model"]

_FIRST: Final = Phase.FIRST  # as a global it is found six times as fast
_INDEX_BYTES: Final = 1 << 16
_NO_MODEL: Final = Named("")
_EXTENSIONS: Final = ["model_repository_extension", "binary_tensor_data", "generate"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means.

    `codec` is that of a path that runs a model, `hook` which of its hooks; `is_quick` says that the
    quick walk may be tried. `always` is for paths that are answered during a drain, `public` for
    those that need no token.
    """

    methods: Mapping[str, "Endpoint"]
    named: Named = _NO_MODEL
    verb: str = ""
    codec: Codec | None = None
    hook: str = "predict"
    is_quick: bool = False
    always: bool = False
    public: bool = False


Rest = Coroutine[Any, Any, None]
Endpoint = Callable[[Serving, Target, Request, Reply], Awaitable[Rest | None]]


# --- documents ----------------------------------------------------------------------------------


async def alive(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET / (KServe's liveness)."""
    await _answer(reply, {"status": "alive"})


async def live(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /v2/health/live."""
    await _answer(reply, {"live": True})


async def ready(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /v2/health/ready: not before every model is ready."""
    if not await serving.registry.all_ready():
        raise ServerNotReady
    await _answer(reply, {"ready": True})


async def metrics(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /metrics, in Prometheus' text format or, by `Accept`, OpenMetrics."""
    content_type, body = await serving.expose(request.accept)
    await reply.document(200, [(b"content-type", content_type)], [body])


async def models(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /v1/models and /v2/models, in the order of registration."""
    await _answer(reply, {"models": serving.registry.names})


async def model(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /v1/models/NAME and /v2/models/NAME/ready."""
    entry = serving.registry.get(target.named.model, target.named.version)
    if not await entry.is_ready():
        raise entry.not_ready(debug=serving.debug)
    await _answer(reply, {"name": entry.name, "ready": True})


async def server(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /v2."""
    about = {"name": "modelserve", "version": __version__, "extensions": _EXTENSIONS}
    await _answer(reply, about)


async def metadata(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """GET /v2/models/NAME."""
    entry = serving.registry.get(target.named.model, target.named.version)
    await _answer(reply, await serving.registry.metadata(entry))


async def index(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """POST /v2/repository/index (Triton's); with `{"ready": true}` those that are ready alone."""
    length = request.get(b"content-length")
    body = await read_body(request.receive, _INDEX_BYTES, length)
    rows = await serving.index()
    if v2.wants_ready_alone(body):
        rows = [row for row in rows if row["state"] == State.READY]
    await _answer(reply, rows)


async def load(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """POST /v2/repository/models/NAME/load; the body is ignored."""
    await serving.load(target.named.model)
    await _answer(reply, {"name": target.named.model, "load": True})


async def unload(serving: Serving, target: Target, request: Request, reply: Reply) -> None:
    """POST /v2/repository/models/NAME/unload."""
    await serving.unload(target.named.model)
    await _answer(reply, {"name": target.named.model, "unload": True})


async def _answer(reply: Reply, value: Any) -> None:
    await reply.document(200, [JSON], [to_json(value)])


# --- running a model ----------------------------------------------------------------------------


async def run_model(serving: Serving, target: Target, request: Request, reply: Reply) -> Rest:
    """Find the model, read, decode, admit; return the rest: run, encode, respond.

    One long function, since small requests are many: each coroutine more costs one of them 0.5 us
    on a server. The rest is for the caller to await: an idle stream takes 0.4 KiB less without the
    frame of this.
    """
    flight, headers, codec, named = reply.flight, request.headers, target.codec, target.named
    assert codec is not None
    entry = serving.registry.get(named.model, named.version)
    reply.series = entry.series
    flight.deadlines = entry.deadlines
    if b"x-request-timeout-seconds" in headers:
        flight.deadlines = request.deadlines(entry.deadlines)
    if entry.checks_health or not entry.model.ready:
        flight.phase = Phase.QUEUE  # where the model is still loading
        await serving.usable(entry)
        flight.phase = Phase.BODY
    limit = entry.max_body_bytes
    if headers.get(b"content-type") != b"application/json" or b"ce-specversion" in headers:
        codec = around(codec, request, serving.events)
        if codec.protocol == "v2" and request.has(b"inference-header-content-length"):
            check_length(request.get(b"inference-header-content-length"), limit)  # of its JSON
            limit = entry.max_binary_bytes
    plan = entry.plans[target.hook]
    if plan.streams and not plan.wants_response_headers:
        _check_acceptable(codec, request, named)
    body = await read_body(request.receive, limit, request.get(b"content-length"))
    if b"content-encoding" in headers:
        body = uncompressed(body, request.get(b"content-encoding"), limit)
    flight.receive = request.receive
    if flight.watched:
        flight.watch()
    while entry.is_retired:  # replaced, or taken out, while the body came
        entry = serving.registry.get(named.model, named.version)
        reply.series = entry.series
        await serving.usable(entry)
        plan = entry.plans[target.hook]
    payload = codec.decode(body, request, named)
    del body  # it may be large, and the answer may take long
    if not serving.admission.enter_nowait(entry.gate):
        flight.enter(Phase.QUEUE)
        await serving.admission.enter(entry.gate)
    reply.admitted = True
    flight.phase = _FIRST
    flight.since = monotonic()
    own = HookHeaders(raw=[]) if plan.wants_response_headers else None
    given = HookHeaders.of(request.scope, request.id) if plan.wants_headers else None
    call = Call(entry.name, serving.workers, given, own, request_id=request.id)
    decoded = Decoded(entry, codec, request, payload, named)
    return respond(serving, decoded, call, infer(plan, payload, call, codec.check), reply)


class Decoded(NamedTuple):
    """A request whose payload is known, and what it was decoded by."""

    entry: Entry
    codec: Codec
    request: Request
    payload: Any
    named: Named


async def respond(
    serving: Serving, decoded: Decoded, call: Call, steps: Coroutine[Any, Any, Any], reply: Reply
) -> None:
    """Run the hooks of a request that was let in and write what comes of them.

    Then close what they have opened, and let the next one in.
    """
    entry, codec, request, payload, named = decoded
    own = call.response_headers
    reply.seconds = call.seconds
    try:
        result = await steps
        del steps, decoded  # what is held here, a stream holds for its life
        if call.is_stream(result) or codec.always_streams:
            items = result if call.is_stream(result) else _one(result)
            form = codec.form(request, payload, own, named)
            streaming = entry.streaming
            if call.coalesces:
                streaming = streaming._replace(coalesce=True)
            await Stream(reply, form, streaming).send(items)
        else:
            await reply.document(200, *codec.encode(result, request, payload, own, named))
    finally:
        try:
            if not call.is_finished:
                reply.flight.begin_clean_up()
                await call.finish()
        finally:
            serving.admission.leave(entry.gate)


async def _one(value: Any) -> AsyncIterator[Any]:
    """Make a value a stream of one."""
    yield value


def _check_acceptable(codec: Codec, request: Request, named: Named) -> None:
    """Refuse, before any hook runs, what no stream could be sent as. Raises NotAcceptable."""
    if request.headers.get(b"accept", b"*/*") != b"*/*":
        codec.form(request, None, None, named).encoder(None, empty=True)
