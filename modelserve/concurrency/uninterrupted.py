"""Wait for work that has to be completed, however often the wait is cancelled.

A shielded scope keeps trio's cancellations out, and anyio's. One of asyncio's own, `Task.cancel`,
goes through: so there the work has a task or a thread of its own, and only the wait is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

__all__ = ["call_to_end", "wait_to_end", "wait_until"]

Function = Callable[[], Awaitable[None]]


async def call_to_end(function: Function, *, when_cancelled: Callable[[], None]) -> None:
    """Call an async function and wait until it has returned.

    Args:
        function: Called again if its own task is cancelled, as all are when `asyncio.run` ends.
        when_cancelled: Called at each cancellation that a shield does not keep out.

    Raises what the function raises, else the last of these cancellations.
    """
    with anyio.CancelScope(shield=True):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            await function()
            return
        task = loop.create_task(_run(function))
        cancellation = await wait_to_end(task, when_cancelled=when_cancelled)
        while task.cancelled():
            when_cancelled()
            task = loop.create_task(_run(function))
            cancellation = await wait_to_end(task, when_cancelled=when_cancelled) or cancellation
    task.result()
    if cancellation is not None:
        raise cancellation


async def wait_until(is_over: Callable[[], bool], wait: Callable[[], Awaitable[object]]) -> None:
    """Wait until something is over that is ending already; no cancellation is raised.

    Args:
        wait: Waits until `is_over` may have changed.
    """
    while not is_over():
        try:
            with anyio.CancelScope(shield=True):
                await wait()
        except anyio.get_cancelled_exc_class():
            continue  # asyncio's own


async def wait_to_end(
    task: asyncio.Task[Any], *, when_cancelled: Callable[[], None]
) -> asyncio.CancelledError | None:
    """Wait until a task of asyncio's has ended; return the last cancellation meanwhile."""
    cancellation = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as exc:
            cancellation = exc
            when_cancelled()
    return cancellation


async def _run(function: Function) -> None:
    await function()
