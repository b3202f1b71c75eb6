"""BentoML: one service, one worker, async methods; access log and metrics off."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import bentoml
import orjson

from benchmarks.payloads import (
    CALL_SECONDS,
    ITEM,
    ITEMS,
    MOST_IN_A_BATCH,
    PAUSE,
    TOKEN,
    report_end,
)


@bentoml.service(
    workers=1,
    traffic={"timeout": 600},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Echo:
    @bentoml.api(route="/v1/models/echo:predict")
    async def echo(self, instances: list[list[float]]) -> dict[str, Any]:
        return {"predictions": instances}

    @bentoml.api(
        route="/batched", batchable=True, max_batch_size=MOST_IN_A_BATCH, max_latency_ms=1000
    )
    def batched(self, instances: list[list[float]]) -> list[list[float]]:
        time.sleep(CALL_SECONDS)
        return instances

    @bentoml.api(route="/bytes")
    async def ready(self, instances: list[list[float]]) -> AsyncGenerator[bytes, None]:
        for _ in range(ITEMS):
            yield ITEM

    @bentoml.api(route="/sync")
    def ready_sync(self, instances: list[list[float]]) -> Generator[bytes, None, None]:
        for _ in range(ITEMS):
            yield ITEM

    @bentoml.api(route="/ndjson")
    async def ndjson(self, instances: list[list[float]]) -> AsyncGenerator[bytes, None]:
        for _ in range(ITEMS):
            yield orjson.dumps(TOKEN, option=orjson.OPT_APPEND_NEWLINE)

    @bentoml.api(route="/sse")
    async def sse(self, instances: list[list[float]]) -> AsyncGenerator[bytes, None]:
        for _ in range(ITEMS):
            yield b"data: " + orjson.dumps(TOKEN) + b"\n\n"

    @bentoml.api(route="/paced")
    async def paced(self, instances: list[list[float]]) -> AsyncGenerator[bytes, None]:
        yield ITEM
        await asyncio.sleep(PAUSE)
        yield ITEM

    @bentoml.api(route="/idle")
    async def idle(self, instances: list[list[float]]) -> AsyncGenerator[bytes, None]:
        try:
            yield ITEM
            await asyncio.Event().wait()
        finally:
            report_end()
