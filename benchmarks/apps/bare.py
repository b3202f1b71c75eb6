"""The ceiling: an ASGI application that does nothing but the workload."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from benchmarks.payloads import (
    CHAT_PATH,
    ITEM,
    ITEMS,
    PAUSE,
    TOKEN,
    WORD,
    as_answer,
    chat_chunk,
    report_end,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Items = Callable[[], AsyncIterator[bytes]]

STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/octet-stream")],
}


async def ready() -> AsyncIterator[bytes]:
    """Yield ready-made bytes."""
    for _ in range(ITEMS):
        yield ITEM


async def one() -> AsyncIterator[bytes]:
    """Yield a single item."""
    yield ITEM


async def ndjson() -> AsyncIterator[bytes]:
    """Yield each dict as a line of JSON."""
    for _ in range(ITEMS):
        yield orjson.dumps(TOKEN, option=orjson.OPT_APPEND_NEWLINE)


async def sse() -> AsyncIterator[bytes]:
    """Yield each dict as a server-sent event."""
    for _ in range(ITEMS):
        yield b"data: " + orjson.dumps(TOKEN) + b"\n\n"


async def chat() -> AsyncIterator[bytes]:
    """Yield each word of a chat as a chunk of OpenAI's, and the end."""
    for _ in range(ITEMS):
        yield b"data: " + orjson.dumps(chat_chunk({"content": WORD})) + b"\n\n"
    yield b"data: " + orjson.dumps(chat_chunk({}, "stop")) + b"\n\ndata: [DONE]\n\n"


async def paced() -> AsyncIterator[bytes]:
    """Yield one item at once and one after a pause."""
    yield ITEM
    await asyncio.sleep(PAUSE)
    yield ITEM


async def idle() -> AsyncIterator[bytes]:
    """Yield one item and then wait for ever."""
    try:
        yield ITEM
        await asyncio.Event().wait()
    finally:
        report_end()


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def answer(receive: Receive, send: Send) -> None:
    """Echo the instances of one request."""
    body = orjson.dumps(as_answer(orjson.loads(await read_body(receive))))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(items: Items, receive: Receive, send: Send) -> None:
    """Send each item as a body event of its own."""
    orjson.loads(await read_body(receive))
    await send(STREAM_START)
    async for item in items():
        await send({"type": "http.response.body", "body": item, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def stream_watched(items: Items, receive: Receive, send: Send) -> None:
    """Do the same, and cancel the stream when the client disconnects, in the least code."""
    orjson.loads(await read_body(receive))
    task = asyncio.ensure_future(_write(items(), send))
    watcher = asyncio.ensure_future(receive())
    await asyncio.wait([task, watcher], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    watcher.cancel()


async def _write(items: AsyncIterator[bytes], send: Send) -> None:
    await send(STREAM_START)
    async for item in items:
        await send({"type": "http.response.body", "body": item, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


STREAMS: dict[str, Items] = {
    "/v1/models/bytes:predict": ready,
    "/v1/models/one:predict": one,
    "/v1/models/ndjson:predict": ndjson,
    "/v1/models/sse:predict": sse,
    CHAT_PATH: chat,
    "/v1/models/paced:predict": paced,
    "/v1/models/idle:predict": idle,
}


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Route by a dictionary, as cheaply as possible."""
    if scope["type"] == "http":
        path = scope["path"]
        if path == "/v1/models/echo:predict":
            await answer(receive, send)
        elif path == "/v1/models/watched:predict":
            await stream_watched(idle, receive, send)
        else:
            await stream(STREAMS[path], receive, send)
    else:
        await _lifespan(receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
