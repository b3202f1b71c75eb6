"""Signals under load: what clients see of them is never a stream that only looks complete."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faultclients import Answer, Cut, Job, Wire, error_record, items_of
from faultserver import Command, Figures, serving, until

pytest_plugins = ["faultfixtures"]

TERM, KILL = signal.SIGTERM, signal.SIGKILL
STREAMS = 200
ASKING = 20  # clients that ask for values all the time
DRAIN = 4.0
MARGIN = 2.0  # the process is gone so soon after the drain
GAP = 0.05
SHORT = 20  # items: a stream that ends within the drain
ENDLESS = 10**6
FORMS = ("application/x-ndjson", "text/event-stream", "text/plain", "application/json")
MODELS = ("stream", "staged", "stream", "stream", "sync-stream", "stubborn")

FLAGS = ("--concurrency", "inf", "--drain-timeout", str(DRAIN))


# --- clients ------------------------------------------------------------------------------------


def stream_job(number: int, *, count: int) -> Job:
    """Return a stream of some form from some model; 33 of 200 take a thread each."""
    accept = FORMS[number % len(FORMS)]
    name = MODELS[number % len(MODELS)]
    plan: dict[str, Any] = {"count": count, "gap": GAP, "cleanup": 0.02}
    items: list[Any] = [{"n": n} for n in range(min(count, SHORT))]
    if accept == "text/plain":
        name = "stream" if name == "stubborn" else name
        plan["size"] = 30
        items = ["".join(f"{n:06}".ljust(30, ".") for n in range(min(count, SHORT)))]
    return Job(name, f"/v1/models/{name}:predict", plan, accept, items)


@dataclass
class Load:
    """Clients of a server that is about to be stopped."""

    port: int
    values: Counter[str] = field(default_factory=Counter)
    stopping: bool = False

    async def read_stream(self, job: Job, started: asyncio.Event) -> tuple[Job, Answer | Cut]:
        async with Wire(self.port, source=random.randrange(2, 200)) as wire:
            await wire.send(job.data)
            if job.accept == "application/json":
                await asyncio.sleep(0.2)
            elif not await wire.receive():
                raise AssertionError(f"{job}: nothing has come")
            started.set()
            try:
                return job, await wire.answer()
            except Cut as cut:
                return job, cut

    async def ask(self) -> None:
        """Ask for values until nobody listens any more; each answer is good or an honest refusal."""
        job = Job(
            "value",
            "/v1/models/value:predict",
            {"before": 0.01},
            items=[{"n": 0}, {"n": 1}, {"n": 2}],
        )
        while not self.stopping:
            try:
                async with Wire(self.port, source=random.randrange(2, 200)) as wire:
                    await wire.send(job.data)
                    answer = await wire.answer()
            except ConnectionRefusedError:
                self.values["nobody listens"] += 1
                return
            except ConnectionResetError:  # before the connection was made
                self.values["no answer"] += 1
            except Cut as cut:
                whole = cut.args[0].status == 0 and not cut.args[0].body
                self.values["no answer" if whole else "cut"] += 1
            else:
                self.values[job.check(answer)] += 1
            await asyncio.sleep(0.02)

    async def open(self, jobs: list[Job]) -> list["asyncio.Task[tuple[Job, Answer | Cut]]"]:
        """Begin to read streams; return once each has begun."""
        events = [asyncio.Event() for _ in jobs]
        tasks = [
            asyncio.create_task(self.read_stream(job, event))
            for job, event in zip(jobs, events, strict=True)
        ]
        async with asyncio.timeout(30):
            await asyncio.gather(*(event.wait() for event in events))
        return tasks


def look_at(job: Job, answer: Answer | Cut, *, drained: bool) -> str:
    """Return one word for how a stream ended; an incomplete one must not look complete."""
    if isinstance(answer, Cut):
        if drained:
            assert job.accept == "text/plain", f"{job}: cut instead of a record"
        return "cut"
    if answer.status == 503:
        assert answer.body == b'{"error":"server shutting down"}', answer
        return "refused"
    assert answer.status == 200, f"{job}: {answer}"
    sentence = error_record(answer)
    if sentence is not None:
        assert sentence == "server shutting down", sentence
        return "record"
    assert job.payload["count"] == SHORT, f"{job}: cut short, and looks complete: {answer}"
    assert items_of(answer) == job.items, f"{job}: {answer}"
    return "whole"


async def finish(
    streams: list["asyncio.Task[tuple[Job, Answer | Cut]]"], *, drained: bool
) -> Counter[str]:
    async with asyncio.timeout(DRAIN + 10):
        ends = await asyncio.gather(*streams)
    return Counter(f"{look_at(job, answer, drained=drained)}" for job, answer in ends)


def some_jobs() -> list[Job]:
    return [stream_job(n, count=(SHORT, ENDLESS)[n // len(FORMS) % 2]) for n in range(STREAMS)]


def endless_jobs() -> list[Job]:
    return [stream_job(n, count=ENDLESS) for n in range(STREAMS)]


# Of each form half end by themselves. The others: two forms have records, one is cut, one refused.
DRAINED = {
    "whole": STREAMS // 2,
    "record": STREAMS // 4,
    "cut": STREAMS // 8,
    "refused": STREAMS // 8,
}


# --- a drain ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("flags", ["", "--workers 2", "--http h11 --loop asyncio"])
def test_terminate_under_load(tmp_path: Path, figure: Figures, flags: str) -> None:
    async def run(server: Command) -> Counter[str]:
        load = Load(server.port)
        asking = [asyncio.create_task(load.ask()) for _ in range(ASKING)]
        streams = await load.open(some_jobs())
        at = server.signal(TERM)
        ends = await finish(streams, drained=True)
        code = await asyncio.to_thread(server.exit_code, within=DRAIN + MARGIN + 1)
        took = time.monotonic() - at
        await asyncio.gather(*asking)
        figure("SIGTERM, then the end after s (drain 4 s)", f"{took:.2f}, exit code {code}")
        figure("streams", f"{dict(ends)}")
        figure("values", f"{dict(load.values)}")
        assert code == 0
        assert took < DRAIN + MARGIN
        assert load.values["cut"] == 0
        assert load.values["good"] and load.values["refused"] and load.values["nobody listens"]
        return ends

    with serving(tmp_path, *FLAGS, *flags.split()) as server:
        assert asyncio.run(run(server)) == DRAINED
        assert not (untidy := server.untidy()), untidy


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_killed_supervisor_under_load(tmp_path: Path) -> None:
    """Its workers drain as after a SIGTERM."""

    async def run(server: Command) -> Counter[str]:
        load = Load(server.port)
        asking = [asyncio.create_task(load.ask()) for _ in range(ASKING)]
        streams = await load.open(some_jobs())
        at = server.signal(KILL)
        ends = await finish(streams, drained=True)
        await asyncio.gather(*asking)
        assert time.monotonic() - at < DRAIN + MARGIN
        assert load.values["cut"] == 0
        return ends

    with serving(tmp_path, *FLAGS, "--workers", "2") as server:
        assert asyncio.run(run(server)) == DRAINED
        assert not (untidy := server.untidy()), untidy


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("flags", ["", "--workers 2"])
def test_terminate_twice_under_load(tmp_path: Path, figure: Figures, flags: str) -> None:
    async def run(server: Command) -> None:
        load = Load(server.port)
        asking = [asyncio.create_task(load.ask()) for _ in range(ASKING)]
        streams = await load.open(endless_jobs())
        server.signal(TERM)
        await asyncio.sleep(0.5)
        assert server.process.poll() is None
        assert not any(stream.done() for stream in streams)
        at = server.signal(TERM)
        code = await asyncio.to_thread(server.exit_code, within=5)
        took = time.monotonic() - at
        ends = await finish(streams, drained=False)
        await asyncio.gather(*asking)
        figure("second SIGTERM, then the end after s", f"{took:.3f}, exit code {code}")
        assert ends == {"cut": STREAMS}
        assert code == 128 + TERM
        assert took < 1

    with serving(tmp_path, *FLAGS, *flags.split()) as server:
        asyncio.run(run(server))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_kill_under_load(tmp_path: Path) -> None:
    """All streams are visibly cut, and another server can bind the address at once. Twice."""

    async def run(server: Command) -> None:
        load = Load(server.port)
        asking = [asyncio.create_task(load.ask()) for _ in range(ASKING)]
        streams = await load.open(some_jobs())
        server.signal(KILL)
        ends = await finish(streams, drained=False)
        await asyncio.gather(*asking)
        assert ends == {"cut": STREAMS}

    port = 0
    for number in range(2):
        with serving(tmp_path, *FLAGS, port=port, name=f"log{number}") as server:
            port = server.port
            asyncio.run(run(server))
            assert server.exit_code(within=5) == -KILL


# --- workers ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_killed_workers_are_replaced_under_load(tmp_path: Path, figure: Figures) -> None:
    """Two kills: each time half of the streams are cut, the others go on; values go on, too."""
    with serving(tmp_path, *FLAGS, "--workers", "2") as server:
        asyncio.run(kill_workers(server, figure))
        assert until(lambda: server.slots() == 0, seconds=10), server.metrics().decode()
        server.signal(TERM)
        assert server.exit_code(within=DRAIN + MARGIN) == 0
        assert not (untidy := server.untidy()), untidy


async def kill_workers(server: Command, figure: Figures) -> None:
    load = Load(server.port)
    pids = await asyncio.to_thread(workers, server)
    asking = [asyncio.create_task(load.ask()) for _ in range(ASKING)]
    for victim in sorted(pids):
        streams = await load.open(endless_jobs())
        os.kill(victim, KILL)
        at = time.monotonic()
        await asyncio.sleep(0.5)
        cut = sum(stream.done() for stream in streams)
        pids = await asyncio.to_thread(workers, server, without=victim)
        figure("killed; a new worker answers after s", f"{time.monotonic() - at:.2f}")
        figure("streams that were cut, of 200", f"{cut}")
        assert 0 < cut < STREAMS
        assert cut == sum(stream.done() for stream in streams), "the other worker's streams end"
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    before = load.values.copy()
    await asyncio.sleep(1)
    load.stopping = True
    await asyncio.gather(*asking)
    figure("values", f"{dict(load.values)}")
    assert load.values["good"] > before["good"]
    bad = {
        key: count for key, count in load.values.items() if key not in ("good", "cut", "no answer")
    }
    assert not bad
    assert load.values["cut"] + load.values["no answer"] <= 2 * ASKING
    check_metrics(server, load.values)


def check_metrics(server: Command, values: Counter[str]) -> None:
    """Any worker reports the sums of all workers, killed ones included."""
    shown = {counted(server) for _ in range(8)}
    assert len(shown) == 1
    count = shown.pop()
    # a killed worker may have sent one answer that it had no time to count
    assert values["good"] - 2 <= count <= values["good"] + values["cut"] + values["no answer"]


def counted(server: Command) -> float:
    lines = server.metrics().decode().splitlines()
    name = 'modelserve_requests_total{model_name="value"'
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith(name) and "done" in line
    )


def workers(server: Command, without: int = 0) -> set[int]:
    """Return the two processes that answer, once they do."""

    def answering() -> Iterator[int]:
        for _ in range(12):
            yield server.account()["pid"]

    found: set[int] = set()

    def both() -> bool:
        found.clear()
        found.update(answering())
        return len(found) == 2 and without not in found

    assert until(both, seconds=20), found
    return found
