"""What batching and stepping cost: no sockets, one process, in the event loop of the servers.

Three figures, each beside one of the same run that it can be divided by:

- idle: microseconds of CPU that a request to a batched model takes over one to the same model without;
- waiting: microseconds of CPU that a request costs which waits for others, over one that suspends
  once; the calls are of 32;
- steps: the items a second of 8 streams whose step sleeps 5 ms, as a part of what the steps would
  make without a pause between them; and the same while a ninth client reads nothing.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.inprocess import App, Case, exchange, in_lifespan, loop_factory, scope_of
from benchmarks.payloads import CALL_SECONDS, MOST_IN_A_BATCH, ROW_BODY, as_answer
from modelserve import Batching, Limits, Model, ModelServer, Slot, Stepping

BLOCKS = 40
AT_ONCE = 2 * MOST_IN_A_BATCH
STREAMS = 8
STEPS = 100


class Echo(Model):
    async def predict(self, payload: Any) -> Any:
        return as_answer(payload)


class Once(Model):
    """Suspends once, as a model does that is waited for."""

    limits = Limits(concurrency=10_000, queue=10_000)

    async def predict(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return as_answer(payload)


class Sleeper(Model):
    """Ends its streams after so many steps; a slow step stands for a model."""

    stepping = Stepping(max_active=STREAMS + 1, room=16)
    slept = 0.0

    def step(self, active: list[Slot]) -> None:
        begun = time.perf_counter()
        time.sleep(CALL_SECONDS)
        self.slept += time.perf_counter() - begun
        for slot in active:
            slot.state = (slot.state or 0) + 1
            slot.put(b"~")
            if slot.state == STEPS:
                slot.end()


@dataclass(frozen=True)
class Pair:
    """A figure of ours, and the one beside it, in microseconds of a request."""

    without: float
    with_it: float

    @property
    def added(self) -> float:
        return self.with_it - self.without

    @property
    def ratio(self) -> float:
        return self.with_it / self.without


def _apps() -> Iterator[ModelServer]:
    for kind in (Echo, Once):
        yield ModelServer([kind("m")])
        batched = kind("m")
        batched.batching = Batching(max_size=MOST_IN_A_BATCH)
        yield ModelServer([batched])


def _request(app: App) -> Callable[[], Awaitable[None]]:
    case = Case("", "m", "m", body=ROW_BODY, per=1)
    return partial(exchange, app, scope_of("m", case), ROW_BODY)


def _many(call: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def many() -> None:
        await asyncio.gather(*(call() for _ in range(AT_ONCE)))

    return many


def measure_requests() -> tuple[Pair, Pair]:
    """Return what a request costs without and with batching: idle, and waiting."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure_requests())


async def _measure_requests() -> tuple[Pair, Pair]:
    echo, batched, once, once_batched = _apps()
    async with (
        in_lifespan(echo),
        in_lifespan(batched),
        in_lifespan(once),
        in_lifespan(once_batched),
    ):
        idle = await _cpu_us([_request(echo), _request(batched)], 500)
        waiting = await _cpu_us([_many(_request(once)), _many(_request(once_batched))], 10)
    return Pair(*idle), Pair(*(us / AT_ONCE for us in waiting))


async def _cpu_us(calls: Sequence[Callable[[], Awaitable[None]]], count: int) -> list[float]:
    """Return the microseconds of CPU of each call: the cheapest block of many, taken in turns."""
    cheapest = [float("inf")] * len(calls)
    for _ in range(BLOCKS):
        for number, call in enumerate(calls):
            gc.collect()
            begun = time.process_time()
            for _ in range(count):
                await call()
            cheapest[number] = min(cheapest[number], (time.process_time() - begun) / count)
    return [seconds * 1e6 for seconds in cheapest]


def measure_steps(*, slow_reader: bool) -> float:
    """Return items a second of 8 streams, as a part of what steps without a pause would make."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure_steps(slow_reader))


async def _measure_steps(slow_reader: bool) -> float:
    app = ModelServer([model := Sleeper("m")])
    case = Case("", "m", "m", body=ROW_BODY)

    async def never_read(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Future()

    async with in_lifespan(app):
        slow = None
        if slow_reader:
            slow = asyncio.ensure_future(
                exchange(app, scope_of("m", case), ROW_BODY, send=never_read)
            )
            await asyncio.sleep(20 * CALL_SECONDS)  # until it is left out of the steps
        begun, model.slept = time.perf_counter(), 0.0
        await asyncio.gather(*(_request(app)() for _ in range(STREAMS)))
        part = model.slept / (time.perf_counter() - begun)
        if slow is not None:
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)
    return part


def table() -> str:
    """Measure all of it; return the figures as lines."""
    idle, waiting = measure_requests()
    alone, beside = measure_steps(slow_reader=False), measure_steps(slow_reader=True)
    return "\n".join(
        [
            f"idle: {idle.without:.1f} us without, {idle.added:+.1f} us batched",
            f"waiting: {waiting.without:.1f} us without, {waiting.added:+.1f} us batched",
            f"steps of 5 ms, 8 streams: {alone:.3f} of what the steps allow",
            f"beside a client that reads nothing: {beside:.3f}",
        ]
    )
