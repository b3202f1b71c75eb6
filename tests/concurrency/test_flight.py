"""What ends a request early, and how its handler is cancelled and cleans up, on both backends."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from handlers import serve, streaming, unary

from modelserve import Limits
from modelserve.concurrency.asyncio_flight import AsyncioFlight
from modelserve.concurrency.flight import BodyTimedOut, Phase
from modelserve.concurrency.flights import Flights
from modelserve.errors import ClientGone, DeadlineExceeded
from modelserve.exchange import exchange as exchanges
from modelserve.limits import Deadlines
from modelserve.protocols.codec import Codec
from modelserve.testing import Cut, Exchange, exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
NDJSON = {"accept": "application/x-ndjson"}


class Steps:
    """What a handler has gone through, in order; every clean-up awaits several times."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.started = anyio.Event()

    async def clean_up(self) -> None:
        for step in range(3):
            await anyio.sleep(0.001)
            await anyio.lowlevel.checkpoint()
            self.done.append(f"cleaned {step}")

    @property
    def is_clean(self) -> bool:
        return self.done[-3:] == ["cleaned 0", "cleaned 1", "cleaned 2"]


def sending(steps: Steps) -> Any:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 0}
            steps.started.set()
            while True:
                yield {"n": 1}
        finally:
            await steps.clean_up()

    return predict


# --- the client leaves --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["first", "later", "unary"])
async def test_a_client_that_leaves_cancels_the_handler_which_cleans_up(kind: str) -> None:
    steps = Steps()
    handler = {
        "first": streaming(steps, before=0),
        "later": streaming(steps, before=2),
        "unary": unary(steps),
    }[kind]
    async with exchange(serve(handler), *PREDICT, json=[]) as client:
        await steps.started.wait()
        client.hang_up()
        await client.ended()
        assert steps.is_clean
        assert client.error is None


async def test_a_client_that_leaves_while_an_item_is_sent() -> None:
    steps = Steps()
    async with exchange(serve(sending(steps)), *PREDICT, json=[]) as client:
        await client.head()
        client.hold()
        await steps.started.wait()
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()
        assert steps.is_clean


async def test_a_client_that_leaves_during_a_wrapped_stream_closes_all_of_it() -> None:
    outer, inner = Steps(), Steps()

    async def postprocess(result: Any) -> AsyncIterator[Any]:
        try:
            async for item in result:
                yield item
        finally:
            await outer.clean_up()

    app = serve(streaming(inner, before=1), postprocess=postprocess)
    async with exchange(app, *PREDICT, json=[]) as client:
        await client.head()
        await inner.started.wait()
        client.hang_up()
        await client.ended()
        assert outer.is_clean
        assert inner.is_clean


async def test_a_client_that_leaves_stops_a_sync_generator() -> None:
    made: list[int] = []
    closed = threading.Event()

    def predict(payload: Any) -> Iterator[Any]:
        try:
            for number in range(10_000):
                made.append(number)
                yield {"n": number}
                time.sleep(0.002)
        finally:
            closed.set()

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await client.head()
        await client.chunk()
        client.hang_up()
        await client.ended()
        assert closed.is_set()
        count = len(made)
        await anyio.sleep(0.02)
        assert len(made) == count < 10_000


async def test_a_client_that_leaves_before_its_body_is_there_runs_nothing() -> None:
    ran = []

    async def predict(payload: Any) -> Any:
        ran.append(payload)

    async with exchange(serve(predict), *PREDICT, body=None) as client:
        client.send_body(b'{"insta', more=True)
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()
    assert ran == []


