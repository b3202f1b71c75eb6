"""Joint calls: items of several callers that go through one call together.

While a call can be made at once it is made in the caller's own task, as if there were no batching.
While it cannot, callers wait (`lanes`); when a call ends, the next one is made.

A call for several callers has a task of its own (`joints`). When a caller leaves, its waiting items
are dropped.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol

from modelserve.concurrency.cancelling import ends_task
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.joints import Joint
from modelserve.concurrency.lanes import Caller, Lanes, Part, Work
from modelserve.concurrency.loops import event_loop
from modelserve.limits import Deadlines

__all__ = ["Batches", "Policy", "Recorder"]


class Policy(NamedTuple):
    """When calls are made, and how large.

    Attributes:
        max_size: Items in one call.
        max_wait: Seconds for which the first caller waits for others although a call could be made.
        concurrency: Calls at the same time.
        isolates: If a call for several callers raises, it is made again for each of them alone.
        deadlines: `cleanup_timeout` bounds the clean-up of a call that is cancelled.
    """

    max_size: int
    max_wait: float = 0.0
    concurrency: int = 1
    isolates: bool = True
    deadlines: Deadlines = Deadlines()


class Recorder(Protocol):
    """What records the calls."""

    def start(
        self, size: int, waits: Sequence[float], callers: Sequence[Caller] = ()
    ) -> Callable[[str], None]:
        """Record a call, in the task that makes it; return a function that records its end there.

        Args:
            size: The number of its items.
            waits: The seconds that each caller has waited.
            callers: Those of a joint call.

        The end is `done`, `error` or `cancelled`.
        """


class Batches:
    """The callers and the calls of one model in one event loop.

    Args:
        call_alone: Makes a call for all items of one caller; returns the result or an exception.
        call: Makes a call for some parts; returns a result or an exception for each.
        policy: When calls are made, and how large.
        recorder: Records each call.
        flights: The register of joint calls, which a drain ends.
    """

    def __init__(
        self,
        call_alone: Callable[[Any], Awaitable[Any]],
        call: Callable[[Sequence[Part]], Awaitable[Sequence[Any]]],
        policy: Policy,
        recorder: Recorder,
        flights: Flights,
    ) -> None:
        self._make_call_alone = call_alone
        self._make_call = call
        self._policy = policy
        self._recorder = recorder
        self._loop = event_loop()
        self._flights = flights
        self._lanes = Lanes(policy.max_size, policy.max_wait)
        self._running = 0
        self._rings_at: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no call is running and no caller waits."""
        return not self._running and not self._lanes

    async def submit(self, work: Work) -> Any:
        """Return the result for one caller's work.

        Raises what the call raises, or an exception among the results. When a caller is cancelled,
        its waiting items are dropped; the last caller in a running call waits for its clean-up.
        """
        policy = self._policy
        if (
            self._running < policy.concurrency
            and not self._lanes
            and work.size <= policy.max_size
            and not policy.max_wait
        ):
            return await self._call_alone(work, 0.0)
        caller = Caller(work, self._loop.wakeup())
        self._lanes.add(caller)
        self._start_calls()
        try:
            await caller.wakeup.wait()
        except BaseException:
            await self._leave(caller)
            raise
        if caller.calls_itself:
            self._running -= 1
            return await self._call_alone(work, monotonic() - caller.since)
        if caller.error is None:
            caller.leave()
            return caller.result()
        error = caller.pop_error()
        try:
            await self._leave(caller)
            raise error
        finally:
            del error  # a reference cycle

    async def _call_alone(self, work: Work, waited: float) -> Any:
        """Make a call for one caller alone, in its own task."""
        self._running += 1
        record_end = self._recorder.start(work.size, (waited,))
        outcome = "done"
        try:
            result = await self._make_call_alone(work)
            if isinstance(result, BaseException):
                raise result
            return result
        except BaseException as exc:
            outcome = "cancelled" if ends_task(exc) else "error"
            raise
        finally:
            self._end_call(record_end, outcome)

    def _end_call(self, record_end: Callable[[str], None], outcome: str) -> None:
        self._running -= 1
        record_end(outcome)
        if self._lanes:
            self._start_calls()

    async def _leave(self, caller: Caller) -> None:
        """Remove a caller and its waiting items."""
        joints = [joint for joint in caller.leave() if joint.is_deserted and not joint.has_ended]
        if caller.calls_itself:  # it was about to make its call
            self._running -= 1
        self._lanes.remove(caller)
        self._start_calls()
        for joint in joints:
            joint.cancel()
        for joint in joints:
            await joint.wait_for_end(self._loop)

    # -- which call is next

    def _start_calls(self) -> None:
        """Start the calls that can be made now."""
        while self._lanes and self._running < self._policy.concurrency:
            lane = self._lanes.first()
            due = self._lanes.due(lane)
            if due > monotonic():
                self._ring_at(due)
                return
            self._running += 1
            taken = self._lanes.take(lane)
            first, part, _ = taken[0]
            if len(taken) == 1 and part.size == first.work.size:
                first.calls_itself = True
                first.wakeup.set()
                continue
            joint = Joint(taken, self._policy.deadlines, isolates=self._policy.isolates)
            self._loop.start_soon(partial(self._run, joint), first.context.copy())

    def _ring_at(self, due: float) -> None:
        if self._rings_at is None or due < self._rings_at:
            self._rings_at = due
            self._loop.call_later(due - monotonic(), partial(self._ring, due))

    def _ring(self, due: float) -> None:
        if self._rings_at == due:
            self._rings_at = None
        self._start_calls()

    # -- a call for several callers

    async def _run(self, joint: Joint) -> None:
        """Make a joint call, in a task of its own."""
        record_end = self._recorder.start(joint.size, joint.waits, joint.callers)
        try:
            await joint.make(self._make_call, self._flights, self._lanes)
            if joint.is_made_again:
                for single in joint.singles():
                    await single.make(self._make_call, self._flights, self._lanes)
                    single.wake_callers()
        except BaseException as exc:  # the event loop is being closed
            for caller in joint.callers:
                self._lanes.fail(caller, exc)
            raise
        finally:
            for caller in joint.callers:
                self._lanes.line_up(caller)
            self._end_call(record_end, joint.outcome)
            joint.wake_callers()  # last, so that the next call runs while these are answered
