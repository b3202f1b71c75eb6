"""The order of hooks, what passes between them, and that every stream that was opened is closed."""

import csv
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from modelserve import InvalidInput, Model
from modelserve.concurrency.bridge import ThreadStream
from modelserve.concurrency.threads import Workers
from modelserve.exchange.coalescing import Coalesced
from modelserve.models.hooks import plans_of
from modelserve.models.inference import Call, call_hook, infer
from modelserve.wire.head import HookHeaders

pytestmark = pytest.mark.anyio


def unchecked(payload: Any) -> None:
    pass


def call_for(**hooks: Any) -> tuple[Any, Call]:
    model = Model("m")
    vars(model).update(hooks)
    return plans_of(model)["predict"], Call(
        "m", Workers(4), HookHeaders({"a": "1"}), HookHeaders({})
    )


async def run(
    payload: Any = None, *, check: Callable[[Any], None] = unchecked, **hooks: Any
) -> Any:
    """Run the hooks; return the value, or the items as a list."""
    plan, call = call_for(**hooks)
    try:
        result = await infer(plan, payload, call, check)
        return [item async for item in result] if call.is_stream(result) else result
    finally:
        await call.finish()


def add_sync(mark: str) -> Any:
    return lambda value: [*value, mark]


def add_async(mark: str) -> Any:
    async def add(value: Any) -> Any:
        return [*value, mark]

    return add


@pytest.mark.parametrize("add", [add_sync, add_async])
@pytest.mark.parametrize(
    ("names", "result"),
    [
        (["predict"], ["predict"]),
        (["preprocess", "predict"], ["preprocess", "predict"]),
        (["predict", "postprocess"], ["predict", "postprocess"]),
        (["postprocess", "predict", "preprocess"], ["preprocess", "predict", "postprocess"]),
    ],
)
async def test_hooks_run_in_order(add: Any, names: list[str], result: list[str]) -> None:
    assert await run([], **{name: add(name) for name in names}) == result


async def test_explain_stands_in_for_predict() -> None:
    model = Model("m")
    for name in ("preprocess", "predict", "explain", "postprocess"):
        setattr(model, name, add_async(name))
    call = Call("m", Workers(4), None, None)
    result = await infer(plans_of(model)["explain"], [], call, unchecked)
    assert result == ["preprocess", "explain", "postprocess"]
    assert list(call.seconds) == result


async def test_the_check_sees_what_goes_to_predict() -> None:
    seen: list[Any] = []

    def check(payload: Any) -> None:
        seen.append(list(payload))
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        await run([], check=check, preprocess=add_sync("pre"), predict=add_sync("never"))
    assert seen == [["pre"]]


