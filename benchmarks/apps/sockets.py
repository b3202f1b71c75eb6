"""JSON in, JSON out over a WebSocket: a bare ASGI application, and the same as two kinds of hook."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import orjson

import modelserve

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

served = modelserve.ModelServer()


@served.model("lists")
async def lists(payload: dict[str, Any]) -> dict[str, Any]:
    return {"predictions": [{"y": row["x"]} for row in payload["instances"]]}


@served.model("iterator")
async def iterator(instances: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for row in instances:
        yield {"y": row["x"]}


async def bare(scope: Message, receive: Receive, send: Send) -> None:
    """Read, parse and write the same, and nothing else."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive" and message.get("text"):
        row = {"y": orjson.loads(message["text"])["x"]}
        await send({"type": "websocket.send", "text": orjson.dumps(row).decode()})
    await send({"type": "websocket.close", "code": 1000})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Choose by the path."""
    is_bare = scope["type"] == "websocket" and "/bare:" in scope["path"]
    await (bare if is_bare else served)(scope, receive, send)  # type: ignore[arg-type]
