"""The path of a request below the mount of the application, as decoded segments. Pure.

Hosts differ in how they describe a mount: by the whole path and `root_path`, by the path without
its prefix, or not at all. Segments are split before they are decoded, so that `%2F` is no slash.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

__all__ = ["segments_below"]

Scope: TypeAlias = Mapping[str, Any]


def segments_below(scope: Scope, prefix: str) -> list[str]:
    """Return the decoded segments of a path below the mount.

    Args:
        scope: The ASGI scope. Its `raw_path` is preferred, since `path` has lost what was encoded
            and some hosts append a slash to it.
        prefix: The mount, for hosts that do not report it.
    """
    path: str = scope["path"]
    raw_path: bytes = (scope.get("raw_path") or b"").partition(b"?")[0]
    if len(path) > 1 and not raw_path.endswith(b"/"):
        path = path.removesuffix("/")
    if raw_path:
        segments = [_decoded(segment) for segment in raw_path.split(b"/")[1:]]
    else:
        segments = path.split("/")[1:]
    mount = _mount(scope, path, prefix).split("/")[1:]
    if mount and segments[: len(mount)] == mount:
        return segments[len(mount) :]
    return _without_hidden(segments, path)


def _without_hidden(segments: list[str], path: str) -> list[str]:
    """Drop the leading segments of a host that took its prefix off `path` only."""
    whole = "/" + "/".join(segments)
    starts = accumulate((1 + len(segment) for segment in segments), initial=0)
    boundaries = {start: index for index, start in enumerate(starts)}
    for end in (path + "/", path):  # a slash that was encoded may have been dropped above
        # A decoded segment may have slashes: they cannot be counted.
        index = boundaries.get(len(whole) - len(end))
        if index is not None and whole.endswith(end):
            return segments[index:]
    # The host has changed more than that, such as bytes that are not UTF-8.
    return segments[max(len(segments) - path.count("/"), 0) :]


def _decoded(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")


def _mount(scope: Scope, path: str, prefix: str) -> str:
    """Return the part of the path above the application, by the host's report or the prefix."""
    root = scope.get("root_path", "").rstrip("/")
    outer = scope.get("app_root_path", "").rstrip("/")
    for candidate in (root, root.removeprefix(outer), prefix):
        if candidate and (path == candidate or path.startswith(candidate + "/")):
            return str(candidate)
    return ""
