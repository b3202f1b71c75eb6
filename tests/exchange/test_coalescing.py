"""Streams whose items are sent together, as their client sees them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Coalesced, Limits, Model, ModelServer
from modelserve.testing import Exchange, exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
NDJSON = {"accept": "application/x-ndjson"}


def coalescing(predict: Any, **limits: Any) -> ModelServer:
    app = ModelServer(coalesce=True, limits=Limits(**limits))
    app.add_model(predict, "m")
    return app


async def test_coalesced_items_are_all_there() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for number in range(500):
            yield {"n": number}
            if number % 100 == 0:
                await anyio.sleep(0.001)

    response = await request(coalescing(predict), *PREDICT, json=[])
    assert response.body.splitlines() == [b'{"n":%d}' % number for number in range(500)]


@pytest.mark.parametrize("coalesce", [False, True])
async def test_a_stream_that_pauses_has_recorded_its_items(coalesce: bool) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for number in range(5):
            yield {"n": number}
        await anyio.sleep(60)
        yield {}

    app = ModelServer(coalesce=coalesce)
    app.add_model(predict, "m")
    async with exchange(app, *PREDICT, json=[], headers=NDJSON) as client:
        await client.head()
        while b'{"n":4}' not in (await client.chunk() or b""):
            pass
        await anyio.wait_all_tasks_blocked()
        scraped = (await request(app, "GET", "/metrics")).body.decode()
        client.hang_up()
        await client.ended()
    assert 'modelserve_stream_items_total{model_name="m"} 5.0' in scraped
    assert 'modelserve_inter_item_seconds_count{model_name="m"} 4.0' in scraped


@pytest.mark.parametrize("kind", ["anyio", "asyncio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_time_limit_of_the_generators_own_does_not_hit_our_send(kind: str) -> None:
    """What was gathered is sent while the generator waits inside a time limit of its own."""
    clients: list[Exchange] = []
    waiting = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        clients[0].hold()
        yield {"n": 2}
        waiting.set()
        if kind == "anyio":
            with anyio.move_on_after(0.03):
                await anyio.sleep(60)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.03):
                    await asyncio.sleep(60)
        yield {"n": 3}

    async with exchange(coalescing(predict), *PREDICT, json=[], headers=NDJSON) as client:
        clients.append(client)
        await client.head()
        assert await client.chunk() == b'{"n":1}\n'
        await waiting.wait()
        await anyio.sleep(0.06)
        client.resume()
        assert b"".join([chunk async for chunk in client]) == b'{"n":2}\n{"n":3}\n'


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_generator_is_cancelled_when_its_client_is_lost() -> None:
    raised: list[BaseException] = []
    app = coalescing(two_then_wait(raised))
    body = [{"type": "http.request", "body": b"[]", "more_body": False}]

    async def receive() -> Any:
        if not body:
            await anyio.sleep_forever()
        return body.pop()

    async def send(message: Any) -> None:
        if b"2" in message.get("body", b""):
            raise OSError("gone")

    scope = {"type": "http", "method": "POST", "path": PREDICT[1], "headers": []}
    with anyio.fail_after(20):
        await app(scope, receive, send)
    assert [isinstance(exc, Exception) for exc in raised] == [False]


def two_then_wait(raised: list[BaseException]) -> Any:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            yield {"n": 2}
            await anyio.sleep(60)
        except BaseException as exc:
            raised.append(exc)
            raise

    return predict


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("pauses", range(3))
async def test_coalesced_items_are_all_sent_by_a_send_that_waits(pauses: int) -> None:
    async def items(payload: Any) -> AsyncIterator[Any]:
        yield {"a": 1}
        for n in (2, 3):
            await anyio.sleep(0.001)
            yield {"a": n}
        yield {"a": 4}

    app = ModelServer(coalesce=True)
    app.model("m")(items)

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def slow(message: Any) -> None:
            for _ in range(pauses):
                await anyio.lowlevel.checkpoint()
            await send(message)

        await app(scope, receive, slow)

    answer = await request(host, "POST", "/v1/models/m:predict", json={})
    assert answer.body.count(b"\n") == 4


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_hook_has_the_items_of_one_request_coalesced(kind: str) -> None:
    closed: list[str] = []

    def sync_items() -> Iterator[Any]:
        try:
            yield from ({"n": n} for n in range(200))
        finally:
            closed.append("sync")

    async def async_items() -> AsyncIterator[Any]:
        try:
            for n in range(200):
                yield {"n": n}
        finally:
            closed.append("async")

    async def hook(payload: Any) -> Any:
        items = sync_items() if kind == "sync" else async_items()
        return Coalesced(items) if payload["joined"] else items

    app = ModelServer()
    app.model("m")(hook)
    whole = await request(app, "POST", "/v1/models/m:predict", json={"joined": False})
    joined = await request(app, "POST", "/v1/models/m:predict", json={"joined": True})
    assert len(whole.chunks) == 200
    assert len(joined.chunks) < 200
    assert joined.body == whole.body
    assert joined.headers["content-type"] == whole.headers["content-type"]
    assert closed == [kind, kind]


async def test_a_postprocess_gets_the_items_of_a_coalesced_stream() -> None:
    class Doubled(Model):
        async def predict(self, payload: Any) -> Any:
            return Coalesced(iter(payload["instances"]))

        async def postprocess(self, items: Any) -> AsyncIterator[Any]:
            async for item in items:
                yield {"n": 2 * item}

    app = ModelServer([Doubled("m")])
    answer = await request(app, "POST", "/v1/models/m:predict", json={"instances": [1, 2]})
    assert answer.body == b'{"n":2}\n{"n":4}\n'
