"""Streams as their client sees them, event by event, on both backends."""

import asyncio
import dataclasses
import datetime
import functools
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from modelserve import InvalidInput, Model, ModelServer, ServerSentEvent
from modelserve.testing import Cut, exchange, request

pytestmark = pytest.mark.anyio

SSE = {"accept": "text/event-stream"}
NDJSON = {"accept": "application/x-ndjson"}
COLLECTED = {"accept": "application/json"}
PREDICT = ("POST", "/v1/models/m:predict")


def serve(predict: Any, **hooks: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict, **hooks)
    return ModelServer([model])


async def asynchronous(payload: Any) -> AsyncIterator[Any]:
    for number in payload:
        yield {"n": number}


def synchronous(payload: Any) -> Iterator[Any]:
    for number in payload:
        yield {"n": number}


async def returns_async_generator(payload: Any) -> Any:
    return asynchronous(payload)


async def returns_sync_generator(payload: Any) -> Any:
    return synchronous(payload)


def sync_returns_async_generator(payload: Any) -> Any:
    return asynchronous(payload)


def sync_returns_iterator(payload: Any) -> Any:
    return iter([{"n": n} for n in payload])


def sync_returns_awaitable(payload: Any) -> Any:
    return returns_sync_generator(payload)


@functools.wraps(asynchronous)
def decorated(*args: Any, **kwargs: Any) -> Any:
    return asynchronous(*args, **kwargs)


class AsyncIteratorObject:
    def __init__(self, payload: Any) -> None:
        self.numbers = list(payload)

    def __aiter__(self) -> "AsyncIteratorObject":
        return self

    async def __anext__(self) -> Any:
        if not self.numbers:
            raise StopAsyncIteration
        return {"n": self.numbers.pop(0)}


async def returns_iterator_object(payload: Any) -> Any:
    return AsyncIteratorObject(payload)


class CallableObject:
    async def __call__(self, payload: Any) -> AsyncIterator[Any]:
        for number in payload:
            yield {"n": number}


def with_extra(extra: int, payload: Any) -> Any:
    return synchronous(payload)


KINDS = [
    asynchronous,
    synchronous,
    returns_async_generator,
    returns_sync_generator,
    sync_returns_async_generator,
    sync_returns_iterator,
    sync_returns_awaitable,
    decorated,
    returns_iterator_object,
    CallableObject(),
    functools.partial(with_extra, 1),
]


@pytest.mark.parametrize("predict", KINDS)
async def test_whatever_iterates_is_a_stream(predict: Any) -> None:
    response = await request(serve(predict), *PREDICT, json=[1, 2])
    assert response.status == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.chunks == [b'{"n":1}\n', b'{"n":2}\n']


@pytest.mark.parametrize("predict", KINDS)
async def test_postprocess_wraps_any_stream(predict: Any) -> None:
    async def postprocess(result: Any) -> AsyncIterator[Any]:
        async for item in result:
            yield item["n"] * 10

    app = serve(predict, postprocess=postprocess)
    assert (await request(app, *PREDICT, json=[1, 2])).chunks == [b"10\n", b"20\n"]


async def test_postprocess_may_turn_a_stream_into_a_value() -> None:
    async def postprocess(result: Any) -> Any:
        return [item async for item in result]

    response = await request(serve(synchronous, postprocess=postprocess), *PREDICT, json=[1])
    assert response.json() == [{"n": 1}]


@pytest.mark.parametrize(
    ("headers", "content_type", "chunks"),
    [
        ({}, "application/x-ndjson", [b'{"n":1}\n', b'{"n":2}\n']),
        (NDJSON, "application/x-ndjson", [b'{"n":1}\n', b'{"n":2}\n']),
        (SSE, "text/event-stream", [b'data: {"n":1}\n\n', b'data: {"n":2}\n\n']),
    ],
)
async def test_one_handler_has_all_forms(
    headers: Any, content_type: str, chunks: list[bytes]
) -> None:
    response = await request(serve(asynchronous), *PREDICT, json=[1, 2], headers=headers)
    assert response.headers["content-type"] == content_type
    assert response.chunks == chunks


async def test_collected_is_one_document() -> None:
    response = await request(serve(asynchronous), *PREDICT, json=[1, 2], headers=COLLECTED)
    assert response.body == b'{"predictions":[{"n":1},{"n":2}]}'
    assert response.headers["content-length"] == str(len(response.body))


@pytest.mark.parametrize(
    ("headers", "body"),
    [({}, b""), (NDJSON, b""), (SSE, b""), (COLLECTED, b'{"predictions":[]}')],
)
@pytest.mark.parametrize("predict", [asynchronous, synchronous])
async def test_an_empty_stream_is_valid(predict: Any, headers: Any, body: bytes) -> None:
    response = await request(serve(predict), *PREDICT, json=[], headers=headers)
    assert (response.status, response.body) == (200, body)


