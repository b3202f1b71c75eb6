"""Requests in flight on asyncio.

A flight runs in the host's own task. It is cancelled by `task.cancel()`, which asyncio delivers
once; while a pipeline cleans up, `asyncio_guard` absorbs further cancellations of the host, and the
flight raises them at the end. The pipeline takes its first step without a flight: one that never
suspends is over before anything could end it early. Most of the others end within milliseconds, so
the register watches only those older than 20 ms: they get a task that awaits `http.disconnect`, and
a timer for the deadlines. A task group for each request would double the cost of a small one.

Inside a cancel scope of anyio's a cancellation is delivered again at every await. `ShieldedFlight`
puts a shielded scope around the pipeline and relays the host's cancellation once.

An exception leaves a flight as itself, never inside an exception group.
"""

import asyncio
import math
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from time import monotonic
from typing import Any, Final

import anyio
import anyio.lowlevel

from modelserve.concurrency.asyncio_guard import OVER, abandon, close_guarded, guarded, sheltered
from modelserve.concurrency.asyncio_shelter import REPEAT_SECONDS, ShelteredFlight
from modelserve.concurrency.endings import is_cleaning_up
from modelserve.concurrency.flight import (
    Companion,
    HostCancelled,
    Pipeline,
    Register,
    Watched,
)
from modelserve.concurrency.watcher import watch

__all__ = ["AsyncioFlight", "ShieldedFlight"]

_LOOK_AGAIN_SECONDS: Final = 0.01


class AsyncioFlight(ShelteredFlight):
    """One request in flight in a plain task of asyncio's."""

    __slots__ = (
        "_companions",
        "_interrupts_at",
        "_pipeline",
        "_reporter",
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
        self._companions: set[asyncio.Task[None]] | None = None  # most have none
        self._absorbed = self._cancels = self._cancelled_before = 0
        self._patience_ends: float | None = None
        self._pipeline: Pipeline | None = None
        self._interrupts_at = math.inf
        self.is_cancelling = self.spares_nothing = False

    async def run(self, pipeline: Pipeline, trap: Any) -> None:
        """Run the rest of a pipeline whose first step has suspended, awaiting `trap`.

        Raises the reason if something ended it early; the host's own cancellation once the pipeline
        has cleaned up and the failure has been reported.
        """
        self._pipeline = pipeline
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelled_before = self._task.cancelling()
        request, host_cancelled = self.request, False
        self._register.add(self)
        try:
            await _drive(request, pipeline, trap)
        except asyncio.CancelledError:
            if request.reason is not None:
                raise request.reason from None
            host_cancelled = True
            request.reason = request.host_cancelled()
            self._report(request.report_early_end(request.reason))
            raise
        except BaseException as exc:
            if self.over:  # it was abandoned: no event loop is left to run the report
                self._reporter = None
                raise
            if request.reason is not None and exc is not request.reason:
                raise request.reason from exc
            raise
        finally:
            self._stop_watching()
            if self._reporter is not None:
                await self._finished(self._reporter)
            self._register.remove(self)
            if host_cancelled:
                await self.deliver_absorbed()
        await self.deliver_absorbed()

    def start_watching(self) -> None:
        """Watch the deadlines and the client of a request that is still running."""
        self.is_watched = True
        if self.request.reason is not None:
            return
        if self.request.body_read:
            self._start_watcher()
        self._set_timer()

    def is_interrupted_by(self, exc: BaseException) -> bool:
        # A hook may raise a CancelledError of its own, by awaiting a task that was cancelled.
        return self.request.reason is not None or (
            isinstance(exc, asyncio.CancelledError) and self.is_being_cancelled
        )

    def start_companion(self, companion: Companion) -> Callable[[], object]:
        task = self._loop().create_task(self.accompany(companion))
        if self._companions is None:
            self._companions = set()
        self._companions.add(task)
        return partial(self._stop_companion, task)

    def _stop_companion(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        if self._companions is not None:
            self._companions.discard(task)

    async def close(self, closing: Coroutine[Any, Any, None]) -> None:
        await close_guarded(self.request, closing)

    def shorten_clean_up(self, seconds: float) -> None:
        if self.request.reason is not None and self._timer is not None and not self.over:
            loop = self._loop()
            self._interrupts_at = min(self._interrupts_at, loop.time() + seconds)
            if self._timer.when() - loop.time() > seconds:
                self._timer.cancel()
                self._timer = loop.call_later(seconds, self._cancel_task, REPEAT_SECONDS)

    def _interrupt(self) -> None:
        seconds = self._register.cleanup_bound(self.request.deadlines.cleanup_timeout)
        self._interrupts_at = self._loop().time() + seconds
        self._interrupt_unless_ending()

    def _interrupt_unless_ending(self) -> None:
        """Cancel the task; if user code is cleaning up by itself, once that is done."""
        left = self._interrupts_at - self._loop().time()
        if left <= 0:
            self.spares_nothing = True
            self._cancel_task(REPEAT_SECONDS)
        elif not is_cleaning_up(self._pipeline):
            self._cancel_task(left)
        else:
            if self._timer is not None:
                self._timer.cancel()
            seconds = min(left, _LOOK_AGAIN_SECONDS)
            self._timer = self._loop().call_later(seconds, self._interrupt_unless_ending)

    def _cancel_task(self, again_after: float) -> None:
        """Cancel the task, and again if the pipeline has not ended by then."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._task is not None
        self._cancel_once()
        self._timer = self._loop().call_later(again_after, self._cancel_task, REPEAT_SECONDS)

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
        self._pipeline = None
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # the traceback of its cancellation leads back to this object
        for companion in self._companions or ():
            companion.cancel()
        self._companions = None
        self._take_back_cancels()


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
            if request.stream is not None and request.stream.note_suspension():
                trap = yield from sheltered(request, pipeline, trap)
                if trap is OVER:
                    return
            try:
                value = yield trap
            except asyncio.CancelledError as exc:
                trap = yield from guarded(request, pipeline, exc)
                if trap is OVER:
                    return
            except GeneratorExit:
                abandon(request, pipeline)
                raise
            except BaseException as exc:
                trap = pipeline.throw(exc)
            else:
                trap = resume(value)
    except StopIteration:
        return
