"""The event loop that is running, for work that belongs to no single request.

asyncio's own futures, timers and tasks cost a fraction of anyio's. The few of them that such work
needs are written here for asyncio and for trio.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

__all__ = [
    "Event",
    "EventLoop",
    "PerLoop",
    "Waiters",
    "Wakeup",
    "current_loop",
    "event_loop",
    "interface_to",
]

Function: TypeAlias = Callable[[], Awaitable[None]]

# Of asyncio's loops, which hold their tasks weakly only.
_TASKS: Final[set["asyncio.Task[None]"]] = set()


class _HasWork(Protocol):
    @property
    def is_idle(self) -> bool: ...


T = TypeVar("T", bound=_HasWork)


def current_loop() -> Any:
    """Return the running event loop of asyncio, or the token of trio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio  # only ever reached under trio

        return trio.lowlevel.current_trio_token()


def event_loop() -> "EventLoop":
    """Return the interface to the event loop that is running now."""
    return interface_to(current_loop())


def interface_to(loop: Any) -> "EventLoop":
    """Return the interface to an event loop, one that `current_loop` has returned."""
    return _Asyncio(loop) if isinstance(loop, asyncio.AbstractEventLoop) else _Trio(loop)


def forget_ended_loops() -> None:
    """Let go of the tasks of event loops that were closed under them."""
    _TASKS.difference_update([t for t in [*_TASKS] if t.get_loop().is_closed()])


class PerLoop(Generic[T]):
    """One object for each event loop, since an application may serve several.

    Args:
        make: Makes the object of the loop that is running.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._objects: dict[Any, T] = {}
        self._lock = threading.Lock()  # event loops run in several threads

    def __len__(self) -> int:
        return len(self._objects)

    def get(self) -> T:
        """Return the object of the running loop; idle objects of ended loops are dropped."""
        loop = current_loop()
        found = self._objects.get(loop)
        if found is None:
            found = self._make()
            with self._lock:
                kept = {
                    key: other
                    for key, other in self._objects.items()
                    if not (other.is_idle and interface_to(key).has_ended)
                }
                self._objects = {**kept, loop: found}
        return found


class Wakeup(Protocol):
    """An event that wakes one waiting task, once."""

    def set(self) -> None:
        """Let `wait` return; no effect if it was set before, or if nothing waits any more."""

    def wait(self) -> Awaitable[object]:
        """Return an awaitable that ends once this is set."""


class EventLoop(Protocol):
    """What work uses of the event loop that it belongs to."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing will run on it any more."""

    def wakeup(self) -> Wakeup:
        """Return a new wakeup."""

    def start_soon(self, function: Function, context: Context) -> None:
        """Start an independent task, which nothing else cancels; the function must not raise."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time; it must not raise."""

    def call_from_thread(self, function: Callable[..., object], *args: Any) -> bool:
        """Call a function soon, from any thread; return False if the loop has ended."""

    def run(self, function: Callable[..., object], *args: Any) -> bool:
        """Call a function in the loop's own thread, at once if it is running in this one.

        Return False if the loop has ended.
        """


class Event:
    """An event that may be set in any thread, and awaited by tasks of any event loop.

    Tasks that wait for anyio's event have to belong to the event loop that sets it.
    """

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[tuple[EventLoop, Wakeup]] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> bool:
        """Wake all waiting tasks; return False if the event loop of one of them has ended."""
        self._is_set = True  # first: a later task tests it again after it has been added
        woken = [loop.run(wakeup.set) for loop, wakeup in [*self._waiting]]
        return all(woken)

    async def wait(self) -> None:
        """Wait until it is set."""
        if self._is_set:
            return
        loop = event_loop()
        waits = loop, loop.wakeup()
        self._waiting.append(waits)
        try:
            if not self._is_set:
                await waits[1].wait()
        finally:
            self._waiting.remove(waits)


class Waiters:
    """Tasks of the running event loop that wait for the same thing."""

    __slots__ = ("_loop", "_wakeups")

    def __init__(self) -> None:
        self._loop = event_loop()
        self._wakeups: list[Wakeup] = []

    async def wait(self) -> None:
        """Wait until the next `wake`."""
        wakeup = self._loop.wakeup()
        self._wakeups.append(wakeup)
        try:
            await wakeup.wait()
        except BaseException:
            if wakeup in self._wakeups:
                self._wakeups.remove(wakeup)
            raise

    def wake(self) -> None:
        """Wake all tasks that wait now."""
        if self._wakeups:
            for wakeup in self._wakeups:
                wakeup.set()
            self._wakeups.clear()


class _AsyncioWakeup:
    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future = loop.create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self._future


class _Asyncio:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def has_ended(self) -> bool:
        return self._loop.is_closed()

    def wakeup(self) -> Wakeup:
        return _AsyncioWakeup(self._loop)

    def start_soon(self, function: Function, context: Context) -> None:
        begun: list[None] = []
        task = self._loop.create_task(_run(function, begun), context=context)
        _TASKS.add(task)

        def end(task: "asyncio.Task[None]") -> None:
            _TASKS.discard(task)
            if not begun and not self._loop.is_closed():  # cancelled before its first step
                self.start_soon(function, context)

        task.add_done_callback(end)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._loop.call_later(seconds, function, context=Context())

    def call_from_thread(self, function: Callable[..., object], *args: Any) -> bool:
        try:
            # In an empty context: ours names the library of this event loop.
            self._loop.call_soon_threadsafe(function, *args, context=Context())
        except RuntimeError:
            return False
        return True

    def run(self, function: Callable[..., object], *args: Any) -> bool:
        if asyncio._get_running_loop() is not self._loop:
            return self.call_from_thread(function, *args)
        function(*args)
        return True


class _Trio:
    def __init__(self, token: Any) -> None:
        self._token = token

    @property
    def has_ended(self) -> bool:
        return not self.call_from_thread(int)

    def wakeup(self) -> Wakeup:
        import trio

        return trio.Event()

    def start_soon(self, function: Function, context: Context) -> None:
        import trio

        trio.lowlevel.spawn_system_task(function, context=context)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self.start_soon(partial(_call_later, seconds, function), Context())

    def call_from_thread(self, function: Callable[..., object], *args: Any) -> bool:
        try:
            self._token.run_sync_soon(function, *args)
        except RuntimeError:  # trio's RunFinishedError is one
            return False
        return True

    def run(self, function: Callable[..., object], *args: Any) -> bool:
        import trio

        try:
            is_ours = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            is_ours = False
        if not is_ours:
            return self.call_from_thread(function, *args)
        function(*args)
        return True


async def _run(function: Function, begun: list[None]) -> None:
    begun.append(None)
    await function()


async def _call_later(seconds: float, function: Callable[[], None]) -> None:
    import trio

    await trio.sleep(seconds)
    function()
