"""Streams of every origin; the payload says what to yield, how fast and where to fail.

Payload: key (its name in the ledger), items, or count (of numbered items, or of texts of size
characters), gap (seconds after each), before (seconds before the first), cleanup (seconds of
un-shielded waiting at the end), fail_at and error.
"""

import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import numpy
from apps.ledger import note
from starlette.exceptions import HTTPException

from modelserve import InferenceError, InvalidInput, Model, ModelServer, ServerSentEvent

ERRORS = {
    "InvalidInput": lambda: InvalidInput("bad item"),
    "ValueError": lambda: ValueError("the secret is 12345"),
    "InferenceError": lambda: InferenceError("broke down"),
    "NotImplementedError": lambda: NotImplementedError("not here"),
    "HTTPException": lambda: HTTPException(429, "too often"),
    "KeyError": lambda: KeyError("secret-key"),
    "RuntimeError": lambda: RuntimeError("secret-state"),
    "TimeoutError": lambda: TimeoutError("secret-time"),
    "ExceptionGroup": lambda: ExceptionGroup("secret-group", [ValueError("secret-part")]),
}
SPECIAL = {
    "$bytes": bytes.fromhex,
    "$sse": lambda fields: ServerSentEvent(**fields),
    "$nan": float,
    "$numpy": numpy.array,
    "$object": lambda _: object(),
    "$none": lambda _: None,
}


def revive(item: Any) -> Any:
    """Make what JSON cannot say: {"$bytes": "00ff"} is b"\\x00\\xff"."""
    if isinstance(item, dict) and len(item) == 1:
        name, value = next(iter(item.items()))
        if name in SPECIAL:
            return SPECIAL[name](value)
    return item


def make(payload: dict[str, Any]) -> Iterator[Any]:
    """Make the items; the caller records the start and the end."""
    items = payload.get("items")
    for n in range(payload.get("count", 3) if items is None else len(items) + 1):
        if n == payload.get("fail_at"):
            raise ERRORS[payload.get("error", "InvalidInput")]()
        if items is not None and n == len(items):
            return
        note(payload["key"], "item")
        yield numbered(payload, n) if items is None else revive(items[n])


def numbered(payload: dict[str, Any], n: int) -> Any:
    return f"{n:08}".ljust(payload["size"], ".") if "size" in payload else {"n": n}


async def stream(payload: dict[str, Any]) -> AsyncIterator[Any]:
    note(payload["key"], "start")
    try:
        await anyio.sleep(payload.get("before", 0))
        for item in make(payload):
            yield item
            await anyio.sleep(payload.get("gap", 0))
    finally:
        await anyio.sleep(payload.get("cleanup", 0))
        note(payload["key"], "end")


def sync_stream(payload: dict[str, Any]) -> Iterator[Any]:
    note(payload["key"], "start")
    try:
        time.sleep(payload.get("before", 0))
        for item in make(payload):
            yield item
            time.sleep(payload.get("gap", 0))
    finally:
        time.sleep(payload.get("cleanup", 0))
        note(payload["key"], "end")


class AsyncItems:
    """An async iterator that is no generator."""

    def __init__(self, payload: dict[str, Any]) -> None:
        self.key = payload["key"]
        self.items = stream(payload)

    def __aiter__(self) -> "AsyncItems":
        return self

    async def __anext__(self) -> Any:
        return await self.items.__anext__()

    async def aclose(self) -> None:
        note(self.key, "closed")
        await self.items.aclose()


class Items:
    """An iterator that is no generator."""

    def __init__(self, payload: dict[str, Any]) -> None:
        self.key = payload["key"]
        self.items = sync_stream(payload)

    def __iter__(self) -> "Items":
        return self

    def __next__(self) -> Any:
        return next(self.items)

    def close(self) -> None:
        note(self.key, "closed")
        self.items.close()


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def as_coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Streaming(Model):
    async def predict(self, payload):
        async with aclosing(stream(payload)) as items:
            async for item in items:
                yield item


class SyncStreaming(Model):
    def predict(self, payload):
        yield from sync_stream(payload)


class Explaining(Model):
    def predict(self, payload):
        return payload

    async def explain(self, payload):
        async with aclosing(stream(payload)) as items:
            async for item in items:
                yield item


