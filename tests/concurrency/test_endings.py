"""Clean-up that a generator or a handler has begun by itself completes, whatever happens then."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Coalesced, Limits, Model, ModelServer
from modelserve.concurrency.endings import is_cleaning_up
from modelserve.testing import Exchange, _scope

pytestmark = pytest.mark.anyio

PATH = "/v1/models/m:predict"
FORMS = {
    "ndjson": "application/x-ndjson",
    "sse": "text/event-stream",
    "raw": "*/*",
    "collected": "application/json",
}


class Steps:
    """A clean-up that takes a while, and what has been seen of it."""

    def __init__(self) -> None:
        self.cleaning, self.release = anyio.Event(), anyio.Event()
        self.done: list[str] = []

    async def clean_up(self) -> None:
        self.cleaning.set()
        await self.release.wait()
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)
        self.done.append("cleaned")


def generator(steps: Steps) -> Any:
    async def predict(payload: Any) -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await anyio.lowlevel.checkpoint()
            yield b"2"
        finally:
            await steps.clean_up()

    return predict


def with_exit(steps: Steps) -> Any:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        yield
        await steps.clean_up()

    async def predict(payload: Any) -> AsyncIterator[bytes]:
        async with opened():
            yield b"1"

    return predict


def returned(steps: Steps) -> Any:
    source = generator(steps)

    async def predict(payload: Any) -> Any:
        return source(payload)

    return predict


def coalesced(steps: Steps) -> Any:
    source = generator(steps)

    async def predict(payload: Any) -> Any:
        return Coalesced(source(payload))

    return predict


def iterating(steps: Steps) -> Any:
    """An iterator of a class of its own, with an `aclose`, around a generator."""
    source = generator(steps)

    class Items:
        def __init__(self) -> None:
            self.items = source(None)

        def __aiter__(self) -> "Items":
            return self

        async def __anext__(self) -> Any:
            return await anext(self.items)

        async def aclose(self) -> None:
            await self.items.aclose()

    async def predict(payload: Any) -> Any:
        return Items()

    return predict


def with_aclose(steps: Steps) -> Any:
    """An iterator of a class of its own that cleans up in `aclose`."""

    class Items:
        left = 2

        def __aiter__(self) -> "Items":
            return self

        async def __anext__(self) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return b"1"

        async def aclose(self) -> None:
            await steps.clean_up()

    async def predict(payload: Any) -> Any:
        return Items()

    return predict


def failing(steps: Steps) -> Any:
    async def predict(payload: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"1"
                raise ValueError("x")
        finally:
            await steps.clean_up()

    return predict


def unary(steps: Steps) -> Any:
    async def predict(payload: Any) -> Any:
        try:
            return [1]
        finally:
            await steps.clean_up()

    return predict


def helped(steps: Steps) -> Any:
    source = unary(steps)

    async def predict(payload: Any) -> Any:
        await source(payload)
        return [1]

    return predict


STREAMS = [generator, with_exit, returned, coalesced, iterating, with_aclose, failing]
KINDS = [*STREAMS, unary, helped]
# The host's own cancellation of a plain task of asyncio's reaches what is awaited before anybody
# can tell where it waits, except in generators that a hook has returned.
SHELTERED = [generator, returned, coalesced, with_aclose, failing]


async def post(value: Any) -> AsyncIterator[Any]:
    async for item in value:
        yield item


def client_of(app: ModelServer, accept: str) -> Exchange:
    client = Exchange(app, _scope("POST", PATH, {"accept": accept}), timeout=10)
    client.send_body(b"[]")
    return client


def serve(predict: Any, *, around: bool, limits: Limits | None = None) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict)
    if around:

        async def postprocess(result: Any) -> AsyncIterator[Any]:
            async for item in result:
                yield item

        vars(model).update(postprocess=postprocess)
    return ModelServer([model], limits=limits)


async def rounds() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


def leave(client: Exchange, app: ModelServer) -> None:
    client.hang_up()


def drain(client: Exchange, app: ModelServer) -> None:
    from modelserve.errors import ServerShuttingDown

    app.serving.flights.cancel_all(ServerShuttingDown, cleanup_cap=5)


def wait_for_deadline(client: Exchange, app: ModelServer) -> None:
    pass


async def check(kind: Callable[[Steps], Any], end: Any, accept: str, *, around: bool) -> None:
    steps = Steps()
    limits = Limits(timeout=0.03) if end is wait_for_deadline else None
    app = serve(kind(steps), around=around, limits=limits)
    client = client_of(app, accept)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await steps.cleaning.wait()
            await anyio.sleep(0.03)  # by now it is watched
            end(client, app)
            await anyio.sleep(0.04)
            assert not client.over
            steps.release.set()
            await client.ended()
    assert steps.done == ["cleaned"]
    assert app.serving.statistics().in_flight == app.serving.statistics().running == 0


@pytest.mark.parametrize("end", [leave, drain, wait_for_deadline])
@pytest.mark.parametrize("kind", KINDS)
async def test_clean_up_of_its_own_completes(kind: Any, end: Any) -> None:
    await check(kind, end, FORMS["ndjson"], around=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("around", [False, True])
async def test_clean_up_of_its_own_completes_in_each_form(form: str, around: bool) -> None:
    await check(generator, leave, FORMS[form], around=around)


@pytest.mark.parametrize("kind", [kind for kind in STREAMS if kind is not coalesced])
async def test_clean_up_of_its_own_completes_below_a_postprocess(kind: Any) -> None:
    await check(kind, leave, FORMS["sse"], around=True)


@pytest.mark.parametrize("kind", KINDS)
async def test_clean_up_of_its_own_completes_in_a_scope_that_is_cancelled(kind: Any) -> None:
    steps = Steps()
    app = serve(kind(steps), around=False)
    client, scope = client_of(app, FORMS["ndjson"]), anyio.CancelScope()

    async def run() -> None:
        with scope:
            await client.run()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await steps.cleaning.wait()
            await rounds()
            scope.cancel()
            await anyio.sleep(0.03)
            assert not client.over
            steps.release.set()
            await client.ended()
    assert steps.done == ["cleaned"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("kind", SHELTERED)
async def test_clean_up_of_its_own_completes_in_a_task_that_is_cancelled(
    kind: Any, cancels: int
) -> None:
    steps = Steps()
    app = serve(kind(steps), around=False)
    client = client_of(app, FORMS["ndjson"])
    with anyio.fail_after(5):
        task = asyncio.get_running_loop().create_task(client.run())
        await steps.cleaning.wait()
        for _ in range(cancels):
            task.cancel()
            await rounds()
        assert not client.over
        steps.release.set()
        await asyncio.wait((task,))
    assert task.cancelled()
    assert steps.done == ["cleaned"]
    assert app.serving.statistics().in_flight == app.serving.statistics().running == 0


async def test_a_task_group_of_its_clean_up_is_not_cancelled() -> None:
    steps = Steps()

    async def predict(payload: Any) -> AsyncIterator[bytes]:
        try:
            yield b"1"
        finally:
            async with anyio.create_task_group() as group:
                group.start_soon(steps.clean_up)

    client = client_of(serve(predict, around=False), FORMS["ndjson"])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await steps.cleaning.wait()
            await anyio.sleep(0.03)
            client.hang_up()
            await rounds()
            steps.release.set()
            await client.ended()
    assert steps.done == ["cleaned"]


@pytest.mark.parametrize("end", [leave, drain])
async def test_clean_up_of_its_own_is_bounded(end: Any) -> None:
    steps = Steps()
    app = serve(generator(steps), around=False, limits=Limits(cleanup_timeout=0.05))
    client = client_of(app, FORMS["ndjson"])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await steps.cleaning.wait()
            await anyio.sleep(0.03)
            end(client, app)
            await client.ended()
    assert steps.done == []


async def test_what_comes_after_a_clean_up_is_cancelled() -> None:
    steps, seen = Steps(), []

    async def predict(payload: Any) -> AsyncIterator[bytes]:
        yield b"1"
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            await steps.clean_up()
        try:
            await anyio.sleep(60)
        except BaseException:
            seen.append("cancelled")
            raise

    client = client_of(serve(predict, around=False), FORMS["ndjson"])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await steps.cleaning.wait()
            await anyio.sleep(0.03)
            client.hang_up()
            await rounds()
            steps.release.set()
            await client.ended()
    assert (steps.done, seen) == (["cleaned"], ["cancelled"])


async def test_a_time_limit_of_the_generator_itself_ends_its_clean_up() -> None:
    seen = []

    async def predict(payload: Any) -> AsyncIterator[bytes]:
        with anyio.move_on_after(0.05):
            try:
                yield b"1"
            finally:
                await anyio.sleep(60)
        seen.append("moved on")

    async def predict_in_task(payload: Any) -> AsyncIterator[bytes]:
        try:
            async with asyncio.timeout(0.05):
                try:
                    yield b"1"
                finally:
                    await asyncio.sleep(60)
        except TimeoutError:
            seen.append("moved on")

    hooks = [predict]
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        hooks.append(predict_in_task)
    for hook in hooks:
        client = client_of(serve(hook, around=False), FORMS["raw"])
        with anyio.fail_after(10):
            await client.run()
        assert client.error is None
        assert [message.get("body") for message in client._sent][1:] == [b"1", b""]
    assert seen == ["moved on"] * len(hooks)


async def test_the_end_of_a_task_group_is_cancelled() -> None:
    started = anyio.Event()

    async def work() -> None:
        started.set()
        await anyio.sleep(60)

    async def predict(payload: Any) -> Any:
        async with anyio.create_task_group() as group:
            group.start_soon(work)

    client = client_of(serve(predict, around=False), FORMS["raw"])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await started.wait()
            await anyio.sleep(0.03)
            client.hang_up()
            await client.ended()


# --- where a frame waits ------------------------------------------------------------------------


class Wait:
    """Suspends once, and notes whether it is clean-up that waits, as its name has it."""

    def __init__(self, label: str) -> None:
        self.label = label

    def __await__(self) -> Any:
        yield self.label


async def clean(label: str = "clean") -> int:
    await Wait(label)
    return 0


async def work(label: str = "work") -> int:
    await Wait(label)
    return 0


class Opened:
    """A context manager whose beginning is no clean-up, unless it is inside of one."""

    def __init__(self, enters: str = "work") -> None:
        self.enters = enters

    async def __aenter__(self) -> None:
        await Wait(self.enters)

    async def __aexit__(self, *args: object) -> None:
        await clean()


class TaskGroup:
    async def __aenter__(self) -> None:
        await work()

    async def __aexit__(self, *args: object) -> None:
        await work()


async def in_every_place() -> AsyncIterator[int]:
    count = 0
    try:
        await work()
        yield 1
        while count < 3 and not await work():
            count += 1
        try:
            await work()
            raise ValueError
        except ValueError:
            await work()
        try:
            raise KeyError
        except:  # noqa: E722
            await work()
        else:
            await work()
        for _ in range(2):
            try:
                if count:
                    continue
            finally:
                await clean()
        yield 2
    finally:
        await clean()
        async for _ in cleaning_items():
            pass
        try:
            await clean()
            raise ValueError
        except ValueError:
            await clean()
        finally:
            await clean()
        while await clean():
            pass
        async with Opened("clean"):
            await clean()
    await work()


async def cleaning_items() -> AsyncIterator[int]:
    await clean()
    yield 1
    await clean()


async def in_contexts() -> AsyncIterator[int]:
    async with Opened():
        await work()
        yield 1
        async with TaskGroup():
            await work()
    with contextlib.suppress(ValueError):
        await work()
        try:
            await work()
        finally:
            await clean()
    async with contextlib.aclosing(in_every_place()) as items:
        async for item in items:
            yield item


async def failing_of_itself() -> AsyncIterator[int]:
    try:
        try:
            while True:
                yield 1
                await work()
                raise ZeroDivisionError
        finally:
            await clean()
    except ZeroDivisionError:
        await work()


async def returning_early() -> AsyncIterator[int]:
    try:
        for number in range(3):
            yield number
            if number:
                return
    finally:
        await anext(cleaning_items(), None)


async def in_groups() -> AsyncIterator[int]:
    try:
        await work()
        yield 1
        raise ExceptionGroup("x", [ValueError()])
    except* ValueError:
        await work()
    finally:
        await clean()


async def iterate(items: AsyncIterator[int]) -> None:
    async for _ in items:
        pass


@pytest.mark.parametrize(
    "made", [in_every_place, in_contexts, failing_of_itself, returning_early, in_groups]
)
def test_it_is_seen_where_a_generator_waits(made: Callable[[], AsyncIterator[int]]) -> None:
    coroutine = iterate(made())
    labels: list[str] = []
    with contextlib.suppress(StopIteration):
        while True:
            labels.append(coroutine.send(None))
            assert is_cleaning_up(coroutine) == (labels[-1] == "clean"), labels
    assert "clean" in labels
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


@pytest.mark.parametrize("other", [None, 1, object(), iter([])])
def test_what_has_no_frames_is_not_cleaning_up(other: Any) -> None:
    assert not is_cleaning_up(other)
