"""Clean-up completes whoever ends a request, how often and in which order."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from handlers import serve, streaming, unary

from modelserve import Limits
from modelserve.testing import Exchange, _scope, exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
NDJSON = {"accept": "application/x-ndjson"}
ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])

CleanUp = Callable[[], Awaitable[None]]


class Steps:
    """What a hook has gone through; its clean-up begins with an await that takes a while."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.started = anyio.Event()
        self.cleaning = anyio.Event()
        self.release = anyio.Event()

    async def clean_up(self) -> None:
        self.cleaning.set()
        await self.release.wait()
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)
        self.done.append("cleaned")


def new_client(app: Any) -> Exchange:
    client = Exchange(app, _scope(*PREDICT, NDJSON), timeout=10)
    client.send_body(b"[]")
    return client


async def run_plainly(client: Exchange) -> None:
    await client.run()


async def run_in_scope(client: Exchange) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(client.run)


async def rounds(count: int = 5) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


ORDERS = [
    order
    for length in (1, 2, 3)
    for order in itertools.product(("client", "host"), repeat=length)
    if order.count("client") <= 1
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("pause", [0.0, 0.006, 0.03])
@pytest.mark.parametrize("kind", [streaming, unary])
@pytest.mark.parametrize("host", [run_plainly, run_in_scope])
@ASYNCIO
async def test_whoever_cancels_clean_up_completes(
    order: tuple[str, ...], pause: float, kind: Any, host: Any
) -> None:
    steps = Steps()
    client = new_client(serve(kind(steps)))
    task = asyncio.create_task(host(client))
    await steps.started.wait()
    await asyncio.sleep(0.05)  # long enough to be watched
    for who in order:
        if who == "client":
            client.hang_up()
        else:
            task.cancel()
        await asyncio.sleep(pause)
    await steps.cleaning.wait()
    task_ended = asyncio.ensure_future(asyncio.wait([task]))
    await rounds()
    assert not task.done()
    steps.release.set()
    await task_ended
    assert steps.done == ["cleaned"]
    assert task.cancelled() == ("host" in order)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("kind", [streaming, unary])
async def test_whoever_cancels_a_scope_clean_up_completes(
    order: tuple[str, ...], kind: Any
) -> None:
    steps = Steps()
    client = new_client(serve(kind(steps)))
    scopes = [anyio.CancelScope() for who in order if who == "host"]
    async with anyio.create_task_group() as group:

        async def host() -> None:
            with contextlib.ExitStack() as stack:
                for scope in scopes:
                    stack.enter_context(scope)
                await client.run()

        group.start_soon(host)
        await steps.started.wait()
        await anyio.sleep(0.05)  # long enough to be watched
        left = [*scopes]
        for who in order:
            if who == "client":
                client.hang_up()
            else:
                left.pop().cancel()
            await rounds()
        await steps.cleaning.wait()
        await rounds()
        assert not client.over
        steps.release.set()
    assert steps.done == ["cleaned"]


@ASYNCIO
async def test_many_cancellations_while_clean_up_goes_on() -> None:
    steps = Steps()
    client = new_client(serve(streaming(steps)))
    task = asyncio.create_task(client.run())
    await steps.started.wait()
    for _ in range(20):
        task.cancel()
        await rounds(3)
    steps.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.done == ["cleaned"]
    assert (await client.response()).chunks[-1] == b'{"error":"server shutting down"}\n'


@ASYNCIO
async def test_a_host_that_cancels_again_and_again_does_not_lift_the_bound() -> None:
    ended: list[str] = []
    started = anyio.Event()

    async def predict(payload: Any) -> Any:
        try:
            started.set()
            await anyio.sleep(60)
        finally:
            try:
                await anyio.sleep(60)
            finally:
                ended.append("cut short")

    client = new_client(serve(predict, limits=Limits(cleanup_timeout=0.02)))
    task = asyncio.create_task(client.run())
    await started.wait()
    with anyio.fail_after(5):
        while not task.done():
            task.cancel()
            await asyncio.sleep(0.005)
    assert ended == ["cut short"]


@pytest.mark.parametrize("ends", ["deadline", "client"])
@ASYNCIO
async def test_a_time_limit_of_the_hosts_holds_after_clean_up(ends: str) -> None:
    steps = Steps()
    limits = Limits(timeout=0.03) if ends == "deadline" else None
    client = new_client(serve(streaming(steps), limits=limits))

    async def host() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.08):
                await client.run()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(host())
    await steps.started.wait()
    await asyncio.sleep(0.05)
    client.hang_up()
    await steps.cleaning.wait()
    await asyncio.sleep(0.08)
    assert not task.done()
    steps.release.set()
    assert await task == 0
    assert steps.done == ["cleaned"]


async def by_timeout() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)


async def by_wait_for() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(60), 0.01)


async def by_scope() -> None:
    with anyio.move_on_after(0.01):
        await anyio.sleep(60)


async def by_task_group() -> None:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(60)


async def by_group_of_anyio() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60)
        await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def by_cancelling_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    task.uncancel()


