"""Joint calls: items of several callers that go through one call together.

While a call can be made at once it is made in the caller's own task, as if there were no batching.
While it cannot, callers wait in lanes, one for each key, since only what has the same key goes
together. When a call ends, the lane goes next whose first caller has waited longest, with all that
fits into one call. A caller with more items than fit is served in turns with the others of its
lane.

A call for several callers has a task of its own. A caller that leaves takes with it what is
waiting; a running call is cancelled only when nobody in it is left, once, and whoever leaves last
waits for its clean-up.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextvars import copy_context
from functools import partial
from itertools import chain
from operator import itemgetter
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from starlette.types import Receive

from modelserve.concurrency.flight import Flight, Phase
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.loops import Wakeup, event_loop
from modelserve.errors import ClientGone, Stopped
from modelserve.limits import Deadlines

__all__ = ["Batches", "Part", "Policy", "Recorder", "Work"]


class Policy(NamedTuple):
    """When calls are made, and how large.

    Attributes:
        max_size: Items in one call.
        max_wait: Seconds for which the first of a call waits for others while a call could be made.
        concurrency: Calls at a time.
        isolates: A call for several callers that raises is made again for each of them alone.
        deadlines: `cleanup_timeout` bounds the clean-up of a call that is cancelled.
    """

    max_size: int
    max_wait: float = 0.0
    concurrency: int = 1
    isolates: bool = True
    deadlines: Deadlines = Deadlines()


class Work(Protocol):
    """What one caller brings.

    Attributes:
        size: The number of items.
        key: Equal for what may go together; None for what goes alone.
    """

    @property
    def size(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    def whole(self, results: Sequence[Any]) -> Any:
        """Return one result made of those of all parts, in order."""


class Part(NamedTuple):
    """Items of one caller in one call: those from `start` to `stop`."""

    work: Any
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Recorder(Protocol):
    """What records the calls."""

    def start(self, size: int, waits: Sequence[float]) -> None:
        """Record a call: its items, and for how many seconds each caller has waited."""

    def end(self, outcome: str) -> None:
        """Record how a call has ended: done, error or cancelled."""


class Batches:
    """The callers and the calls of one model in one event loop.

    Args:
        call_alone: Makes a call for one work, whole; returns the result or an exception.
        call: Makes a call for some parts; returns a result or an exception for each.
        policy: When, and how large.
        recorder: Records each call.
    """

    def __init__(
        self,
        call_alone: Callable[[Any], Awaitable[Any]],
        call: Callable[[Sequence[Part]], Awaitable[Sequence[Any]]],
        policy: Policy,
        recorder: Recorder,
    ) -> None:
        self._make_call_alone = call_alone
        self._make_call = call
        self._policy = policy
        self._recorder = recorder
        self._loop = event_loop()
        self._flights = Flights()
        self._lanes: dict[Hashable, _Lane] = {}
        self._running = 0
        self._rings_at: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no call is running and nobody waits."""
        return not self._running and not self._lanes

    async def submit(self, work: Work) -> Any:
        """Return the result for what one caller brings.

        Raises what the call raises, or an exception among the results. A cancelled caller gives up
        what waits; where it was the last one in a running call it waits for that call's clean-up.
        """
        policy = self._policy
        if (
            self._running < policy.concurrency
            and not self._lanes
            and work.size <= policy.max_size
            and not policy.max_wait
        ):
            return await self._call_alone(work, 0.0)
        caller = _Caller(work, self._loop.wakeup())
        lane = self._lanes.get(caller.key)
        if lane is None:
            lane = self._lanes[caller.key] = _Lane()
        lane.waiting[caller] = None
        self._start_calls()
        try:
            await caller.wakeup.wait()
        except BaseException:
            await self._leave(caller)
            raise
        if caller.calls_itself:
            self._running -= 1
            return await self._call_alone(work, monotonic() - caller.since)
        if caller.error is not None:
            await self._leave(caller)
            raise caller.error.with_traceback(caller.traceback)
        return caller.result()

    async def _call_alone(self, work: Work, waited: float) -> Any:
        """Make a call for one caller alone, in its own task."""
        self._running += 1
        self._recorder.start(work.size, (waited,))
        outcome = "cancelled"
        try:
            result = await self._make_call_alone(work)
            if isinstance(result, BaseException):
                raise result
            outcome = "done"
            return result
        except Exception:
            outcome = "error"
            raise
        finally:
            self._end_call(outcome)

    def _end_call(self, outcome: str) -> None:
        self._running -= 1
        self._recorder.end(outcome)
        if self._lanes:
            self._start_calls()

    async def _leave(self, caller: "_Caller") -> None:
        """Take out what a caller still has here."""
        caller.has_left = True
        if caller.calls_itself:  # it was its turn
            self._running -= 1
        self._forget(caller)
        self._start_calls()
        for joint in caller.joints:
            if joint.is_deserted and not joint.has_ended:
                await joint.cancel(self._loop.wakeup())

    def _forget(self, caller: "_Caller") -> None:
        lane = self._lanes.get(caller.key)
        if lane is not None:
            lane.remove(caller)
            if not lane:
                del self._lanes[caller.key]

    # -- who goes next

    def _start_calls(self) -> None:
        """Start the calls that can be made now."""
        while self._lanes and self._running < self._policy.concurrency:
            lane = min(self._lanes.values(), key=_Lane.since)
            if self._waits_for_more(lane):
                return
            self._running += 1
            joint = _Joint(self._policy.deadlines)
            self._fill(joint, lane)
            first = joint.callers[0]
            if not lane:
                del self._lanes[first.key]
            if len(joint.callers) == 1 and joint.size == first.work.size:
                first.calls_itself = True
                first.wakeup.set()
                continue
            for caller in joint.callers:
                caller.joints.append(joint)
            self._loop.start_soon(partial(self._run, joint), first.context.copy())

    def _fill(self, joint: "_Joint", lane: "_Lane") -> None:
        """Move into a call what fits, from the first caller of a lane on."""
        most = self._policy.max_size
        now = monotonic()
        for caller in list(lane):
            room, size = most - joint.size, caller.work.size
            left = size - caller.taken
            if not room or (left > room and size <= most):
                return
            joint.add(caller, min(left, room), now)
            lane.remove(caller)
            if caller.taken < size:
                caller.since = now
                lane.served[caller] = None

    def _waits_for_more(self, lane: "_Lane") -> bool:
        """Return whether a call that could be made is put off; a timer will come back to it."""
        policy = self._policy
        if not policy.max_wait or sum(c.work.size - c.taken for c in lane) >= policy.max_size:
            return False
        now, due = monotonic(), lane.since() + policy.max_wait
        if now >= due:
            return False
        if self._rings_at is None or due < self._rings_at:
            self._rings_at = due
            self._loop.call_later(due - now, partial(self._ring, due))
        return True

    def _ring(self, due: float) -> None:
        if self._rings_at == due:
            self._rings_at = None
        self._start_calls()

    # -- a call for several callers

    async def _run(self, joint: "_Joint") -> None:
        """Make a joint call, in a task of its own."""
        self._recorder.start(joint.size, joint.waits)
        try:
            if joint.is_deserted:
                raise ClientGone
            rest = self._flights.start(joint, self._deliver(joint))
            if rest is not None:
                await rest
        except Stopped:
            joint.outcome = "cancelled"
        except BaseException as exc:  # the event loop is being closed
            joint.outcome = "cancelled"
            for caller in joint.callers:
                self._fail(caller, exc)
            raise
        finally:
            joint.end()
            for caller in joint.callers:
                if caller.key in self._lanes:
                    self._lanes[caller.key].line_up(caller)
            self._end_call(joint.outcome)

    async def _deliver(self, joint: "_Joint") -> None:
        """Make the call, and give each caller its part of the result."""
        try:
            results = await self._make_call(joint.parts)
        except BaseException as exc:
            if joint.is_interrupted_by(exc):
                raise
            joint.outcome = "error"
            if self._policy.isolates and len(joint.callers) > 1 and isinstance(exc, Exception):
                await self._deliver_singly(joint)
            else:
                for caller in joint.callers:
                    self._fail(caller, exc)
        else:
            for caller, part, result in zip(joint.callers, joint.parts, results, strict=True):
                self._give(caller, part, result)

    async def _deliver_singly(self, joint: "_Joint") -> None:
        for caller, part in zip(joint.callers, joint.parts, strict=True):
            if caller.has_left or caller.error is not None:
                continue
            try:
                (result,) = await self._make_call((part,))
            except BaseException as exc:
                if joint.is_interrupted_by(exc):
                    raise
                self._fail(caller, exc)
            else:
                self._give(caller, part, result)

    def _give(self, caller: "_Caller", part: Part, result: Any) -> None:
        if isinstance(result, BaseException):
            self._fail(caller, result)
        else:
            caller.take(part, result)

    def _fail(self, caller: "_Caller", error: BaseException) -> None:
        """Wake a caller with an exception; what it still has waiting is dropped."""
        caller.fail(error)
        self._forget(caller)


