"""One call for several callers.

It is cancelled once, when its last caller leaves, which then waits for its clean-up. If it raises,
it may be made again for each caller alone, so that one bad input fails its own caller only.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

import anyio

from modelserve.concurrency.flights import Flights
from modelserve.concurrency.lanes import Caller, Lanes, Part
from modelserve.concurrency.loops import EventLoop, Wakeup
from modelserve.concurrency.unattended import Unattended
from modelserve.errors import ClientGone, Stopped
from modelserve.limits import Deadlines

__all__ = ["Joint"]

Call: TypeAlias = Callable[[Sequence[Part]], Awaitable[Sequence[Any]]]


class Joint:
    """A call for several callers.

    Args:
        taken: The callers, their parts, and how long each has waited.
        deadlines: `cleanup_timeout` bounds the clean-up of the call.
        isolates: If the call raises, it is made again for each caller alone.
    """

    def __init__(
        self, taken: list[tuple[Caller, Part, float]], deadlines: Deadlines, *, isolates: bool
    ) -> None:
        self._work = Unattended(deadlines)
        self.callers = [caller for caller, _, _ in taken]
        self.parts = [part for _, part, _ in taken]
        self.waits = [wait for _, _, wait in taken]
        self.size = sum(part.size for part in self.parts)
        self.outcome = "done"
        self.is_made_again = self.has_ended = False
        self._isolates = isolates and len(taken) > 1
        self._ended: list[Wakeup] = []
        for caller in self.callers:
            caller.joints.append(self)

    @property
    def is_deserted(self) -> bool:
        """Whether no caller wants the result any more."""
        return all(caller.has_left for caller in self.callers)

    def singles(self) -> Iterator["Joint"]:
        """Yield a call for each caller alone who still waits for a result."""
        for caller, part in zip(self.callers, self.parts, strict=True):
            if not caller.has_left and caller.error is None:
                yield Joint([(caller, part, 0.0)], self._work.deadlines, isolates=False)

    async def make(self, call: Call, flights: Flights, lanes: Lanes) -> None:
        """Make the call, in this task; give each caller its part of the result, but wake none.

        It ends early when all callers have left, and at the end of a drain.
        """
        try:
            if self.is_deserted:
                raise ClientGone
            await self._work.run(flights, self._deliver(call, lanes))
        except BaseException as exc:
            self.outcome = "cancelled"
            for caller in self.callers:  # nobody, except where the server has drained
                lanes.fail(caller, exc)
            if not isinstance(exc, Stopped):
                raise
        finally:
            self._end()

    async def _deliver(self, call: Call, lanes: Lanes) -> None:
        try:
            results = await call(self.parts)
        except BaseException as exc:
            if self._work.is_interrupted_by(exc):
                raise
            self.outcome = "error"
            self.is_made_again = self._isolates and isinstance(exc, Exception)
            if not self.is_made_again:
                for caller in self.callers:
                    lanes.fail(caller, exc)
        else:
            for caller, part, result in zip(self.callers, self.parts, results, strict=True):
                lanes.give(caller, part, result)

    def wake_callers(self) -> None:
        """Wake the callers that have an exception or their whole result."""
        for caller in self.callers:
            caller.wake()

    def cancel(self) -> None:
        """Cancel the call."""
        self._work.cancel()  # a call that has not begun yet will see that no caller is left

    async def wait_for_end(self, loop: EventLoop) -> None:
        """Wait until the clean-up of a cancelled call is over.

        No cancellation shortens the wait, as with clean-up in the caller's own task: the call's own
        flight bounds it.
        """
        interruption: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not self.has_ended:
                ended = loop.wakeup()
                self._ended.append(ended)
                try:
                    await ended.wait()
                except GeneratorExit:  # dropped: nothing can be awaited any more
                    raise
                except BaseException as exc:
                    interruption = exc
        if interruption is not None:
            raise interruption

    def _end(self) -> None:
        self.has_ended = True
        for ended in self._ended:
            ended.set()
