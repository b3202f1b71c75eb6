"""Those that watch one status: one of them looks at it, the others wait for what it sees."""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import anyio

from modelserve.concurrency.loops import current_loop

__all__ = ["Seen", "Watch", "watching"]

_SECONDS: Final = 0.1  # between two looks


class Seen(NamedTuple):
    """A status, and whether no other will follow."""

    status: str
    is_last: bool


class Watch:
    """Those that watch one status in one event loop.

    Args:
        look: Returns the status.
    """

    def __init__(self, look: Callable[[], Awaitable[Seen]]) -> None:
        self.watchers = 0
        self._look = look
        self._seen: Seen | None = None
        self._is_looking = False
        self._waiting: dict[anyio.Event, None] = {}

    async def now(self) -> Seen:
        """Return what is there to see now."""
        return self._note(await self._look())

    async def after(self, seen: Seen) -> Seen:
        """Wait for something else than what was seen."""
        while self._seen is None or self._seen == seen:
            if self._is_looking:
                await self._wait()
            else:
                await self._look_for_all()
        return self._seen

    async def _look_for_all(self) -> None:
        self._is_looking = True
        try:
            await anyio.sleep(_SECONDS)
            self._note(await self._look())
        finally:
            self._is_looking = False
            self._wake(1)  # who looks from now on: this one may be gone, or stuck

    async def _wait(self) -> None:
        event = anyio.Event()
        self._waiting[event] = None
        try:
            await event.wait()
        except BaseException:
            if event not in self._waiting:  # it was woken, and will not look
                self._wake(1)
            raise
        finally:
            self._waiting.pop(event, None)

    def _note(self, seen: Seen) -> Seen:
        if seen != self._seen:
            self._seen = seen
            self._wake(len(self._waiting))
        return seen

    def _wake(self, count: int) -> None:
        for event in [*self._waiting][:count]:
            del self._waiting[event]
            event.set()


@contextmanager
def watching(
    watches: MutableMapping[Any, Watch], key: str, look: Callable[[], Awaitable[Seen]]
) -> Iterator[Watch]:
    """Join those that watch the same in this event loop, or be the first of them."""
    place = current_loop(), key
    watch = watches.get(place)
    if watch is None:
        watch = watches[place] = Watch(look)
    watch.watchers += 1
    try:
        yield watch
    finally:
        watch.watchers -= 1
        if not watch.watchers:
            del watches[place]
