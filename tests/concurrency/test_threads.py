"""Sync code in worker threads: who runs where, how many, what is waited for, what is left."""

import contextvars
import gc
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest

from modelserve import InvalidInput
from modelserve.concurrency.threads import ThreadStream, Workers

pytestmark = pytest.mark.anyio

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does; the event loop is not told of it."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a thread says so
            await anyio.sleep(0.001)


def alive() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("modelserve-worker")}


class Blocking:
    """A function that runs until it is released."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.release = threading.Event()
        self.calls: list[Any] = []
        self.ended = threading.Event()

    def __call__(self, value: Any = None) -> Any:
        self.calls.append(value)
        self.started.set()
        assert self.release.wait(10)
        self.ended.set()
        return value


# --- calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "a", [1], {"a": 1}, np.array([1]), range(3)])
async def test_a_call_returns_what_the_function_returns(value: Any) -> None:
    assert await Workers(1).call("m", lambda: value) is value


async def test_a_call_passes_arguments() -> None:
    assert await Workers(1).call("m", lambda *args: args, 1, "b") == (1, "b")


@pytest.mark.parametrize("error", [ValueError("x"), InvalidInput("x"), KeyboardInterrupt()])
async def test_a_call_raises_what_the_function_raises(error: BaseException) -> None:
    def fails() -> None:
        raise error

    workers = Workers(1)
    raised: BaseException | None = None
    try:
        await workers.call("m", fails)
    except BaseException as exc:
        raised = exc
    assert raised is error
    assert workers.running == []


async def test_a_call_runs_in_a_daemon_thread_of_ours() -> None:
    thread = await Workers(1).call("m", threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name.startswith("modelserve-worker-")


async def test_a_call_sees_the_context_and_does_not_change_it() -> None:
    color.set("red")

    def look() -> str:
        seen = color.get()
        color.set("blue")
        return seen

    assert await Workers(1).call("m", look) == "red"
    assert color.get() == "red"


async def test_a_stream_keeps_its_context() -> None:
    color.set("red")

    def colors() -> Iterator[str]:
        for new in ("green", "blue"):
            yield color.get()
            color.set(new)

    stream = await Workers(1).call("m", colors)
    assert [item async for item in stream] == ["red", "green"]
    assert color.get() == "red"


async def test_threads_are_kept_and_used_again() -> None:
    workers = Workers(4)
    seen = {await workers.call("m", threading.get_ident) for _ in range(20)}
    assert len(seen) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_without_threads_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"not {limit}"):
        Workers(limit)


async def test_no_more_run_than_may_and_the_rest_wait_in_order() -> None:
    workers = Workers(2)
    functions = [Blocking() for _ in range(5)]
    async with anyio.create_task_group() as group:
        for number, function in enumerate(functions):
            group.start_soon(workers.call, f"call {number}", function)
            await anyio.wait_all_tasks_blocked()
        await until(lambda: all(f.started.is_set() for f in functions[:2]))
        assert workers.running == ["call 0", "call 1"]
        for number in range(5):
            functions[number].release.set()
            if number + 2 < 5:
                await until(functions[number + 2].started.is_set)
                assert [f.started.is_set() for f in functions].count(True) == number + 3
    assert workers.running == []


async def test_a_stream_holds_its_thread_until_it_is_closed() -> None:
    workers = Workers(1)
    stream = await workers.call("stream", lambda: iter(range(1000)))
    assert await anext(stream) == 0
    later = Blocking()
    later.release.set()
    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "later", later)
        await anyio.wait_all_tasks_blocked()
        assert workers.running == ["stream"]
        assert not later.started.is_set()
        await stream.aclose()
    assert later.ended.is_set()


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
async def test_a_stream_is_all_items_on_one_thread(items: int, how: str) -> None:
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


async def test_streams_that_run_at_once_do_not_mix() -> None:
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


async def test_an_item_is_there_as_soon_as_it_is_made() -> None:
    go_on = threading.Event()

    def slowly() -> Iterator[int]:
        yield 1
        assert go_on.wait(10)
        yield 2

    stream = await Workers(1).call("m", slowly)
    with anyio.fail_after(5):
        assert await anext(stream) == 1
        go_on.set()
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
    await anyio.sleep(0.02)  # would it go on?
    assert most <= len(made) <= most + 1
    assert len([1 async for _ in stream]) == 200


async def test_a_reader_that_is_slow_gets_all() -> None:
    stream = await Workers(1).call("m", lambda: iter(range(300)))
    got = []
    async for item in stream:
        got.append(item)
        if item % 50 == 0:
            await anyio.sleep(0.005)
    assert got == list(range(300))


class TurnOfTheThread(deque[Any]):
    """A buffer in which the thread has its turn just after the reader has looked."""

    def __init__(self, turn: Callable[[], None]) -> None:
        super().__init__()
        self.turn: Callable[[], None] | None = turn

    def __bool__(self) -> bool:
        there = len(self) > 0
        if self.turn is not None and threading.current_thread() is threading.main_thread():
            turn, self.turn = self.turn, None
            turn()
        return there


async def test_the_last_item_is_not_lost() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def one() -> Iterator[int]:
        assert go_on.wait(10)
        yield 1

    stream = await Workers(1).call("m", one)
    job = stream._job

    def turn() -> None:
        go_on.set()
        deadline = time.monotonic() + 5
        while not job.finished and time.monotonic() < deadline:
            ended.wait(0.001)

    job.items = TurnOfTheThread(turn)
    with anyio.fail_after(5):
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
        await anext(stream)  # once is enough
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


@pytest.mark.parametrize("taken", [0, 1, 70])
async def test_closing_stops_the_iterator_and_closes_it_in_its_thread(taken: int) -> None:
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
    for _ in range(taken):
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


async def test_what_a_close_raises_is_raised_once() -> None:
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
    told: list[int] = []

    def stubborn() -> Iterator[int]:
        while len(told) < 2:  # once is an error; twice would be one of the garbage collector's
            try:
                yield 1
            except GeneratorExit:
                told.append(1)

    stream = await Workers(1).call("m", stubborn)
    await anext(stream)
    with pytest.raises(RuntimeError, match="GeneratorExit"):
        await stream.aclose()


async def test_an_iterator_without_close_is_just_left() -> None:
    workers = Workers(1)
    stream = await workers.call("m", lambda: map(str, range(1000)))
    assert await anext(stream) == "0"
    await stream.aclose()
    assert workers.running == []


# --- cancellation -------------------------------------------------------------------------------


async def test_a_call_that_waits_for_a_thread_is_cancelled_at_once() -> None:
    workers = Workers(1)
    first, second, third = Blocking(), Blocking(), Blocking()
    for function in (second, third):
        function.release.set()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(workers.call, "first", first)
            await until(first.started.is_set)
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(workers.call, "second", second)
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            assert workers.running == ["first"]
            group.start_soon(workers.call, "third", third)
            await anyio.wait_all_tasks_blocked()
            first.release.set()
    assert (second.calls, third.calls) == ([], [None])
    assert workers.running == []


async def test_a_thread_that_is_free_as_its_call_is_cancelled_goes_to_the_next() -> None:
    workers = Workers(1)
    first, second, third = Blocking(), Blocking(), Blocking()
    for function in (second, third):
        function.release.set()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(workers.call, "first", first)
            await until(first.started.is_set)
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(workers.call, "second", second)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(workers.call, "third", third)
                await anyio.wait_all_tasks_blocked()
                first.release.set()
                await until(first.ended.is_set)
                waiting.cancel_scope.cancel()
    assert third.calls == [None]
    assert workers.running == []


async def test_a_call_that_runs_is_waited_for() -> None:
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


async def test_a_call_that_made_a_stream_as_it_was_cancelled_closes_it() -> None:
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


async def test_a_wait_for_an_item_is_cancelled_at_once_and_the_close_waits() -> None:
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


# --- what is left -------------------------------------------------------------------------------


async def test_closing_ends_the_threads() -> None:
    before = alive()
    workers = Workers(4)
    functions = [Blocking() for _ in range(3)]
    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(workers.call, "m", function)
        await until(lambda: all(f.started.is_set() for f in functions))
        assert len(alive() - before) == 3
        for function in functions:
            function.release.set()
    workers.close()
    await until(lambda: not alive() - before)


async def test_workers_can_be_used_after_they_were_closed() -> None:
    before = alive()
    workers = Workers(2)
    await workers.call("m", int)
    workers.close()
    with anyio.fail_after(5):
        assert await workers.call("m", int) == 0
    workers.close()
    await until(lambda: not alive() - before)


async def test_a_thread_that_blocks_does_not_hold_up_calls_after_a_close() -> None:
    workers = Workers(4)
    stuck, later = Blocking(), Blocking()
    later.release.set()
    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "stuck", stuck)
        await until(stuck.started.is_set)
        workers.close()
        group.start_soon(workers.call, "later", later)
        with anyio.move_on_after(1):
            await until(later.ended.is_set)
        was_held_up = not later.ended.is_set()
        stuck.release.set()
    assert not was_held_up


async def test_the_threads_of_workers_that_are_forgotten_end() -> None:
    before = alive()
    workers = Workers(4)
    await workers.call("m", int)
    del workers
    gc.collect()
    with anyio.move_on_after(1):
        await until(lambda: not alive() - before)
    assert not alive() - before


async def test_nothing_of_a_call_is_kept() -> None:
    class Thing:
        pass

    workers = Workers(1)
    thing = Thing()
    kept = weakref.ref(thing)
    assert await workers.call("m", lambda value: 1, thing) == 1
    del thing
    with anyio.fail_after(5):
        while kept() is not None:
            gc.collect()
            await anyio.sleep(0.001)


def test_workers_are_pickled_without_their_threads() -> None:
    async def use(workers: Workers) -> int:
        return int(await workers.call("m", int))

    workers = Workers(3)
    anyio.run(use, workers)
    copy = pickle.loads(pickle.dumps(workers))
    assert copy.limit == 3
    assert anyio.run(use, copy) == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_workers_serve_one_event_loop_after_another(anyio_backend: str) -> None:
    workers = Workers(2)
    results: list[Any] = []

    async def use() -> None:
        async def one(number: int) -> None:
            stream = await workers.call("m", lambda: iter(range(number)))
            results.append([item async for item in stream])
            await stream.aclose()

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(one, number)

    for _ in range(3):
        anyio.run(use, backend=anyio_backend)
    assert len(results) == 24
    assert workers.running == []
    workers.close()
