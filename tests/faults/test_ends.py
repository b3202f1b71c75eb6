"""However a stream is written, its last record says what ended it early, after all items."""

import asyncio
import time
from itertools import count

import anyio
import orjson
import pytest
from eventstream import interpret

from modelserve import Limits, Model, ModelServer
from modelserve.testing import lifespan, request

pytestmark = pytest.mark.anyio
TRIES = 4  # concurrent streams, each at some other point of its loop


class Odd(BaseException):
    """What `except Exception` does not catch."""


ERRORS = {error.__name__: error for error in (ValueError, Odd, asyncio.CancelledError)}


class Stream(Model):
    """A stream, endless unless it has to fail, at the pace that the payload says."""

    async def predict(self, payload):
        for n in count():
            if n == payload.get("fail_at"):
                raise ERRORS[payload["error"]]
            yield {"n": n}
            if payload["pause"] is not None:
                await anyio.sleep(payload["pause"])


class Beating(Stream):
    heartbeat = 0.01


class BeatingBeforeFirst(Beating):
    heartbeat_before_first = True


class Coalescing(Stream):
    coalesce = True


class BeatingAndCoalescing(Beating):
    coalesce = True


class Wrapped(Stream):
    async def postprocess(self, result):
        async for item in result:
            yield item


class Sync(Model):
    def predict(self, payload):
        for n in count():
            if n == payload.get("fail_at"):
                raise ERRORS[payload["error"]]
            yield {"n": n}
            if payload["pause"] is not None:
                time.sleep(payload["pause"])


class SyncBeating(Sync):
    heartbeat = 0.01


class SyncCoalescing(Sync):
    coalesce = True


MODELS = (
    *(Stream, Beating, BeatingBeforeFirst, Coalescing, BeatingAndCoalescing, Wrapped),
    *(Sync, SyncBeating, SyncCoalescing),
)
every_model = pytest.mark.parametrize("model", MODELS)
every_pace = pytest.mark.parametrize("pause", [None, 0, 0.003], ids=["never", "yields", "sleeps"])


async def ends(app: ModelServer, pause: float | None, **headers: str) -> set[str]:
    """Ask each model for its stream; return the last records."""
    records = set()

    async def ask(number: int) -> None:
        path = f"/v1/models/m{number}:predict"
        response = await request(app, "POST", path, json={"pause": pause}, headers=headers)
        # On a busy machine the end may come before the first item: a status, and the same sentence.
        if response.status == 200 and headers["accept"] == "text/event-stream":
            records.add(interpret(response.body).events[-1].data)
        else:
            records.add(response.body.splitlines()[-1].decode())

    async with anyio.create_task_group() as group:
        for number in range(TRIES):
            group.start_soon(ask, number)
    return records


@every_model
@every_pace
async def test_deadline(model: type[Model], pause: float | None) -> None:
    app = ModelServer([model(f"m{n}") for n in range(TRIES)])
    headers = {"accept": "text/event-stream", "x-request-timeout-seconds": "0.05"}
    sentence = "timeout: the request took longer than 0.05 s"
    assert await ends(app, pause, **headers) == {f'{{"error":"{sentence}"}}'}


@every_model
@every_pace
async def test_drain(model: type[Model], pause: float | None) -> None:
    app = ModelServer([model(f"m{n}") for n in range(TRIES)], limits=Limits(drain_timeout=0))
    records: set[str] = set()

    async def ask() -> None:
        records.update(await ends(app, pause, accept="application/x-ndjson"))

    async with anyio.create_task_group() as group, lifespan(app):
        group.start_soon(ask)
        await anyio.sleep(0.05)
    assert records == {'{"error":"server shutting down"}'}


# Items that a coalesced stream has made since its last pause go before the record of its failure.
@every_model
@every_pace
@pytest.mark.parametrize("error", ERRORS)
async def test_items_before_a_failure(model: type[Model], pause: float | None, error: str) -> None:
    app = ModelServer([model("m")])
    for made in (1, 2, 5):
        payload = {"pause": pause, "fail_at": made, "error": error}
        headers = {"accept": "application/x-ndjson"}
        response = await request(app, "POST", "/v1/models/m:predict", json=payload, headers=headers)
        lines = [orjson.loads(line) for line in response.body.splitlines() if line]
        assert lines == [*({"n": n} for n in range(made)), {"error": "Internal Server Error"}]
