"""Starlette: routes, `StreamingResponse`, orjson for the JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.payloads import ITEM, ITEMS, PAUSE, TOKEN, as_answer, report_end


async def echo(request: Request) -> Response:
    answer = as_answer(orjson.loads(await request.body()))
    return Response(orjson.dumps(answer), media_type="application/json")


async def echo_sync(request: Request) -> Response:
    payload = orjson.loads(await request.body())
    answer = await run_in_threadpool(as_answer, payload)
    return Response(orjson.dumps(answer), media_type="application/json")


async def ready() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield ITEM


def ready_sync() -> Iterator[bytes]:
    for _ in range(ITEMS):
        yield ITEM


async def ndjson() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield orjson.dumps(TOKEN, option=orjson.OPT_APPEND_NEWLINE)


async def sse() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield b"data: " + orjson.dumps(TOKEN) + b"\n\n"


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


def streamed(items: Callable[[], Any], media_type: str) -> Callable[[Request], Any]:
    """Make an endpoint that reads the request and streams `items()`."""

    async def endpoint(request: Request) -> Response:
        orjson.loads(await request.body())
        return StreamingResponse(items(), media_type=media_type)

    return endpoint


STREAMS = {
    "bytes": streamed(ready, "application/octet-stream"),
    "sync": streamed(ready_sync, "application/octet-stream"),
    "ndjson": streamed(ndjson, "application/x-ndjson"),
    "sse": streamed(sse, "text/event-stream"),
    "paced": streamed(paced, "application/octet-stream"),
    "idle": streamed(idle, "application/octet-stream"),
}

app = Starlette(
    routes=[
        Route("/v1/models/echo:predict", echo, methods=["POST"]),
        Route("/v1/models/echo_sync:predict", echo_sync, methods=["POST"]),
        *(
            Route(f"/v1/models/{name}:predict", endpoint, methods=["POST"])
            for name, endpoint in STREAMS.items()
        ),
    ]
)
