"""The path of a request below the mount of the application, as decoded segments. Pure.

Hosts differ in how they describe a mount: by the whole path and `root_path`, by the path without
its prefix, or not at all. Segments are split before they are decoded, so that `%2F` is no slash.
Middleware may rewrite `path` and not `raw_path`: then `path` counts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote_to_bytes

__all__ = ["base_of", "segments_below", "segments_of"]

Scope: TypeAlias = Mapping[str, Any]


def segments_of(raw_path: bytes) -> list[str]:
    """Return the decoded segments of an encoded path without a query."""
    return [_decoded(segment) for segment in raw_path.split(b"/")[1:]]


def segments_below(scope: Scope, prefix: str) -> list[str]:
    """Return the decoded segments of a path below the mount.

    Args:
        scope: The ASGI scope. Its `raw_path` is preferred if it agrees with `path`, since `path`
            does not show encoded slashes, and some hosts append a slash to it.
        prefix: The mount, for hosts that do not report it.
    """
    path: str = scope["path"]
    raw_path: bytes = (scope.get("raw_path") or b"").partition(b"?")[0]
    if len(path) > 1 and not raw_path.endswith(b"/"):
        path = path.removesuffix("/")
    mount = _mount(scope, path, prefix).split("/")[1:]
    if not raw_path:
        return _without(mount, path.split("/")[1:])
    hidden = _hidden(raw_path, (path, scope["path"]))  # the slash may have been encoded
    if hidden is None:  # rewritten: then a slash at its end was not added by the host
        return _without(mount, scope["path"].split("/")[1:])
    segments = segments_of(raw_path)
    if mount and segments[: len(mount)] == mount:
        return segments[len(mount) :]
    return _without(mount, segments[hidden:])


def base_of(scope: Scope, prefix: str) -> str:
    """Return the path below which a client finds the application, encoded; empty at the root.

    It is in the path of the request or, if the host or a proxy has removed it, in `root_path`.
    """
    path = scope["path"].split("/")[1:]
    below = segments_below(scope, prefix)
    count = len(path) - len(below)
    mount = "".join(f"/{segment}" for segment in path[: max(count, 0)])
    root = scope.get("root_path", "").rstrip("/")
    if mount == root or mount.startswith(root + "/") or not root:
        base = mount
    else:
        base = root if root.endswith(mount) else root + mount
    return quote(base)


def _without(mount: list[str], segments: list[str]) -> list[str]:
    return segments[len(mount) :] if segments[: len(mount)] == mount else segments


def _hidden(raw_path: bytes, paths: tuple[str, str]) -> int | None:
    """Return how many leading segments of `raw_path` a path lacks; None if the two disagree.

    A host that mounts an application may remove its prefix from `path` only.
    """
    parts = raw_path.split(b"/")[1:]
    for decode in _DECODINGS:
        segments = [decode(part) for part in parts]
        whole = "/" + "/".join(segments)
        for said in paths:
            if whole.endswith(said):
                count = _segments_in(segments, len(whole) - len(said))
                if count is not None:
                    return count
    return None


def _segments_in(segments: list[str], length: int) -> int | None:
    """Return how many leading segments have this length, each with its slash; None if none have.

    Slashes cannot be counted instead: a decoded segment may contain some.
    """
    for count, segment in enumerate(segments):
        if length <= 0:
            return count if length == 0 else None
        length -= 1 + len(segment)
    return len(segments) if length == 0 else None


def _decoded(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")


# The ways in which hosts decode `path`. The last one leaves it encoded.
_DECODINGS: Final[tuple[Callable[[bytes], str], ...]] = (
    _decoded,
    lambda segment: unquote_to_bytes(segment).decode("utf-8", "surrogateescape"),
    lambda segment: unquote_to_bytes(segment).decode("latin-1"),
    lambda segment: segment.decode("latin-1"),
)


def _mount(scope: Scope, path: str, prefix: str) -> str:
    """Return the part of the path above the application, from the scope or the prefix."""
    root = scope.get("root_path", "").rstrip("/")
    outer = scope.get("app_root_path", "").rstrip("/")
    for candidate in (root, root.removeprefix(outer), prefix):
        if candidate and (path == candidate or path.startswith(candidate + "/")):
            return str(candidate)
    return ""
