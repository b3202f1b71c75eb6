"""The route table, written by hand, and the one walk that every request takes.

What a path means is remembered, so that a known path costs one look-up in a dictionary.
"""

import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from modelserve import endpoints, generate, v1, v2
from modelserve.endpoints import Endpoint, Target, Walk
from modelserve.errors import (
    MethodNotAllowed,
    ResponseCut,
    RouteNotFound,
    ServerShuttingDown,
    ServingError,
    Stopped,
    Unauthorized,
)
from modelserve.lifetime import Deadlines, Receive
from modelserve.paths import segments_below
from modelserve.protocols import Named
from modelserve.requests import Request, Scope
from modelserve.responses import Reply, Send
from modelserve.serving import Serving

__all__ = ["Routes"]

logger = logging.getLogger("modelserve")

_REMEMBERED: Final = 4096
_NO_DEADLINES: Final = Deadlines()


def _get(endpoint: Endpoint) -> Mapping[str, Endpoint]:
    return {"GET": endpoint, "HEAD": endpoint}


_ALIVE: Final = Target(_get(endpoints.alive), always=True, public=True)
_LIVE: Final = Target(_get(endpoints.live), always=True, public=True)
_READY: Final = Target(_get(endpoints.ready), public=True)
_METRICS: Final = Target(_get(endpoints.metrics), always=True)
_MODELS: Final = Target(_get(endpoints.models))
_SERVER: Final = Target(_get(endpoints.server))
_INDEX: Final = Target({"POST": endpoints.index})
_MODEL: Final = _get(endpoints.model)
_METADATA: Final = _get(endpoints.metadata)
_LOAD: Final = {"POST": endpoints.load}
_UNLOAD: Final = {"POST": endpoints.unload}
_RUN: Final = {"POST": endpoints.run_model}
_V2_CODECS: Final = {
    "infer": v2.INFER,
    "infer_stream": v2.INFER_STREAM,
    "generate": generate.GENERATE,
    "generate_stream": generate.GENERATE_STREAM,
}


class Routes:
    """From a path to an endpoint, and through it."""

    def __init__(self, serving: Serving, *, prefix: str = "") -> None:
        self.serving = serving
        self.prefix = prefix.rstrip("/")
        self._known: dict[Any, Target] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raise ResponseCut where only that can tell a failure."""
        request = Request(scope)
        flight = self.serving.flights.open(_NO_DEADLINES, monotonic())
        reply = Reply(send, flight, request.id, bodiless=scope["method"] == "HEAD")
        flight.farewell = reply.farewell
        walk = Walk(request, receive, reply)
        try:
            await flight.run(self._walk(scope, walk))
        except Stopped as reason:
            if not isinstance(reason.__cause__, ServingError | None):
                number = request.id.decode()
                logger.error("Request %s failed while it ended", number, exc_info=reason)
        finally:
            flight.farewell = None  # a cycle otherwise, which only the collector would find
            if walk.target is not None and walk.target.codec is not None:
                self._record(walk)
        if reply.cut:
            raise ResponseCut("The response was cut short on purpose.") from None

    async def _walk(self, scope: Scope, walk: Walk) -> None:
        """Find the endpoint and go through it; whatever it raises becomes the answer."""
        serving = self.serving
        try:
            if serving.registry.pending:
                serving.load_pending()
            target = walk.target = self.find(scope)
            endpoint = target.methods.get(scope["method"])
            if endpoint is None:
                raise MethodNotAllowed(sorted(target.methods))
            if not (target.public or walk.request.may_pass(serving.token)):
                raise Unauthorized
            if serving.draining and not target.always:
                raise ServerShuttingDown
            await endpoint(serving, walk)
        except BaseException as exc:
            if walk.reply.flight.interrupted(exc):
                raise
            if serving.draining:
                walk.reply.close_connection(scope)
            await walk.reply.fail(exc, debug=serving.debug)

    def _record(self, walk: Walk) -> None:
        """Count a request that has run a model, or would have."""
        reply, target, entry = walk.reply, walk.target, walk.entry
        assert target is not None and target.codec is not None
        arrived = reply.flight.arrived
        series = entry.series if entry is not None else self.serving.telemetry.unknown
        series.record(
            target.codec.protocol,
            target.verb,
            status=reply.status,
            error=reply.flight.reason or reply.error,
            admitted=walk.admitted,
            seconds=monotonic() - arrived,
            stages=walk.seconds,
            items=reply.items,
            first_item=reply.first_item_at - arrived if reply.first_item_at else None,
            request_id=walk.request.id,
        )

    # -- from path to target

    def find(self, scope: Scope) -> Target:
        """Return what a path means. Raises RouteNotFound."""
        path = scope.get("raw_path") or scope["path"]
        key = (path, scope.get("root_path", ""), scope.get("app_root_path", ""))
        target = self._known.get(key)
        if target is None:
            target = _target(segments_below(scope, self.prefix))
            if not target.named.model or target.named.model in self.serving.registry:
                self._remember(key, target)
        return target

    def _remember(self, key: Any, target: Target) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = target


def _target(segments: list[str]) -> Target:
    match segments:
        case [""] | []:
            return _ALIVE
        case ["metrics"]:
            return _METRICS
        case ["v1", "models"]:
            return _MODELS
        case ["v1", "models", name] if name:
            return _v1_target(name)
        case ["v2", *rest]:
            return _v2_target(rest)
    raise RouteNotFound


def _v1_target(name: str) -> Target:
    model, colon, verb = name.rpartition(":")
    if not colon:
        return Target(_MODEL, Named(name), public=True)
    if verb in ("predict", "explain"):
        return Target(_RUN, Named(model), verb, v1.CODEC, verb)
    raise RouteNotFound


def _v2_target(segments: list[str]) -> Target:
    match segments:
        case []:
            return _SERVER
        case ["health", "live"]:
            return _LIVE
        case ["health", "ready"]:
            return _READY
        case ["models"]:
            return _MODELS
        case ["models", name, "versions", version, *action] if name and version:
            return _v2_model_target(Named(name, version), action)
        case ["models", name, *action] if name:
            return _v2_model_target(Named(name), action)
        case ["repository", "index"]:
            return _INDEX
        case ["repository", "models", name, "load"] if name:
            return Target(_LOAD, Named(name))
        case ["repository", "models", name, "unload"] if name:
            return Target(_UNLOAD, Named(name))
    raise RouteNotFound


def _v2_model_target(named: Named, action: list[str]) -> Target:
    match action:
        case []:
            return Target(_METADATA, named)
        case ["ready"]:
            return Target(_MODEL, named, public=True)
        case [verb] if verb in _V2_CODECS:
            return Target(_RUN, named, verb, _V2_CODECS[verb])
    raise RouteNotFound
