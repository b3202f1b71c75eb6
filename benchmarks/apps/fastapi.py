"""FastAPI: declared types, so that Pydantic does the JSON, and `yield` for JSON lines and SSE.

Ready bytes go through a `StreamingResponse` that the operation returns: the documented form with
`yield` adds a `sleep(0)` an item and is slower.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel

from benchmarks.payloads import ITEM, ITEMS, PAUSE, TOKEN, as_answer, report_end

Matrices = dict[str, list[list[float]]]


class Token(BaseModel):
    token: str
    index: int
    p: float


token = Token.model_validate(TOKEN)
app = FastAPI()


@app.post("/v1/models/echo:predict")
async def echo(payload: Matrices) -> Matrices:
    return as_answer(payload)


@app.post("/v1/models/echo_sync:predict")
def echo_sync(payload: Matrices) -> Matrices:
    return as_answer(payload)


@app.post("/v1/models/bytes:predict")
async def bytes_(payload: Matrices) -> StreamingResponse:
    return StreamingResponse(ready())


@app.post("/v1/models/sync:predict")
async def sync(payload: Matrices) -> StreamingResponse:
    return StreamingResponse(ready_sync())


@app.post("/v1/models/ndjson:predict")
async def ndjson(payload: Matrices) -> AsyncIterable[Token]:
    for _ in range(ITEMS):
        yield token


@app.post("/v1/models/sse:predict", response_class=EventSourceResponse)
async def sse(payload: Matrices) -> AsyncIterable[Token]:
    for _ in range(ITEMS):
        yield token


@app.post("/v1/models/paced:predict")
async def paced_(payload: Matrices) -> StreamingResponse:
    return StreamingResponse(paced())


@app.post("/v1/models/idle:predict")
async def idle_(payload: Matrices) -> StreamingResponse:
    return StreamingResponse(idle())


async def ready() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield ITEM


def ready_sync() -> Iterator[bytes]:
    for _ in range(ITEMS):
        yield ITEM


async def paced() -> AsyncIterator[bytes]:
    yield ITEM
    await asyncio.sleep(PAUSE)
    yield ITEM


async def idle() -> AsyncIterator[bytes]:
    try:
        yield ITEM
        await asyncio.Event().wait()
    finally:
        report_end()