@dataclasses.dataclass
class Point:
    x: int


async def test_items_of_many_types() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield np.float32(1.5)
        yield np.array([1, 2])
        yield Point(1)
        yield datetime.date(2026, 1, 2)
        yield {1: float("nan")}
        yield None

    assert (await request(serve(predict), *PREDICT, json=[])).body.splitlines() == [
        b"1.5",
        b"[1,2]",
        b'{"x":1}',
        b'"2026-01-02"',
        b'{"1":null}',
        b"null",
    ]


async def test_raw_text_and_bytes_mix() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "ä"
        yield b"\x00"
        yield bytearray(b"b")
        yield memoryview(b"m")
        yield ServerSentEvent("s", event="x")

    response = await request(serve(predict), *PREDICT, json=[])
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.chunks == ["ä".encode(), b"\x00", b"b", b"m", b"s"]


@pytest.mark.parametrize("headers", [NDJSON, SSE, COLLECTED, {}])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_failure_before_the_first_item_is_a_status(headers: Any, kind: str) -> None:
    async def fails(payload: Any) -> AsyncIterator[Any]:
        raise InvalidInput("no such voice")
        yield

    def fails_in_thread(payload: Any) -> Iterator[Any]:
        raise InvalidInput("no such voice")
        yield

    app = serve(fails if kind == "async" else fails_in_thread)
    response = await request(app, *PREDICT, json=[], headers=headers)
    assert (response.status, response.body) == (400, b'{"error":"no such voice"}')


@pytest.mark.parametrize(
    ("headers", "record"),
    [
        (NDJSON, b'{"error":"Internal Server Error"}\n'),
        (SSE, b'event: error\ndata: {"error":"Internal Server Error"}\n\n'),
    ],
)
async def test_a_failure_after_the_start_is_a_record(headers: Any, record: bytes) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield 1
        raise ValueError("secret")

    response = await request(serve(predict), *PREDICT, json=[], headers=headers)
    assert response.status == 200
    assert response.chunks[-1] == record


async def test_a_failure_of_a_raw_stream_cuts() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "one"
        raise ValueError("secret")

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"one"
        with pytest.raises(Cut):
            await client.chunk()
        await client.ended()
        assert client.error is not None
        assert "secret" not in str(client.error)


async def test_a_failure_while_collecting_is_a_status() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield 1
        raise InvalidInput("late")

    assert (await request(serve(predict), *PREDICT, json=[], headers=COLLECTED)).status == 400


@pytest.mark.parametrize(
    ("headers", "bad"), [(NDJSON, object()), (SSE, b"\xff"), (NDJSON, b"\xff"), ({}, object())]
)
async def test_an_item_that_cannot_be_encoded_is_an_error(headers: Any, bad: Any) -> None:
    closed = []

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            yield bad
        finally:
            closed.append(True)

    response = await request(serve(predict), *PREDICT, json=[], headers=headers)
    assert b'"error":"Internal Server Error"' in response.chunks[-1]
    assert closed == [True]


async def test_each_item_is_sent_before_the_next_is_made() -> None:
    made = []
    release = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        made.append(1)
        yield "one"
        await release.wait()
        made.append(2)
        yield "two"

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await client.head()
        assert await client.chunk() == b"one"
        assert made == [1]
        release.set()
        assert await client.chunk() == b"two"
        assert await client.chunk() is None


async def test_back_pressure_reaches_an_async_generator() -> None:
    made = []

    async def predict(payload: Any) -> AsyncIterator[Any]:
        for number in range(1000):
            made.append(number)
            yield "x"

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        client.hold()
        await anyio.wait_all_tasks_blocked()
        assert len(made) == 1
        client.resume()
        await client.head()
        assert len([chunk async for chunk in client]) == 1000


async def test_back_pressure_reaches_a_sync_generator() -> None:
    made = []
    stalled = threading.Event()

    def predict(payload: Any) -> Iterator[Any]:
        for number in range(1000):
            made.append(number)
            if number == 60:
                stalled.set()
            yield "x"

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        client.hold()
        assert await anyio.to_thread.run_sync(stalled.wait, 10)
        await anyio.sleep(0.05)
        assert len(made) <= 70
        client.resume()
        await client.head()
        assert len([chunk async for chunk in client]) == 1000


