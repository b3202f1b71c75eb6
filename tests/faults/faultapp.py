"""Handlers of every kind, each controlled by its payload, and an account of all of them.

Payload: count (items), gap (seconds after each), before (seconds before the first), size (text of
that many characters instead of documents), cleanup (seconds of waiting in `finally`), and where and
with what to fail: stage, fail_at (which item), error.

The account counts each handler when it starts and when its `finally` ends; the model `account`
returns the sums. Served by `python -m modelserve tests/faults/faultapp.py`.
"""

import asyncio
import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio

from modelserve import InferenceError, InvalidInput, Limits, Model, ModelServer
from modelserve.tensors import InferRequest

CONCURRENCY = 200
NARROW = 3
NARROW_SYNC = 2
SEND_TIMEOUT = 1.5


class Odd(BaseException):
    """What `except Exception` does not catch."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("the secret is 12345"),
    "InvalidInput": lambda: InvalidInput("bad item"),
    "InferenceError": lambda: InferenceError("broke down"),
    "StopIteration": lambda: StopIteration("secret"),
    "StopAsyncIteration": lambda: StopAsyncIteration("secret"),
    "TimeoutError": lambda: TimeoutError("secret"),
    "OSError": lambda: BrokenPipeError("secret"),
    "RecursionError": lambda: RecursionError("secret"),
    "MemoryError": lambda: MemoryError("secret"),
    "ExceptionGroup": lambda: ExceptionGroup("secret", [ValueError("a"), OSError("b")]),
    "BaseException": lambda: Odd("secret"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("secret"),
    "SystemExit": lambda: SystemExit(7),
    "GeneratorExit": lambda: GeneratorExit("secret"),
    "CancelledError": lambda: asyncio.CancelledError("secret"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("secret", [Odd("a"), ValueError("b")]),
}


class Account:
    """How many handlers of each name have started and ended, and how many were inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.ends: dict[str, float] = {}

    def begin(self, name: str) -> None:
        with self._lock:
            self.started[name] += 1
            for key in (name, "all"):
                self.most[key] = max(self.most[key], self._inside(key))

    def end(self, name: str) -> None:
        with self._lock:
            self.ended[name] += 1

    def _inside(self, name: str) -> int:
        if name == "all":
            return self.started.total() - self.ended.total()
        return self.started[name] - self.ended[name]


account = Account()


class Entry:
    """A handler's place in the account, while it runs; with a key, the time of its end is kept."""

    def __init__(self, name: str, key: str | None = None) -> None:
        self.name = name
        self.key = key

    def __enter__(self) -> None:
        account.begin(self.name)

    def __exit__(self, *_: object) -> None:
        if self.key is not None:
            account.ends[self.key] = time.monotonic()
        account.end(self.name)


Plan = dict[str, Any]


def item(plan: Plan, n: int) -> Any:
    return f"{n:06}".ljust(plan["size"], ".") if "size" in plan else {"n": n}


def fail(plan: Plan, stage: str, n: int | None = None) -> None:
    if plan.get("stage") == stage and (n is None or n == plan.get("fail_at", 0)):
        raise ERRORS[plan.get("error", "ValueError")]()


async def stream(name: str, plan: Plan) -> AsyncIterator[Any]:
    with Entry(name, plan.get("key")):
        try:
            fail(plan, "predict")
            await anyio.sleep(plan.get("before", 0))
            for n in range(plan.get("count", 3)):
                fail(plan, "items", n)
                yield item(plan, n)
                await anyio.sleep(plan.get("gap", 0))
        finally:
            await anyio.sleep(plan.get("cleanup", 0))
            fail(plan, "finally")


def sync_stream(name: str, plan: Plan) -> Iterator[Any]:
    with Entry(name, plan.get("key")):
        try:
            fail(plan, "predict")
            time.sleep(plan.get("before", 0))
            for n in range(plan.get("count", 3)):
                fail(plan, "items", n)
                yield item(plan, n)
                time.sleep(plan.get("gap", 0))
        finally:
            time.sleep(plan.get("cleanup", 0))
            fail(plan, "finally")


class Value(Model):
    async def predict(self, payload):
        with Entry(self.name):
            try:
                fail(payload, "predict")
                await anyio.sleep(payload.get("before", 0))
                return {"predictions": [item(payload, n) for n in range(payload.get("count", 3))]}
            finally:
                await anyio.sleep(payload.get("cleanup", 0))
                fail(payload, "finally")


