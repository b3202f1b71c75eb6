"""Values of an iterable that belongs to one thread, for a hook that iterates over them elsewhere.

Many iterables may be used only in the thread that made them: a database's cursor, a partition of
Spark's. So that thread reads them, when the hook asks for more: several values at a time if they
come without a pause, else one at a time.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from time import monotonic
from typing import Any, Final, Self

import anyio

from modelserve.concurrency.bridge import call_of_this_thread, stopping
from modelserve.concurrency.loops import EventLoop, event_loop
from modelserve.errors import ClientGone

__all__ = ["Feed"]

_MOST_AT_ONCE: Final = 64
_SECONDS_AT_ONCE: Final = 0.001


class Feed:
    """The values of an iterable; both an iterator, for a worker thread, and an async iterator.

    The hook sees the exceptions of the iterable and of `convert`.

    Attributes:
        convert: Converts the value at an index for the hook; None if the hook takes the values as
            they come.
        is_wanted: The hook waits for `read` to be called.
        notify: Called, by any thread, when the hook begins to wait.
        error: The exception of the iterable.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.convert: Callable[[Any, int], Any] | None = None
        self.is_wanted = False
        self.notify: Callable[[], object] = int
        self.error: Exception | None = None
        self._source = iter(values)
        self._values: deque[Any] = deque()
        self._taken = 0
        self._is_over = False
        self._wake: Callable[[], object] = int
        self._loop: EventLoop | None = None

    # -- in the thread of the iterable

    def read(self) -> None:
        """Read the next values, if any, and give them to the hook."""
        self.is_wanted = False
        latest = monotonic() + _SECONDS_AT_ONCE
        try:
            for value in self._source:
                self._values.append(value)
                if len(self._values) >= _MOST_AT_ONCE or monotonic() >= latest:
                    break
            else:
                self._is_over = True
        except Exception as exc:
            self.error, self._is_over = exc, True
        self._wake()

    # -- where the hook runs

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while not self._has_next():
            self._wait_in_thread()
        if self._values:
            return self._next()
        raise StopIteration if self.error is None else self.error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._has_next():
            await self._wait_on_loop()
        if self._values:
            return self._next()
        raise StopAsyncIteration if self.error is None else self.error

    def _next(self) -> Any:
        value = self._values.popleft()
        self._taken += 1
        return value if self.convert is None else self.convert(value, self._taken - 1)

    def _has_next(self) -> bool:
        """Return whether the next value, or the end, is there."""
        return self._is_over or bool(self._values)

    def _wait_in_thread(self) -> None:
        """Wait for `read`. Raises ClientGone if the thread is asked to stop meanwhile."""
        read, call = threading.Event(), call_of_this_thread()
        with nullcontext() if call is None else stopping(call, read.set):
            self._ask(read.set)
            if call is None or not call.stop_requested:
                read.wait()
        if call is not None and call.stop_requested and not self._has_next():
            raise ClientGone

    async def _wait_on_loop(self) -> None:
        read = anyio.Event()
        if self._loop is None:
            self._loop = event_loop()
        self._ask(partial(self._loop.call_from_thread, read.set))
        await read.wait()

    def _ask(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self.is_wanted = True
        self.notify()
