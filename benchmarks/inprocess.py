"""What a request and an item cost over a bare ASGI call: no sockets, no server, one process.

Each application is called as a server would call it, with a `receive` that gives the body and
then waits, and a `send` that does nothing. Three figures for each case:

- microseconds: the fastest of many short blocks of both, in turns;
- calls: how many Python and C functions a request or an item enters. It does not depend on the
  machine or its load, so it shows small changes between two commits that time does not;
- garbage: how many objects a request leaves for the cycle collector. Each costs little by itself,
  but a busy server then stops for tens of milliseconds at a time to find them, which is its p99.
"""

import asyncio
import contextlib
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.payloads import CHAT_BODY, CHAT_PATH, ITEMS, STREAM_BODY, UNARY_BODY

App = Callable[[Any, Any, Any], Awaitable[None]]
Scope = dict[str, Any]

BLOCKS = 25
BLOCK_SECONDS = 0.01
COUNTED = 10
"""Requests for which calls are counted."""


@dataclass(frozen=True)
class Case:
    """One case: the model or the path in each application, and how many items it has."""

    name: str
    bare_path: str
    own_path: str
    body: bytes = STREAM_BODY
    accept: bytes = b"*/*"
    per: int = ITEMS


CASES = (
    Case("unary, a request", "echo", "echo", body=UNARY_BODY, per=1),
    Case("bytes, an item", "bytes", "bytes"),
    Case("NDJSON, an item", "ndjson", "dicts", accept=b"application/x-ndjson"),
    Case("SSE, an item", "sse", "dicts", accept=b"text/event-stream"),
    Case("chat, an item", CHAT_PATH, CHAT_PATH, body=CHAT_BODY),
    Case("coalesced bytes, an item", "bytes", "joined"),
    Case("sync generator, an item", "bytes", "sync"),
    Case("a stream of one item", "one", "one", per=1),
)


@dataclass(frozen=True)
class Cost:
    """What one case costs per request or item; garbage is per request, and of modelserve only."""

    case: str
    bare_us: float
    own_us: float
    bare_calls: float
    own_calls: float
    garbage: float

    @property
    def ratio(self) -> float:
        """Our microseconds over the bare application's."""
        return self.own_us / self.bare_us

    @property
    def difference_us(self) -> float:
        """What ours adds to the bare application's."""
        return self.own_us - self.bare_us


def measure_all() -> list[Cost]:
    """Return the cost of every case."""
    return [measure(case) for case in CASES]