class SyncValue(Model):
    def predict(self, payload):
        with Entry(self.name):
            fail(payload, "predict")
            time.sleep(payload.get("before", 0))
            return {"predictions": [item(payload, n) for n in range(payload.get("count", 3))]}


class Streaming(Model):
    """Written as users write it: no `aclosing`, the inner generator is its own clean-up."""

    async def predict(self, payload):
        items = stream(self.name, payload)
        try:
            async for each in items:
                yield each
        finally:
            await items.aclose()


class SyncStreaming(Model):
    def predict(self, payload):
        yield from sync_stream(self.name, payload)


class Staged(Model):
    """Has all the hooks, each of which may fail, and a stream that goes through two of them."""

    async def preprocess(self, payload):
        with Entry("preprocess"):
            fail(payload, "preprocess")
            await anyio.sleep(payload.get("before", 0))
            return payload

    async def predict(self, payload):
        items = stream(self.name, payload)
        try:
            async for each in items:
                yield each
        finally:
            await items.aclose()

    async def explain(self, payload):
        with Entry("explain"):
            fail(payload, "predict")
            return payload

    async def postprocess(self, result):
        with Entry("postprocess"):
            if isinstance(result, dict):
                fail(result, "postprocess")
                yield result
                return
            async for each in result:
                yield each


class SyncStaged(Model):
    def preprocess(self, payload):
        with Entry("sync-preprocess"):
            fail(payload, "preprocess")
            return payload

    def predict(self, payload):
        with Entry(self.name):
            fail(payload, "predict")
            return payload

    def postprocess(self, result):
        with Entry("sync-postprocess"):
            fail(result, "postprocess")
            for n in range(result.get("count", 3)):
                fail(result, "items", n)
                yield item(result, n)


class Stubborn(Model):
    """Resists cancellation a number of times."""

    async def predict(self, payload):
        with Entry(self.name):
            for n in range(payload.get("count", 3)):
                try:
                    yield {"n": n}
                    await anyio.sleep(payload.get("gap", 0.02))
                except asyncio.CancelledError:
                    await self._resist(payload.get("refusals", 2))
                    raise

    async def _resist(self, times: int) -> None:
        for _ in range(times):
            try:
                await anyio.sleep(0.3)
            except asyncio.CancelledError:
                continue


class Deaf(Model):
    """Swallows its cancellation and returns a result."""

    async def predict(self, payload):
        with Entry(self.name):
            for _ in range(3):
                try:
                    await anyio.sleep(payload.get("before", 0.05))
                except asyncio.CancelledError:
                    await anyio.sleep(0.05)
            return {"predictions": [item(payload, n) for n in range(payload.get("count", 3))]}


class Grouped(Model):
    """Starts child tasks, each counted by the account as well."""

    async def predict(self, payload):
        with Entry(self.name):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(self._child, payload)
            return {"predictions": [item(payload, n) for n in range(payload.get("count", 3))]}

    async def _child(self, payload):
        with Entry("child"):
            await anyio.sleep(payload.get("before", 0.02))
            if payload.get("stage") == "child":
                await anyio.to_thread.run_sync(fail, payload, "child")


class BlocksLoop(Model):
    """Async in name only."""

    async def predict(self, payload):
        with Entry(self.name):
            for n in range(payload.get("count", 3)):
                time.sleep(0.003)  # noqa: ASYNC251  (what users do)
                yield {"n": n}


class Restless(Model):
    """Never awaits anything."""

    async def predict(self, payload):
        with Entry(self.name):
            for n in range(payload.get("count", 3)):
                yield item(payload, n)


WRONG: dict[str, Callable[[], Any]] = {
    "object": object,
    "type": lambda: int,
    "bytes": lambda: b"\xff\xfe",
    "surrogate": lambda: "\ud800",
    "complex": lambda: 1j,
    "set": lambda: {1, 2},
    "coroutine-function": lambda: Value.predict,
    "keys": lambda: {object(): 1},
    "generator": lambda: (n for n in range(3)),
}


class Wrong(Model):
    """Yields what cannot be sent."""

    async def predict(self, payload):
        with Entry(self.name):
            for n in range(payload.get("count", 3)):
                if n == payload.get("fail_at", 0):
                    yield WRONG[payload["kind"]]()
                else:
                    yield item(payload, n)


class WrongValue(Model):
    async def predict(self, payload, response_headers=None):
        with Entry(self.name):
            if payload["kind"] == "header":
                response_headers["x-bad"] = "a\r\nb: c"
                return {}
            return {"predictions": [WRONG[payload["kind"]]()]}


