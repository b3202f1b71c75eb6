"""Close iterators and iterables, sync and async.

A generator may catch the exception that closes it and yield. Python gives up on it then, and its
`finally` does not run; here it is closed again, a bounded number of times.
"""

import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

__all__ = ["aclose", "close"]

_MOST_ATTEMPTS: Final = 16
_IGNORED: Final = "ignored GeneratorExit"  # in the message of Python's RuntimeError


def close(iterator: Any) -> None:
    """Close a sync iterator that can be closed.

    Raises what its close raises; RuntimeError for a generator that yields instead of ending.
    """
    method = getattr(iterator, "close", None)
    if not callable(method):
        return
    ignored: RuntimeError | None = None
    for _ in range(_MOST_ATTEMPTS):
        try:
            method()
        except RuntimeError as exc:
            if _IGNORED not in str(exc):
                raise
            ignored = ignored or exc
        else:
            break
    if ignored is not None:
        raise ignored


async def aclose(opened: Any) -> None:
    """Close an async iterator or iterable by its `aclose`, else its `close`, async or sync.

    Raises as `close`.
    """
    if inspect.isasyncgen(opened):
        await _close_generator(opened)
        return
    method = _closing_method(opened)
    if method is not None:
        result = method()
        if inspect.isawaitable(result):
            await result


async def _close_generator(generator: AsyncGenerator[Any, Any]) -> None:
    """Close an async generator by `athrow`: a second `aclose` would do nothing."""
    if generator.ag_frame is None:  # type: ignore[attr-defined]
        return
    for attempt in range(_MOST_ATTEMPTS):
        try:
            await generator.athrow(GeneratorExit())
        except (GeneratorExit, StopAsyncIteration):
            if attempt:
                raise RuntimeError(f"async generator {_IGNORED}") from None
            return
    await generator.aclose()


def _closing_method(opened: Any) -> Callable[[], Any] | None:
    for name in ("aclose", "close"):
        method = getattr(opened, name, None)
        if callable(method):
            return method  # type: ignore[no-any-return]
    return None
