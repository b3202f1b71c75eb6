"""The pool of worker threads: how many calls run, which thread runs them, when threads end."""

import contextvars
import gc
import gzip
import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import numpy as np
import pytest
from blocking import Blocking, until

from modelserve import InvalidInput, Model, ModelServer
from modelserve.concurrency.nesting import deadlock
from modelserve.concurrency.threads import OwnThreadForHooks, Workers
from modelserve.errors import NoThread, Overloaded
from modelserve.testing import request

pytestmark = pytest.mark.anyio

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


def alive() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("modelserve-worker")}


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


async def test_a_call_runs_in_a_daemon_thread_of_the_pool() -> None:
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


async def test_a_call_may_call_back_into_the_event_loop() -> None:
    """By anyio's public way, for which anyio's thread need not be ours."""

    async def answer(value: int) -> tuple[int, threading.Thread]:
        await anyio.lowlevel.checkpoint()
        return value, threading.current_thread()

    token = anyio.lowlevel.current_token()

    def call_back() -> tuple[int, threading.Thread]:
        return anyio.from_thread.run(answer, 5, token=token)

    with anyio.fail_after(5):
        assert await Workers(1).call("m", call_back) == (5, threading.current_thread())


async def test_threads_are_reused() -> None:
    workers = Workers(4)
    seen = {await workers.call("m", threading.get_ident) for _ in range(20)}
    assert len(seen) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_without_threads_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"not {limit}"):
        Workers(limit)


async def test_calls_above_the_limit_wait_in_order() -> None:
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


# --- cancellation -------------------------------------------------------------------------------


async def test_a_wait_for_a_thread_is_cancelled_at_once() -> None:
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


async def test_a_thread_that_becomes_free_for_a_cancelled_call_goes_to_the_next() -> None:
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


# --- the end --------------------------------------------------------------------------------------


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


async def test_a_blocked_thread_does_not_delay_calls_after_a_close() -> None:
    workers = Workers(4)
    stuck, later = Blocking(), Blocking()
    later.release.set()
    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "stuck", stuck)
        await until(stuck.started.is_set)
        workers.close()
        group.start_soon(workers.call, "later", later)
        with anyio.move_on_after(10):
            await until(later.ended.is_set)
        was_delayed = not later.ended.is_set()
        stuck.release.set()
    assert not was_delayed


@pytest.mark.slow
async def test_threads_end_when_their_pool_is_collected() -> None:
    before = alive()
    workers = Workers(4)
    await workers.call("m", int)
    del workers
    gc.collect()
    with anyio.move_on_after(10):
        await until(lambda: not alive() - before)
    assert not alive() - before


async def test_an_idle_pool_keeps_nothing_of_its_calls() -> None:
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


async def test_a_call_that_failed_keeps_nothing_until_garbage_is_collected() -> None:
    class Thing:
        pass

    def fail(thing: Thing) -> None:
        raise InvalidInput("bad")

    workers = Workers(1)
    thing = Thing()
    kept = weakref.ref(thing)
    gc.disable()
    try:
        with pytest.raises(InvalidInput):
            await workers.call("m", fail, thing)
        del thing
        with anyio.fail_after(10):
            await until(lambda: kept() is None)
    finally:
        gc.enable()


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


# --- a thread of a model's own ------------------------------------------------------------------


async def test_a_thread_of_its_own_is_the_same_for_all_calls() -> None:
    workers = Workers(4)
    own = workers.own_thread("m")
    seen: set[int] = set()

    def items() -> Iterator[int]:
        try:
            for number in range(200):
                seen.add(threading.get_ident())
                yield number
        finally:
            seen.add(threading.get_ident())

    async def use() -> None:
        seen.add(await own.call("m", threading.get_ident))
        seen.add(await own.call_hook("m", threading.get_ident))
        stream = await own.call_hook("m", items)
        assert [item async for item in stream] == list(range(200))
        await stream.aclose()
        stream = await own.iterate("m", items())
        await anext(stream)
        await stream.aclose()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(use)
    assert len(seen) == 1
    assert await workers.call("m", threading.get_ident) not in seen


