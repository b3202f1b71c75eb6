"""The table of routes, and the look-up in it: from a path to its target. Pure.

Everything that depends on the paths is made from the table: the look-up, `Allow`, and the
description of the API. An application may add aliases: paths with the target of a built-in one.
Targets are remembered, so that a known path costs one look-up in a dictionary; those of long paths
are not, so that requests of strangers take a few MiB at most.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from time import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from modelserve import endpoints
from modelserve.endpoints import NO_CODEC, NO_MODEL, Endpoint, Open, Target
from modelserve.grpc import methods
from modelserve.grpc.opening import open_call
from modelserve.grpc.streams import stream_infer
from modelserve.models.registry import Registry
from modelserve.pages.openapi import openapi
from modelserve.protocols.codec import Codec, ModelRef
from modelserve.protocols.generate import GENERATE, GENERATE_STREAM
from modelserve.protocols.grpc import GRPC, GRPC_INFER
from modelserve.protocols.openai import ChatCodec, EmbeddingsCodec, OpenAICodec, TextCodec
from modelserve.protocols.v1 import V1
from modelserve.protocols.v2 import INFER, INFER_STREAM
from modelserve.wire.grpc import HEALTH, SERVICE
from modelserve.wire.head import Scope
from modelserve.wire.paths import base_of, segments_below, segments_of

__all__ = ["NOT_FOUND", "ROUTES", "Route", "Routes", "is_built_in", "match", "path_of"]

_REMEMBERED: Final = 4096
# Clients choose paths, so their size is limited. The target of a longer path is looked up each
# time.
_LONGEST: Final = 256

_V1_VERSION: Final = "/v1/models/{model}/versions/{version}"

NOT_FOUND: Final = Target({})
_CHAT: Final = ChatCodec(clock=time)
_TEXT: Final = TextCodec(clock=time)
_EMBEDDINGS: Final = EmbeddingsCodec()
_OPENAI: Final = OpenAICodec()  # for unknown paths: it only writes errors
_OPENAI_NOT_FOUND: Final = Target({}, codec=_OPENAI)
_GRPC_SERVICES: Final = frozenset((SERVICE.strip("/"), HEALTH.strip("/")))
_GRPC_NOT_FOUND: Final = Target({}, codec=GRPC, opens=open_call)
# OpenAI's paths below /v1: its clients can read a 404 only in their own form.
_OPENAI_NAMES: Final = frozenset(
    [
        "assistants",
        "audio",
        "batches",
        "chat",
        "completions",
        "containers",
        "conversations",
        "embeddings",
        "evals",
        "files",
        "fine_tuning",
        "images",
        "moderations",
        "realtime",
        "rerank",
        "responses",
        "threads",
        "uploads",
        "vector_stores",
        "videos",
    ]
)


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    Attributes:
        method: HEAD goes with GET.
        path: A template; a segment is literal, `{model}`, `{version}`, or one of these and `:verb`.
        endpoint: Answers the request; None if a model does.
        codec, verb, hook, always, public, opens: As for `endpoints.Target`.
        ref: The model of a path without parameters.
        means: The built-in path of an alias.
    """

    method: str
    path: str
    endpoint: Endpoint | None
    codec: Codec = NO_CODEC
    verb: str = ""
    hook: str = "predict"
    always: bool = False
    public: bool = False
    ref: ModelRef = NO_MODEL
    means: str = ""
    opens: Open | None = None


def _model(path: str, codec: Codec, verb: str, hook: str = "predict") -> Route:
    return Route("POST", path, None, codec, verb, hook)


def _v2_model(path: str) -> Iterable[Route]:
    yield Route("GET", path, endpoints.metadata)
    yield Route("GET", f"{path}/ready", endpoints.model, public=True)
    yield Route("GET", f"{path}/config", endpoints.config)
    yield Route("GET", f"{path}/stats", endpoints.statistics)
    yield _model(f"{path}/infer", INFER, "infer")
    yield _model(f"{path}/infer_stream", INFER_STREAM, "infer_stream")
    yield _model(f"{path}/generate", GENERATE, "generate")
    yield _model(f"{path}/generate_stream", GENERATE_STREAM, "generate_stream")


def _openai(path: str) -> Iterable[Route]:
    yield Route("POST", f"{path}/chat/completions", None, _CHAT, "chat", "chat")
    yield Route("POST", f"{path}/completions", None, _TEXT, "completions", "complete")
    yield Route("POST", f"{path}/embeddings", None, _EMBEDDINGS, "embeddings", "embed")


