"""The table of routes, and the look-up in it: from a path to what it means. Pure.

Everything that has to know the paths is made from the table: the look-up, `Allow`, and whatever
describes the API. What a path means is remembered, so that a known path costs one look-up in a
dictionary; of long paths it is not, so that what strangers ask for takes a few MiB at most.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any, Final, NamedTuple

from modelserve import endpoints
from modelserve.endpoints import NO_CODEC, Endpoint, Target
from modelserve.models.registry import Registry
from modelserve.protocols.codec import Codec, ModelRef
from modelserve.protocols.generate import GENERATE, GENERATE_STREAM
from modelserve.protocols.openai import ChatCodec, EmbeddingsCodec, OpenAICodec, TextCodec
from modelserve.protocols.v1 import V1
from modelserve.protocols.v2 import INFER, INFER_STREAM
from modelserve.wire.head import Scope
from modelserve.wire.paths import segments_below

__all__ = ["NOT_FOUND", "ROUTES", "Route", "Routes", "match"]

_REMEMBERED: Final = 4096
# A path is the client's: its size counts, and what it means is kept beside it. Of a longer one the
# meaning is found anew each time.
_LONGEST: Final = 256

NOT_FOUND: Final = Target({})
_CHAT: Final = ChatCodec(clock=time)
_TEXT: Final = TextCodec(clock=time)
_EMBEDDINGS: Final = EmbeddingsCodec()
_OPENAI: Final = OpenAICodec()  # of the other paths there: it writes errors alone
_OPENAI_NOT_FOUND: Final = Target({}, codec=_OPENAI)


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    Attributes:
        method: HEAD goes with GET.
        path: A template; a segment is literal, `{model}`, `{version}`, or one of these and `:verb`.
        endpoint: What answers; None for a model.
        codec, verb, hook, always, public: As for `endpoints.Target`.
    """

    method: str
    path: str
    endpoint: Endpoint | None
    codec: Codec = NO_CODEC
    verb: str = ""
    hook: str = "predict"
    always: bool = False
    public: bool = False


def _model(path: str, codec: Codec, verb: str, hook: str = "predict") -> Route:
    return Route("POST", path, None, codec, verb, hook)


def _v2_model(path: str) -> Iterable[Route]:
    yield Route("GET", path, endpoints.metadata)
    yield Route("GET", f"{path}/ready", endpoints.model, public=True)
    yield _model(f"{path}/infer", INFER, "infer")
    yield _model(f"{path}/infer_stream", INFER_STREAM, "infer_stream")
    yield _model(f"{path}/generate", GENERATE, "generate")
    yield _model(f"{path}/generate_stream", GENERATE_STREAM, "generate_stream")


def _openai(path: str) -> Iterable[Route]:
    yield Route("POST", f"{path}/chat/completions", None, _CHAT, "chat", "chat")
    yield Route("POST", f"{path}/completions", None, _TEXT, "completions", "complete")
    yield Route("POST", f"{path}/embeddings", None, _EMBEDDINGS, "embeddings", "embed")


ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/", endpoints.alive, always=True, public=True),
    Route("GET", "/metrics", endpoints.metrics, always=True),
    Route("GET", "/v1/models", endpoints.v1_models),
    Route("GET", "/v1/models/{model}", endpoints.v1_model, public=True),
    _model("/v1/models/{model}:predict", V1, "predict"),
    _model("/v1/models/{model}:explain", V1, "explain", "explain"),
    *_openai("/v1"),
    *_openai("/openai/v1"),
    Route("GET", "/openai/v1/models", endpoints.openai_models, _OPENAI),
    Route("GET", "/openai/v1/models/{model}", endpoints.openai_model, _OPENAI),
    Route("GET", "/v2", endpoints.server),
    Route("GET", "/v2/health/live", endpoints.live, always=True, public=True),
    Route("GET", "/v2/health/ready", endpoints.ready, public=True),
    Route("GET", "/v2/models", endpoints.models),
    *_v2_model("/v2/models/{model}"),
    *_v2_model("/v2/models/{model}/versions/{version}"),
    Route("POST", "/v2/repository/index", endpoints.index),
    Route("POST", "/v2/repository/models/{model}/load", endpoints.load),
    Route("POST", "/v2/repository/models/{model}/unload", endpoints.unload),
)


