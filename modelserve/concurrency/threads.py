"""The threads that sync user code runs in: a pool, and a thread of a model's own.

A call and the iterator that it returns run on one thread from beginning to end (`bridge`). Threads
are daemons, so that one that blocks for ever does not keep the process alive. If the system refuses
to start a thread, the call is refused and leaves nothing behind.
"""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import anyio

from modelserve.concurrency.bridge import ThreadCall, ThreadStream, run_here
from modelserve.concurrency.closing import close
from modelserve.concurrency.slots import Slots
from modelserve.errors import NoThread, Overloaded

__all__ = [
    "ExtraThreads",
    "OwnThread",
    "OwnThreadForHooks",
    "Workers",
    "let_threads_run",
    "start_thread",
]

logger = logging.getLogger("modelserve")

Waiting: TypeAlias = Callable[[], AbstractContextManager[None]]


def start_thread(name: str, function: Callable[..., object], *args: Any) -> threading.Thread:
    """Start a daemon thread and return it. Raises NoThread if the system refuses."""
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError, OSError) as exc:
        logger.error("A thread cannot be started (%s): %s", name, exc)
        raise NoThread from exc
    return thread


class Workers:
    """The worker threads of one application.

    At most `limit` calls run at a time; more wait in order, whichever event loops they come from.
    Threads are started on demand and kept.
    """

    def __init__(self, limit: int = 40) -> None:
        self._threads = 0  # first, since `__del__` reads these attributes
        self._own: weakref.WeakSet[OwnThread] = weakref.WeakSet()
        if isinstance(limit, str) or limit < 1:
            raise ValueError(f"The number of threads must be at least 1, not {limit!r}")
        self.limit = limit
        self._calls: queue.SimpleQueue[ThreadCall | None] = queue.SimpleQueue()
        self._running: dict[ThreadCall, bool] = {}  # whether it counts towards the limit
        self.slots = Slots(limit)

    @property
    def running(self) -> list[str]:
        """The labels of the calls that threads are busy with, models' own threads included."""
        of_models = [label for thread in self._own for label in thread.running]
        return [call.label for call in [*self._running]] + of_models

    @property
    def has_waiting(self) -> bool:
        """Whether a call waits for a thread. Callable from any thread."""
        return self.slots.has_waiting

    def own_thread(self, name: str) -> "OwnThread":
        """Return a thread beside the limit for one model; it is closed with the others."""
        own = OwnThread(name)
        self._own.add(own)
        return own

    async def call(self, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync function in a worker thread, in a copy of the current context.

        Return its result; a sync iterator comes back as a `ThreadStream` that the same thread
        runs. If cancelled while waiting for a thread, the function is not called; if cancelled
        later, the wait lasts until the function has returned, and then raises. Raises NoThread.
        """
        call = ThreadCall(label, function, args, on_end=self._release)
        await self._begin(call)
        return await call.result()

    async def call_hook(self, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync hook, as `call` does; context variables that it sets stay set."""
        call = ThreadCall(label, function, args, on_end=self._release, shares_context=True)
        await self._begin(call)
        return await call.result()

    async def iterate(self, label: str, iterator: Iterator[Any]) -> ThreadStream:
        """Run a hook's sync iterator in one worker thread, otherwise as `call_hook`.

        If cancelled while waiting for a thread, the iterator is closed in an extra thread; if none
        can be started, or the call is refused, it is closed here, as it has never run.
        """
        call = ThreadCall(label, lambda: iterator, (), on_end=self._release, shares_context=True)
        try:
            await self._begin(call)
        except anyio.get_cancelled_exc_class():
            call.stop_requested = True
            try:
                self._start(call, counted=False)
            except NoThread:
                _close_unstarted(label, iterator)
            else:
                await call.stop()
            raise
        except Overloaded:
            _close_unstarted(label, iterator)
            raise
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

    async def _begin(self, call: ThreadCall) -> None:
        """Wait for a slot and give the call to a thread. Raises NoThread, with the slot given back.

        If cancelled, the call has not been given to a thread.
        """
        counted = await self._acquire(call)
        try:
            self._start(call, counted=counted)
        except NoThread:
            if counted:
                self.slots.release()
            raise

    async def _acquire(self, call: ThreadCall) -> bool:
        """Wait until the call may start; return whether it counts towards the limit."""
        await self.slots.acquire()
        return True

    def _start(self, call: ThreadCall, *, counted: bool) -> None:
        """Give the call to a thread. Raises NoThread, and has then changed nothing."""
        self._running[call] = counted  # first, so that two that start at once do not share a thread
        if len(self._running) > self._threads:
            try:
                self._start_thread(f"{self._threads + 1}")
            except NoThread:
                del self._running[call]
                raise
        self._calls.put(call)

    def _start_thread(self, name: str) -> None:
        start_thread(f"modelserve-worker-{name}", _work, self._calls)
        self._threads += 1

    def _release(self, call: ThreadCall) -> None:
        if self._running.pop(call):
            self.slots.release()


class OwnThread(Workers):
    """The one thread of one model, for objects that only the thread that made them may use.

    Calls run one at a time, in order. A call by a task that reads a stream of this thread would
    deadlock, so the thread runs it between two items.
    """

    def __init__(self, name: str) -> None:
        super().__init__(1)
        self._name = name
        self._tasks: dict[ThreadCall, int] = {}
        self._streams: dict[ThreadCall, ThreadCall] = {}  # the stream that a call has to interrupt

    async def _acquire(self, call: ThreadCall, waiting: Waiting = nullcontext) -> bool:
        """Otherwise as that of `Workers`; a wait for the thread is in a block of `waiting`."""
        task = anyio.get_current_task().id
        streams = (running for running in [*self._running] if self._tasks.get(running) == task)
        stream = next(streams, None)
        if stream is not None:
            self._streams[call] = stream
        elif not self.slots.acquire_nowait():
            with waiting():
                await self.slots.acquire()
        self._tasks[call] = task
        return stream is None

    def _start(self, call: ThreadCall, *, counted: bool) -> None:
        call.holds = self.slots
        stream = self._streams.pop(call, None)
        if stream is None or not stream.run_between_items(call):
            if not self._threads:
                try:
                    self._start_thread(f"of-{self._name}")
                except NoThread:
                    self._tasks.pop(call, None)
                    raise
            self._calls.put(call)
        self._running[call] = counted
        self._tasks.setdefault(call, 0)

    def _release(self, call: ThreadCall) -> None:
        del self._tasks[call]
        super()._release(call)


class _View(Workers):
    """The threads of another object, for calls that acquire them in a way of their own."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(workers.limit)
        self._workers = workers

    def _start(self, call: ThreadCall, *, counted: bool) -> None:
        self._workers._start(call, counted=counted)

    def _release(self, call: ThreadCall) -> None:
        self._workers._release(call)


class OwnThreadForHooks(_View):
    """A model's own thread for hooks of requests, which keep a slot while they wait for it.

    Args:
        waiting: Returns the block in which one waits for the thread; may raise Overloaded.
    """

    def __init__(self, own: OwnThread, waiting: Waiting) -> None:
        super().__init__(own)
        self.slots = own.slots
        self._thread = own
        self._waiting = waiting

    async def _acquire(self, call: ThreadCall) -> bool:
        return await self._thread._acquire(call, self._waiting)


class ExtraThreads(_View):
    """The threads of an application for calls that one of its threads waits for.

    They do not count towards the limit, since the waiting threads do.
    """

    async def _acquire(self, call: ThreadCall) -> bool:
        return False


def let_threads_run() -> None:
    """Release the interpreter's lock, so that a thread begins its new call now.

    Otherwise it would wait until the event loop is idle, or for a switch interval.
    """
    time.sleep(0)


def _work(calls: "queue.SimpleQueue[ThreadCall | None]") -> None:
    while (call := calls.get()) is not None:
        run_here(call)
        del call


def _close_unstarted(label: str, iterator: Iterator[Any]) -> None:
    try:
        close(iterator)
    except Exception as exc:
        logger.error("Closing a stream of %s failed", label, exc_info=exc)
