"""Joint calls: items of several callers that go through one call together.

While a call can be made at once it is made in the caller's own task, as if there were no batching.
While it cannot, callers wait (`lanes`); when a call ends, the next one is made.

A call for several callers has a task of its own. A caller that leaves takes with it what is
waiting; a running call is cancelled only when nobody in it is left, once, and whoever leaves last
waits for its clean-up.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol

from starlette.types import Receive

from modelserve.concurrency.flight import Flight, Phase
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.lanes import Caller, Lanes, Part, Work
from modelserve.concurrency.loops import Wakeup, event_loop
from modelserve.errors import ClientGone, Stopped
from modelserve.limits import Deadlines

__all__ = ["Batches", "Policy", "Recorder"]


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
        self._lanes = Lanes(policy.max_size, policy.max_wait)
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

    async def _leave(self, caller: Caller) -> None:
        """Take out what a caller still has here."""
        caller.has_left = True
        if caller.calls_itself:  # it was its turn
            self._running -= 1
        self._lanes.remove(caller)
        self._start_calls()
        for joint in caller.joints:
            if joint.is_deserted and not joint.has_ended:
                await joint.cancel(self._loop.wakeup())

    # -- who goes next

    def _start_calls(self) -> None:
        """Start the calls that can be made now."""
        while self._lanes and self._running < self._policy.concurrency:
            lane = self._lanes.first()
            due = self._lanes.due(lane)
            if due > monotonic():
                self._ring_at(due)
                return
            self._running += 1
            joint = _Joint(self._lanes.take(lane), self._policy.deadlines)
            first = joint.callers[0]
            if joint.parts == [Part(first.work, 0, first.work.size)]:
                first.calls_itself = True
                first.wakeup.set()
                continue
            for caller in joint.callers:
                caller.joints.append(joint)
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
                self._lanes.fail(caller, exc)
            raise
        finally:
            joint.end()
            for caller in joint.callers:
                self._lanes.line_up(caller)
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
                    self._lanes.fail(caller, exc)
        else:
            for caller, part, result in zip(joint.callers, joint.parts, results, strict=True):
                self._lanes.give(caller, part, result)

    async def _deliver_singly(self, joint: "_Joint") -> None:
        for caller, part in zip(joint.callers, joint.parts, strict=True):
            if caller.has_left or caller.error is not None:
                continue
            try:
                (result,) = await self._make_call((part,))
            except BaseException as exc:
                if joint.is_interrupted_by(exc):
                    raise
                self._lanes.fail(caller, exc)
            else:
                self._lanes.give(caller, part, result)


class _Joint:
    """A call for several callers, which is in flight like a request: see `flight.Watched`."""

    stream = None
    body_read = answered = False
    phase = Phase.DONE

    def __init__(self, taken: list[tuple[Caller, Part, float]], deadlines: Deadlines) -> None:
        self.arrived = self.since = monotonic()
        self.deadlines = deadlines
        self.receive: Receive = _no_client
        self.reason: Stopped | None = None
        self.flight: Flight | None = None
        self.callers = [caller for caller, _, _ in taken]
        self.parts = [part for _, part, _ in taken]
        self.waits = [wait for _, _, wait in taken]
        self.size = sum(part.size for part in self.parts)
        self.outcome = "done"
        self.has_ended = False
        self._ended: list[Wakeup] = []

    @property
    def is_deserted(self) -> bool:
        """Whether nobody wants the result any more."""
        return all(caller.has_left for caller in self.callers)

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
