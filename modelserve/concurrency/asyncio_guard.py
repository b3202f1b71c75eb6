"""Clean-up on asyncio that no cancellation by the host interrupts.

asyncio delivers a cancellation once, but a host may cancel a task that has been cancelled already,
and more than once. So while user code cleans up, its task does not wait for the future that the
code awaits but for a guard around it. `Task.cancel` calls the guard's `cancel`, in the context of
the code that cancels. A cancellation from inside the request is passed on to the future: a time
limit of the user code, a scope of anyio's, the bound on clean-up. Any other is absorbed: the flight
counts it, and raises it again once the request has ended.
"""

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Final, cast

from modelserve.concurrency.asyncio_shelter import ShelteredFlight
from modelserve.concurrency.flight import HostCancelled, Pipeline, Watched

__all__ = ["OVER", "OwnContext", "abandon", "close_guarded", "guarded", "sheltered"]

OVER: Final = object()  # returned instead of what a coroutine awaits, once it has ended

# The request whose clean-up, or stream, a piece of code belongs to; timers and tasks inherit it.
_CLEANING: Final[ContextVar[object]] = ContextVar("modelserve_cleaning", default=None)
_MOST_CLOSES: Final = 100  # of a pipeline that suspends while it is closed
_SCOPE_MESSAGE: Final = "cancel scope"  # in the message of each cancellation by anyio


class _Guard(asyncio.Future[None]):
    """Waits for a future, or for the next round of the event loop if there is none."""

    def __init__(
        self, request: Watched, trap: Any, loop: asyncio.AbstractEventLoop, *, closing: bool
    ) -> None:
        super().__init__(loop=loop)
        self._request = request
        self._trap = trap
        self._closing = closing
        if trap is None:
            loop.call_soon(self._wake)
        else:
            trap.add_done_callback(self._wake)

    def cancel(self, msg: Any = None) -> bool:
        flight = _flight_of(self._request)
        if flight.is_cancelling:
            passes = flight.spares_nothing or not self._closing
        else:
            is_of_scope = isinstance(msg, str) and _SCOPE_MESSAGE in msg
            passes = is_of_scope or _CLEANING.get() is self._request
        if passes:
            # If nothing is left to cancel, the task raises the cancellation at its next step.
            return self._trap is not None and bool(self._trap.cancel(msg))
        flight.absorb()
        return True

    def _wake(self, trap: Any = None) -> None:
        if not self.done():
            self.set_result(None)


@types.coroutine
def guarded(
    request: Watched, coroutine: Pipeline, exc: BaseException | None, *, closing: bool = False
) -> Generator[Any, Any, Any]:
    """Drive a coroutine while it cleans up, which begins as `exc` is thrown into it, if any.

    Returns what it awaits once no cancellation is under way any more, or OVER. With `closing` the
    whole coroutine is clean-up, even if nothing has been cancelled yet.
    """
    loop = asyncio.get_running_loop()
    token = _CLEANING.set(request)
    try:
        trap = _next_trap(coroutine, exc)
        while trap is not OVER and (closing or _flight_of(request).is_being_cancelled):
            if request.stream is not None and not closing:
                request.stream.note_suspension()
            exc = None
            try:
                if trap is None or (asyncio.isfuture(trap) and trap.get_loop() is loop):
                    yield from _Guard(request, trap, loop, closing=closing)
                else:
                    yield trap  # the task refuses it
            except GeneratorExit:
                if not closing:
                    abandon(request, coroutine)
                raise
            except BaseException as thrown:
                exc = thrown
            trap = _next_trap(coroutine, exc)
    finally:
        try:
            _CLEANING.reset(token)
        except ValueError:
            pass  # the coroutine was dropped, and is closed in another context
    if not closing and trap is not OVER:
        _flight_of(request).end_shelter()
    return trap


@types.coroutine
def sheltered(request: Watched, pipeline: Pipeline, trap: Any) -> Generator[Any, Any, Any]:
    """Drive a pipeline whose generator is cleaning up by itself, awaiting `trap`.

    Returns what it awaits once that is over, or OVER. Then an absorbed cancellation ends the
    request.
    """
    loop = asyncio.get_running_loop()
    while True:
        exc: BaseException | None = None
        try:
            if trap is None or (asyncio.isfuture(trap) and trap.get_loop() is loop):
                yield from _Guard(request, trap, loop, closing=True)
            else:
                yield trap
        except GeneratorExit:
            abandon(request, pipeline)
            raise
        except BaseException as thrown:
            exc = thrown
        trap = _next_trap(pipeline, exc)
        stream = request.stream
        if trap is OVER or stream is None or not stream.note_suspension():
            return trap


class OwnContext:
    """Marks tasks and timers of user code as the request's own, in the current context."""

    def __init__(self, request: Watched) -> None:
        self._token = _CLEANING.set(request)

    def leave(self) -> None:
        """Take the mark away."""
        try:
            _CLEANING.reset(self._token)
        except ValueError:
            pass  # dropped, and closed in another context


async def close_guarded(request: Watched, closing: Coroutine[Any, Any, None]) -> None:
    """Await clean-up that no cancellation interrupts before the bound on it."""
    try:
        await guarded(request, closing, None, closing=True)
    finally:
        closing.close()


def abandon(request: Watched, pipeline: Pipeline) -> None:
    """End a pipeline that its host has dropped: nothing is sent, and nothing can be awaited.

    It is cancelled, since before Python 3.13 the exception that closes a coroutine does not reach
    user code inside an async generator.
    """
    request.reason = request.reason or HostCancelled()
    if request.flight is not None:
        request.flight.over = True
    for _ in range(_MOST_CLOSES):
        try:
            pipeline.throw(asyncio.CancelledError())
        except BaseException:  # it has ended
            return


def _flight_of(request: Watched) -> ShelteredFlight:
    """Return the flight of a request that has suspended, and so has one."""
    return cast(ShelteredFlight, request.flight)


def _next_trap(coroutine: Pipeline, exc: BaseException | None) -> Any:
    try:
        return coroutine.send(None) if exc is None else coroutine.throw(exc)
    except StopIteration:
        return OVER
