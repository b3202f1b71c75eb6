"""The interface of model servers to the process that serves them, and how it finds them."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

from modelserve.limits import Limits

__all__ = ["Drainable", "find_drainables"]


class _Threads(Protocol):
    @property
    def running(self) -> Sequence[str]:
        """The labels of the calls that threads are running."""


@runtime_checkable
class Drainable(Protocol):
    """The `serving` of a model server: what its requests share, and how to drain them."""

    @property
    def has_playground(self) -> bool:
        """Whether there is a page for people at `/playground`."""

    @property
    def limits(self) -> Limits:
        """The limits, defaults filled in."""

    @property
    def max_binary_bytes(self) -> float:
        """The most bytes that a body of tensors may have."""

    @property
    def flights(self) -> Sized:
        """The requests that are running."""

    @property
    def workers(self) -> _Threads:
        """The worker threads."""

    def loads(self) -> Mapping[str, str]:
        """Return READY, LOADING or UNAVAILABLE for each model by name; UNAVAILABLE has failed."""

    def announce_stop(self) -> None:
        """Fail readiness probes; keep serving requests."""

    def refuse_new(self) -> None:
        """Refuse queued requests, and new ones from now on."""

    async def drain(self) -> None:
        """Wait until no request is running; after `drain_timeout`, cancel those that are left."""

    def cut_short(self) -> None:
        """Cancel now those that a drain still waits for."""


def find_drainables(app: Any, *, mounted: bool = True) -> list[Drainable]:
    """Find the model servers in an application: itself, mounted in routes, or wrapped.

    Looks into the attributes `app` (of middleware and Starlette's `Mount`) and `routes`; unless
    `mounted`, not into those that are mounted below a path.
    """
    found: list[Drainable] = []
    seen: dict[int, Any] = {}
    unseen = [app]
    while unseen:
        part = unseen.pop()
        if part is None or id(part) in seen:
            continue
        seen[id(part)] = part
        serving = getattr(part, "serving", None)
        if isinstance(serving, Drainable):
            found.append(serving)
            continue
        unseen.append(getattr(part, "app", None))
        routes = getattr(part, "routes", None) if mounted else None
        unseen += routes if isinstance(routes, list | tuple) else ()
    return found
