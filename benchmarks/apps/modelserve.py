"""modelserve: models as its users write them; the application that every host serves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from benchmarks.payloads import (
    CALL_SECONDS,
    ITEM,
    ITEMS,
    MOST_IN_A_BATCH,
    PAUSE,
    TOKEN,
    WORD,
    as_answer,
    report_end,
)
from modelserve import Batching, Limits, Model, ModelServer


class Echo(Model):
    async def predict(self, payload: Any) -> Any:
        return as_answer(payload)


class EchoSync(Model):
    def predict(self, payload: Any) -> Any:
        return as_answer(payload)


class OneByOne(Model):
    limits = Limits(concurrency=1)

    def predict(self, payload: Any) -> Any:
        time.sleep(CALL_SECONDS)
        return as_answer(payload)


class Batched(Model):
    batching = Batching(max_size=MOST_IN_A_BATCH)

    def predict(self, payload: Any) -> Any:
        time.sleep(CALL_SECONDS)
        return as_answer(payload)


class Ready(Model):
    async def predict(self, payload: Any) -> AsyncIterator[bytes]:
        for _ in range(ITEMS):
            yield ITEM


class One(Model):
    async def predict(self, payload: Any) -> AsyncIterator[bytes]:
        yield ITEM


class Joined(Ready):
    coalesce = True


class ReadySync(Model):
    def predict(self, payload: Any) -> Iterator[bytes]:
        for _ in range(ITEMS):
            yield ITEM


class Dicts(Model):
    async def predict(self, payload: Any) -> AsyncIterator[dict[str, Any]]:
        for _ in range(ITEMS):
            yield TOKEN


class Chat(Model):
    async def chat(self, document: Any) -> AsyncIterator[str]:
        for _ in range(ITEMS):
            yield WORD


class Paced(Model):
    async def predict(self, payload: Any) -> AsyncIterator[bytes]:
        yield ITEM
        await asyncio.sleep(PAUSE)
        yield ITEM


class Idle(Model):
    async def predict(self, payload: Any) -> AsyncIterator[bytes]:
        try:
            yield ITEM
            await asyncio.Event().wait()
        finally:
            report_end()


app = ModelServer(
    [
        Echo("echo"),
        EchoSync("echo_sync"),
        OneByOne("one_by_one"),
        Batched("batched"),
        Ready("bytes"),
        One("one"),
        Joined("joined"),
        ReadySync("sync"),
        Dicts("dicts"),
        Chat("chat"),
        Paced("paced"),
        Idle("idle"),
    ]
)
