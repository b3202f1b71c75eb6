"""What is behind each path: documents about the server and its models, and running a model.

An endpoint is a function of the application's `Serving` and one request's `Walk`. It writes its
answer through the walk's `reply`; what it raises becomes the answer instead.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelserve.cloudevents import around
from modelserve.encoders import to_json
from modelserve.errors import ServerNotReady
from modelserve.inference import Call, infer
from modelserve.lifetime import Phase, Receive
from modelserve.model import Plan
from modelserve.protocols import Codec, Named
from modelserve.registry import Entry
from modelserve.requests import HookHeaders, Request, read_body
from modelserve.responses import JSON, Reply
from modelserve.serving import Serving
from modelserve.streams import Stream, StreamForm
from modelserve.version import __version__

__all__ = ["Endpoint", "Target", "Walk"]

_NO_MODEL: Final = Named("")
_EXTENSIONS: Final = ["model_repository_extension", "binary_tensor_data", "generate"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means.

    `codec` is that of a path that runs a model, `hook` which of its hooks. `always` is for paths
    that are answered during a drain, `public` for those that need no token.
    """

    methods: Mapping[str, "Endpoint"]
    named: Named = _NO_MODEL
    verb: str = ""
    codec: Codec | None = None
    hook: str = "predict"
    always: bool = False
    public: bool = False


@dataclass(slots=True)
class Walk:
    """One request on its way: what each step has found out for those after it."""

    request: Request
    receive: Receive
    reply: Reply
    target: Target | None = None
    entry: Entry | None = None
    admitted: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def named(self) -> Named:
        return self.target.named if self.target is not None else _NO_MODEL


Endpoint = Callable[[Serving, Walk], Awaitable[None]]


# --- documents ----------------------------------------------------------------------------------


async def alive(serving: Serving, walk: Walk) -> None:
    """GET / (KServe's liveness)."""
    await _answer(walk, {"status": "alive"})


async def live(serving: Serving, walk: Walk) -> None:
    """GET /v2/health/live."""
    await _answer(walk, {"live": True})


async def ready(serving: Serving, walk: Walk) -> None:
    """GET /v2/health/ready: not before every model is ready."""
    if not await serving.registry.all_ready():
        raise ServerNotReady
    await _answer(walk, {"ready": True})


async def metrics(serving: Serving, walk: Walk) -> None:
    """GET /metrics, in Prometheus' text format or, by `Accept`, OpenMetrics."""
    content_type, body = await serving.expose(walk.request.accept)
    await walk.reply.document(200, [(b"content-type", content_type)], [body])


async def models(serving: Serving, walk: Walk) -> None:
    """GET /v1/models and /v2/models, in the order of registration."""
    await _answer(walk, {"models": serving.registry.names})


async def model(serving: Serving, walk: Walk) -> None:
    """GET /v1/models/NAME and /v2/models/NAME/ready."""
    entry = serving.registry.get(*walk.named)
    if not await entry.is_ready():
        raise entry.not_ready(debug=serving.debug)
    await _answer(walk, {"name": entry.name, "ready": True})


async def server(serving: Serving, walk: Walk) -> None:
    """GET /v2."""
    about = {"name": "modelserve", "version": __version__, "extensions": _EXTENSIONS}
    await _answer(walk, about)


async def metadata(serving: Serving, walk: Walk) -> None:
    """GET /v2/models/NAME."""
    entry = serving.registry.get(*walk.named)
    await _answer(walk, await serving.registry.metadata(entry))


async def index(serving: Serving, walk: Walk) -> None:
    """POST /v2/repository/index (Triton's)."""
    await _answer(walk, await serving.index())


async def load(serving: Serving, walk: Walk) -> None:
    """POST /v2/repository/models/NAME/load; the body is ignored."""
    await serving.load(walk.named.model)
    await _answer(walk, {"name": walk.named.model, "load": True})


async def unload(serving: Serving, walk: Walk) -> None:
    """POST /v2/repository/models/NAME/unload."""
    await serving.unload(walk.named.model)
    await _answer(walk, {"name": walk.named.model, "unload": True})


async def _answer(walk: Walk, value: Any) -> None:
    await walk.reply.document(200, [JSON], [to_json(value)])


# --- running a model ----------------------------------------------------------------------------


async def run_model(serving: Serving, walk: Walk) -> None:
    """Find the model, read, decode, admit, run, encode, respond."""
    request, target, flight = walk.request, walk.target, walk.reply.flight
    assert target is not None and target.codec is not None
    entry = walk.entry = serving.registry.get(*target.named)
    flight.deadlines = request.deadlines(entry.deadlines)
    flight.phase = Phase.QUEUE  # where the model is still loading
    await serving.usable(entry)
    flight.phase = Phase.BODY
    plan = entry.plans[target.hook]
    codec = around(target.codec, request, serving.events)
    if plan.streams and not plan.wants_response_headers:
        _check_acceptable(codec.form(request, None, None, target.named))
    body = await read_body(walk.receive, entry.max_body_bytes, request.get(b"content-length"))
    flight.watch(walk.receive)
    while entry.is_retired:  # replaced, or taken out, while the body came
        entry = walk.entry = serving.registry.get(*target.named)
        await serving.usable(entry)
        plan = entry.plans[target.hook]
    payload = codec.decode(body, request, target.named)
    admission = serving.admission
    if not admission.enter_nowait(entry.gate):
        flight.enter(Phase.QUEUE)
        await admission.enter(entry.gate)
    try:
        walk.admitted = True
        flight.enter(Phase.FIRST)
        await _run(serving, walk, entry, plan, codec, payload)
    finally:
        admission.leave(entry.gate)


async def _run(
    serving: Serving, walk: Walk, entry: Entry, plan: Plan, codec: Codec, payload: Any
) -> None:
    """Run the hooks and write what comes of them; then close what they have opened."""
    request, reply, named = walk.request, walk.reply, walk.named
    headers = request.headers_for_hooks() if plan.wants_headers else None
    own = HookHeaders(raw=[]) if plan.wants_response_headers else None
    call = Call(entry.name, serving.workers, headers, own)
    walk.seconds = call.seconds
    try:
        result = await infer(plan, payload, call, codec.check)
        if call.streams(result) or codec.always_streams:
            items = result if call.streams(result) else _one(result)
            form = codec.form(request, payload, own, named)
            await Stream(reply, form, entry.streaming).send(items)
        else:
            await reply.document(200, *codec.encode(result, request, payload, own, named))
    finally:
        if not call.has_ended:
            reply.flight.begin_clean_up()
            await call.close()


async def _one(value: Any) -> AsyncIterator[Any]:
    """Make a value a stream of one."""
    yield value


def _check_acceptable(form: StreamForm) -> None:
    """Refuse, before any hook runs, what no stream could be sent as. Raises NotAcceptable."""
    form.encoder(None, empty=True)
