"""Tasks that belong to no request: cancelling the task that started them does not stop them."""

import logging
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial

import anyio

from modelserve.concurrency.cancelling import ends_task
from modelserve.concurrency.loops import Event, EventLoop, event_loop
from modelserve.errors import ServerShuttingDown

__all__ = ["Background"]

logger = logging.getLogger("modelserve")

Function = Callable[[], Awaitable[None]]


class Background:
    """Tasks of event loops themselves; each runs until it ends or `cancel` is called."""

    def __init__(self) -> None:
        self._tasks: dict[anyio.CancelScope, EventLoop] = {}
        self._ended: Event | None = None

    def start_soon(self, function: Function) -> None:
        """Start an async function in a new task; what it raises is logged."""
        scope, loop = anyio.CancelScope(), event_loop()
        self._tasks[scope] = loop
        loop.start_soon(partial(self._run, function, scope), copy_context())

    async def run(self, function: Function) -> None:
        """Run an async function in a new task and wait until it has ended.

        Cancellation ends the wait and leaves the task running. Raises what the function raises, and
        ServerShuttingDown if the task is cancelled.
        """
        ended = Event()
        errors: list[BaseException] = []
        self.start_soon(partial(_collect_error, function, ended, errors))
        await ended.wait()
        if errors:
            raise errors[0]

    async def cancel(self, *, within: float) -> None:
        """Cancel all tasks and wait until they have ended, but no longer than `within` seconds."""
        for scope, loop in [*self._tasks.items()]:
            if not loop.run(scope.cancel):
                self._tasks.pop(scope, None)  # its event loop has ended
        with anyio.move_on_after(within):
            while self._tasks:
                ended = self._ended = self._ended or Event()
                if self._tasks:  # else the last has ended meanwhile, in another thread
                    await ended.wait()

    async def _run(self, function: Function, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await function()
        except BaseException as exc:
            if ends_task(exc):
                raise
            logger.error("A task in the background failed", exc_info=exc)
        finally:
            self._tasks.pop(scope, None)
            if self._ended is not None:
                ended, self._ended = self._ended, None
                ended.set()


async def _collect_error(function: Function, ended: Event, errors: list[BaseException]) -> None:
    try:
        await function()
    except BaseException as exc:
        if ends_task(exc):
            errors.append(ServerShuttingDown())
            raise
        errors.append(exc)
    finally:
        ended.set()
