"""Requests in flight on asyncio.

A flight is the host's own task. Cancelling is `task.cancel()`, which asyncio delivers once, so what
clean-up awaits completes. The pipeline takes its first step without a flight: one that never
suspends is over before anybody could end it early. Most of the others end within milliseconds, so
the register has only those watched that are older than 20 ms: they get a task that awaits
`http.disconnect` and a timer for the deadlines. A task group for each request would double the cost
of a small one.

Inside a cancel scope of anyio's a cancellation is delivered again at every await. `ShieldedFlight`
puts a shielded scope around the pipeline and relays the host's cancellation once.

An exception leaves a flight as itself, never inside an exception group.
"""

import asyncio
import math
import types
from collections.abc import Coroutine, Generator
from time import monotonic
from typing import Any, Final

import anyio
import anyio.lowlevel

from modelserve.concurrency.flight import Flight, HostCancelled, Pipeline, Register, Watched
from modelserve.concurrency.watcher import watch
from modelserve.errors import Stopped

__all__ = ["OVER", "AsyncioFlight", "ShieldedFlight"]

OVER: Final = object()  # instead of what a pipeline awaits, where its first step was all of it
_REPEAT_SECONDS: Final = 0.1


class AsyncioFlight(Flight):
    """One request in flight in a plain task of asyncio's."""

    __slots__ = (
        "_cancelled_before",
        "_cancels",
        "_companion",
        "_patience",
        "_reporter",
        "_task",
        "_timer",
        "_watcher",
    )

    def __init__(self, request: Watched, register: Register) -> None:
        self.request = request
        self.is_watched = self.over = False
        self._register = register
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reporter: asyncio.Task[None] | None = None
        self._companion: asyncio.Task[None] | None = None
        self._patience: float | None = None
        self._cancels = self._cancelled_before = 0

    async def run(self, pipeline: Pipeline, trap: Any) -> None:
        """Run the rest of a pipeline whose first step has suspended, awaiting `trap`.

        Raises the reason if something ended it early; the host's own cancellation once the pipeline
        has cleaned up and the failure has been reported.
        """
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelled_before = self._task.cancelling()
        request = self.request
        self._register.add(self)
        try:
            await _drive(request, pipeline, trap)
        except asyncio.CancelledError:
            if request.reason is not None:
                raise request.reason from None
            request.reason = HostCancelled()
            self._report(request.report_early_end(request.reason))
            raise
        except BaseException as exc:
            if request.reason is not None and exc is not request.reason:
                raise request.reason from exc
            raise
        finally:
            self._stop_watching()
            if self._reporter is not None:
                await _finished(self._reporter)
            self._register.remove(self)

    def start_watching(self) -> None:
        """Watch the deadlines and the client of a request that is still running."""
        self.is_watched = True
        if self.request.reason is not None:
            return
        if self.request.body_read:
            self._start_watcher()
        self._set_timer()

    def is_interrupted_by(self, exc: BaseException) -> bool:
        # A hook may raise CancelledError of itself, by awaiting a task that somebody cancelled.
        return self.request.reason is not None or (
            isinstance(exc, asyncio.CancelledError) and self._is_being_cancelled()
        )

    def start_companion(self, companion: Coroutine[Any, Any, None]) -> None:
        self._companion = self._loop().create_task(self.accompany(companion))

    def begin_clean_up(self) -> None:
        """Do nothing: asyncio delivers the cancellation once."""

    def shorten_clean_up(self, seconds: float) -> None:
        if self.request.reason is not None and self._timer is not None and not self.over:
            loop = self._loop()
            if self._timer.when() - loop.time() > seconds:
                self._timer.cancel()
                self._timer = loop.call_later(seconds, self._cancel_task, _REPEAT_SECONDS)

    def _defer(self, reason: Stopped) -> bool:
        """Return whether another cancellation, the host's or a hook's own, is under way.

        A second one would interrupt clean-up, so this one is tried again later. The wait is
        bounded, like clean-up itself.
        """
        if not self._is_being_cancelled():
            return False
        if self._patience is None:
            self._patience = self.request.deadlines.cleanup_timeout
        if self._patience <= 0:
            return False
        self._patience -= _REPEAT_SECONDS
        self._loop().call_later(_REPEAT_SECONDS, self.cancel, reason)
        return True

    def _is_being_cancelled(self) -> bool:
        return self._task is not None and self._task.cancelling() > self._cancelled_before

    def _interrupt(self) -> None:
        seconds = self.request.deadlines.cleanup_timeout
        self._cancel_task(self._register.cleanup_bound(seconds))

    def _cancel_task(self, again_after: float) -> None:
        """Cancel the task, and again if the pipeline has not ended by then."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._task is not None
        self._cancels += 1
        self._task.cancel()
        self._timer = self._loop().call_later(again_after, self._cancel_task, _REPEAT_SECONDS)

    def _report(self, report: Coroutine[Any, Any, None]) -> None:
        self._reporter = self._loop().create_task(report)

    def _start_watcher(self) -> None:
        self._watcher = self._loop().create_task(watch(self, self.request.receive))

    def _set_timer(self) -> None:
        now = monotonic()
        due = self.next_check(now)
        if due < math.inf:
            delay = max(0.0, due - now)
            self._timer = self._loop().call_later(delay, self._check_deadlines)

    def _check_deadlines(self) -> None:
        stopped = self.expired(monotonic())
        if stopped is not None:
            self.cancel(stopped)
        else:
            self._set_timer()

    def _stop_watching(self) -> None:
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # the traceback of its cancellation leads back to this object
        if self._companion is not None:
            self._companion.cancel()
            self._companion = None
        if self._task is not None:
            for _ in range(self._cancels):
                self._task.uncancel()

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._task is not None
        return self._task.get_loop()


class ShieldedFlight(AsyncioFlight):
    """One request in flight inside a cancel scope of anyio's."""

    __slots__ = ()

    async def run_all(self, pipeline: Pipeline) -> None:
        """Run a pipeline that has not been started. Raises as `run`."""
        error: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._relay_host_cancellation)
            with anyio.CancelScope(shield=True):
                try:
                    trap = next(pipeline.__await__(), OVER)
                    if trap is not OVER:
                        self.request.flight = self
                        await self.run(pipeline, trap)
                except BaseException as exc:
                    error = exc
                self.over = True
            group.cancel_scope.cancel()
        if isinstance(error, HostCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises the host's cancellation
        if error is not None:
            raise error

    async def _relay_host_cancellation(self) -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            self.cancel(HostCancelled())  # nothing happens if the pipeline is over
            raise


@types.coroutine
def _drive(request: Watched, pipeline: Pipeline, trap: Any) -> Generator[Any, Any, None]:
    """Await what a suspended pipeline awaits, step by step, until it ends."""
    resume: Any = pipeline.send
    try:
        while True:
            if request.stream is not None:
                request.stream.note_suspension()
            try:
                value = yield trap
            except BaseException as exc:
                trap = pipeline.throw(exc)
            else:
                trap = resume(value)
    except StopIteration:
        return


async def _finished(task: asyncio.Task[None]) -> None:
    """Wait for a task in spite of our own cancellations; the task is bounded in time."""
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            continue