@pytest.mark.parametrize("failing", ["preprocess", "predict", "postprocess"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_a_hook_raises_ends_the_run(failing: str, kind: str) -> None:
    ran: list[str] = []

    def hook(name: str) -> Any:
        def act(value: Any) -> Any:
            ran.append(name)
            if name == failing:
                raise InvalidInput(name)
            return value

        async def act_async(value: Any) -> Any:
            return act(value)

        return act if kind == "sync" else act_async

    names = ["preprocess", "predict", "postprocess"]
    with pytest.raises(InvalidInput, match=failing):
        await run([], **{name: hook(name) for name in names})
    assert ran == names[: names.index(failing) + 1]


async def test_hooks_share_their_headers() -> None:
    def preprocess(payload: Any, headers: Any) -> Any:
        headers["b"] = "2"
        return payload

    async def predict(payload: Any, headers: Any, response_headers: Any) -> Any:
        response_headers["c"] = "3"
        return dict(headers)

    def postprocess(result: Any, headers: Any, response_headers: Any) -> Any:
        return {**result, **response_headers, **headers}

    result = await run([], preprocess=preprocess, predict=predict, postprocess=postprocess)
    assert result == {"a": "1", "b": "2", "c": "3"}


VALUES = [
    None,
    0,
    "",
    "text",
    b"bytes",
    [],
    {"a": 1},
    (1,),
    {1},
    np.array([1]),
    np.float32(1),
    range(3),
    object(),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_value_is_no_stream(value: Any, kind: str) -> None:
    async def in_loop(payload: Any) -> Any:
        return value

    plan, call = call_for(predict=in_loop if kind == "async" else lambda payload: value)
    result = await infer(plan, None, call, unchecked)
    assert result is value
    assert not call.is_stream(result)
    await call.finish()


# --- streams ------------------------------------------------------------------------------------


def numbers(payload: Any) -> Iterator[int]:
    yield from range(payload)


async def async_numbers(payload: Any) -> AsyncIterator[int]:
    for number in range(payload):
        yield number


class WithNext:
    """An iterator that has no `close`."""

    def __init__(self, payload: Any) -> None:
        self.left = payload

    def __iter__(self) -> "WithNext":
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return int(self.left)


class Iterable:
    """Not an iterator itself: `__aiter__` makes one."""

    def __init__(self, payload: Any) -> None:
        self.payload = payload

    def __aiter__(self) -> AsyncIterator[int]:
        return async_numbers(self.payload)


async def deeply(payload: Any) -> Any:
    async def inner() -> Any:
        return numbers(payload)

    return inner()


@pytest.mark.parametrize(
    ("predict", "items"),
    [
        (numbers, [0, 1, 2]),
        (async_numbers, [0, 1, 2]),
        (WithNext, [2, 1, 0]),
        (Iterable, [0, 1, 2]),
        (deeply, [0, 1, 2]),
        (lambda payload: map(str, range(payload)), ["0", "1", "2"]),
        (lambda payload: (n for n in range(payload)), [0, 1, 2]),
    ],
)
async def test_whatever_iterates_is_an_async_iterator(predict: Any, items: list[Any]) -> None:
    assert await run(3, predict=predict) == items


async def test_a_stream_passes_through_an_async_postprocess() -> None:
    async def postprocess(result: Any) -> Any:
        return result

    assert await run(3, predict=numbers, postprocess=postprocess) == [0, 1, 2]


async def test_a_value_may_become_a_stream() -> None:
    async def predict(payload: Any) -> Any:
        return list(range(payload))

    def postprocess(result: Any) -> Iterator[Any]:
        yield from result

    assert await run(3, predict=predict, postprocess=postprocess) == [0, 1, 2]


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_every_stream_is_closed_the_last_first(taken: int) -> None:
    closed: list[str] = []

    async def predict(payload: Any) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append("predict")

    async def postprocess(result: Any) -> AsyncIterator[int]:
        try:
            async for item in result:
                yield item
        finally:
            closed.append("postprocess")

    plan, call = call_for(predict=predict, postprocess=postprocess)
    result = await infer(plan, None, call, unchecked)
    for _ in range(taken):
        await anext(result, None)
    await call.finish()
    started = [] if taken == 0 else ["predict", "postprocess"]
    assert sorted(closed) == sorted(started)
    if taken == 1:
        assert closed == ["postprocess", "predict"]


async def test_a_stream_that_a_postprocess_left_is_closed() -> None:
    closed = threading.Event()

    def predict(payload: Any) -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    async def postprocess(result: Any) -> Any:
        return await anext(result)

    assert await run(None, predict=predict, postprocess=postprocess) == 1
    assert closed.is_set()


async def test_a_stream_of_a_postprocess_that_fails_is_closed() -> None:
    closed = threading.Event()

    def predict(payload: Any) -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    async def postprocess(result: Any) -> Any:
        await anext(result)
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        await run(None, predict=predict, postprocess=postprocess)
    assert closed.is_set()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_failure_to_close_is_logged_and_the_rest_is_closed(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    closed = threading.Event()

    def fails_sync(payload: Any) -> Iterator[int]:
        try:
            yield from range(1, 1000)  # more than the thread works ahead
        finally:
            closed.set()
            raise ValueError("of the inner")

    async def fails_async(payload: Any) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()
            raise ValueError("of the inner")

    async def postprocess(result: Any) -> AsyncIterator[int]:
        try:
            async for item in result:
                yield item
        finally:
            raise KeyError("of the outer")

    predict = fails_sync if kind == "sync" else fails_async
    plan, call = call_for(predict=predict, postprocess=postprocess)
    assert await anext(await infer(plan, None, call, unchecked)) == 1
    await call.finish()
    assert closed.is_set()
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert logged == ["'of the outer'", "of the inner"]


async def test_a_sync_stream_and_its_hook_run_on_the_same_thread() -> None:
    threads: list[int] = []

    def predict(payload: Any) -> Any:
        threads.append(threading.get_ident())
        return made()

    def made() -> Iterator[int]:
        threads.append(threading.get_ident())
        yield 1

    assert await run(None, predict=predict) == [1]
    assert len(set(threads)) == 1


async def test_the_time_of_a_stream_runs_until_it_is_closed() -> None:
    plan, call = call_for(preprocess=lambda payload: payload, predict=async_numbers)
    result = await infer(plan, 2, call, unchecked)
    assert list(call.seconds) == ["preprocess"]
    assert [item async for item in result] == [0, 1]
    await call.finish()
    assert list(call.seconds) == ["preprocess", "predict"]


@pytest.mark.parametrize("value", [[1], object()])
async def test_a_value_of_a_hook_that_was_called_elsewhere_is_taken_over(value: Any) -> None:
    plan, call = call_for(predict=add_async("a"))
    assert await call.take_over(plan.main, monotonic() - 1, value) is value
    assert call.is_finished and not call.is_stream(value)
    assert 1 <= call.seconds["predict"] < 2


async def test_a_stream_of_a_hook_that_was_called_elsewhere_is_taken_over() -> None:
    closed: list[bool] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    plan, call = call_for(predict=add_async("a"))
    stream = await call.take_over(plan.main, monotonic(), items())
    assert call.is_stream(stream) and not call.is_finished
    assert await anext(stream) == 1
    await call.finish()
    assert (closed, call.is_finished, list(call.seconds)) == ([True], True, ["predict"])


@pytest.mark.parametrize("failing", ["preprocess", "predict"])
async def test_the_time_of_a_hook_that_fails_is_known(failing: str) -> None:
    async def fails(payload: Any) -> Any:
        raise ValueError

    plan, call = call_for(**{"predict": add_async("a"), failing: fails})
    with pytest.raises(ValueError):
        await infer(plan, [], call, unchecked)
    await call.finish()
    assert list(call.seconds) == [failing]


# --- cancellation -------------------------------------------------------------------------------


async def test_a_sync_hook_is_waited_for() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def predict(payload: Any) -> Any:
        started.set()
        release.wait(10)
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run_with, predict)
        assert await anyio.to_thread.run_sync(started.wait, 5)
        group.cancel_scope.cancel()
        release.set()
    assert ended.is_set()


async def run_with(predict: Any) -> None:
    await run(None, predict=predict)


async def test_an_async_hook_is_cancelled() -> None:
    started = anyio.Event()

    async def predict(payload: Any) -> Any:
        started.set()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(run_with, predict)
            await started.wait()
            group.cancel_scope.cancel()


async def test_an_iterator_that_no_thread_came_to_is_closed() -> None:
    closed = anyio.Event()
    release, started = threading.Event(), threading.Event()

    class Cursor(WithNext):
        def close(self) -> None:
            closed.set()

    async def predict(payload: Any) -> Any:
        return Cursor(2)

    def block() -> None:
        started.set()
        release.wait(10)

    plan, call = call_for(predict=predict)
    call.workers = Workers(1)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as blocking:
            blocking.start_soon(call.workers.call, "other", block)
            assert await anyio.to_thread.run_sync(started.wait, 5)
            async with anyio.create_task_group() as group:
                group.start_soon(infer, plan, None, call, unchecked)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            await call.finish()
            release.set()
    assert closed.is_set()


# --- hooks outside of requests ------------------------------------------------------------------


def sync_load() -> str:
    return threading.current_thread().name


async def async_load() -> str:
    return threading.current_thread().name


def returns_awaitable() -> Any:
    return async_load()


@pytest.mark.parametrize(
    ("hook", "in_thread"), [(sync_load, True), (async_load, False), (returns_awaitable, False)]
)
async def test_a_hook_outside_of_a_request(hook: Any, in_thread: bool) -> None:
    name = await call_hook("load of m", Workers(1), hook)
    assert name.startswith("modelserve-worker") is in_thread


async def test_a_hook_outside_of_a_request_takes_arguments() -> None:
    assert await call_hook("load of m", Workers(1), lambda *args: args, 1, 2) == (1, 2)


async def test_a_hook_outside_of_a_request_must_not_yield() -> None:
    def load() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="load of m must not be a generator"):
        await call_hook("load of m", Workers(1), load)


async def test_an_async_generator_outside_of_a_request_is_refused() -> None:
    async def load() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="load of m must not be a generator"):
        await call_hook("load of m", Workers(1), load)


async def test_a_thread_stream_comes_from_a_sync_iterator_only() -> None:
    plan, call = call_for(predict=numbers)
    result = await infer(plan, 1, call, unchecked)
    assert isinstance(result, ThreadStream)
    await call.finish()


# --- closing ------------------------------------------------------------------------------------


class Upstream:
    """What an SDK hands out: its iterator is a generator, and it is closed itself."""

    def __init__(self, closed: list[str]) -> None:
        self.closed = closed

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
        finally:
            self.closed.append("iterator")


class WithAclose(Upstream):
    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed.append("object")

    def close(self) -> None:
        raise AssertionError("the sync way of an object that has an async one")


class WithAsyncClose(Upstream):
    aclose = None

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed.append("object")


class WithClose(Upstream):
    def close(self) -> None:
        self.closed.append("object")


class Both(WithAsyncClose):
    """Iterator and iterable at once, as openai's streams are."""

    async def __anext__(self) -> int:
        raise AssertionError("not the way to iterate")


@pytest.mark.parametrize("kind", [WithAclose, WithAsyncClose, WithClose, Both])
@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("taken", [1, 3])
async def test_an_object_that_is_iterated_is_closed_after_its_iterator(
    kind: Any, coalesced: bool, wrapped: bool, taken: int
) -> None:
    closed: list[str] = []

    async def predict(payload: Any) -> Any:
        return Coalesced(kind(closed)) if coalesced else kind(closed)

    async def postprocess(result: Any) -> AsyncIterator[Any]:
        async for item in result:
            yield item

    plan, call = call_for(predict=predict, **({"postprocess": postprocess} if wrapped else {}))
    stream = await infer(plan, None, call, unchecked)
    assert call.is_stream(stream)
    for _ in range(taken):
        await anext(stream)
    await call.finish()
    assert closed == ["iterator", "object"]


async def test_a_sync_object_is_closed_after_its_iterator() -> None:
    closed: list[str] = []

    class Stream:
        def __iter__(self) -> Iterator[int]:
            try:
                yield from range(1000)
            finally:
                closed.append("iterator")

        def __next__(self) -> int:
            raise AssertionError("not the way to iterate")

        def close(self) -> None:
            closed.append("object")

    plan, call = call_for(predict=lambda payload: Stream())
    assert await anext(await infer(plan, None, call, unchecked)) == 0
    await call.finish()
    assert closed == ["iterator", "object"]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_generator_that_yields_when_it_is_closed_is_closed_again(
    kind: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    closed = threading.Event()

    def sync_items(payload: Any) -> Iterator[int]:
        try:
            for _ in range(times):
                try:
                    yield 1
                    yield from range(1000)
                except GeneratorExit:
                    pass
            yield 2
        finally:
            closed.set()

    async def async_items(payload: Any) -> AsyncIterator[int]:
        try:
            for _ in range(times):
                try:
                    yield 1
                    yield 2
                except GeneratorExit:
                    await anyio.lowlevel.checkpoint()
            yield 3
        finally:
            await anyio.lowlevel.checkpoint()
            closed.set()

    plan, call = call_for(predict=sync_items if kind == "sync" else async_items)
    assert await anext(await infer(plan, None, call, unchecked)) == 1
    await call.finish()
    assert closed.is_set()
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert len(logged) == 1
    assert "ignored GeneratorExit" in logged[0]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_generator_that_never_stops_yielding_is_given_up(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    closes: list[int] = []
    over: list[bool] = []

    def sync_items(payload: Any) -> Iterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                closes.append(1)
                if over:  # what closes it at last is the garbage collector
                    raise

    async def async_items(payload: Any) -> AsyncIterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                closes.append(1)
                if over:  # what closes it at last is the garbage collector
                    raise

    kept = [sync_items(None) if kind == "sync" else async_items(None)]
    plan, call = call_for(predict=lambda payload: kept[0])
    assert await anext(await infer(plan, None, call, unchecked)) == 1
    await call.finish()
    over.append(True)
    assert 2 <= len(closes) < 100
    assert len([record for record in caplog.records if record.exc_info]) == 1


# --- preprocess hands on what it likes ----------------------------------------------------------


async def an_async_generator() -> AsyncIterator[int]:
    yield 1


HANDED_ON = {
    "BytesIO": lambda: io.BytesIO(b"a"),
    "StringIO": lambda: io.StringIO("a"),
    "file": lambda: Path(__file__).open("rb"),  # noqa: SIM115 - closed by the test
    "csv reader": lambda: csv.reader(["a,b"]),
    "generator": lambda: (n for n in (1, 2)),
    "iterator": lambda: iter([1]),
    "zip": lambda: zip("ab", "cd", strict=True),
    "map": lambda: map(str, (1, 2)),
    "async generator": an_async_generator,
    "Coalesced": lambda: Coalesced([1]),
    "ndarray": lambda: np.zeros(2),
}


@pytest.mark.parametrize("kind", HANDED_ON)
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("predicts_async", [True, False])
async def test_what_preprocess_returns_is_handed_on_as_it_is(
    kind: str, is_async: bool, predicts_async: bool
) -> None:
    made = HANDED_ON[kind]()
    seen: list[Any] = []

    async def preprocess(payload: Any) -> Any:
        return made

    async def predict(value: Any) -> Any:
        seen.append(value)
        return "done"

    try:
        result = await run(
            preprocess=preprocess if is_async else lambda payload: made,
            predict=predict if predicts_async else lambda value: seen.append(value) or "done",
        )
    finally:
        if hasattr(made, "close"):
            made.close()
    assert result == "done"
    assert seen[0] is made


async def test_an_awaitable_that_preprocess_returns_is_awaited() -> None:
    assert await run([], preprocess=lambda payload: add_async("a")(payload), predict=add_sync("b")) == ["a", "b"]  # fmt: skip


@pytest.mark.parametrize("ends", ["used", "half used", "not used"])
async def test_an_async_generator_that_preprocess_returns_is_closed(ends: str) -> None:
    closed: list[bool] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(True)

    async def predict(given: Any) -> Any:
        if ends == "used":
            return [item async for item in given]
        return [await anext(given)] if ends == "half used" else []

    kept = items()
    assert await run(preprocess=lambda payload: kept, predict=predict) == (
        [1, 2] if ends == "used" else [1] if ends == "half used" else []
    )
    assert closed == ([] if ends == "not used" else [True])
    with pytest.raises(StopAsyncIteration):
        await anext(kept)


@pytest.mark.parametrize("is_async", [True, False])
async def test_predict_may_stream_what_preprocess_has_returned(is_async: bool) -> None:
    source: Any = async_numbers(3) if is_async else iter(range(3))
    plan, call = call_for(preprocess=lambda payload: source, predict=lambda given: given)
    result = await infer(plan, None, call, unchecked)
    assert call.is_stream(result)
    assert [item async for item in result] == [0, 1, 2]
    await call.finish()
    assert list(call.seconds) == ["preprocess", "predict"]