async def test_receive_that_raises_means_that_the_client_has_left() -> None:
    steps = Steps()
    client = Exchange(serve(unary(steps)), {}, timeout=10)  # only for its scope
    from modelserve.testing import _scope

    sent: list[Any] = []
    messages = [{"type": "http.request", "body": b"[]", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await steps.started.wait()
        raise OSError("gone")

    async def send(message: Any) -> None:
        sent.append(message)

    with anyio.fail_after(5):
        await client._app(_scope(*PREDICT, {}), receive, send)
    assert steps.is_clean
    assert [message.get("status") for message in sent] == [499, None]


async def test_send_that_raises_means_that_the_client_has_left() -> None:
    steps = Steps()
    from modelserve.testing import _scope

    async def receive() -> Any:
        if not steps.done:
            steps.done.append("read")
            return {"type": "http.request", "body": b"[]", "more_body": False}
        await anyio.sleep(60)

    async def send(message: Any) -> None:
        raise OSError("gone")

    with anyio.fail_after(5):
        await serve(sending(steps))(_scope(*PREDICT, {}), receive, send)
    assert steps.is_clean


# --- what handlers do ---------------------------------------------------------------------------


async def test_a_handler_that_outlives_its_cancellation_is_cancelled_again() -> None:
    cancelled = []
    started = anyio.Event()

    async def predict(payload: Any) -> Any:
        for _ in range(3):
            try:
                started.set()
                await anyio.sleep(60)
            except anyio.get_cancelled_exc_class():
                cancelled.append(True)
        raise RuntimeError("tired")

    app = serve(predict, limits=Limits(cleanup_timeout=0.01))
    async with exchange(app, *PREDICT, json=[]) as client:
        await started.wait()
        client.hang_up()
        await client.ended()
    assert len(cancelled) == 3


async def test_clean_up_is_bounded() -> None:
    cleaned: list[str] = []
    started = anyio.Event()

    async def predict(payload: Any) -> Any:
        try:
            started.set()
            await anyio.sleep(60)
        finally:
            try:
                await anyio.sleep(60)
            finally:
                cleaned.append("cut short")

    app = serve(predict, limits=Limits(cleanup_timeout=0.02))
    async with exchange(app, *PREDICT, json=[]) as client:
        await started.wait()
        client.hang_up()
        await client.ended()
    assert cleaned == ["cut short"]


async def test_a_timeout_of_the_handlers_own_is_its_own() -> None:
    async def predict(payload: Any) -> Any:
        with anyio.move_on_after(0.01):
            await anyio.sleep(60)
        return {"predictions": ["in time"]}

    assert (await request(serve(predict), *PREDICT, json=[])).status == 200


async def test_task_groups_of_the_handlers_own_are_cancelled_once() -> None:
    steps = Steps()

    async def child() -> None:
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await steps.clean_up()

    async def predict(payload: Any) -> Any:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await anyio.lowlevel.checkpoint()
            steps.started.set()
            await anyio.sleep(60)

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await steps.started.wait()
        client.hang_up()
        await client.ended()
    assert steps.is_clean


@pytest.mark.parametrize(
    "raised",
    [
        GeneratorExit(),
        StopIteration(),
        StopAsyncIteration(),
        ExceptionGroup("two", [ValueError(), KeyError()]),
        BaseExceptionGroup("odd", [GeneratorExit()]),
        BaseExceptionGroup("odd", [SystemExit(1)]),
        SystemExit(1),
        KeyboardInterrupt("a hook's own"),
        asyncio.CancelledError(),
    ],
    ids=lambda raised: type(raised).__name__,
)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_whatever_a_handler_raises_is_a_500(raised: BaseException, kind: str) -> None:
    async def in_loop(payload: Any) -> Any:
        raise raised

    def in_thread(payload: Any) -> Any:
        raise raised

    app = serve(in_loop if kind == "async" else in_thread)
    assert (await request(app, *PREDICT, json=[])).status == 500
    assert (await request(app, "GET", "/")).status == 200


@pytest.mark.parametrize(
    "raised",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("odd", [ValueError(), KeyboardInterrupt()]),
    ],
    ids=lambda raised: type(raised).__name__,
)
@pytest.mark.parametrize("kind", ["async", "sync", "stream", "later", "suspended"])
async def test_an_interrupt_goes_through_to_the_host(raised: BaseException, kind: str) -> None:
    async def in_loop(payload: Any) -> Any:
        if kind == "suspended":
            await anyio.sleep(0.001)
        raise raised

    def in_thread(payload: Any) -> Any:
        raise raised

    async def stream(payload: Any) -> AsyncIterator[Any]:
        if kind == "later":
            yield {"n": 1}
        raise raised

    hook = {"sync": in_thread, "stream": stream, "later": stream}.get(kind, in_loop)
    app = serve(hook, limits=Limits(concurrency=1))
    async with exchange(app, *PREDICT, json=[], headers=NDJSON) as client:
        await client.ended()
        assert client.error is raised
        if kind == "later":
            await client.head()
            assert await client.chunk() == b'{"n":1}\n'
            assert await client.chunk() == b'{"error":"Internal Server Error"}\n'
        else:
            assert (await client.response()).status == 500
    assert app.serving.statistics().running == 0
    assert (await request(app, "GET", "/")).status == 200
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    status = "200" if kind == "later" else "500"
    assert f'outcome="error",protocol="v1",status="{status}",verb="predict"}} 1.0' in metrics


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "unary"])
@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(first_item_timeout=0.03), "first_item_timeout"), (Limits(timeout=0.03), "timeout")],
)
async def test_a_deadline_before_the_start_is_504(kind: str, limits: Limits, name: str) -> None:
    steps = Steps()
    handler = streaming(steps, before=0) if kind == "stream" else unary(steps)
    response = await request(serve(handler, limits=limits), *PREDICT, json=[])
    assert response.status == 504
    assert response.json()["error"].startswith(name + ":")
    assert steps.is_clean


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(idle_timeout=0.03), "idle_timeout"), (Limits(timeout=0.03), "timeout")],
)
async def test_a_deadline_after_the_start_is_a_record(limits: Limits, name: str) -> None:
    steps = Steps()
    app = serve(streaming(steps, before=2), limits=limits)
    response = await request(app, *PREDICT, json=[], headers=NDJSON)
    assert (response.status, len(response.chunks)) == (200, 3)
    assert name.encode() in response.chunks[-1]
    assert steps.is_clean


