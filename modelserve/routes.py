"""The route table, written by hand, and the one walk that every request takes.

A path is split into segments before they are decoded, so that `%2F` in a model's name is no
slash. What a path means is remembered, so that a known path costs one look-up in a dictionary.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from modelserve import generate, v1, v2
from modelserve.encoders import accepts_any_stream, not_acceptable, to_json
from modelserve.errors import (
    MethodNotAllowed,
    NotAcceptable,
    ResponseCut,
    RouteNotFound,
    ServerNotReady,
    Stopped,
)
from modelserve.inference import Call, infer
from modelserve.lifetime import Deadlines, Phase, Receive
from modelserve.model import Plan
from modelserve.protocols import Codec, Named
from modelserve.registry import Entry
from modelserve.requests import HookHeaders, Request, Scope, read_body
from modelserve.responses import JSON, Reply, Send
from modelserve.serving import Serving
from modelserve.version import __version__

__all__ = ["Routes"]

logger = logging.getLogger("modelserve")

_REMEMBERED: Final = 4096
_NO_DEADLINES: Final = Deadlines()
_V2_CODECS: Final = {
    "infer": v2.INFER,
    "infer_stream": v2.INFER_STREAM,
    "generate": generate.GENERATE,
    "generate_stream": generate.GENERATE_STREAM,
}
_EXTENSIONS: Final = ["model_repository_extension", "binary_tensor_data", "generate"]


_NO_MODEL: Final = Named("")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means: an endpoint a method, and the model that it names."""

    methods: Mapping[str, "Endpoint"]
    named: Named = _NO_MODEL
    verb: str = ""
    codec: Codec = v1.CODEC
    hook: str = "predict"


Endpoint = Callable[["Walk"], Awaitable[None]]


@dataclass(slots=True)
class Walk:
    """One request on its way: what each step needs of the steps before."""

    request: Request
    target: Target
    receive: Receive
    reply: Reply


