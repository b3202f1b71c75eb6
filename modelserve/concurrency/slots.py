"""Slots that the tasks of several event loops take in turn."""

from collections import deque
from threading import RLock

from modelserve.concurrency.loops import Event

__all__ = ["Slots"]


class Slots:
    """A number of slots, and who waits for one, in order.

    Attributes:
        concurrency: How many there are.
        running: How many are taken.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.running = 0
        self._waiting: deque[_Place] = deque()
        # Held by whoever changes who waits. A task that is collected as garbage gives up its place.
        self._lock = RLock()

    @property
    def has_waiting(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def acquire_nowait(self) -> bool:
        """Take a slot if one is free and nobody waits; return whether that was so."""
        return not self._waiting and self._claim()

    async def acquire(self) -> None:
        """Take a slot, waiting in turn. A cancelled wait gives up its place."""
        if self.acquire_nowait():
            return
        place = self._enqueue()
        try:
            await place.settled.wait()
        except BaseException:
            if self._give_up(place):
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back, for who has waited longest; in any thread."""
        self.running -= 1
        if self._waiting:
            self._admit()

    def _claim(self) -> bool:
        """Take a slot if there is one; no other thread comes between, see `Gate.claim`."""
        if self.running < self.concurrency:
            self.running += 1
            return True
        return False

    def _enqueue(self) -> "_Place":
        with self._lock:
            place = _Place()
            self._waiting.append(place)
            self._admit()  # a slot may have become free meanwhile, in another thread
            return place

    def _give_up(self, place: "_Place") -> bool:
        """Take out one whose wait was cancelled; return whether it has a slot already."""
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
            return place.admitted

    def _admit(self) -> None:
        with self._lock:
            while self._waiting and self._claim():
                place = self._waiting.popleft()
                place.admitted = place.settled.set()
                if not place.admitted:  # its event loop has ended
                    self.running -= 1


class _Place:
    """A place among those that wait; `settled` is set once it has a slot."""

    __slots__ = ("admitted", "settled")

    def __init__(self) -> None:
        self.admitted = False
        self.settled = Event()