async def test_a_sync_generator_stays_on_one_thread() -> None:
    threads = set()

    def predict(payload: Any) -> Iterator[Any]:
        try:
            for _ in range(200):
                threads.add(threading.get_ident())
                yield "x"
        finally:
            threads.add(threading.get_ident())

    await request(serve(predict), *PREDICT, json=[])
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_generator_that_never_awaits_lets_others_run() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for _ in range(200_000):
            yield "x"

    app = serve(predict)
    async with exchange(app, *PREDICT, json=[], timeout=30) as client:
        await client.head()
        assert (await request(app, "GET", "/")).status == 200
        assert not client.over


async def test_response_headers_are_sent_with_the_first_item() -> None:
    async def predict(payload: Any, response_headers: Any) -> AsyncIterator[Any]:
        response_headers["X-Voice"] = "low"
        response_headers["Content-Length"] = "3"
        response_headers["Cache-Control"] = "max-age=1"
        yield "x"

    response = await request(serve(predict), *PREDICT, json=[])
    assert response.headers["x-voice"] == "low"
    assert response.headers.getlist("cache-control") == ["max-age=1"]
    assert "content-length" not in response.headers


@pytest.mark.parametrize(
    ("own", "record"),
    [
        ("text/event-stream", b'event: error\ndata: {"error":"Internal Server Error"}\n\n'),
        ("application/x-ndjson", b'{"error":"Internal Server Error"}\n'),
        ("audio/wav", None),
    ],
)
async def test_an_own_content_type_beats_accept(own: str, record: bytes | None) -> None:
    async def predict(payload: Any, response_headers: Any) -> AsyncIterator[Any]:
        response_headers["content-type"] = own
        yield b"as it is"
        raise ValueError

    async with exchange(
        serve(predict), *PREDICT, json=[], headers={"accept": "image/png"}
    ) as client:
        assert (await client.head()).headers["content-type"] == own
        assert await client.chunk() == b"as it is"
        if record is None:
            with pytest.raises(Cut):
                await client.chunk()
        else:
            assert await client.chunk() == record


@pytest.mark.parametrize("known", [True, False])
async def test_nothing_acceptable_is_406(known: bool) -> None:
    ran = []

    async def predict(payload: Any) -> AsyncIterator[Any]:
        ran.append(True)
        yield {"n": 1}

    async def hidden(payload: Any) -> Any:
        return predict(payload)

    app = serve(predict if known else hidden)
    response = await request(app, *PREDICT, json=[], headers={"accept": "image/png"})
    assert response.status == 406
    assert b"text/event-stream" in response.body
    assert ran == ([] if known else [True])


async def test_collecting_is_capped() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for _ in range(70):
            yield "x" * (1 << 20)

    response = await request(serve(predict), *PREDICT, json=[], headers=COLLECTED)
    assert response.status == 500
    assert b"larger than" in response.body


async def test_explain_streams_too() -> None:
    app = serve(asynchronous, explain=synchronous)
    response = await request(app, "POST", "/v1/models/m:explain", json=[3])
    assert response.chunks == [b'{"n":3}\n']


# --- others beside a stream that never waits ----------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_what_takes_five_rounds_of_the_event_loop_waits_for_one_turn(
    accept: str, coalesce: bool
) -> None:
    """As many as a new connection takes: accepted, listened to, read, answered."""
    made: list[int] = []
    app = ModelServer(coalesce=coalesce)

    @app.model("restless")
    async def restless(payload: Any) -> AsyncIterator[str]:
        while True:
            made.append(1)
            yield ""

    async with exchange(
        app, "POST", "/v1/models/restless:predict", json={}, headers={"accept": accept}
    ) as client:
        while not made:  # noqa: ASYNC110 - no event tells
            await anyio.sleep(0.001)
        counts = []
        for _ in range(10):
            for _ in range(5):
                await asyncio.sleep(0)
                counts.append(len(made))
            await asyncio.sleep(0.001)
        client.hang_up()
        await client.ended()
    waits = [len(set(counts[start : start + 5])) - 1 for start in range(0, 50, 5)]
    assert max(waits) <= 1


