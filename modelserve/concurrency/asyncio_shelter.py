"""The cancellations of one request's task: who caused each, and when user code sees it.

An asyncio task counts its cancellations, and a time limit compares counts to find out whether that
limit ended its block. So an absorbed cancellation is taken back (`uncancel`) at once, and made
again when it is delivered.
"""

import asyncio
from time import monotonic
from typing import Any, Final

from modelserve.concurrency.flight import Flight, HostCancelled
from modelserve.errors import Stopped

__all__ = ["REPEAT_SECONDS", "ShelteredFlight"]

REPEAT_SECONDS: Final = 0.1


class ShelteredFlight(Flight):
    """The cancellation of a request in flight.

    Attributes:
        is_cancelling: The flight itself is cancelling the task just now.
        spares_nothing: The code that is being closed has seen no cancellation yet, and sees the
            next.
    """

    __slots__ = (
        "_absorbed",
        "_cancelled_before",
        "_cancels",
        "_patience_ends",
        "_task",
        "is_cancelling",
        "spares_nothing",
    )

    is_cancelling: bool
    spares_nothing: bool
    _absorbed: int
    _cancelled_before: int
    _cancels: int
    _patience_ends: float | None
    _task: asyncio.Task[Any] | None

    @property
    def is_being_cancelled(self) -> bool:
        """Whether a cancellation has been delivered and is still under way."""
        return self._pending_cancels() > 0

    def absorb(self) -> None:
        """Note a cancellation that user code does not see, since it is cleaning up.

        It is taken back until it is delivered, since time limits of user code count cancellations.
        """
        assert self._task is not None
        self._task.uncancel()
        if self.is_cancelling:  # ours
            self._cancels -= 1
            self.spares_nothing = True
            return
        self._absorbed += 1
        if self.request.reason is None and self._absorbed == 1:
            self._loop().call_soon(self._pass_on)

    def end_shelter(self) -> None:
        """Deliver one absorbed cancellation, now that the hook's own cancellation is over."""
        if self._absorbed and self._task is not None:
            self._absorbed -= 1
            self._task.cancel()

    def _pass_on(self) -> None:
        """End the request for an absorbed cancellation, unless that is delivered soon."""
        if self.over or self.request.reason is not None or not self._absorbed:
            return
        if self._is_patient():
            self._loop().call_later(REPEAT_SECONDS, self._pass_on)
        else:
            self.cancel(HostCancelled())

    async def deliver_absorbed(self) -> None:
        task = self._task
        if self._absorbed and task is not None:
            for _ in range(self._absorbed):
                task.cancel()
            self._absorbed = 0
            await asyncio.sleep(0)
        if self.request.reason is not None and self._pending_cancels() > 0:
            raise asyncio.CancelledError  # the host cancelled at the same moment

    async def _finished(self, task: asyncio.Task[None]) -> None:
        """Wait for a task, whatever the host cancels; the task is bounded in time."""
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                self._absorbed += 1
                if self._task is not None:
                    self._task.uncancel()

    def _defer(self, reason: Stopped) -> bool:
        if not self._is_patient():
            return False
        self._loop().call_later(REPEAT_SECONDS, self.cancel, reason)
        return True

    def _is_patient(self) -> bool:
        """Return whether to wait for the end of another cancellation, the host's or a hook's.

        A second one would interrupt clean-up. The wait is bounded, like clean-up itself.
        """
        if not self.is_being_cancelled:
            return False
        now = monotonic()
        if self._patience_ends is None:
            self._patience_ends = now + self.request.deadlines.cleanup_timeout
        return now < self._patience_ends

    def _pending_cancels(self) -> int:
        """Return how many cancellations since the request came were not taken back."""
        return 0 if self._task is None else self._task.cancelling() - self._cancelled_before

    def _cancel_once(self) -> None:
        """Cancel the task so that its guard knows that the flight did."""
        assert self._task is not None
        self._cancels += 1
        self.is_cancelling = True
        self._task.cancel()
        self.is_cancelling = False

    def _take_back_cancels(self) -> None:
        """Restore the task's count of cancellations for the host."""
        if self._task is not None:
            for _ in range(self._cancels):
                self._task.uncancel()

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._task is not None
        return self._task.get_loop()