class Routes:
    """From a path to what it means.

    Args:
        registry: The models that there are; paths of others are not remembered.
        prefix: The path below which the application is mounted, for hosts that do not report it.
    """

    def __init__(self, registry: Registry, *, prefix: str = "") -> None:
        self._registry = registry
        self._prefix = prefix.rstrip("/")
        self._known: dict[Any, Target] = {}

    def __len__(self) -> int:
        """Return how many paths are remembered."""
        return len(self._known)

    def find(self, scope: Scope) -> Target:
        """Return what a path means; NOT_FOUND where it means nothing."""
        key = path = scope.get("raw_path") or scope["path"]
        root = scope.get("root_path")
        if root:
            key = (path, root, scope.get("app_root_path"))
        target = self._known.get(key)
        if target is None:
            target = match(segments_below(scope, self._prefix))
            if self._may_remember(target, len(path) + len(root or "")):
                self._remember(key, target)
        return target

    def _may_remember(self, target: Target, size: int) -> bool:
        if not target.endpoints or size > _LONGEST:
            return False
        return not target.ref.name or target.ref.name in self._registry

    def _remember(self, key: Any, target: Target) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = target


def match(segments: list[str]) -> Target:
    """Return what a path means, by its decoded segments; NOT_FOUND where it means nothing."""
    segments = segments or [""]  # of a mount, without a slash
    for template, target in _TARGETS.get(len(segments), ()):
        found = template.match(segments)
        if found is not None:
            return target if not found else _with_ref(target, found)
    return _OPENAI_NOT_FOUND if segments[:2] == ["openai", "v1"] else NOT_FOUND


def _with_ref(target: Target, found: Mapping[str, str]) -> Target:
    ref = ModelRef(found["model"], found.get("version"))
    return Target(
        target.endpoints, ref, target.codec, target.verb, target.hook, target.always, target.public
    )


class _Segment(NamedTuple):
    """One segment of a template: a literal, or a parameter that ends with `suffix`.

    `lacks_colon` is for a parameter beside which the table has others with a suffix: there a colon
    is what precedes a verb.
    """

    literal: str = ""
    parameter: str = ""
    suffix: str = ""
    lacks_colon: bool = False

    def match(self, text: str) -> str | None:
        """Return the parameter's value, "" for a literal; None where the text does not match."""
        if not self.parameter:
            return "" if text == self.literal else None
        if self.suffix:
            return text.removesuffix(self.suffix) if text.endswith(self.suffix) else None
        return None if not text or (self.lacks_colon and ":" in text) else text


class _Template(NamedTuple):
    segments: tuple[_Segment, ...]

    def match(self, segments: list[str]) -> dict[str, str] | None:
        found: dict[str, str] = {}
        for segment, text in zip(self.segments, segments, strict=True):
            value = segment.match(text)
            if value is None:
                return None
            if segment.parameter:
                found[segment.parameter] = value
        return found


def _compiled(path: str, paths: Iterable[str]) -> _Template:
    has_verbs = any(other.startswith(f"{path}:") for other in paths)
    return _Template(tuple(_segment(text, has_verbs) for text in path.split("/")[1:]))


def _segment(text: str, has_verbs: bool) -> _Segment:
    if not text.startswith("{"):
        return _Segment(literal=text)
    name, _, suffix = text[1:].partition("}")
    return _Segment(parameter=name, suffix=suffix, lacks_colon=has_verbs)


def _targets(routes: Iterable[Route]) -> dict[int, list[tuple[_Template, Target]]]:
    """Put together the methods of each path, by the number of its segments."""
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, []).append(route)
    found: dict[int, list[tuple[_Template, Target]]] = {}
    for path, rows in by_path.items():
        methods = {row.method: row.endpoint for row in rows}
        if "GET" in methods:
            methods["HEAD"] = methods["GET"]
        row = rows[0]
        target = Target(
            methods,
            codec=row.codec,
            verb=row.verb,
            hook=row.hook,
            always=row.always,
            public=row.public,
        )
        template = _compiled(path, by_path)
        found.setdefault(len(template.segments), []).append((template, target))
    return found


_TARGETS: Final = _targets(ROUTES)
