"""The callers that wait for joint calls, and the order in which they are served.

Only works with the same key may share a call: each key has a lane. The next call is for the lane
whose first caller has waited longest, with as many items as fit. Work that is larger than a call is
divided over several, and takes turns with the others in its lane.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextvars import copy_context
from itertools import chain
from operator import itemgetter
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from modelserve.concurrency.loops import Wakeup

__all__ = ["Caller", "Lane", "Lanes", "Part", "Work"]


class Work(Protocol):
    """The items of one caller.

    Attributes:
        size: The number of items.
        key: Works with equal keys may share a call; None for a call of its own.
    """

    @property
    def size(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    def whole(self, results: Sequence[Any]) -> Any:
        """Join the results of all parts, in order."""


class Part(NamedTuple):
    """Items of one caller in one call: those from `start` to `stop`."""

    work: Any
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Caller:
    """One caller that waits, or is in a joint call.

    Attributes:
        key: The key of its lane.
        since: When it began to wait for its next call.
        taken: How many of its items have been put into calls.
        joints: Those calls.
        calls_itself: The next call is for it alone, and it makes that call itself.
        has_left: It has given up, or has its result.
    """

    __slots__ = (
        "_done",
        "_parts",
        "calls_itself",
        "context",
        "error",
        "has_left",
        "joints",
        "key",
        "since",
        "taken",
        "traceback",
        "wakeup",
        "work",
    )

    def __init__(self, work: Work, wakeup: Wakeup) -> None:
        self.work = work
        self.key: Hashable = self if work.key is None else work.key
        self.wakeup = wakeup
        self.context = copy_context()
        self.since = monotonic()
        self.taken = self._done = 0
        self._parts: list[tuple[int, Any]] = []
        self.joints: list[Any] = []
        self.calls_itself = self.has_left = False
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None

    def take(self, part: Part, result: Any) -> None:
        """Take the result of a part."""
        self._parts.append((part.start, result))
        self._done += part.size

    def fail(self, error: BaseException) -> None:
        """Take an exception instead of a result; the first one counts."""
        if self.error is None:
            self.error, self.traceback = error, error.__traceback__

    def wake(self) -> None:
        """Wake the caller if it has an exception or all of its result."""
        if self.error is not None or self._done == self.work.size:
            self.wakeup.set()

    def leave(self) -> list[Any]:
        """Leave all joint calls, and return them."""
        self.has_left = True
        joints, self.joints = self.joints, []  # a reference cycle
        return joints

    def pop_error(self) -> BaseException:
        """Return the exception, with the traceback that it had when it was raised."""
        error, traceback = self.error, self.traceback
        assert error is not None
        self.error = self.traceback = None  # a reference cycle
        return error.with_traceback(traceback)

    def result(self) -> Any:
        parts = self._parts
        if len(parts) == 1:
            return parts[0][1]
        return self.work.whole([result for _, result in sorted(parts, key=itemgetter(0))])


class Lane:
    """The callers whose items may go together.

    Attributes:
        waiting: The waiting callers, in order.
        served: Callers with some items in a running call, and others waiting. They line up again
            when the call ends, so that a large caller takes turns with the others. Until then
            their items only fill free places.
    """

    __slots__ = ("served", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Caller, None] = {}
        self.served: dict[Caller, None] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self.served)

    def __iter__(self) -> Iterator[Caller]:
        return chain(self.waiting, self.served)

    @property
    def size(self) -> int:
        """The number of items that wait."""
        return sum(caller.work.size - caller.taken for caller in self)

    def since(self) -> float:
        """Return when the first caller began to wait."""
        return next(iter(self)).since

    def remove(self, caller: Caller) -> None:
        self.waiting.pop(caller, None)
        self.served.pop(caller, None)

    def line_up(self, caller: Caller) -> None:
        """Let a caller that was served wait like the others."""
        if caller in self.served:
            del self.served[caller]
            self.waiting[caller] = None
            caller.since = monotonic()


class Lanes:
    """The lanes of one model.

    Args:
        max_size: The most items in one call.
        max_wait: Seconds for which the first caller of a lane waits for a call to fill.
    """

    def __init__(self, max_size: int, max_wait: float = 0.0) -> None:
        self.max_size = max_size
        self.max_wait = max_wait
        self._lanes: dict[Hashable, Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def add(self, caller: Caller) -> None:
        lane = self._lanes.get(caller.key)
        if lane is None:
            lane = self._lanes[caller.key] = Lane()
        lane.waiting[caller] = None

    def remove(self, caller: Caller) -> None:
        lane = self._lanes.get(caller.key)
        if lane is not None:
            lane.remove(caller)
            if not lane:
                del self._lanes[caller.key]

    def line_up(self, caller: Caller) -> None:
        """Let a caller wait like the others once its call has ended, if items of it are left."""
        if caller.key in self._lanes:
            self._lanes[caller.key].line_up(caller)

    def first(self) -> Lane:
        """Return the lane of the next call."""
        return min(self._lanes.values(), key=lambda lane: (self.due(lane), lane.since()))

    def due(self, lane: Lane) -> float:
        """Return when a lane's call is to be made; 0.0 for at once."""
        if not self.max_wait or lane.size >= self.max_size:
            return 0.0
        return lane.since() + self.max_wait

    def give(self, caller: Caller, part: Part, result: Any) -> None:
        """Give a caller the result of a part, which may be an exception."""
        if isinstance(result, BaseException):
            self.fail(caller, result)
        else:
            caller.take(part, result)

    def fail(self, caller: Caller, error: BaseException) -> None:
        """Give a caller an exception; its waiting items are dropped."""
        caller.fail(error)
        self.remove(caller)

    def take(self, lane: Lane) -> list[tuple[Caller, Part, float]]:
        """Take the items of one call out of a lane: a part of each caller, with its wait."""
        taken: list[tuple[Caller, Part, float]] = []
        room, now = self.max_size, monotonic()
        for caller in list(lane):
            size = caller.work.size
            left = size - caller.taken
            if not room or (left > room and size <= self.max_size):
                break
            start = caller.taken
            caller.taken += min(left, room)
            room -= caller.taken - start
            taken.append((caller, Part(caller.work, start, caller.taken), now - caller.since))
            lane.remove(caller)
            if caller.taken < size:
                caller.since = now
                lane.served[caller] = None
        if not lane:
            del self._lanes[taken[0][0].key]
        return taken
