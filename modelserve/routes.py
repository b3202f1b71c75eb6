"""The route table, written by hand: from a method and a path to an endpoint. Pure.

What a path means is remembered, so that a known path costs one look-up in a dictionary.
"""

from collections.abc import Mapping
from typing import Any, Final

from modelserve import endpoints
from modelserve.endpoints import Endpoint, Target
from modelserve.models.registry import Registry
from modelserve.protocols import generate, v1, v2
from modelserve.protocols.codec import Named
from modelserve.wire.head import Scope
from modelserve.wire.paths import segments_below

__all__ = ["Routes"]

_REMEMBERED: Final = 4096


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
    """From a path to what it means.

    Args:
        registry: The models that there are; of others nothing is remembered.
        prefix: The path below which the application is mounted, for hosts that do not say.
    """

    def __init__(self, registry: Registry, *, prefix: str = "") -> None:
        self._registry = registry
        self._prefix = prefix.rstrip("/")
        self._known: dict[Any, Target] = {}

    def find(self, scope: Scope) -> Target | None:
        """Return what a path means; None where it means nothing."""
        key = path = scope.get("raw_path") or scope["path"]
        root = scope.get("root_path")
        if root:
            key = (path, root, scope.get("app_root_path"))
        target = self._known.get(key)
        if target is None:
            target = _target(segments_below(scope, self._prefix))
            if target is not None and self._lasts(target):
                self._remember(key, target)
        return target

    def _lasts(self, target: Target) -> bool:
        return not target.named.model or target.named.model in self._registry

    def _remember(self, key: Any, target: Target) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = target


def _target(segments: list[str]) -> Target | None:
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
    return None


def _v1_target(name: str) -> Target | None:
    model, colon, verb = name.rpartition(":")
    if not colon:
        return Target(_MODEL, Named(name), public=True)
    if verb in ("predict", "explain"):
        return Target(_RUN, Named(model), verb, v1.CODEC, verb, is_quick=True)
    return None


def _v2_target(segments: list[str]) -> Target | None:
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
    return None


def _v2_model_target(named: Named, action: list[str]) -> Target | None:
    match action:
        case []:
            return Target(_METADATA, named)
        case ["ready"]:
            return Target(_MODEL, named, public=True)
        case [verb] if verb in _V2_CODECS:
            return Target(_RUN, named, verb, _V2_CODECS[verb])
    return None