def _grpc() -> Iterable[Route]:
    for name, endpoint in methods.PUBLIC.items():
        yield Route("POST", name, endpoint, GRPC, always=True, public=True, opens=open_call)
    for name, endpoint in methods.OTHERS.items():
        yield Route("POST", name, endpoint, GRPC, opens=open_call)
    yield Route("POST", f"{SERVICE}/ModelStreamInfer", stream_infer, GRPC, opens=open_call)
    yield Route("POST", f"{SERVICE}/ModelInfer", None, GRPC_INFER, "infer", opens=open_call)


ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/", endpoints.alive, always=True, public=True),
    Route("GET", "/metrics", endpoints.metrics, always=True),
    Route("GET", "/openapi.json", openapi),
    Route("GET", "/v1/models", endpoints.v1_models),
    Route("GET", "/v1/models/{model}", endpoints.v1_model, public=True),
    _model("/v1/models/{model}:predict", V1, "predict"),
    _model("/v1/models/{model}:explain", V1, "explain", "explain"),
    *_openai("/v1"),
    *_openai("/openai/v1"),
    Route("GET", "/openai/v1/models", endpoints.openai_models, _OPENAI),
    Route("GET", "/openai/v1/models/{model}", endpoints.openai_model, _OPENAI),
    Route("GET", "/v1/models/{model}/metadata", endpoints.signature),
    Route("GET", _V1_VERSION, endpoints.version_status, public=True),
    Route("GET", f"{_V1_VERSION}/metadata", endpoints.signature),
    _model(f"{_V1_VERSION}:predict", V1, "predict"),
    _model(f"{_V1_VERSION}:explain", V1, "explain", "explain"),
    Route("GET", "/v2", endpoints.server),
    Route("GET", "/v2/health/live", endpoints.live, always=True, public=True),
    Route("GET", "/v2/health/ready", endpoints.ready, public=True),
    Route("GET", "/v2/models", endpoints.models),
    Route("GET", "/v2/models/stats", endpoints.all_statistics),
    *_v2_model("/v2/models/{model}"),
    *_v2_model("/v2/models/{model}/versions/{version}"),
    Route("POST", "/v2/repository/index", endpoints.index),
    Route("POST", "/v2/repository/models/{model}/load", endpoints.load),
    Route("POST", "/v2/repository/models/{model}/unload", endpoints.unload),
    *_grpc(),
)


class Routes:
    """Finds the target of a path.

    Args:
        registry: The known models; paths of other models are not remembered.
        prefix: The path below which the application is mounted, for hosts that do not report it.
    """

    def __init__(self, registry: Registry, *, prefix: str = "") -> None:
        self._registry = registry
        self._prefix = prefix.rstrip("/")
        if self._prefix and not prefix.startswith("/"):
            raise ValueError(f"The prefix {prefix!r} must begin with '/'")
        self._aliases: dict[tuple[str, ...], _Alias] = {}
        self._pages: dict[tuple[str, ...], Target] = {}
        # By the host's encoded path; the decoded form is compared.
        self._known: dict[Any, tuple[str, Target]] = {}

    def __len__(self) -> int:
        """Return how many paths are remembered."""
        return len(self._known)

    @property
    def rows(self) -> list[Route]:
        """The table: the built-in paths, then the application's own."""
        return [*ROUTES, *(row for alias in self._aliases.values() for row in alias.rows())]

    @property
    def aliases(self) -> dict[str, str]:
        """The application's aliases, each with its built-in path, as they were given."""
        return {alias.path: alias.means for alias in self._aliases.values()}

    def base_of(self, scope: Scope) -> str:
        """Return the encoded path of the mount that a request was sent to."""
        return base_of(scope, self._prefix)

    def add_alias(self, path: str, means: str) -> None:
        """Add an alias of a built-in path; if that takes POST, the alias takes PUT as well.

        Both are written as in a URL, without a query, so `%20` is a blank. The model of the path
        may be registered later. Raises ValueError for a path that is built in or has another
        meaning already, and for an invalid path.
        """
        segments = _segments_given(path)
        if is_built_in(path):
            raise ValueError(f"The path {path!r} is built in and cannot be given another meaning")
        target = match(_segments_given(means))
        if not target.endpoints:
            raise ValueError(f"The path {path!r} cannot mean {means!r}, which is no built-in path")
        alias = _Alias(path, means, _with_put(target))
        known = self._aliases.setdefault(tuple(segments), alias)
        if known.target != alias.target:
            raise ValueError(f"The path {path!r} means {known.means!r} already, not {means!r}")

    def show(self, pages: Mapping[str, Target]) -> None:
        """Show pages for people at these paths, in place of built-in targets; aliases stay.

        They replace the pages shown before.
        """
        self._pages = {tuple(_segments_given(path)): page for path, page in pages.items()}
        self._known.clear()

    def find(self, scope: Scope) -> Target:
        """Return the target of a path; NOT_FOUND for an unknown one."""
        try:
            path = scope["path"]
            key = scope["raw_path"] or path
            if scope["root_path"]:
                key = _mounted(key, scope)
            said, target = self._known[key]
        except KeyError:  # the path is not remembered, or the scope lacks a key
            return self._look_up(scope)
        return target if said == path else self._look_up(scope)

    def _look_up(self, scope: Scope) -> Target:
        """Return the target of a path that is not remembered with this `raw_path` and `path`.

        Middleware may have rewritten the path differently before.
        """
        path = scope["path"]
        key = _mounted(scope.get("raw_path") or path, scope)
        said, target = self._known.get(key, (path, None))
        if said != path:
            key = (key, path)
            said, target = self._known.get(key, (path, None))
        if target is None:
            target = self._meaning(scope)
            raw_path, root = scope.get("raw_path") or path, scope.get("root_path") or ""
            if self._may_remember(target, max(len(raw_path), len(path)) + len(root)):
                self._remember(key, path, target)
        return target

    def _meaning(self, scope: Scope) -> Target:
        segments = segments_below(scope, self._prefix)
        target = match(segments)
        if target.endpoints and not self._pages:
            return target
        key = tuple(segments or [""])
        alias = self._aliases.get(key)
        return self._pages.get(key, target) if alias is None else alias.target

    def _may_remember(self, target: Target, size: int) -> bool:
        if not target.endpoints or size > _LONGEST:
            return False
        return not target.ref.name or target.ref.name in self._registry

    def _remember(self, key: Any, path: str, target: Target) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = (path, target)