# --- threads beside a stream that never waits ----------------------------------------------------


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.slow
async def test_a_thread_gets_its_share_beside_a_restless_stream(accept: str) -> None:
    app, going = ModelServer(), threading.Event()
    used = []

    @app.model("restless")
    async def restless(payload: Any) -> AsyncIterator[str]:
        going.set()
        while True:
            yield ""

    @app.model("work")
    def work(payload: Any) -> Any:
        going.wait()
        began, all_began = time.thread_time(), time.process_time()
        while time.thread_time() - began < 0.2:
            sum(range(1000))
        used.append(0.2 / (time.process_time() - all_began))  # whatever else the machine does
        return {}

    async with exchange(
        app, "POST", "/v1/models/restless:predict", json={}, headers={"accept": accept}
    ) as client:
        with anyio.fail_after(50):
            assert (await request(app, "POST", "/v1/models/work:predict", json={})).status == 200
        client.hang_up()
        await client.ended()
    assert used[0] > 0.15


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stream_that_was_held_up_sees_at_once_that_its_client_has_left() -> None:
    made: list[int] = []

    async def items(payload: Any) -> AsyncIterator[bytes]:
        while len(made) < 100_000:
            made.append(len(made))
            yield b"x"

    app = ModelServer()
    app.model("m")(items)
    read, left = asyncio.Event(), asyncio.Event()

    async def host(scope: Any, receive: Any, send: Any) -> None:
        bodies = [receive]

        async def listen() -> Any:
            if bodies:
                return await bodies.pop()()
            await left.wait()
            return {"type": "http.disconnect"}

        async def slow(message: Any) -> None:
            if len(made) == 3:
                await read.wait()

        await app(scope, listen, slow)

    async with exchange(host, "POST", "/v1/models/m:predict", json={}) as client:
        while not any(f.is_watched for f in app.serving.flights):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)
        read.set()  # the host's `send` goes on first, as hypercorn's does
        left.set()
        await client.ended()
    assert len(made) <= 5


# --- heartbeats ---------------------------------------------------------------------------------


def beating(predict: Any, *, seconds: float = 0.01, before_first: bool = False) -> ModelServer:
    model = Model("m")
    model.heartbeat = seconds
    model.heartbeat_before_first = before_first
    vars(model)["predict"] = predict
    return ModelServer([model])


async def two_at_once(payload: Any) -> AsyncIterator[Any]:
    yield {"n": 1}
    yield {"n": 2}


@pytest.mark.parametrize("before_first", [True, False])
@pytest.mark.slow
async def test_a_stream_that_is_faster_than_its_heart_is_whole(before_first: bool) -> None:
    """No companion is left that was never begun (asyncio warns of one)."""
    app = beating(two_at_once, seconds=5, before_first=before_first)
    response = await request(app, *PREDICT, json=[], headers=NDJSON)
    assert response.chunks == [b'{"n":1}\n', b'{"n":2}\n']
    gc.collect()  # where the warning comes from


async def test_a_heart_beats_while_a_stream_is_quiet_and_stops_with_it() -> None:
    release = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        await release.wait()
        yield ServerSentEvent({"n": 2}, id="2")

    headers = {"accept": "text/event-stream"}
    async with exchange(beating(predict), *PREDICT, json=[], headers=headers) as client:
        await client.head()
        assert await client.chunk() == b'data: {"n":1}\n\n'
        assert await client.chunk() == b":\n\n"
        assert await client.chunk() == b":\n\n"
        release.set()
        rest = [chunk async for chunk in client if chunk != b":\n\n"]
        assert rest == [b'id: 2\ndata: {"n":2}\n\n']
        await client.ended()


async def test_a_failure_after_a_heartbeat_is_a_record() -> None:
    beaten = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        await beaten.wait()
        raise ValueError("secret")
        yield

    app = beating(predict, before_first=True)
    async with exchange(app, *PREDICT, json=[], headers=NDJSON) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"\n"
        beaten.set()
        chunks = [chunk async for chunk in client]
    assert chunks[-1] == b'{"error":"Internal Server Error"}\n'


async def test_a_client_that_leaves_between_heartbeats_cancels() -> None:
    log: list[str] = []

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            await anyio.sleep(60)
        finally:
            await anyio.sleep(0.001)
            log.append("cleaned")

    async with exchange(beating(predict), *PREDICT, json=[], headers=NDJSON) as client:
        await client.head()
        while await client.chunk() != b"\n":
            pass
        client.hang_up()
        await client.ended()
    assert log == ["cleaned"]


@pytest.mark.parametrize("before_first", [True, False])
async def test_a_heart_beats_in_a_host_that_has_a_cancel_scope(before_first: bool) -> None:
    """The first item is there at once: the heartbeat starts before the pipeline has suspended."""
    has_beaten = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        await has_beaten.wait()
        yield {"n": 2}

    app = beating(predict, before_first=before_first)

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def listening(message: Any) -> None:
            if message.get("body") == b"\n":
                has_beaten.set()
            await send(message)

        with anyio.CancelScope():
            await app(scope, receive, listening)

    chunks = (await request(host, *PREDICT, json=[], headers=NDJSON)).chunks
    assert [chunk for chunk in chunks if chunk != b"\n"] == [b'{"n":1}\n', b'{"n":2}\n']
    assert b"\n" in chunks
