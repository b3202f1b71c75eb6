"""Rows in, rows out, in full duplex: a bare ASGI application, and the same as two kinds of hook."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import orjson

import modelserve

Message = MutableMapping[str, Any]

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/x-ndjson")],
}

served = modelserve.ModelServer()


@served.model("lists")
async def lists(payload: dict[str, Any]) -> dict[str, Any]:
    return {"predictions": [{"y": row["x"]} for row in payload["instances"]]}


@served.model("iterator")
async def iterator(instances: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for row in instances:
        yield {"y": row["x"]}


@served.model("bytes")
async def pieces(instances: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    size = 0
    async for piece in instances:
        size += len(piece)
    yield {"y": size}


async def bare(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Read, parse and write the same, and nothing else."""
    await send(START)
    rest, more = b"", True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        *lines, rest = (rest + message.get("body", b"")).split(b"\n")
        rows = [{"y": row["x"]} for row in map(orjson.loads, lines)]
        if rows:
            parts = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def bare_iterator(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """The same row by row, through the hook that iterates."""

    async def rows() -> AsyncIterator[dict[str, Any]]:
        rest, more = b"", True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            *lines, rest = (rest + message.get("body", b"")).split(b"\n")
            for line in lines:
                yield orjson.loads(line)

    await send(START)
    parts: list[bytes] = []
    async for item in iterator(rows()):
        parts.append(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE))
        if len(parts) == 256:
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
            parts = []
    await send({"type": "http.response.body", "body": b"".join(parts), "more_body": False})


BARE = {"bare": bare, "bare_iterator": bare_iterator}


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Choose by the path."""
    name = scope["path"].rpartition("/")[2].partition(":")[0] if scope["type"] == "http" else ""
    await BARE.get(name, served)(scope, receive, send)  # type: ignore[arg-type]