def path_of(name: str, verb: str) -> str:
    """Return the built-in path of a verb of a model. Raises ValueError for one without a path."""
    paths = {
        "predict": f"/v1/models/{quote(name, safe='')}:predict",
        "explain": f"/v1/models/{quote(name, safe='')}:explain",
        "chat": "/openai/v1/chat/completions",
        "complete": "/openai/v1/completions",
        "embed": "/openai/v1/embeddings",
    }
    if verb not in paths:
        raise ValueError(f"The verb {verb!r} has no path: there are {', '.join(paths)}")
    return paths[verb]


def _mounted(key: Any, scope: Scope) -> Any:
    """Return the key by which a path below a mount is remembered."""
    root = scope.get("root_path")
    return (key, root, scope.get("app_root_path")) if root else key


class _Alias(NamedTuple):
    """An alias of the application, and its target."""

    path: str
    means: str
    target: Target

    def rows(self) -> list[Route]:
        target = self.target
        row = Route(
            "",
            self.path,
            None,
            target.codec,
            target.verb,
            target.hook,
            target.always,
            target.public,
            target.ref,
            self.means,
            target.opens,
        )
        methods = ((m, e) for m, e in target.endpoints.items() if m != "HEAD")
        return [replace(row, method=method, endpoint=endpoint) for method, endpoint in methods]


def _with_put(target: Target) -> Target:
    """Return a target that takes PUT as it takes POST."""
    methods = target.endpoints
    if "POST" not in methods:
        return target
    return replace(target, endpoints={**methods, "PUT": methods["POST"]})


def _segments_given(path: str) -> list[str]:
    """Return the segments of a path from a program or a user. Raises ValueError."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(f"The path {path!r} must be text that begins with '/'")
    if any(character in path for character in "{}?#"):
        raise ValueError(f"The path {path!r} may not have parameters, a query or a fragment")
    return segments_of(path.encode("utf-8", "surrogateescape"))


def match(segments: list[str]) -> Target:
    """Return the target of a path, by its decoded segments; NOT_FOUND for an unknown one."""
    segments = segments or [""]  # a mount's path without a slash
    for template, target in _TARGETS.get(len(segments), ()):
        found = template.match(segments)
        if found is not None:
            return target if not found else _with_ref(target, found)
    if segments[0] in _GRPC_SERVICES:
        return _GRPC_NOT_FOUND
    return _OPENAI_NOT_FOUND if _is_openai(segments) else NOT_FOUND


def _is_openai(segments: list[str]) -> bool:
    if segments[0] == "v1":
        return len(segments) > 1 and segments[1] in _OPENAI_NAMES
    return segments[:2] == ["openai", "v1"]


def is_built_in(path: str) -> bool:
    """Return whether a path, written as in a URL, is in the table. Raises ValueError."""
    return bool(match(_segments_given(path)).endpoints)


def _with_ref(target: Target, found: Mapping[str, str]) -> Target:
    ref = ModelRef(found["model"], found.get("version"))
    return replace(target, ref=ref)


class _Segment(NamedTuple):
    """One segment of a template: a literal, or a parameter that ends with `suffix`.

    `lacks_colon` is true if the table also has this parameter with a suffix: then a colon begins a
    verb.
    """

    literal: str = ""
    parameter: str = ""
    suffix: str = ""
    lacks_colon: bool = False

    def match(self, text: str) -> str | None:
        """Return the parameter's value, "" for a literal; None if the text does not match."""
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
    """Collect the methods of each path, by the number of its segments."""
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
            opens=row.opens,
        )
        template = _compiled(path, by_path)
        found.setdefault(len(template.segments), []).append((template, target))
    return found


_TARGETS: Final = _targets(ROUTES)