class _Lane:
    """The callers whose items may go together.

    Attributes:
        waiting: Those who wait, in order.
        served: Those of whose items some are in a call; they line up again when it ends, so that a
            large caller takes turns with the others. Until then they fill what is left.
    """

    __slots__ = ("served", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[_Caller, None] = {}
        self.served: dict[_Caller, None] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self.served)

    def __iter__(self) -> "Iterator[_Caller]":
        return chain(self.waiting, self.served)

    def since(self) -> float:
        """Return since when the first has waited."""
        return next(iter(self)).since

    def remove(self, caller: "_Caller") -> None:
        self.waiting.pop(caller, None)
        self.served.pop(caller, None)

    def line_up(self, caller: "_Caller") -> None:
        """Let a caller that was served wait like the others."""
        if caller in self.served:
            del self.served[caller]
            self.waiting[caller] = None
            caller.since = monotonic()


class _Caller:
    """One caller that waits, or is in a joint call.

    Attributes:
        key: Of its lane.
        since: When it began to wait for its next call.
        taken: How many of its items have gone into calls.
        joints: Those calls.
        calls_itself: The next call is for it alone, and it makes it.
        has_left: It has given up, or knows its result.
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
        self.joints: list[_Joint] = []
        self.calls_itself = self.has_left = False
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None

    def take(self, part: Part, result: Any) -> None:
        """Take the result of a part; wake the caller with the last one."""
        self._parts.append((part.start, result))
        self._done += part.size
        if self._done == self.work.size:
            self.wakeup.set()

    def fail(self, error: BaseException) -> None:
        """Wake the caller with an exception."""
        if self.error is None:
            self.error, self.traceback = error, error.__traceback__
            self.wakeup.set()

    def result(self) -> Any:
        parts = self._parts
        if len(parts) == 1:
            return parts[0][1]
        return self.work.whole([result for _, result in sorted(parts, key=itemgetter(0))])


class _Joint:
    """A call for several callers, which is in flight like a request: see `flight.Watched`."""

    stream = None
    body_read = answered = False
    phase = Phase.DONE

    def __init__(self, deadlines: Deadlines) -> None:
        self.arrived = self.since = monotonic()
        self.deadlines = deadlines
        self.receive: Receive = _no_client
        self.reason: Stopped | None = None
        self.flight: Flight | None = None
        self.callers: list[_Caller] = []
        self.parts: list[Part] = []
        self.waits: list[float] = []
        self.size = 0
        self.outcome = "done"
        self.has_ended = False
        self._ended: list[Wakeup] = []

    @property
    def is_deserted(self) -> bool:
        """Whether nobody wants the result any more."""
        return all(caller.has_left for caller in self.callers)

    def add(self, caller: _Caller, count: int, now: float) -> None:
        """Add the next items of a caller."""
        self.callers.append(caller)
        self.parts.append(Part(caller.work, caller.taken, caller.taken + count))
        self.waits.append(now - caller.since)
        caller.taken += count
        self.size += count

    async def cancel(self, ended: Wakeup) -> None:
        """Cancel the call, and wait until its clean-up is over."""
        self._ended.append(ended)
        if self.flight is not None:  # else its task has not begun, and will see that nobody is left
            self.flight.cancel(ClientGone())
        await ended.wait()

    def end(self) -> None:
        self.has_ended = True
        self.flight = None  # a reference cycle
        for ended in self._ended:
            ended.set()

    def is_interrupted_by(self, exc: BaseException) -> bool:
        """Return whether an exception comes from `cancel`, not from the call itself."""
        return self.flight is not None and self.flight.is_interrupted_by(exc)

    async def report_early_end(self, reason: Stopped) -> None:
        """Do nothing: whoever leaves knows."""


async def _no_client() -> Any:
    """Stand for `receive`, which nobody calls while `body_read` is false."""
    raise RuntimeError("A joint call has no client.")