async def at_once() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(60)


@pytest.mark.parametrize(
    "limit",
    [
        by_timeout,
        by_wait_for,
        by_scope,
        pytest.param(
            by_task_group,
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 13),
                reason="a group that fails cancels its task again if that was cancelled before",
            ),
        ),
        by_group_of_anyio,
        by_cancelling_itself,
        at_once,
    ],
)
@pytest.mark.parametrize("order", [("client", "host"), ("host", "host")], ids="-".join)
@pytest.mark.parametrize("host", [run_plainly, run_in_scope])
@ASYNCIO
async def test_limits_of_clean_ups_own_hold(limit: CleanUp, order: Any, host: Any) -> None:
    steps = Steps()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            steps.started.set()
            await anyio.sleep(60)
        finally:
            steps.cleaning.set()
            await limit()
            await limit()
            steps.done.append("cleaned")

    client = new_client(serve(predict))
    task = asyncio.create_task(host(client))
    await steps.started.wait()
    await asyncio.sleep(0.05)
    for who in order:
        client.hang_up() if who == "client" else task.cancel()
        await steps.cleaning.wait()
        await rounds(3)
    with anyio.fail_after(3), contextlib.suppress(asyncio.CancelledError):
        await task
    assert steps.done == ["cleaned"]


@pytest.mark.parametrize("limit", [by_timeout, by_scope])
@ASYNCIO
async def test_a_host_that_cancels_while_a_hook_ends_a_time_limit_of_its_own(
    limit: CleanUp,
) -> None:
    """The host's cancellation comes through once the hook's own is over."""
    steps = Steps()

    async def predict(payload: Any) -> Any:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    try:
                        steps.started.set()
                        await asyncio.sleep(60)
                    finally:
                        await steps.clean_up()
            steps.done.append("went on")
            await anyio.sleep(60)
        finally:
            await limit()
            steps.done.append("ended")

    client = new_client(serve(predict))
    task = asyncio.create_task(client.run())
    await steps.cleaning.wait()
    task.cancel()
    await rounds()
    steps.release.set()
    with anyio.fail_after(3), pytest.raises(asyncio.CancelledError):
        await task
    assert steps.done == ["cleaned", "went on", "ended"]


def leaving_a_stream(steps: Steps, *, after_first: bool, fails: bool = False) -> dict[str, Any]:
    """Return a stream, and a postprocess that leaves it or fails after its first item."""

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield {"n": 1}
        finally:
            await steps.clean_up()

    async def postprocess(result: Any) -> AsyncIterator[Any]:
        async for item in result:
            if after_first:
                await anyio.sleep(0.001)
            yield item
            if fails:
                raise ValueError
            break

    return {"predict": predict, "postprocess": postprocess}


@pytest.mark.parametrize("after_first", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
async def test_what_is_being_closed_is_not_interrupted(after_first: bool, fails: bool) -> None:
    """A stream that a postprocess has left is closed at the end; the end may come meanwhile."""
    steps = Steps()

    hooks = leaving_a_stream(steps, after_first=after_first, fails=fails)
    client = new_client(serve(**hooks, limits=Limits(timeout=0.05)))
    async with anyio.create_task_group() as group:
        group.start_soon(client.run)
        await steps.cleaning.wait()
        if fails:
            await anyio.sleep(0.1)  # until the deadline has passed
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await rounds()
            assert not client.over
            steps.release.set()
    assert steps.done == ["cleaned"]


@pytest.mark.parametrize("after_first", [False, True], ids=["at once", "later"])
@ASYNCIO
async def test_what_is_being_closed_is_not_interrupted_by_a_task_that_is_cancelled(
    after_first: bool,
) -> None:
    steps = Steps()

    client = new_client(serve(**leaving_a_stream(steps, after_first=after_first)))
    task = asyncio.create_task(client.run())
    await steps.cleaning.wait()
    for _ in range(3):
        task.cancel()
        await rounds()
    assert not task.done()
    steps.release.set()
    with anyio.fail_after(3), pytest.raises(asyncio.CancelledError):
        await task
    assert steps.done == ["cleaned"]


async def test_what_is_being_closed_is_bounded_once_the_request_ends() -> None:
    cleaning = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield {"n": 1}
        finally:
            cleaning.set()
            await anyio.sleep(60)

    async def postprocess(result: Any) -> Any:
        async for item in result:
            yield item
            break

    limits = Limits(cleanup_timeout=0.02)
    app = serve(predict, postprocess=postprocess, limits=limits)
    async with anyio.create_task_group() as group:
        client = new_client(app)
        group.start_soon(client.run)
        await cleaning.wait()
        group.cancel_scope.cancel()
    assert client.over


@ASYNCIO
async def test_a_hook_may_still_be_cancelled_by_itself() -> None:
    async def predict(payload: Any) -> Any:
        for limit in (by_timeout, by_scope, by_task_group, by_cancelling_itself):
            await limit()
        return {"predictions": ["in time"]}

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        assert (await client.response()).status == 200
    assert (await request(serve(predict), *PREDICT, json=[])).status == 200
