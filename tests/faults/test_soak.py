"""A soak test: hundreds of clients with random faults, and no leak.

MODELSERVE_SOAK_SECONDS is how long (the full proof is 300), MODELSERVE_SOAK_SEED where to start the
choices, MODELSERVE_SOAK_FLAGS more of the command's arguments. After a quarter of the time, and
then after each further quarter, all clients stop, and the idle server is compared with what it was
after the first.

Memory is measured three ways: resident, Python's objects and blocks, and malloc's bytes in use; a
leak that is hidden in what malloc keeps for later shows in the others.

Two settings make memory grow by leaks only. glibc's arenas, one a thread,
keep what was freed in them: two are enough. And uvicorn holds a connection that was reset until its
keep-alive time is over (`connection_lost` with an exception leaves the timer): 5 s instead of 65.
"""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from faultapp import CONCURRENCY, NARROW, NARROW_SYNC
from faultclients import Swarm, Wire, never_read
from faultserver import Command, Figures, Usage, at_rest, request, serving

pytest_plugins = ["faultfixtures"]

SECONDS = float(os.environ.get("MODELSERVE_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("MODELSERVE_SOAK_SEED", random.randrange(10**6)))
FLAGS = os.environ.get("MODELSERVE_SOAK_FLAGS", "").split()
CLIENTS = 300
PAUSE = 0.5  # seconds, the mean between two requests of one client
STALLED = 200  # enough for each thread to have a full buffer
GROWTH = 1.05
LAPS = 4

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 120)
def test_soak(tmp_path: Path, figure: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with serving(tmp_path, "--timeout-keep-alive", "5", *FLAGS) as server:
        swarm = Swarm(server.port, SEED)
        asyncio.run(reach_the_peaks(swarm))
        rests = []
        for _ in range(LAPS):
            asyncio.run(swarm.run(CLIENTS, SECONDS / LAPS, pause=PAUSE))
            rests.append(at_rest(server))
            assert not swarm.problems, "\n".join(swarm.problems)
        report(figure, server, swarm, rests)
        check(swarm, rests)
        assert not (untidy := server.untidy()), untidy
        server.signal(signal.SIGTERM)
        assert server.exit_code(within=5) == 0


async def reach_the_peaks(swarm: Swarm) -> None:
    """Start all 40 threads and stall many large streams, so that memory grows no further."""
    data = request("POST", "/v1/models/sync-value:predict", b'{"before": 0.5}')

    async def wake_a_worker() -> None:
        async with Wire(swarm.port) as wire:
            await wire.send(data)
            assert (await wire.answer()).status == 200

    rng = random.Random(SEED)
    await asyncio.gather(*(wake_a_worker() for _ in range(60)))
    await asyncio.gather(*(never_read(swarm, rng) for _ in range(STALLED)))


def check(swarm: Swarm, rests: list[tuple[Usage, dict[str, Any]]]) -> None:
    (before, first), *later = rests
    for usage, account in later:
        assert usage.threads <= before.threads, "threads leaked"
        assert usage.files <= before.files, "descriptors leaked"
        assert account["tasks"] <= first["tasks"], "tasks leaked"
    (after, last) = later[-1]
    assert after.rss <= before.rss * GROWTH, "memory grows"
    for name in ("objects", "blocks", "malloc"):
        assert last[name] <= first[name] * GROWTH, f"{name} leaked"
    assert last["most"]["narrow"] <= NARROW
    assert last["most"]["narrow-sync"] <= NARROW_SYNC
    assert swarm.outcomes["good"] > sum(swarm.outcomes.values()) / 2
    assert {"good", "failed", "record", "cut"} <= set(swarm.outcomes)


def report(
    figure: Figures,
    server: Command,
    swarm: Swarm,
    rests: list[tuple[Usage, dict[str, Any]]],
) -> None:
    usages = [usage for usage, _ in rests]
    accounts = [account for _, account in rests]
    minutes = SECONDS / LAPS * (LAPS - 1) / 60
    slope = (usages[-1].rss - usages[0].rss) / 1024 / minutes
    figure("seconds, clients, seed", f"{SECONDS:g}, {CLIENTS}, {SEED}")
    figure("exchanges", f"{swarm.kinds.total()}: {dict(swarm.kinds.most_common())}")
    figure("answers that were read", f"{dict(swarm.outcomes.most_common())}")
    started = sum(accounts[-1]["started"].values())
    figure("handlers started, ended", f"{started}, {sum(accounts[-1]['ended'].values())}")
    figure("most handlers at once (the limit)", f"{accounts[-1]['most']['all']} ({CONCURRENCY})")
    figure("RSS when idle, MiB", " ".join(f"{u.rss / MIB:.1f}" for u in usages))
    figure("PSS when idle, MiB", " ".join(f"{u.pss / MIB:.1f}" for u in usages))
    figure("memory slope, KiB a minute", f"{slope:.0f}")
    figure("threads when idle", " ".join(f"{u.threads}" for u in usages))
    figure("descriptors when idle", " ".join(f"{u.files}" for u in usages))
    figure("tasks when idle", " ".join(f"{a['tasks']}" for a in accounts))
    figure("objects when idle", " ".join(f"{a['objects']}" for a in accounts))
    figure("Python's blocks when idle", " ".join(f"{a['blocks']}" for a in accounts))
    figure("malloc's bytes when idle, KiB", " ".join(f"{a['malloc'] // 1024}" for a in accounts))
    figure("slowest liveness answer, ms", f"{swarm.slowest_probe * 1000:.0f}")
    figure("server's CPU seconds", f"{server.cpu_seconds():.1f}")