class Typed(Model):
    """Sends its own content type."""

    async def predict(self, payload, response_headers=None):
        response_headers["content-type"] = "text/csv"
        items = stream(self.name, payload)
        try:
            async for each in items:
                yield each
        finally:
            await items.aclose()


class Tensors(Model):
    """Echoes a V2 request, or yields it several times."""

    async def predict(self, payload):
        with Entry(self.name):
            return {
                "model_name": self.name,
                "outputs": [
                    {"name": t.name, "shape": t.shape, "datatype": t.datatype, "data": t.data}
                    for t in payload.inputs
                ],
            }


class Writer(Model):
    """Generates text, as Triton's extension has it."""

    async def predict(self, payload):
        with Entry(self.name):
            for word in payload["text_input"].split():
                yield word
                await anyio.sleep(payload.get("parameters", {}).get("gap", 0))


class Gated(Model):
    """Yields one item, and the others once `open-gate` has been called."""

    gate = anyio.Event()

    async def predict(self, payload):
        with Entry(self.name):
            yield {"n": 0}
            await self.gate.wait()
            for n in range(1, payload["count"]):
                yield {"n": n}
                await anyio.sleep(payload.get("gap", 0))


class OpenGate(Model):
    async def predict(self, payload):
        Gated.gate.set()
        Gated.gate = anyio.Event()


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def malloc_bytes() -> int:
    """Return the bytes that are allocated from malloc now, what it keeps for later not counted."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = Mallinfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


class Accountant(Model):
    """Returns the sums for this process."""

    async def predict(self, payload):
        gc.collect()
        return {
            "pid": os.getpid(),
            "started": account.started,
            "ended": account.ended,
            "most": account.most,
            "ends": account.ends if payload.get("ends") else None,
            "tasks": len(asyncio.all_tasks()),
            "objects": len(gc.get_objects()),
            "blocks": sys.getallocatedblocks(),
            "malloc": malloc_bytes(),
        }


app = ModelServer(
    [
        Value("value"),
        SyncValue("sync-value"),
        Streaming("stream"),
        SyncStreaming("sync-stream"),
        Staged("staged"),
        SyncStaged("sync-staged"),
        Stubborn("stubborn"),
        Deaf("deaf"),
        Grouped("grouped"),
        BlocksLoop("blocks-loop"),
        Restless("restless"),
        Wrong("wrong"),
        WrongValue("wrong-value"),
        Typed("typed"),
        Tensors("tensors"),
        Writer("writer"),
        Gated("gated"),
        OpenGate("open-gate"),
        Accountant("account"),
    ],
    limits=Limits(
        concurrency=CONCURRENCY,
        queue=100,
        timeout=30.0,
        send_timeout=SEND_TIMEOUT,
        cleanup_timeout=1.0,
    ),
)


class Beating(Streaming):
    """Its streams are kept alive by a second task, from before the first item."""

    heartbeat = 0.02
    heartbeat_before_first = True


class Coalescing(Streaming):
    coalesce = True


class SyncCoalescing(SyncStreaming):
    coalesce = True


class Narrow(Streaming):
    limits = Limits(concurrency=NARROW, queue=20)


class NarrowSync(SyncStreaming):
    limits = Limits(concurrency=NARROW_SYNC, queue=20)


class ByTensor:
    """Takes its plan as JSON in a tensor, for clients of V2 and of gRPC."""

    def preprocess(self, payload):
        return json.loads(payload.inputs[0].as_string()[0])


class CalledValue(ByTensor, Value):
    pass


class CalledSyncValue(ByTensor, SyncValue):
    pass


class CalledStream(ByTensor, Streaming):
    pass


class CalledSyncStream(ByTensor, SyncStreaming):
    pass


class CalledBoth(Model):
    """Answers each request of a stream with one item, while they come."""

    async def predict(self, payload: AsyncIterator[InferRequest]):
        with Entry(self.name):
            async for each in payload:
                plan = json.loads(each.inputs[0].as_string()[0])
                await anyio.sleep(plan.get("before", 0))
                fail(plan, "predict")
                yield item(plan, 0)


for kind in (CalledValue, CalledSyncValue, CalledStream, CalledSyncStream, CalledBoth):
    app.add_model(kind(kind.__name__))
app.add_model(Beating("beating"))
app.add_model(Coalescing("coalescing"))
app.add_model(SyncCoalescing("sync-coalescing"))
app.add_model(Narrow("narrow"))
app.add_model(NarrowSync("narrow-sync"))
