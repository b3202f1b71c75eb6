"""Sync user code: worker threads, one for the whole of a call and of what it yields.

A call and the iterator that it returns run on one thread from beginning to end, since much keeps
its state by thread (`torch.no_grad`, CUDA devices, sqlite). Items are handed over through a
bounded buffer: one writer (the thread), one reader (the event loop), a deque between them, and a
flag on each side, so that neither pays for a hop unless the other waits. The flags are set before
the buffer is looked at again, on both sides; so no wake-up is lost.

A thread is never abandoned: whoever is cancelled tells it to stop, which it sees at its next item,
and waits until it has. Threads are daemons, so that one that blocks for ever does not keep the
process alive. Cancellation of a wait for a thread is delivered after the thread has ended.
"""

import asyncio
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import anyio

__all__ = ["ThreadStream", "Workers"]

_BUFFERED_ITEMS: Final = 64
_BUFFERED_BYTES: Final = 1 << 20

_Waker = Callable[[Callable[[], object]], object]


class Workers:
    """The worker threads of one application.

    At most `limit` run at a time; calls above it wait in order. Threads are started on demand and
    kept.
    """

    _threads = 0

    def __init__(self, limit: int = 40) -> None:
        if limit < 1:
            raise ValueError(f"The number of threads must be at least 1, not {limit}")
        self.limit = limit
        self._reset()

    def _reset(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._limiter: anyio.CapacityLimiter | None = None
        self._threads = 0
        self._running: dict[_Job, str] = {}

    def __getstate__(self) -> dict[str, int]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.limit = state["limit"]
        self._reset()

    @property
    def running(self) -> list[str]:
        """The labels of the calls that threads are busy with."""
        return list(self._running.values())

    async def call(self, label: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a sync function in a worker thread, in a copy of the current context.

        Return its result; a sync iterator comes back as a `ThreadStream` that the same thread
        runs. If cancelled while waiting for a thread, the function is not called; if cancelled
        later, the wait goes on until the function has returned, and then raises.
        """
        job = _Job(label, function, args)
        await self._acquire(job)
        return await self._report(job)

    async def _report(self, job: "_Job") -> Any:
        self._start(job)
        try:
            await job.reported.wait()
        except anyio.get_cancelled_exc_class():
            await job.end()
            raise
        return job.take_report()

    async def iterate(self, label: str, iterator: Iterator[Any]) -> "ThreadStream":
        """Run a sync iterator in one worker thread; cancellation as for `call`.

        If cancelled while waiting for a thread, the iterator is closed, in a thread above the limit.
        """
        job = _Job(label, lambda: iterator, ())
        try:
            await self._acquire(job)
        except anyio.get_cancelled_exc_class():
            job.stop = True
            self._start(job)
            await job.end()
            raise
        stream: ThreadStream = await self._report(job)
        return stream

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call. Later calls start new threads."""
        if not self._threads:
            return
        jobs, self._jobs = self._jobs, queue.SimpleQueue()
        for _ in range(self._threads):
            jobs.put(None)
        self._threads = 0

    def __del__(self) -> None:
        self.close()

    async def _acquire(self, job: "_Job") -> None:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self.limit)
        try:
            self._limiter.acquire_on_behalf_of_nowait(job)
        except anyio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(job)
        job.counted = True

    def _start(self, job: "_Job") -> None:
        self._running[job] = job.label
        job.on_end = self._ended
        self._jobs.put(job)
        if len(self._running) > self._threads:
            self._threads += 1
            name = f"modelserve-worker-{self._threads}"
            threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()

    def _ended(self, job: "_Job") -> None:
        del self._running[job]
        if self._limiter is not None and job.counted:
            self._limiter.release_on_behalf_of(job)


class ThreadStream:
    """The items of a sync iterator, run by one worker thread from its first item to its close.

    The thread works ahead by at most 64 items or 1 MiB of text or bytes. `aclose` returns once
    the thread has closed the iterator.
    """

    def __init__(self, job: "_Job") -> None:
        self._job = job

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        job = self._job
        while True:
            finished = job.finished  # first: what is there afterwards is all there will be
            if job.items:
                break
            if finished:
                raise job.take_end()
            await job.wait_for_item()
        item = job.items.popleft()
        job.bytes_out += _size(item)
        if job.writer_waits and not job.more_than(_BUFFERED_ITEMS // 2, _BUFFERED_BYTES // 2):
            job.writer_waits = False
            job.room.set()
        return item

    async def aclose(self) -> None:
        """Stop the iterator at its next item, close it in its thread and wait until that is done.

        Raises what its close raised. Cancellation does not shorten the wait.
        """
        job = self._job
        await job.end()
        job.items.clear()
        if job.close_error is not None:
            error, job.close_error = job.close_error, None
            raise error


class _Job:
    """One call in a worker thread. Each attribute is written by one side, as grouped below."""

    def __init__(self, label: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.label = label
        self.function = function
        self.args = args
        self.context = contextvars.copy_context()
        self.waker = _current_waker()
        # the event loop's
        self.on_end: Callable[[_Job], None] | None = None
        self.reported = anyio.Event()
        self.ended = anyio.Event()
        self.arrived = anyio.Event()
        self.bytes_out = 0
        self.stop = False
        self.counted = False
        # the thread's
        self.items: deque[Any] = deque()
        self.bytes_in = 0
        self.result: Any = None
        self.error: BaseException | None = None
        self.close_error: BaseException | None = None
        self.streams = False
        self.finished = False
        # set by the one who waits, cleared by the other
        self.reader_waits = False
        self.writer_waits = False
        self.room = threading.Event()

    # -- on the event loop

    def take_report(self) -> Any:
        """Return the result, or the stream that the result is, or raise what was raised."""
        if self.streams:
            return ThreadStream(self)
        if self.error is not None:
            raise self.error
        return self.result

    def take_end(self) -> BaseException:
        """Return what ended the items: an error, once, or their regular end."""
        error, self.error = self.error, None
        if isinstance(error, StopAsyncIteration):  # raised by a hook: no regular end here
            error = RuntimeError("A sync iterator raised StopAsyncIteration")
        return error if error is not None else StopAsyncIteration()

    async def wait_for_item(self) -> None:
        self.arrived = anyio.Event()
        self.reader_waits = True
        if not (self.items or self.finished):
            await self.arrived.wait()

    async def end(self) -> None:
        """Tell the thread to stop and wait until it has, whatever is cancelled meanwhile."""
        self.stop = True
        self.room.set()
        while not self.ended.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await self.ended.wait()
            except anyio.get_cancelled_exc_class():
                continue  # a native cancellation passes a shield; ours is already under way

    def _has_arrived(self) -> None:
        self.arrived.set()

    def _has_ended(self) -> None:
        if self.on_end is not None:
            self.on_end(self)
        self.reported.set()
        self.arrived.set()
        self.ended.set()

    # -- in the thread

    def run(self) -> None:
        try:
            self.context.run(self._call)
        except BaseException as exc:
            self.error = exc
        self.finished = True
        self.wake(self._has_ended)

    def _call(self) -> None:
        result = self.function(*self.args)
        if isinstance(result, Iterator):
            self.streams = True
            self.wake(self.reported.set)
            self._produce(result)
        else:
            self.result = result

    def _produce(self, iterator: Iterator[Any]) -> None:
        try:
            if not self.stop:
                for item in iterator:
                    if self.stop:
                        break
                    self._put(item)
        finally:
            self._close(iterator)

    def _close(self, iterator: Iterator[Any]) -> None:
        close = getattr(iterator, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as exc:
                self.close_error = exc

    def _put(self, item: Any) -> None:
        first = self.bytes_in == 0 and not self.items
        self.bytes_in += _size(item)
        self.items.append(item)
        if self.reader_waits:
            self.reader_waits = False
            self.wake(self._has_arrived)
            if first:
                time.sleep(0)  # give up the interpreter lock: the first item is awaited
        while self.more_than(_BUFFERED_ITEMS - 1, _BUFFERED_BYTES) and not self.stop:
            self.room.clear()
            self.writer_waits = True
            if self.more_than(_BUFFERED_ITEMS - 1, _BUFFERED_BYTES) and not self.stop:
                self.room.wait()

    def wake(self, callback: Callable[[], object]) -> None:
        try:
            self.waker(callback)
        except RuntimeError:
            pass  # the event loop has ended (trio's RunFinishedError is one too)

    # -- on both

    def more_than(self, items: int, size: int) -> bool:
        return len(self.items) > items or (
            self.bytes_in - self.bytes_out > size and len(self.items) > 0
        )


def _work(jobs: "queue.SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job


def _size(item: Any) -> int:
    if isinstance(item, str | bytes | bytearray):
        return len(item)
    size = getattr(item, "nbytes", 0)
    return size if isinstance(size, int) else 0


def _current_waker() -> _Waker:
    """Return what runs a callback on the current event loop from any thread."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # only ever reached under trio

        return trio.lowlevel.current_trio_token().run_sync_soon