async def test_calls_in_a_thread_of_its_own_wait_in_order_beside_those_of_the_pool() -> None:
    workers = Workers(1)
    own = workers.own_thread("m")
    first, second, beside = Blocking(), Blocking(), Blocking()
    async with anyio.create_task_group() as group:
        group.start_soon(own.call, "first", first)
        await until(first.started.is_set)
        group.start_soon(own.call, "second", second)
        group.start_soon(workers.call, "beside", beside)
        await until(beside.started.is_set)
        assert sorted(workers.running) == ["beside", "first"]
        assert own.running == ["first"]
        assert not second.started.is_set()
        for function in (first, second, beside):
            function.release.set()
    assert second.ended.is_set()
    assert workers.running == []


async def test_an_iterator_that_was_cancelled_in_the_queue_is_closed_in_the_thread() -> None:
    own = Workers(4).own_thread("m")
    first = Blocking()
    closed: list[int] = []

    class Items:
        def __iter__(self) -> "Items":
            return self

        def __next__(self) -> int:
            raise NotImplementedError

        def close(self) -> None:
            closed.append(threading.get_ident())

    with anyio.fail_after(5):
        thread = await own.call("m", threading.get_ident)
        async with anyio.create_task_group() as group:
            group.start_soon(own.call, "first", first)
            await until(first.started.is_set)
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(own.iterate, "second", Items())
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
                first.release.set()
    assert closed == [thread]
    assert own.running == []


@pytest.mark.parametrize("read", [0, 1, 100])
@pytest.mark.parametrize("items", [0, 1, 63, 64, 65, 1000])
async def test_a_call_by_the_reader_of_a_stream_comes_between_two_items(
    read: int, items: int
) -> None:
    """It would wait for itself: the stream has the thread, and waits to be read."""
    own = Workers(4).own_thread("m")
    with anyio.fail_after(5):
        thread = await own.call("m", threading.get_ident)
        stream = await own.call_hook("m", lambda: iter(range(items)))
        got = [await anext(stream) for _ in range(min(read, items))]
        for _ in range(3):
            assert await own.call_hook("m", threading.get_ident) == thread
        inner = await own.iterate("m", iter(range(200)))
        assert [item async for item in inner] == list(range(200))
        await inner.aclose()
        got += [item async for item in stream]
        await stream.aclose()
    assert got == list(range(items))
    assert own.running == []


async def test_a_call_of_another_task_waits_for_the_end_of_a_stream() -> None:
    own = Workers(4).own_thread("m")
    later = Blocking()
    later.release.set()
    with anyio.fail_after(5):
        stream = await own.call("m", lambda: iter(range(1000)))
        async with anyio.create_task_group() as group:
            group.start_soon(own.call, "later", later)
            await anyio.wait_all_tasks_blocked()
            assert [item async for item in stream] == list(range(1000))
            await stream.aclose()
    assert later.ended.is_set()


async def test_closing_a_pool_ends_the_threads_of_models() -> None:
    before = alive()
    workers = Workers(4)
    own = workers.own_thread("m")
    await own.call("m", int)
    assert [thread.name for thread in alive() - before] == ["modelserve-worker-of-m"]
    workers.close()
    await until(lambda: not alive() - before)
    assert await own.call("m", int) == 0
    own.close()
    await until(lambda: not alive() - before)


async def test_a_call_that_may_not_wait_for_the_thread_is_refused_only_where_it_would() -> None:
    @contextmanager
    def refusing() -> Iterator[None]:
        raise deadlock()
        yield

    own, first, items = Workers(4).own_thread("m"), Blocking(), Items()
    workers = OwnThreadForHooks(own, refusing)
    thread = await workers.call("m", threading.get_ident)
    async with anyio.create_task_group() as group:
        group.start_soon(own.call, "first", first)
        await until(first.started.is_set)
        with pytest.raises(Overloaded, match="would deadlock"):
            await workers.call("second", int)
        with pytest.raises(Overloaded, match="would deadlock"):
            await workers.iterate("second", items)
        assert items.closed
        assert (own.running, own.has_waiting) == (["first"], False)
        first.release.set()
    with anyio.fail_after(10):
        stream = await workers.call_hook("m", lambda: iter(range(100)))
        assert await anext(stream) == 0
        assert await workers.call_hook("m", threading.get_ident) == thread  # between two items
        assert [item async for item in stream] == list(range(1, 100))
        await stream.aclose()
    assert own.running == []


# --- where the system has no more threads -------------------------------------------------------


class Items(Iterator[int]):
    closed = False

    def __next__(self) -> int:
        raise StopIteration

    def close(self) -> None:
        self.closed = True