async def test_a_deadline_in_a_raw_stream_cuts() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "x"
        await anyio.sleep(60)

    async with exchange(
        serve(predict, limits=Limits(idle_timeout=0.03)), *PREDICT, json=[]
    ) as client:
        await client.head()
        assert await client.chunk() == b"x"
        with pytest.raises(Cut):
            await client.chunk()


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    steps = Steps()
    app = serve(sending(steps), limits=Limits(send_timeout=0.03))
    async with exchange(app, *PREDICT, json=[]) as client:
        await client.head()
        client.hold()
        await client.ended()
        assert client.error is not None
        assert steps.is_clean


async def test_a_body_that_comes_too_slowly_is_408() -> None:
    app = serve(unary(Steps()), limits=Limits(timeout=0.03))
    async with exchange(app, *PREDICT, body=None) as client:
        client.send_body(b"[", more=True)
        response = await client.response()
    assert response.status == 408
    assert response.json() == {"error": "request body not received within 0.03 s"}


async def test_a_request_may_ask_for_less_time() -> None:
    headers = {"x-request-timeout-seconds": "0.03"}
    response = await request(serve(unary(Steps())), *PREDICT, json=[], headers=headers)
    assert response.status == 504


@pytest.mark.parametrize("asked", ["0", "-1", "soon", "nan", "inf", ""])
async def test_a_request_may_not_ask_for_nonsense(asked: str) -> None:
    headers = {"x-request-timeout-seconds": asked}
    response = await request(serve(unary(Steps())), *PREDICT, json=[], headers=headers)
    assert response.status == 400


async def test_a_sync_handler_that_blocks_is_answered_for_in_time() -> None:
    release = threading.Event()

    def predict(payload: Any) -> Any:
        release.wait(10)

    app = serve(predict, limits=Limits(timeout=0.03, concurrency=1, queue=0))
    async with exchange(app, *PREDICT, json=[]) as client:
        assert (await client.response()).status == 504
        assert not client.over
        busy = await request(app, *PREDICT, json=[])
        assert (busy.status, busy.headers["retry-after"]) == (503, "1")
        release.set()
        await client.ended()
    async with exchange(app, *PREDICT, json=[]) as client:
        assert (await client.response()).status in (200, 504)


# --- the host cancels ---------------------------------------------------------------------------


async def run_in_scope(steps: Steps, client: Exchange) -> None:
    """Cancel as a host does that runs us inside a task group."""
    async with anyio.create_task_group() as group:
        group.start_soon(client.run)
        await steps.started.wait()
        group.cancel_scope.cancel()


async def host_exchange(steps: Steps, **options: Any) -> Exchange:
    from modelserve.testing import _scope

    app = serve(streaming(steps, before=1), **options)
    client = Exchange(app, _scope(*PREDICT, NDJSON), timeout=10)
    client.send_body(b"[]")
    return client


async def test_a_host_that_cancels_a_task_group_is_reported_to_the_client() -> None:
    steps = Steps()
    client = await host_exchange(steps)
    await run_in_scope(steps, client)
    assert steps.is_clean
    response = await client.response()
    assert response.chunks[-1] == b'{"error":"server shutting down"}\n'


async def test_a_host_that_cancels_a_scope_with_a_deadline() -> None:
    steps = Steps()
    client = await host_exchange(steps)
    with anyio.move_on_after(0.05) as scope:
        await client.run()
    assert scope.cancelled_caught
    assert steps.is_clean


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_host_that_cancels_the_task_is_reported_to_the_client() -> None:
    steps = Steps()
    client = await host_exchange(steps)
    task = asyncio.get_running_loop().create_task(client.run())
    await steps.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.is_clean
    response = await client.response()
    assert response.chunks[-1] == b'{"error":"server shutting down"}\n'


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_cancellation_is_left_behind() -> None:
    steps = Steps()
    client = await host_exchange(steps)

    async def host() -> int:
        await client.run()
        await asyncio.sleep(0)
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    task = asyncio.get_running_loop().create_task(host())
    await steps.started.wait()
    client.hang_up()
    assert await task == 0


# --- the clock ----------------------------------------------------------------------------------


