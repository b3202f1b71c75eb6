"""Tell an exception that ends its task from a failure of the task's code.

Code may raise a CancelledError of its own, by awaiting a task that was cancelled elsewhere, and
exceptions that are not an `Exception`, such as the panics of libraries in Rust.
"""

import asyncio
import math

import anyio

__all__ = ["ends_task"]


def ends_task(exc: BaseException) -> bool:
    """Return whether the current task is being cancelled, or was dropped, and must end.

    Call this where the exception is caught.
    """
    if isinstance(exc, Exception):
        return False
    if isinstance(exc, GeneratorExit):
        return not _is_in_task()  # it was dropped, and is being closed
    if not isinstance(exc, anyio.get_cancelled_exc_class()):
        return False
    if not isinstance(exc, asyncio.CancelledError):
        return True  # code cannot make trio's of itself
    return anyio.current_effective_deadline() == -math.inf or _is_cancelled_natively()


def _is_in_task() -> bool:
    try:
        anyio.get_current_task()
    except Exception:  # that of anyio without an event loop, of asyncio or of trio without a task
        return False
    return True


def _is_cancelled_natively() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