def measure(case: Case) -> Cost:
    """Return the cost of one case, both applications on one event loop."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure(case))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed, as the servers use it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _measure(case: Case) -> Cost:
    from benchmarks.apps.bare import app as bare
    from benchmarks.apps.modelserve import app as own

    async with in_lifespan(own):
        calls = [
            partial(exchange, bare, scope_of(case.bare_path, case), case.body),
            partial(exchange, own, scope_of(case.own_path, case), case.body),
        ]
        for call in calls:
            await _check(call, case)
        bare_us, own_us = await _microseconds(calls)
        bare_calls, own_calls = [await _count_calls(call) for call in calls]
        garbage = await _count_garbage(calls[1])
    return Cost(
        case.name,
        bare_us / case.per,
        own_us / case.per,
        bare_calls / case.per,
        own_calls / case.per,
        garbage,
    )


def scope_of(model: str, case: Case) -> Scope:
    path = model if model.startswith("/") else f"/v1/models/{model}:predict"
    headers = [
        (b"host", b"127.0.0.1"),
        (b"accept", case.accept),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(case.body)).encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


async def exchange(app: App, scope: Scope, body: bytes, send: Any = None) -> None:
    """Make one request; the client stays connected until it has the response."""
    given = False

    async def receive() -> Scope:
        nonlocal given
        if given:
            await asyncio.Future()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    await app(dict(scope), receive, send or _ignore)


async def _ignore(message: Any) -> None:
    """Accept a message like a server whose socket has room: without suspending."""


async def _check(call: Callable[..., Coroutine[Any, Any, None]], case: Case) -> None:
    """Make sure that the request which is timed succeeds."""
    messages: list[Any] = []

    async def keep(message: Any) -> None:
        messages.append(message)

    await call(send=keep)
    assert messages[0]["status"] == 200, messages
    body = b"".join(message.get("body", b"") for message in messages[1:])
    assert body.count(b"~") == (case.per if case.per > 1 else body.count(b"~")), messages[:3]


async def _microseconds(calls: Sequence[Callable[[], Awaitable[None]]]) -> list[float]:
    """Return the microseconds of each call: the fastest block of many, taken in turns."""
    counts = [await _calls_in_a_block(call) for call in calls]
    fastest = [float("inf")] * len(calls)
    for _ in range(BLOCKS):
        for number, call in enumerate(calls):
            gc.collect()
            took = await _time(call, counts[number])
            fastest[number] = min(fastest[number], took / counts[number])
    return [seconds * 1e6 for seconds in fastest]


async def _calls_in_a_block(call: Callable[[], Awaitable[None]]) -> int:
    await _time(call, 3)
    return max(1, round(BLOCK_SECONDS / (await _time(call, 5) / 5)))


async def _time(call: Callable[[], Awaitable[None]], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        await call()
    return time.perf_counter() - start


async def _count_calls(call: Callable[[], Awaitable[None]]) -> float:
    """Return how many functions one request enters on the event loop's thread."""
    entered = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal entered
        entered += event in ("call", "c_call")

    await asyncio.sleep(0)
    sys.setprofile(count)
    try:
        for _ in range(COUNTED):
            await call()
    finally:
        sys.setprofile(None)
    return entered / COUNTED


async def _count_garbage(call: Callable[[], Awaitable[None]]) -> float:
    """Return how many objects one request leaves that only the cycle collector can free."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(COUNTED):
            await asyncio.ensure_future(call())
        await asyncio.sleep(0.01)
        return gc.collect() / COUNTED
    finally:
        gc.enable()


@contextlib.asynccontextmanager
async def in_lifespan(app: App) -> AsyncIterator[None]:
    """Run an application's lifespan around a block."""
    to_app: asyncio.Queue[Scope] = asyncio.Queue()
    from_app: asyncio.Queue[Scope] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, to_app.get, from_app.put))
    to_app.put_nowait({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    for _ in range(100):  # let the models load now: the timed requests never suspend
        await asyncio.sleep(0)
    try:
        yield
    finally:
        to_app.put_nowait({"type": "lifespan.shutdown"})
        await task


def table(costs: Sequence[Cost], before: Sequence[Cost] | None = None) -> str:
    """Return the costs as a table; with `before`, each line ends with the change since then."""
    earlier = {cost.case: cost for cost in before or ()}
    lines = [
        f"{'':26} {'bare us':>9} {'ours us':>9} {'added us':>9} {'ratio':>6} {'calls':>14} {'garbage':>8}"
    ]
    for cost in costs:
        line = (
            f"{cost.case:26} {cost.bare_us:9.2f} {cost.own_us:9.2f} {cost.difference_us:9.2f}"
            f" {cost.ratio:6.2f} {cost.bare_calls:6.1f} {cost.own_calls:7.1f} {cost.garbage:8.1f}"
        )
        lines.append(line + _change(cost, earlier.get(cost.case)))
    return "\n".join(lines)


def _change(cost: Cost, before: Cost | None) -> str:
    if before is None:
        return ""
    return (
        f"   {cost.difference_us - before.difference_us:+.2f} us,"
        f" {cost.own_calls - before.own_calls:+.1f} calls,"
        f" {cost.garbage - before.garbage:+.1f} garbage"
    )


def as_json(costs: Sequence[Cost]) -> str:
    """Return the costs as JSON, for `--against`."""
    return json.dumps([asdict(cost) for cost in costs], indent=1)


def from_json(text: str) -> list[Cost]:
    """Read back what `as_json` has written."""
    return [Cost(**one) for one in json.loads(text)]