class Wrapped(Streaming):
    async def postprocess(self, result):
        async for item in result:
            yield item


class SyncWrapped(SyncStreaming):
    async def postprocess(self, result):
        async for item in result:
            yield item


class Replaced(Streaming):
    """Its postprocess is no generator, but returns one."""

    def postprocess(self, result):
        async def items():
            async for item in result:
                yield item

        return items()


class FromValue(Model):
    def predict(self, payload):
        return payload

    async def postprocess(self, result):
        async with aclosing(stream(result)) as items:
            async for item in items:
                yield item


class SyncFromValue(Model):
    async def predict(self, payload):
        return payload

    def postprocess(self, result):
        yield from sync_stream(result)


class Typed(Model):
    """Sets the content type and the headers that the payload says."""

    async def predict(self, payload, response_headers=None):
        for name, value in payload.get("headers", {}).items():
            response_headers[name] = value
        async with aclosing(stream(payload)) as items:
            async for item in items:
                yield item


class Unary(Model):
    async def predict(self, payload):
        note(payload["key"], "start")
        try:
            await anyio.sleep(payload.get("before", 0))
            note(payload["key"], "done")
        finally:
            note(payload["key"], "end")
        return {"predictions": [1]}


class Blocking(Model):
    def predict(self, payload):
        note(payload["key"], "start")
        time.sleep(payload["before"])
        note(payload["key"], "end")
        return {"predictions": [1]}


class Restless(Model):
    """Never awaits anything that waits."""

    async def predict(self, payload):
        note(payload["key"], "start")
        try:
            for _ in range(payload["count"]):
                yield "0123456789012345678901234567890123456789"
        finally:
            note(payload["key"], "end")


class SyncRestless(Model):
    def predict(self, payload):
        note(payload["key"], "start")
        try:
            for _ in range(payload["count"]):
                yield "0123456789012345678901234567890123456789"
        finally:
            note(payload["key"], "end")


app = ModelServer(
    [
        Streaming("async-generator"),
        SyncStreaming("sync-generator"),
        Wrapped("postprocessed"),
        SyncWrapped("sync-postprocessed"),
        Replaced("replaced"),
        FromValue("from-value"),
        SyncFromValue("sync-from-value"),
        Explaining("explaining"),
        Typed("typed"),
        Unary("unary"),
        Blocking("blocking"),
        Restless("restless"),
        SyncRestless("sync-restless"),
    ]
)


@app.model("function")
async def function(payload):
    async with aclosing(stream(payload)) as items:
        async for item in items:
            yield item


@app.model("sync-function")
def sync_function(payload):
    yield from sync_stream(payload)


@app.model("async-iterator")
def async_iterator(payload):
    return AsyncItems(payload)


@app.model("sync-iterator")
def sync_iterator(payload):
    return Items(payload)


@app.model("returned-generator")
def returned_generator(payload):
    return sync_stream(payload)


@app.model("returned-async-generator")
def returned_async_generator(payload):
    return stream(payload)


@app.model("awaited-generator")
async def awaited_generator(payload):
    return stream(payload)


@app.model("awaited-sync-generator")
async def awaited_sync_generator(payload):
    return sync_stream(payload)


@app.model("awaited-iterator")
async def awaited_iterator(payload):
    return Items(payload)


app.model("decorated")(plainly(stream))
app.model("sync-decorated")(plainly(sync_stream))
app.model("decorated-as-coroutine")(as_coroutine(stream))


@app.model("awaitable")
def awaitable(payload):
    """Return an awaitable of an iterator, where nothing says so beforehand."""
    return awaited_generator(payload)


def second(_: str, payload: dict[str, Any]) -> AsyncIterator[Any]:
    return stream(payload)


async def second_async(_: str, payload: dict[str, Any]) -> AsyncIterator[Any]:
    async with aclosing(stream(payload)) as items:
        async for item in items:
            yield item


def second_sync(_: str, payload: dict[str, Any]) -> Iterator[Any]:
    yield from sync_stream(payload)


app.model("partial")(functools.partial(second, "first"))
app.model("partial-async")(functools.partial(second_async, "first"))
app.model("partial-sync")(functools.partial(second_sync, "first"))


class Callee:
    async def __call__(self, payload):
        async with aclosing(stream(payload)) as items:
            async for item in items:
                yield item


app.model("callable")(Callee())
