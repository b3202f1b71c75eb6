"""The order of hooks, what passes between them, and that every stream that was opened is closed."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any

import anyio
import numpy as np
import pytest

from modelserve import InvalidInput, Model
from modelserve.concurrency.bridge import ThreadStream
from modelserve.concurrency.threads import Workers
from modelserve.models.hooks import plan_of
from modelserve.models.inference import Call, call_hook, infer
from modelserve.wire.head import HookHeaders

pytestmark = pytest.mark.anyio


def unchecked(payload: Any) -> None:
    pass


def call_for(**hooks: Any) -> tuple[Any, Call]:
    model = Model("m")
    vars(model).update(hooks)
    return plan_of(model, "predict"), Call(
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
    result = await infer(plan_of(model, "explain"), [], call, unchecked)
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