class Routes:
    """From a path to an endpoint, and through it."""

    def __init__(self, serving: Serving, *, prefix: str = "") -> None:
        self.serving = serving
        self.prefix = prefix.rstrip("/")
        self._known: dict[Any, Target] = {}
        self._root = _get(self.alive)
        self._live = _get(self.live)
        self._ready = _get(self.ready)
        self._models = _get(self.models)
        self._model = _get(self.model)
        self._server = _get(self.server)
        self._metadata = _get(self.metadata)
        self._index = {"POST": self.index}
        self._load = {"POST": self.load}
        self._unload = {"POST": self.unload}
        self._infer = {"POST": self.infer}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raise ResponseCut where only that can tell a failure."""
        arrived = monotonic()
        request = Request(scope)
        flight = self.serving.flights.open(_NO_DEADLINES, arrived)
        extra = [(b"x-request-id", request.id)]
        reply = Reply(send, flight, extra, bodiless=scope["method"] == "HEAD")
        flight.farewell = reply.farewell
        try:
            await flight.run(self._walk(scope, request, receive, reply))
        except Stopped as reason:
            if reason.__cause__ is not None:
                logger.error("Request %s failed while it was ended", request.id, exc_info=reason)
        if reply.cut:
            raise ResponseCut("The response was cut short on purpose.") from None

    async def _walk(self, scope: Scope, request: Request, receive: Receive, reply: Reply) -> None:
        """Find the endpoint and go through it; whatever it raises becomes the answer."""
        try:
            if self.serving.registry.pending:
                self.serving.load_pending()
            target = self.find(scope)
            endpoint = target.methods.get(scope["method"])
            if endpoint is None:
                raise MethodNotAllowed(sorted(target.methods))
            await endpoint(Walk(request, target, receive, reply))
        except BaseException as exc:
            if reply.flight.interrupted(exc):
                raise
            await reply.fail(exc, debug=self.serving.debug, request_id=request.id.decode())

    # -- from path to target

    def find(self, scope: Scope) -> Target:
        """Return what a path means. Raises RouteNotFound."""
        raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
        key = (raw_path, scope.get("root_path", ""), scope.get("app_root_path", ""))
        target = self._known.get(key)
        if target is None:
            target = self._target(_segments(scope, raw_path, self.prefix))
            if not target.named.model or target.named.model in self.serving.registry:
                self._remember(key, target)
        return target

    def _remember(self, key: Any, target: Target) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = target

    def _target(self, segments: list[str]) -> Target:
        match segments:
            case [""] | []:
                return Target(self._root)
            case ["v1", "models"]:
                return Target(self._models)
            case ["v1", "models", name] if name:
                return self._v1_model(name)
            case ["v2", *rest]:
                return self._v2(rest)
        raise RouteNotFound

    def _v1_model(self, name: str) -> Target:
        model, colon, verb = name.rpartition(":")
        if not colon:
            return Target(self._model, Named(name))
        if verb in ("predict", "explain"):
            return Target(self._infer, Named(model), verb, v1.CODEC, verb)
        raise RouteNotFound

    def _v2(self, segments: list[str]) -> Target:
        match segments:
            case []:
                return Target(self._server)
            case ["health", "live"]:
                return Target(self._live)
            case ["health", "ready"]:
                return Target(self._ready)
            case ["models"]:
                return Target(self._models)
            case ["models", name, "versions", version, *action] if name and version:
                return self._v2_model(Named(name, version), action)
            case ["models", name, *action] if name:
                return self._v2_model(Named(name), action)
            case ["repository", "index"]:
                return Target(self._index)
            case ["repository", "models", name, ("load" | "unload") as verb] if name:
                return Target(self._load if verb == "load" else self._unload, Named(name))
        raise RouteNotFound

    def _v2_model(self, named: Named, action: list[str]) -> Target:
        match action:
            case []:
                return Target(self._metadata, named)
            case ["ready"]:
                return Target(self._model, named)
            case [verb] if verb in _V2_CODECS:
                return Target(self._infer, named, verb, _V2_CODECS[verb])
        raise RouteNotFound

    # -- endpoints that answer with a document

    async def alive(self, walk: Walk) -> None:
        await _answer(walk, {"status": "alive"})

    async def live(self, walk: Walk) -> None:
        await _answer(walk, {"live": True})

    async def ready(self, walk: Walk) -> None:
        if self.serving.draining:
            raise ServerNotReady("It is shutting down.")
        if not await self.serving.registry.all_ready():
            raise ServerNotReady
        await _answer(walk, {"ready": True})

    async def models(self, walk: Walk) -> None:
        await _answer(walk, {"models": self.serving.registry.names})

    async def model(self, walk: Walk) -> None:
        entry = self.serving.registry.get(*walk.target.named)
        if self.serving.draining or not await entry.is_ready():
            raise entry.not_ready(debug=self.serving.debug)
        await _answer(walk, {"name": entry.name, "ready": True})

    async def server(self, walk: Walk) -> None:
        about = {"name": "modelserve", "version": __version__, "extensions": _EXTENSIONS}
        await _answer(walk, about)

    async def metadata(self, walk: Walk) -> None:
        entry = self.serving.registry.get(*walk.target.named)
        await _answer(walk, await self.serving.registry.metadata(entry))

    async def index(self, walk: Walk) -> None:
        await _answer(walk, self.serving.registry.index())

    async def load(self, walk: Walk) -> None:
        name = walk.target.named.model
        await self.serving.load(name)
        await _answer(walk, {"name": name, "load": True})

    async def unload(self, walk: Walk) -> None:
        name = walk.target.named.model
        await self.serving.unload(name)
        await _answer(walk, {"name": name, "unload": True})

    # -- the endpoint that runs a model

    async def infer(self, walk: Walk) -> None:
        """Read, decode, admit, run, encode, respond."""
        request, target, flight = walk.request, walk.target, walk.reply.flight
        entry = self.serving.registry.get(*target.named)
        flight.deadlines = request.deadlines(entry.deadlines)
        await self.serving.usable(entry)
        plan = entry.plans[target.hook]
        if plan.streams and target.codec.chosen_by_accept and not plan.wants_response_headers:
            _check_acceptable(request)
        body = await read_body(walk.receive, entry.max_body_bytes, request.get(b"content-length"))
        flight.watch(walk.receive)
        payload = target.codec.decode(body, request, target.named)
        admission = self.serving.admission
        if not admission.enter_nowait(entry.gate):
            flight.enter(Phase.QUEUE)
            await admission.enter(entry.gate)
        try:
            flight.enter(Phase.FIRST)
            await self._run(walk, entry, plan, payload)
        finally:
            admission.leave(entry.gate)

    async def _run(self, walk: Walk, entry: Entry, plan: Plan, payload: Any) -> None:
        request, codec, named = walk.request, walk.target.codec, walk.target.named
        headers = request.headers_for_hooks() if plan.wants_headers else None
        own = HookHeaders(raw=[]) if plan.wants_response_headers else None
        call = Call(entry.name, self.serving.workers, headers, own)
        try:
            result = await infer(plan, payload, call, codec.check)
            if call.streams(result) or codec.always_streams:
                items = result if call.streams(result) else _one(result)
                form = codec.form(request, payload, own, named)
                await walk.reply.stream(items, form, collect_bytes=self.serving.collect_bytes)
            else:
                await walk.reply.document(200, *codec.encode(result, request, payload, own, named))
        finally:
            walk.reply.flight.begin_clean_up()
            await call.close()


async def _one(value: Any) -> AsyncIterator[Any]:
    """Make a value a stream of one."""
    yield value


def _check_acceptable(request: Request) -> None:
    """Refuse, before any hook runs, what no stream could be sent as. Raises NotAcceptable."""
    if not accepts_any_stream(request.accept):
        raise NotAcceptable(not_acceptable())


async def _answer(walk: Walk, value: Any) -> None:
    await walk.reply.document(200, [JSON], [to_json(value)])


def _get(endpoint: Endpoint) -> Mapping[str, Endpoint]:
    return {"GET": endpoint, "HEAD": endpoint}


# --- paths --------------------------------------------------------------------------------------


def _segments(scope: Scope, raw_path: bytes, prefix: str) -> list[str]:
    """Return the decoded segments of a path below where we are mounted.

    Raises RouteNotFound for a path outside it.
    """
    raw = raw_path.partition(b"?")[0].split(b"/")[1:]
    if "raw_path" not in scope or not raw_path.endswith(b"/"):
        path = scope["path"].removesuffix("/") if scope["path"] != "/" else "/"
    else:
        path = scope["path"]
    segments = [unquote_to_bytes(segment).decode("utf-8", "replace") for segment in raw]
    mount = _mount(scope, path, prefix)
    inside = mount.split("/")[1:]
    if segments[: len(inside)] == inside:
        return segments[len(inside) :]
    hidden = len(segments) - (len(path.split("/")) - 1)
    return segments[max(hidden, 0) :]  # a host that took its prefix off `path` alone


def _mount(scope: Scope, path: str, prefix: str) -> str:
    """Return the part of the path that leads to us: what the host says, else what we were told."""
    root = scope.get("root_path", "").rstrip("/")
    outer = scope.get("app_root_path", "").rstrip("/")
    for candidate in (root, root.removeprefix(outer), prefix):
        if candidate and (path == candidate or path.startswith(candidate + "/")):
            return str(candidate)
    return ""
