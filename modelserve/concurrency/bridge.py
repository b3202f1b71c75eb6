"""One sync call on a worker thread, and the stream of what it yields.

A call and the iterator that it returns run on one thread from beginning to end, since many
libraries keep state by thread (`torch.no_grad`, CUDA devices, sqlite). Items cross in a bounded
buffer: one writer (the thread), one reader (the event loop), a deque between them, and a flag on
each side, so that a side is woken only if it waits. Both sides set their flag before they look at
the buffer again, so that no wake-up is lost.

A thread is never abandoned: a cancellation asks it to stop, which it does at its next item, and is
raised only after that.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Final, NamedTuple, Self

import anyio

from modelserve.concurrency.closing import close
from modelserve.concurrency.contexts import Changes, Recorder, apply_changes
from modelserve.concurrency.loops import Event, event_loop
from modelserve.concurrency.slots import Slots
from modelserve.concurrency.uninterrupted import wait_until

__all__ = [
    "ThreadCall",
    "ThreadStream",
    "call_of_this_thread",
    "run_here",
    "stopping",
    "wait_until_taken",
]

_BUFFERED_ITEMS: Final = 64
_BUFFERED_BYTES: Final = 1 << 20


class ThreadStream:
    """The items of a sync iterator, run by one worker thread from its first item to its close.

    The thread works ahead by at most 64 items or 1 MiB of text or bytes. `aclose` returns once
    the thread has closed the iterator.
    """

    def __init__(self, call: "ThreadCall") -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        call = self._call
        while True:
            finished = call.finished  # read first: nothing is added to the buffer afterwards
            if call.items:
                break
            if finished:
                apply_changes(call.changes)
                raise call.pop_exception()
            await call.wait_for_item()
        item = call.items.popleft()
        if type(item) is _ChangedItem:
            apply_changes(item.changes)
            item = item.item
        call.bytes_out += _size(item)
        if call.writer_waits and not _buffers_more(
            call, _BUFFERED_ITEMS // 2, _BUFFERED_BYTES // 2
        ):
            call.writer_waits = False
            call.room.set()
        return item

    async def aclose(self) -> None:
        """Stop the iterator at its next item, close it in its thread and wait until that is done.

        Raises what its close raised. Cancellation does not shorten the wait.
        """
        call = self._call
        await call.stop()
        call.items.clear()
        if call.close_error is not None:
            error, call.close_error = call.close_error, None
            raise error


class _ChangedItem(NamedTuple):
    """An item, with the context variables that the iterator has set since the previous item."""

    item: Any
    changes: Changes


class _Interruptions(deque["ThreadCall"]):
    """Calls for a thread to run between two items; the event loop adds them."""

    def take_back(self, call: "ThreadCall") -> bool:
        """Remove a call; return whether that was in time, before the thread took it."""
        try:
            self.remove(call)
        except ValueError:
            return False
        return True

    def run(self) -> None:
        """Run the calls that were added; called by the thread."""
        while self:
            try:
                call = self.popleft()
            except IndexError:  # the event loop has removed it
                return
            run_here(call)


class ThreadCall:
    """One call in a worker thread. Each attribute is written by one side, as grouped below.

    Args:
        on_end: Called once the thread is free: on the event loop, or in the thread if that ended.
        shares_context: Context variables that the call sets are also set in the code that awaits
            its result or its items.

    Attributes:
        holds: The one slot of the thread, if that is a model's own.
    """

    holds: Slots | None = None

    def __init__(
        self,
        label: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        on_end: "Callable[[ThreadCall], None]",
        shares_context: bool = False,
    ) -> None:
        self.label = label
        self._function = function
        self._args = args
        self._on_end = on_end
        self._context = copy_context()
        self.call_soon = event_loop().call_from_thread
        # written by the event loop
        self._returned = Event()  # another event loop may peek
        self._item_arrived = anyio.Event()
        self.all_taken = anyio.Event()
        self._ended = anyio.Event()
        self._interruptions = _Interruptions()
        self.bytes_out = 0
        self.stop_requested = False
        self.when_stopped = list[Callable[[], object]]()
        # written by the thread
        self.items: deque[Any] = deque()
        self.bytes_in = 0
        self._result: Any = None
        self._error: BaseException | None = None
        self.close_error: BaseException | None = None
        self.is_stream = False
        self._recorder = Recorder(self._context) if shares_context else None
        self.changes: Changes = ()
        self.finished = False
        # set by the side that waits, cleared by the other
        self.reader_waits = False
        self.writer_waits = False
        self.room = threading.Event()

    # -- on the event loop

    async def result(self) -> Any:
        """Wait for the function's result; a sync iterator comes back as a `ThreadStream`.

        Raises what the function raises; a cancellation, once the thread has ended.
        """
        try:
            await self._returned.wait()
        except GeneratorExit:  # dropped with its event loop: nothing can be awaited any more
            self.stop_requested = True
            raise
        except anyio.get_cancelled_exc_class():
            await self.stop()
            raise
        try:
            return self._outcome()
        finally:
            if not self.is_stream:
                self._error = None  # its traceback leads back to this call, and to its arguments

    async def peek(self) -> Any:
        """Wait for the function's result; a cancellation ends the wait, and not the function."""
        await self._returned.wait()
        return self._outcome()

    def _outcome(self) -> Any:
        if self.is_stream:
            return ThreadStream(self)
        if self._error is not None:
            raise self._error
        apply_changes(self.changes)
        return self._result

    async def wait_for_item(self) -> None:
        """Return once there is an item, or no more will come."""
        self._item_arrived = anyio.Event()
        self.reader_waits = True
        self.all_taken.set()
        if not (self.items or self.finished):
            await self._item_arrived.wait()

    def run_between_items(self, call: "ThreadCall") -> bool:
        """Have the thread run another call before the next item; False if it has finished."""
        self._interruptions.append(call)
        self.room.set()
        return not self.finished or not self._interruptions.take_back(call)

    def pop_exception(self) -> BaseException:
        """Return what the iterator raised, the first time; then StopAsyncIteration."""
        error, self._error = self._error, None
        if isinstance(error, StopAsyncIteration):  # raised by a hook: not the end of the items
            error = RuntimeError("A sync iterator raised StopAsyncIteration")
        return error if error is not None else StopAsyncIteration()

    async def stop(self) -> None:
        """Ask the thread to stop and wait until it has; cancellation does not shorten the wait."""
        self.stop_requested = True
        self.room.set()
        _call_each(self.when_stopped)
        await wait_until(self._ended.is_set, self._ended.wait)

    def _notify_end(self) -> None:
        self._on_end(self)
        self._returned.set()
        self._item_arrived.set()
        self._ended.set()

    # -- in the thread

    def run(self) -> None:
        """Call the function and exhaust the iterator that it returns; called by the thread."""
        try:
            self._context.run(self._run)
        except BaseException as exc:
            self._error = exc
        if self._recorder is not None:
            self.changes = self._recorder.changes_in(self._context)
        self.finished = True
        self._interruptions.run()
        if not self.call_soon(self._notify_end):
            self._on_end(self)  # the event loop has ended; others may wait for the thread

    def _run(self) -> None:
        result = self._function(*self._args)
        if isinstance(result, Iterator):
            self.is_stream = True
            self.call_soon(self._returned.set)
            self._produce(result)
        else:
            self._result = result

    def _produce(self, iterator: Iterator[Any]) -> None:
        source = iterator
        try:
            if not self.stop_requested:
                source = iter(iterator)  # of an object of some SDKs it is a generator
                for item in source:
                    if self.stop_requested:
                        break
                    self._put(item)
        finally:
            self.close_error = _close(iterator) if source is iterator else _close(source, iterator)

    def _put(self, item: Any) -> None:
        first = self.bytes_in == 0 and not self.items
        self.bytes_in += _size(item)
        if self._recorder is not None and (changes := self._recorder.recent_changes()):
            item = _ChangedItem(item, changes)
        self.items.append(item)
        if self.reader_waits:
            self.reader_waits = False
            self.call_soon(self._item_arrived.set)
            if first:
                time.sleep(0)  # release the interpreter's lock, so that the item is sent at once
        self._interruptions.run()
        while self._has_no_room():
            self.room.clear()
            self.writer_waits = True
            if not self._interruptions and self._has_no_room():
                self.room.wait()
            self._interruptions.run()

    def _has_no_room(self) -> bool:
        is_full = _buffers_more(self, _BUFFERED_ITEMS - 1, _BUFFERED_BYTES)
        return is_full and not self.stop_requested


