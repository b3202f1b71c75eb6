"""Tasks that belong to no request: cancelling the task that started them does not stop them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from modelserve.concurrency.cancelling import ends_task
from modelserve.errors import ServerShuttingDown

__all__ = ["Background"]

logger = logging.getLogger("modelserve")

Function = Callable[[], Awaitable[None]]


class Background:
    """Tasks of the event loop itself; each runs until it ends or `cancel` is called."""

    def __init__(self) -> None:
        self._tasks: dict[anyio.CancelScope, object] = {}
        self._ended: anyio.Event | None = None

    def start_soon(self, function: Function) -> None:
        """Start an async function in a new task; what it raises is logged."""
        scope = anyio.CancelScope()
        self._tasks[scope] = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            trio.lowlevel.spawn_system_task(self._run, function, scope)
        else:  # stored, since the loop holds only weak references to its tasks
            self._tasks[scope] = loop.create_task(self._run(function, scope))

    async def run(self, function: Function) -> None:
        """Run an async function in a new task and wait until it has ended.

        Cancellation ends the wait and leaves the task running. Raises what the function raises, and
        ServerShuttingDown if the task is cancelled.
        """
        ended = anyio.Event()
        errors: list[BaseException] = []
        self.start_soon(partial(_collect_error, function, ended, errors))
        await ended.wait()
        if errors:
            raise errors[0]

    async def cancel(self, *, within: float) -> None:
        """Cancel all tasks and wait until they have ended, but no longer than `within` seconds."""
        for scope in self._tasks:
            scope.cancel()
        with anyio.move_on_after(within):
            while self._tasks:
                self._ended = anyio.Event()
                await self._ended.wait()

    async def _run(self, function: Function, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await function()
        except BaseException as exc:
            if ends_task(exc):
                raise
            logger.error("A task in the background failed", exc_info=exc)
        finally:
            del self._tasks[scope]
            if self._ended is not None:
                self._ended.set()


async def _collect_error(
    function: Function, ended: anyio.Event, errors: list[BaseException]
) -> None:
    try:
        await function()
    except BaseException as exc:
        if ends_task(exc):
            errors.append(ServerShuttingDown())
            raise
        errors.append(exc)
    finally:
        ended.set()