def new_flight() -> AsyncioFlight:
    async def nothing(*message: Any) -> Any: ...

    scope = {"type": "http", "method": "POST", "headers": []}
    return AsyncioFlight(
        exchanges.Exchange(Codec(), scope, nothing, nothing, arrived=0.0), Flights()
    )


@pytest.mark.parametrize(
    ("deadlines", "phase", "since", "now", "reason"),
    [
        (Deadlines(timeout=5), Phase.BODY, 0, 4.9, None),
        (Deadlines(timeout=5), Phase.BODY, 0, 5, BodyTimedOut),
        (Deadlines(timeout=5), Phase.ITEM, 4, 5, DeadlineExceeded),
        (Deadlines(first_item_timeout=1), Phase.QUEUE, 0, 9, None),
        (Deadlines(first_item_timeout=1), Phase.FIRST, 8, 9, DeadlineExceeded),
        (Deadlines(idle_timeout=1), Phase.FIRST, 0, 9, None),
        (Deadlines(idle_timeout=1), Phase.ITEM, 8.5, 9, None),
        (Deadlines(idle_timeout=1), Phase.SEND, 0, 9, None),
        (Deadlines(send_timeout=1), Phase.SEND, 8, 9, DeadlineExceeded),
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_clock(
    deadlines: Deadlines, phase: int, since: float, now: float, reason: Any
) -> None:
    flight = new_flight()
    request = flight.request
    request.deadlines, request.phase, request.since = deadlines, phase, since
    expired = flight.expired(now)
    assert type(expired) is (reason or type(None))
    if reason is None:
        assert flight.next_check(now) > now


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelling_what_is_over_does_nothing() -> None:
    flight = new_flight()
    flight.over = True
    flight.cancel(ClientGone())
    assert flight.request.reason is None


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.slow
async def test_a_stream_that_sees_the_reason_first_is_closed_in_peace() -> None:
    steps = Steps()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield 0
            while True:
                client.hang_up()  # the event that ends the wait for a send is the disconnect
                yield 1
        finally:
            await steps.clean_up()

    for _ in range(50):  # trio runs tasks that are due in a random order
        steps = Steps()
        async with exchange(serve(predict), *PREDICT, json=[]) as client:
            await client.head()
            await client.ended()
        assert steps.is_clean


# --- the first suspension -------------------------------------------------------------------------


@pytest.mark.parametrize("caught", [False, True])
async def test_what_is_thrown_at_the_first_suspension_arrives(caught: bool) -> None:
    """The flight drives the pipeline from its first suspension on, and throws into it what ends that."""
    waiting = anyio.Event()
    steps: list[str] = []

    async def predict(payload: Any) -> Any:
        try:
            waiting.set()
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            steps.append("cancelled")
            await anyio.sleep(0.001)
            steps.append("cleaned")
            if not caught:
                raise
        return []

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await waiting.wait()
        client.hang_up()
        await client.ended()
    assert steps == ["cancelled", "cleaned"]


async def test_a_stream_that_polls_is_idle_all_the_same() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        for _ in range(60_000):
            await anyio.sleep(0.001)

    app = serve(predict, limits=Limits(idle_timeout=0.05))
    response = await request(app, *PREDICT, json=[], headers=NDJSON)
    assert b"idle_timeout" in response.chunks[-1]


# --- clean-up in task groups of its own ----------------------------------------------------------


async def clean_up_in_group(steps: Steps) -> None:
    """As anyio.connect_tcp does, and httpx with it: the first to succeed cancels the others."""
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60)
        await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    async with anyio.create_task_group() as group:
        group.start_soon(steps.clean_up)


async def test_clean_up_in_a_task_group_of_its_own() -> None:
    steps = Steps()

    async def predict(payload: Any) -> Any:
        try:
            steps.started.set()
            await anyio.sleep(60)
        finally:
            await clean_up_in_group(steps)

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await steps.started.wait()
        client.hang_up()
        await client.ended()
    assert steps.is_clean


async def test_clean_up_of_a_stream_in_a_task_group_of_its_own() -> None:
    steps = Steps()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield "x"  # the cancellation comes while an item is sent
        finally:
            await clean_up_in_group(steps)

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await client.head()
        await client.chunk()
        client.hang_up()
        await client.ended()
    assert steps.is_clean


async def test_clean_up_in_a_task_group_inside_of_one_that_is_cancelled() -> None:
    steps = Steps()

    async def predict(payload: Any) -> Any:
        async with anyio.create_task_group():
            steps.started.set()
            try:
                await anyio.sleep(60)
            finally:
                await clean_up_in_group(steps)

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await steps.started.wait()
        client.hang_up()
        await client.ended()
    assert steps.is_clean
