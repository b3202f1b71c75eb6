"""One sync call on its thread: its items, their buffer, its close, its cancellation."""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from blocking import Blocking, until

from modelserve import InvalidInput
from modelserve.concurrency.bridge import ThreadCall, ThreadStream
from modelserve.concurrency.threads import Workers

pytestmark = pytest.mark.anyio

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


# --- streams ------------------------------------------------------------------------------------


def counting(threads: set[int], *, items: int) -> Iterator[int]:
    try:
        for number in range(items):
            threads.add(threading.get_ident())
            yield number
    finally:
        threads.add(threading.get_ident())


@pytest.mark.parametrize("items", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("how", ["call", "iterate"])
async def test_a_stream_yields_all_items_on_one_thread(items: int, how: str) -> None:
    workers = Workers(4)
    threads: set[int] = set()
    if how == "call":
        stream = await workers.call("m", lambda: counting(threads, items=items))
    else:
        stream = await workers.iterate("m", counting(threads, items=items))
    assert isinstance(stream, ThreadStream)
    assert [item async for item in stream] == list(range(items))
    await stream.aclose()
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert workers.running == []


async def test_a_stream_keeps_its_context() -> None:
    color.set("red")

    def colors() -> Iterator[str]:
        for new in ("green", "blue"):
            yield color.get()
            color.set(new)

    stream = await Workers(1).call("m", colors)
    assert [item async for item in stream] == ["red", "green"]
    assert color.get() == "red"


async def test_concurrent_streams_do_not_mix() -> None:
    workers = Workers(4)
    results: dict[int, list[int]] = {}

    async def read(base: int) -> None:
        stream = await workers.call("m", lambda: (base + n for n in range(500)))
        results[base] = [item async for item in stream]
        await stream.aclose()

    async with anyio.create_task_group() as group:
        for base in range(0, 10_000, 1000):
            group.start_soon(read, base)
    assert results == {base: list(range(base, base + 500)) for base in range(0, 10_000, 1000)}


async def test_an_item_arrives_as_soon_as_it_is_yielded() -> None:
    resume = threading.Event()

    def slowly() -> Iterator[int]:
        yield 1
        assert resume.wait(10)
        yield 2

    stream = await Workers(1).call("m", slowly)
    with anyio.fail_after(5):
        assert await anext(stream) == 1
        resume.set()
        assert await anext(stream) == 2
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize(
    ("item", "most"),
    [
        (1, 64),
        ({"n": 1}, 64),
        ("x", 64),
        (b"x" * (1 << 14), 64),
        (b"x" * (1 << 15), 33),
        ("x" * (1 << 20), 2),
        (bytearray(1 << 21), 1),
        (np.zeros(1 << 17), 2),  # 1 MiB
        (memoryview(bytes(1 << 21)), 1),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_thread_works_ahead_within_bounds(item: Any, most: int) -> None:
    made: list[int] = []

    def items() -> Iterator[Any]:
        for number in range(200):
            made.append(number)
            yield item

    stream = await Workers(1).call("m", items)
    await until(lambda: len(made) >= most)
    await anyio.sleep(0.02)  # it would make more if it could
    assert most <= len(made) <= most + 1
    assert len([1 async for _ in stream]) == 200


async def test_a_slow_reader_gets_all_items() -> None:
    stream = await Workers(1).call("m", lambda: iter(range(300)))
    got = []
    async for item in stream:
        got.append(item)
        if item % 50 == 0:
            await anyio.sleep(0.005)
    assert got == list(range(300))


class InterruptedBuffer(deque[Any]):
    """A buffer whose reader is interrupted, once, just after it has looked whether it is empty."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__()
        self.interrupt: Callable[[], None] | None = interrupt

    def __bool__(self) -> bool:
        has_items = len(self) > 0
        if self.interrupt is not None and threading.current_thread() is threading.main_thread():
            interrupt, self.interrupt = self.interrupt, None
            interrupt()
        return has_items


async def test_the_last_item_is_not_lost() -> None:
    produce = threading.Event()

    def one() -> Iterator[int]:
        assert produce.wait(10)
        yield 1

    def run_thread() -> None:
        produce.set()
        deadline = time.monotonic() + 5
        while not call.finished and time.monotonic() < deadline:
            time.sleep(0.001)

    call = ThreadCall("m", one, (), on_end=lambda call: None)
    call.items = InterruptedBuffer(run_thread)
    threading.Thread(target=call.run, daemon=True).start()
    with anyio.fail_after(5):
        stream = await call.result()
        assert [item async for item in stream] == [1]


@pytest.mark.parametrize("before", [0, 1, 100])
async def test_an_error_comes_after_the_items_before_it(before: int) -> None:
    def fails() -> Iterator[int]:
        yield from range(before)
        raise InvalidInput("no")

    stream = await Workers(1).call("m", fails)
    assert [await anext(stream) for _ in range(before)] == list(range(before))
    with pytest.raises(InvalidInput):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)  # an error is raised once
    await stream.aclose()


@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration(), GeneratorExit()])
async def test_an_error_that_looks_like_an_end_is_an_error(error: BaseException) -> None:
    class Odd:
        def __init__(self) -> None:
            self.left = 2

        def __iter__(self) -> "Odd":
            return self

        def __next__(self) -> int:
            self.left -= 1
            if self.left == 0:
                raise error
            return 1

    stream = await Workers(1).iterate("m", Odd())
    assert await anext(stream) == 1
    if isinstance(error, StopIteration):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    else:
        with pytest.raises((RuntimeError, GeneratorExit)):
            await anext(stream)


# --- closing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 70])
async def test_closing_stops_the_iterator_and_closes_it_in_its_thread(read: int) -> None:
    threads: set[int] = set()
    made: list[int] = []
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                threads.add(threading.get_ident())
                made.append(1)
                yield 1
        finally:
            threads.add(threading.get_ident())
            closed.set()

    workers = Workers(1)
    stream = await workers.call("m", endless)
    for _ in range(read):
        await anext(stream)
    await until(lambda: bool(made))
    await stream.aclose()
    assert closed.is_set()
    assert len(threads) == 1
    assert workers.running == []
    count = len(made)
    await anyio.sleep(0.01)
    assert len(made) == count
    await stream.aclose()  # again
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_closing_waits_for_the_item_in_progress() -> None:
    blocking = Blocking()

    def items() -> Iterator[Any]:
        yield 1
        yield blocking()

    stream = await Workers(1).call("m", items)
    assert await anext(stream) == 1
    await until(blocking.started.is_set)
    async with anyio.create_task_group() as group:
        group.start_soon(stream.aclose)
        await anyio.wait_all_tasks_blocked()
        assert not blocking.ended.is_set()
        blocking.release.set()
    assert blocking.ended.is_set()


async def test_an_error_from_close_is_raised_once() -> None:
    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise ValueError("in close")

    workers = Workers(1)
    stream = await workers.call("m", items)
    await anext(stream)
    with pytest.raises(ValueError, match="in close"):
        await stream.aclose()
    await stream.aclose()
    assert workers.running == []


async def test_an_iterator_that_swallows_its_close_is_an_error() -> None:
    closed: list[int] = []

    def stubborn() -> Iterator[int]:
        while len(closed) < 2:  # the garbage collector closes it once more, and must succeed
            try:
                yield 1
            except GeneratorExit:
                closed.append(1)

    stream = await Workers(1).call("m", stubborn)
    await anext(stream)
    with pytest.raises(RuntimeError, match="GeneratorExit"):
        await stream.aclose()


async def test_an_iterator_without_close_is_dropped() -> None:
    workers = Workers(1)
    stream = await workers.call("m", lambda: map(str, range(1000)))
    assert await anext(stream) == "0"
    await stream.aclose()
    assert workers.running == []


# --- cancellation -------------------------------------------------------------------------------


async def test_cancellation_waits_for_a_running_call() -> None:
    workers = Workers(1)
    function = Blocking()
    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "m", function)
        await until(function.started.is_set)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        assert workers.running == ["m"]
        function.release.set()
    assert function.ended.is_set()
    assert workers.running == []


async def test_a_stream_returned_by_a_cancelled_call_is_closed() -> None:
    workers = Workers(1)
    function = Blocking()
    made: list[int] = []
    closed = threading.Event()

    class Items:
        def __iter__(self) -> "Items":
            return self

        def __next__(self) -> int:
            made.append(1)
            return 1

        def close(self) -> None:
            closed.set()

    def call() -> Any:
        function()
        return Items()

    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "m", call)
        await until(function.started.is_set)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        function.release.set()
    assert closed.is_set()
    assert made == []
    assert workers.running == []


async def test_a_wait_for_an_item_is_cancelled_at_once_and_aclose_waits() -> None:
    workers = Workers(1)
    blocking = Blocking()
    got_first, cancelled = anyio.Event(), anyio.Event()

    def items() -> Iterator[Any]:
        yield 1
        yield blocking()

    async def read() -> None:
        stream = await workers.call("m", items)
        try:
            async for _ in stream:
                got_first.set()
        finally:
            cancelled.set()
            await stream.aclose()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await until(blocking.started.is_set)
        await got_first.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(5):
            await cancelled.wait()
            assert workers.running == ["m"]
            blocking.release.set()
    assert blocking.ended.is_set()
    assert workers.running == []
