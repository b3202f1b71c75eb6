"""Requests in flight on trio, which delivers a cancellation again at every await.

The pipeline is driven step by step inside two cancel scopes. The outer one is cancelled; at the
first await after the cancellation has been delivered, the inner one becomes a shield whose deadline
is the bound on clean-up.

Uses of trio's private names are in `trio_scopes`.
"""

import math
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from time import monotonic
from typing import Any, ClassVar, cast

import anyio
import anyio.abc
import anyio.lowlevel

from modelserve.concurrency.endings import is_cleaning_up
from modelserve.concurrency.flight import (
    Companion,
    Flight,
    HostCancelled,
    Pipeline,
    Register,
    Watched,
)
from modelserve.concurrency.trio_scopes import is_ending, is_visible_to
from modelserve.concurrency.watcher import watch

__all__ = ["TrioFlight"]


class TrioFlight(Flight):
    """One request in flight: a task group, two scopes, and a pipeline driven step by step."""

    __slots__ = (
        "_closing",
        "_group",
        "_inner",
        "_nurseries",
        "_outer",
        "_pipeline",
        "_reported",
        "is_ending",
    )

    spawns_tasks: ClassVar[bool] = False
    _group: anyio.abc.TaskGroup
    _outer: anyio.CancelScope
    _inner: anyio.CancelScope

    def __init__(self, request: Watched, register: Register) -> None:
        self.request = request
        self.is_watched = self.over = False
        self._register = register
        self._closing = False
        self.is_ending = False  # user code is cleaning up by itself, and must not be interrupted
        self._pipeline: Pipeline | None = None
        self._reported: anyio.Event | None = None
        # The nurseries around the pipeline when the cancellation was delivered; None before.
        self._nurseries: list[Any] | None = None

    async def run_all(self, pipeline: Pipeline) -> None:
        """Run a pipeline.

        Raises the reason if something ended it early; the host's cancellation once the pipeline
        has cleaned up and the failure has been reported.
        """
        error: BaseException | None = None
        finished = False
        self._pipeline = pipeline
        async with anyio.create_task_group() as self._group:
            self.is_watched = True
            self._register.add(self)
            self._group.start_soon(self._keep_time)
            try:
                with anyio.CancelScope(shield=True) as self._outer:
                    with anyio.CancelScope() as self._inner:
                        await cast(Awaitable[None], _drive(self, pipeline))
                        finished = True
            except BaseException as exc:
                error = exc
            self.over = True
            self._pipeline = None
            if self._reported is not None:
                with anyio.CancelScope(shield=True):
                    await self._reported.wait()
            self._register.remove(self)
            self._group.cancel_scope.cancel()
        if finished:
            return
        reason = self.request.reason
        if isinstance(reason, HostCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises the host's cancellation
        if reason is not None and error is not reason:
            raise reason from error
        assert error is not None
        raise error

    def start_companion(self, companion: Companion) -> Callable[[], object]:
        scope = anyio.CancelScope()

        async def accompany() -> None:
            with scope:
                await self.accompany(companion)

        self._group.start_soon(accompany)
        return scope.cancel

    async def close(self, closing: Coroutine[Any, Any, None]) -> None:
        self._closing = True
        self.begin_clean_up()
        try:
            await closing
        finally:
            self._closing = False

    def begin_clean_up(self) -> None:
        """Shield the pipeline from a cancellation that it has seen or need not see yet."""
        if self.request.reason is not None and not self._inner.shield:
            from trio.lowlevel import current_task

            self.note_delivered(current_task())
            self._shield()

    def _shield(self) -> None:
        """Shield the pipeline for as long as clean-up may take."""
        self._inner.shield = True
        if self._inner.deadline == math.inf:
            bound = self._register.cleanup_bound(self.request.deadlines.cleanup_timeout)
            self._inner.deadline = anyio.current_time() + bound

    def shorten_clean_up(self, seconds: float) -> None:
        if self.request.reason is not None and not self.over:
            self._inner.deadline = min(self._inner.deadline, anyio.current_time() + seconds)

    # -- what `_drive` asks about the cancellation

    @property
    def is_delivered(self) -> bool:
        """Whether the pipeline has seen the cancellation."""
        return self._nurseries is not None

    def note_delivered(self, task: Any) -> None:
        """Remember the nurseries around the pipeline: they are cancelled as well."""
        if self._nurseries is None:
            self._nurseries = list(task.child_nurseries)

    def is_leaving_nursery(self, task: Any) -> bool:
        """Return whether a task waits at the end of the innermost of its cancelled nurseries."""
        nurseries = task.child_nurseries
        if not nurseries or self.is_ending:
            return False
        innermost = nurseries[-1]
        if self._nurseries is not None and innermost not in self._nurseries:
            return False
        return is_ending(innermost)

    def is_visible_to(self, task: Any) -> bool:
        """Return whether a task sees this flight's cancellation."""
        return not self.is_ending and is_visible_to(task, self._inner)

    def see_end(self) -> None:
        """Deliver the cancellation to the pipeline once its own clean-up is over."""
        if not is_cleaning_up(self._pipeline):
            self.is_ending = False
            self._inner.shield = self._closing

    def lower_shield(self) -> None:
        """Let a nursery that ends see that it was cancelled from outside."""
        self._inner.shield = False

    # -- how a flight is ended early

    def _interrupt(self) -> None:
        self.is_ending = not self._closing and is_cleaning_up(self._pipeline)
        if self._closing or self.is_ending:
            self._shield()
        self._outer.cancel()

    def _report(self, report: Coroutine[Any, Any, None]) -> None:
        self._reported = anyio.Event()
        self._group.start_soon(self._await_report, report, self._reported)

    async def _await_report(self, report: Coroutine[Any, Any, None], done: anyio.Event) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await report
        finally:
            done.set()

    def _start_watcher(self) -> None:
        self._group.start_soon(watch, self, self.request.receive)

    async def _keep_time(self) -> None:
        """Check the clock whenever a limit may have passed; relay the host's cancellation."""
        try:
            while True:
                now = monotonic()
                stopped = self.expired(now)
                if stopped is not None:
                    self.cancel(stopped)
                    await anyio.sleep_forever()
                await anyio.sleep(self.next_check(now) - now)
        except anyio.get_cancelled_exc_class():
            self.cancel(HostCancelled())  # nothing happens if the pipeline is over
            raise


@types.coroutine
def _drive(flight: TrioFlight, pipeline: Pipeline) -> Generator[Any, Any, None]:
    """Drive a pipeline step by step: trio sends a cancellation as an outcome, not as an exception.

    The shield is raised at the first await after the cancellation was delivered. If it was raised
    earlier, scopes around the pipeline's code would take the cancellation for their own. Nurseries
    around that code are such scopes, so the shield is lowered while one of them ends; nurseries
    that the clean-up opens are not.
    """
    from outcome import Error
    from trio import Cancelled
    from trio.lowlevel import current_task

    task, request = current_task(), flight.request
    step, value = pipeline.send, None
    while True:
        try:
            trap = step(value)
        except StopIteration:
            return
        if request.stream is not None:
            request.stream.note_suspension()
        if flight.is_ending:
            flight.see_end()
        if flight.is_delivered and not flight.is_leaving_nursery(task):
            flight.begin_clean_up()
        try:
            step, value = pipeline.send, (yield trap)
        except GeneratorExit:
            request.reason = request.reason or HostCancelled()  # nothing is sent any more
            pipeline.close()
            raise
        except BaseException as exc:
            step, value = pipeline.throw, exc
        else:
            if request.reason is None:
                continue
            if flight.is_leaving_nursery(task):
                flight.note_delivered(task)
                flight.lower_shield()
            elif (
                isinstance(value, Error)
                and isinstance(value.error, Cancelled)
                and flight.is_visible_to(task)
            ):
                flight.note_delivered(task)
