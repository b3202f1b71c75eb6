"""The pool of worker threads that sync user code runs in.

A call and the iterator that it returns run on one thread from beginning to end (`bridge`). Threads
are daemons, so that one that blocks for ever does not keep the process alive.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio

from modelserve.concurrency.bridge import ThreadCall, ThreadStream

__all__ = ["Workers"]


class Workers:
    """The worker threads of one application.

    At most `limit` calls run at a time; more wait in order. Threads are started on demand and kept.
    """

    def __init__(self, limit: int = 40) -> None:
        self._threads = 0
        if limit < 1:
            raise ValueError(f"The number of threads must be at least 1, not {limit}")
        self.limit = limit
        self._calls: queue.SimpleQueue[ThreadCall | None] = queue.SimpleQueue()
        self._limiter: anyio.CapacityLimiter | None = None
        self._running: dict[ThreadCall, bool] = {}  # whether it counts towards the limit

    @property
    def running(self) -> list[str]:
        """The labels of the calls that threads are busy with."""
        return [call.label for call in self._running]

    async def call(self, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync function in a worker thread, in a copy of the current context.

        Return its result; a sync iterator comes back as a `ThreadStream` that the same thread
        runs. If cancelled while waiting for a thread, the function is not called; if cancelled
        later, the wait goes on until the function has returned, and then raises.
        """
        call = ThreadCall(label, function, args, on_end=self._release)
        await self._acquire(call)
        self._start(call)
        return await call.result()

    async def call_hook(self, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync hook, as `call` does; what it sets of context variables stays set."""
        call = ThreadCall(label, function, args, on_end=self._release, shares_context=True)
        await self._acquire(call)
        self._start(call)
        return await call.result()

    async def iterate(self, label: str, iterator: Iterator[Any]) -> ThreadStream:
        """Run a hook's sync iterator in one worker thread, otherwise as `call_hook`.

        If cancelled while waiting for a thread, the iterator is closed, in a thread above the limit.
        """
        call = ThreadCall(label, lambda: iterator, (), on_end=self._release, shares_context=True)
        try:
            await self._acquire(call)
        except anyio.get_cancelled_exc_class():
            call.stop_requested = True
            self._start(call, counted=False)
            await call.stop()
            raise
        self._start(call)
        stream: ThreadStream = await call.result()
        return stream

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call. Later calls start new threads."""
        if not self._threads:
            return
        calls, self._calls = self._calls, queue.SimpleQueue()
        for _ in range(self._threads):
            calls.put(None)
        self._threads = 0

    def __del__(self) -> None:
        self.close()

    async def _acquire(self, call: ThreadCall) -> None:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self.limit)
        try:
            self._limiter.acquire_on_behalf_of_nowait(call)
        except anyio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(call)

    def _start(self, call: ThreadCall, *, counted: bool = True) -> None:
        self._running[call] = counted
        self._calls.put(call)
        if len(self._running) > self._threads:
            self._threads += 1
            name = f"modelserve-worker-{self._threads}"
            threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True).start()

    def _release(self, call: ThreadCall) -> None:
        counted = self._running.pop(call)
        if self._limiter is not None and counted:
            self._limiter.release_on_behalf_of(call)


def _work(calls: "queue.SimpleQueue[ThreadCall | None]") -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call
