"""The threads that sync user code runs in: a pool, and threads of which a model has its own.

A call and the iterator that it returns run on one thread from beginning to end (`bridge`). Threads
are daemons, so that one that blocks for ever does not keep the process alive.
"""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import anyio

from modelserve.concurrency.bridge import ThreadCall, ThreadStream

__all__ = ["OwnThread", "Workers"]


class Workers:
    """The worker threads of one application.

    At most `limit` calls run at a time; more wait in order. Threads are started on demand and kept.
    """

    def __init__(self, limit: int = 40) -> None:
        self._threads = 0  # first, since `__del__` reads it and what follows
        self._own: weakref.WeakSet[OwnThread] = weakref.WeakSet()
        if limit < 1:
            raise ValueError(f"The number of threads must be at least 1, not {limit}")
        self.limit = limit
        self._calls: queue.SimpleQueue[ThreadCall | None] = queue.SimpleQueue()
        self._limiter: anyio.CapacityLimiter | None = None
        self._running: dict[ThreadCall, bool] = {}  # whether it counts towards the limit
        self._waiting = 0

    @property
    def running(self) -> list[str]:
        """The labels of the calls that threads are busy with, models' own threads included."""
        of_models = [label for thread in self._own for label in thread.running]
        return [call.label for call in self._running] + of_models

    @property
    def has_waiting(self) -> bool:
        """Whether a call waits for a thread. Callable from any thread."""
        return self._waiting > 0

    def own_thread(self, name: str) -> "OwnThread":
        """Return a thread beside the limit for one model; it is closed with the others."""
        own = OwnThread(name)
        self._own.add(own)
        return own

    async def call(self, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync function in a worker thread, in a copy of the current context.

        Return its result; a sync iterator comes back as a `ThreadStream` that the same thread
        runs. If cancelled while waiting for a thread, the function is not called; if cancelled
        later, the wait lasts until the function has returned, and then raises.
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

        If cancelled while waiting for a thread, the iterator is closed, in an extra thread.
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
        for own in self._own:
            own.close()
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
            self._waiting += 1
            try:
                await self._limiter.acquire_on_behalf_of(call)
            finally:
                self._waiting -= 1

    def _start(self, call: ThreadCall, *, counted: bool = True) -> None:
        self._running[call] = counted
        self._calls.put(call)
        if len(self._running) > self._threads:
            self._start_thread(f"{self._threads + 1}")

    def _start_thread(self, name: str) -> None:
        self._threads += 1
        name = f"modelserve-worker-{name}"
        threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True).start()

    def _release(self, call: ThreadCall) -> None:
        counted = self._running.pop(call)
        if self._limiter is not None and counted:
            self._limiter.release_on_behalf_of(call)


class OwnThread(Workers):
    """The one thread of one model, for what only the thread that made it may use.

    Calls run one at a time, in order. A call by a task that reads a stream of this thread would
    wait for itself, so that the thread makes it between two items.
    """

    def __init__(self, name: str) -> None:
        super().__init__(1)
        self._name = name
        self._tasks: dict[ThreadCall, int] = {}
        self._streams: dict[ThreadCall, ThreadCall] = {}  # which one a call has to interrupt

    async def _acquire(self, call: ThreadCall) -> None:
        task = anyio.get_current_task().id
        stream = next((running for running in self._running if self._tasks[running] == task), None)
        if stream is None:
            await super()._acquire(call)
        else:
            self._streams[call] = stream
        self._tasks[call] = task

    def _start(self, call: ThreadCall, *, counted: bool = True) -> None:
        stream = self._streams.pop(call, None)
        self._running[call] = counted and stream is None
        self._tasks.setdefault(call, 0)
        if stream is not None and stream.run_between_items(call):
            return
        self._calls.put(call)
        if not self._threads:
            self._start_thread(f"of-{self._name}")

    def _release(self, call: ThreadCall) -> None:
        del self._tasks[call]
        super()._release(call)


def _work(calls: "queue.SimpleQueue[ThreadCall | None]") -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call
