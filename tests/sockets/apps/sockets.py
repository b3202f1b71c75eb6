"""Hooks that answer WebSockets."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from apps.ledger import note

from modelserve import InferenceError, Limits, Model, ModelServer


async def echo(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for x in instances:
        if x == "fail":
            raise InferenceError("told to fail", 429)
        yield x


def thread(instances: Iterator[Any]) -> Iterator[Any]:
    yield from instances


async def lists(payload: dict[str, Any]) -> dict[str, Any]:
    return {"predictions": payload["instances"]}


async def watched(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
    key = await anext(instances)
    note(key, "start")
    try:
        yield key
        async for x in instances:
            yield x
    finally:
        note(key, "end")


class Flood(Model):
    """Sends more than any buffer holds, to a client that may not read it."""

    limits = Limits(send_timeout=0.5)

    async def predict(self, instances: AsyncIterator[Any]) -> AsyncIterator[bytes]:  # type: ignore[override]
        key = await anext(instances)
        note(key, "start")
        try:
            for _ in range(500):
                yield b"x" * 100_000
        finally:
            note(key, "end")


app = ModelServer([Flood("flood")])
for function in (echo, thread, lists, watched):
    app.add_model(function, function.__name__)