def _buffers_more(call: ThreadCall, items: int, size: int) -> bool:
    """Return whether the buffer holds more than this many items or bytes; for both sides."""
    held = len(call.items)
    return held > items or (call.bytes_in - call.bytes_out > size and held > 0)


def _call_each(callbacks: list[Callable[[], object]]) -> None:
    for callback in [*callbacks]:
        callback()


async def wait_until_taken(call: ThreadCall) -> None:
    """Wait until the reader of a call's items has processed all; the call adds none meanwhile."""
    while call.is_stream and not call.stop_requested and (call.items or not call.reader_waits):
        taken = call.all_taken = anyio.Event()
        call.when_stopped.append(taken.set)
        try:
            await taken.wait()
        finally:
            call.when_stopped.remove(taken.set)


_this_thread: Final = threading.local()


def call_of_this_thread() -> ThreadCall | None:
    """Return the call that runs in this thread, if it is a worker thread that runs one."""
    call: ThreadCall | None = getattr(_this_thread, "call", None)
    return call


def run_here(call: ThreadCall) -> None:
    """Run a call in this thread, which is a worker thread."""
    outer, _this_thread.call = call_of_this_thread(), call
    try:
        call.run()
    finally:
        _this_thread.call = outer


@contextmanager
def stopping(call: ThreadCall, callback: Callable[[], object]) -> Iterator[None]:
    """Let the event loop also call a function when it asks the thread of a call to stop.

    The thread enters this before it waits for anything other than its next item.
    """
    call.when_stopped.append(callback)
    try:
        if call.stop_requested:
            call.call_soon(callback)
        yield
    finally:
        call.when_stopped.remove(callback)


def _size(item: Any) -> int:
    if isinstance(item, str | bytes | bytearray):
        return len(item)
    size = getattr(item, "nbytes", 0)
    return size if isinstance(size, int) else 0


def _close(*iterators: Iterator[Any]) -> BaseException | None:
    """Close iterators that can be closed; return the first exception that this raised."""
    first: BaseException | None = None
    for iterator in iterators:
        try:
            close(iterator)
        except BaseException as exc:
            first = first or exc
    return first