class NoMoreThreads:
    """What a limit on pids, or no memory for a stack, does to Python."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lifted = False
        start = threading.Thread.start

        def start_or_fail(thread: threading.Thread) -> None:
            if not self.lifted and "modelserve" in thread.name:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_fail)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> NoMoreThreads:
    return NoMoreThreads(monkeypatch)


def pools(limit: int) -> list[Workers]:
    own = Workers(1).own_thread("m")
    return [Workers(limit), own, OwnThreadForHooks(own, nullcontext)]


@pytest.mark.parametrize("pool", [0, 1, 2])
@pytest.mark.parametrize("how", ["call", "call_hook"])
async def test_a_call_that_has_no_thread_is_refused_and_never_runs(
    how: str, pool: int, no_threads: NoMoreThreads
) -> None:
    workers = pools(3)[pool]
    ran: list[int] = []
    for number in range(5):
        with pytest.raises(NoThread) as refused:
            await getattr(workers, how)("f", ran.append, number)
        assert (refused.value.status, refused.value.headers) == (503, {"retry-after": "1"})
    assert workers.running == []
    no_threads.lifted = True
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number in range(10, 16):
                group.start_soon(getattr(workers, how), "f", ran.append, number)
    assert sorted(ran) == list(range(10, 16))
    workers.close()


async def test_a_call_takes_an_idle_thread_where_no_other_can_be_started(
    no_threads: NoMoreThreads,
) -> None:
    workers, blocking = Workers(3), Blocking()
    no_threads.lifted = True
    await workers.call("f", int)
    no_threads.lifted = False
    assert await workers.call("f", int) == 0
    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "g", blocking)
        await until(blocking.started.is_set)
        with pytest.raises(NoThread):
            await workers.call("f", int)
        assert workers.running == ["g"]
        blocking.release.set()
    assert await workers.call("f", int) == 0
    workers.close()


@pytest.mark.parametrize("pool", [0, 1, 2])
async def test_an_iterator_that_has_no_thread_is_closed(
    pool: int, no_threads: NoMoreThreads
) -> None:
    workers, items = pools(1)[pool], Items()
    with pytest.raises(NoThread):
        await workers.iterate("f", items)
    assert items.closed
    assert workers.running == []
    no_threads.lifted = True
    assert await workers.call("f", int) == 0
    workers.close()


async def test_an_iterator_in_the_queue_is_closed_though_there_is_no_extra_thread(
    no_threads: NoMoreThreads,
) -> None:
    no_threads.lifted = True
    workers, blocking, items = Workers(1), Blocking(), Items()
    async with anyio.create_task_group() as group:
        group.start_soon(workers.call, "g", blocking)
        await until(blocking.started.is_set)
        no_threads.lifted = False
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(workers.iterate, "f", items)
            await anyio.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
        assert items.closed
        blocking.release.set()
    assert await workers.call("f", int) == 0
    workers.close()


async def test_what_has_no_thread_is_a_503_and_the_rest_is_served(
    no_threads: NoMoreThreads,
) -> None:
    ran: list[Any] = []

    class Hooks(Model):
        def predict(self, payload: Any) -> Any:
            ran.append(payload)
            return payload

    class Streams(Model):
        async def predict(self, payload: Any) -> Any:
            return iter([1, 2])

    class OnLoop(Model):
        async def predict(self, payload: Any) -> Any:
            return payload

    own = Hooks("own")
    own.own_thread = True
    app = ModelServer([Hooks("m"), own, Streams("s"), OnLoop("a")], threads=2)
    large = gzip.compress(json.dumps(["x" * (2 << 20)]).encode())
    zipped = {"content-encoding": "gzip", "content-type": "application/json"}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/models/m:predict", {"json": [1]}),
        ("POST", "/v1/models/own:predict", {"json": [1]}),
        ("POST", "/v1/models/s:predict", {"json": [1]}),
        ("POST", "/v1/models/a:predict", {"body": large, "headers": zipped}),
        ("GET", "/metrics", {}),
    ]
    for _ in range(3):
        for method, path, options in asked:
            response = await request(app, method, path, **options)
            assert (response.status, response.headers["retry-after"]) == (503, "1"), path
        assert (await request(app, "POST", "/v1/models/a:predict", json=[1])).status == 200
    assert ran == []
    no_threads.lifted = True
    for method, path, options in asked:
        assert (await request(app, method, path, **options)).status == 200, path
    statistics = app.serving.statistics()
    assert (statistics.in_flight, statistics.running, statistics.busy_threads) == (0, 0, ())
