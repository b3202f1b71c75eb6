"""Everything at once: loads that fail badly, unloads, streams, leavers, kills, and SIGTERM at the end.

MODELSERVE_CHAOS_SECONDS is how long, MODELSERVE_CHAOS_SEED where to start the choices. As in the
soak, the idle server is compared with what it was after the first quarter.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chaosmodels import BAD, GOOD, write_repository
from faultclients import Answer, Cut, Swarm, Wire
from faultserver import Command, Figures, Usage, at_rest, request, serving, until

pytest_plugins = ["faultfixtures"]

SECONDS = float(os.environ.get("MODELSERVE_CHAOS_SECONDS", "24"))
SEED = int(os.environ.get("MODELSERVE_CHAOS_SEED", random.randrange(10**6)))
LAPS = 4
CLIENTS = 60
CONTROLLERS = 4
DRAIN = 3.0
GROWTH = 1.05

BAD_NAMES = [f"bad-{error}{how}" for error in BAD for how in ("", "async")]


@dataclass
class Chaos:
    """Clients that load, unload and ask the models of the repository."""

    port: int
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    stopping: bool = False
    lap: int = 0

    async def run(self, seconds: float) -> None:
        self.stopping = False
        self.lap += 1
        rngs = [random.Random(f"{SEED}-{self.lap}-{n}") for n in range(CLIENTS + CONTROLLERS)]
        tasks = [asyncio.create_task(self._again(self._control, rng)) for rng in rngs[:CONTROLLERS]]
        tasks += [asyncio.create_task(self._again(self._ask, rng)) for rng in rngs[CONTROLLERS:]]
        await asyncio.sleep(seconds)
        self.stopping = True
        await asyncio.gather(*tasks)

    async def unload_all(self) -> None:
        for name in GOOD:
            await self.answer(request("POST", f"/v2/repository/models/{name}/unload"))

    async def answer(self, data: bytes) -> Answer | None:
        """Return an answer; None where there is none, as from a worker that is killed."""
        with suppress(OSError, Cut):
            async with asyncio.timeout(30), Wire(self.port) as wire:
                await wire.send(data)
                return await wire.answer()
        return None

    async def _again(self, act: Any, rng: random.Random) -> None:
        while not self.stopping and len(self.problems) < 20:
            try:
                await act(rng)
            except TimeoutError:
                self.problems.append(f"{act.__name__}: no end")
            await asyncio.sleep(rng.expovariate(20))

    async def _control(self, rng: random.Random) -> None:
        verb = rng.choice(("load", "load", "unload"))
        name = rng.choice((*GOOD, *GOOD, *BAD_NAMES))
        data = request("POST", f"/v2/repository/models/{name}/{verb}")
        if rng.random() < 0.2:  # leave before it is loaded
            async with asyncio.timeout(30):
                with suppress(OSError):
                    async with Wire(self.port) as wire:
                        await wire.send(data)
                        await asyncio.sleep(rng.random() * 0.1)
            self.outcomes[f"left a {verb}"] += 1
            return
        answer = await self.answer(data)
        if answer is not None:
            kind = "good" if name in GOOD else "bad"
            self.outcomes[f"{verb} {kind} {answer.status}"] += 1
            if verb == "load" and answer.status == 200 and kind == "bad":
                self.problems.append(f"{name} has loaded: {answer}")

    async def _ask(self, rng: random.Random) -> None:
        """Ask a model that may be loaded or not; sometimes leave."""
        name = rng.choice((*GOOD, *GOOD, *GOOD, rng.choice(BAD_NAMES), "stream", "sync-stream"))
        plan = b'{"count": %d, "gap": 0.01, "cleanup": 0.01}' % rng.choice((0, 3, 50))
        data = request("POST", f"/v1/models/{name}:predict", plan)
        if rng.random() < 0.6:
            answer = await self.answer(data)
            self.outcomes[f"asked {answer.status if answer else 'cut'}"] += 1
            if answer is not None and name in BAD_NAMES and answer.status == 200:
                self.problems.append(f"{name} has answered: {answer}")
            return
        with suppress(OSError):
            async with Wire(self.port, source=rng.randrange(2, 250)) as wire:
                await wire.send(data)
                await asyncio.sleep(rng.random() * rng.choice((0, 0.05, 0.3)))
                wire.close(reset=rng.random() < 0.5)
        self.outcomes["left"] += 1


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 120)
def test_chaos(tmp_path: Path, figure: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    write_repository(tmp_path / "models")
    with serving(tmp_path, *flags(tmp_path), "--timeout-keep-alive", "2", ready=False) as server:
        chaos, swarm = Chaos(server.port), Swarm(server.port, SEED)
        rests = []
        for _ in range(LAPS):
            asyncio.run(lap(chaos, swarm))
            assert not chaos.problems + swarm.problems, "\n".join(chaos.problems + swarm.problems)
            rests.append(at_rest(server))
        report(figure, chaos, swarm, rests)
        check(chaos, rests)
        assert not (untidy := server.untidy()), untidy
        asyncio.run(terminate(server, chaos, figure))


async def lap(chaos: Chaos, swarm: Swarm) -> None:
    await asyncio.gather(chaos.run(SECONDS / LAPS), swarm.run(CLIENTS, SECONDS / LAPS, pause=0.5))
    async with asyncio.timeout(30):
        await chaos.unload_all()


def check(chaos: Chaos, rests: list[tuple[Usage, dict[str, Any]]]) -> None:
    (before, first), *later = rests
    for usage, account in later:
        assert usage.threads <= before.threads + 3, "threads leaked"
        assert usage.files <= before.files, "descriptors leaked"
        assert account["tasks"] <= first["tasks"], "tasks leaked"
    after, last = later[-1]
    assert after.rss <= before.rss * 1.2, "memory grows"  # the first laps are short
    for name in ("objects", "blocks", "malloc"):
        assert last[name] <= first[name] * GROWTH, f"{name} leaked"
    assert last["started"]["loaded"] > 3
    assert chaos.outcomes["load good 200"] and chaos.outcomes["unload good 200"]
    assert chaos.outcomes["asked 200"]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 90)
def test_chaos_with_workers_that_are_killed(tmp_path: Path, figure: Figures) -> None:
    write_repository(tmp_path / "models")
    with serving(tmp_path, *flags(tmp_path), "--workers", "2", ready=False) as server:
        chaos = Chaos(server.port)
        kills = asyncio.run(kill_meanwhile(server, chaos))
        assert not chaos.problems, "\n".join(chaos.problems)
        assert until(lambda: server.slots() == 0, seconds=15), server.metrics().decode()
        figure("kills", f"{kills}")
        figure("outcomes", f"{dict(chaos.outcomes.most_common())}")
        assert chaos.outcomes["asked 200"] and chaos.outcomes["load good 200"]
        asyncio.run(terminate(server, chaos, figure))
        assert not (untidy := server.untidy()), untidy


async def kill_meanwhile(server: Command, chaos: Chaos) -> int:
    """Kill a worker now and then, under all the rest; one that ends early is replaced later."""
    running = asyncio.create_task(chaos.run(SECONDS))
    rng, kills = random.Random(SEED), 0
    while not running.done():
        await asyncio.sleep(min(SECONDS / 4, 15) * (0.5 + rng.random()))
        victims = workers_of(server)
        if victims and not running.done():
            os.kill(rng.choice(victims), signal.SIGKILL)
            kills += 1
    await running
    assert await asyncio.to_thread(until, lambda: len(workers_of(server)) == 2, seconds=40)
    assert await asyncio.to_thread(until, lambda: server.is_ready("/"), seconds=20)
    return kills


def workers_of(server: Command) -> list[int]:
    """Return the processes that listen, of those that the supervisor has started."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    pids = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def terminate(server: Command, chaos: Chaos, figure: Figures) -> None:
    """Send SIGTERM under load: the server ends in time, with 0."""
    running = asyncio.create_task(chaos.run(1.0 + DRAIN))
    await asyncio.sleep(0.5)
    at = server.signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.exit_code, within=DRAIN + 4)
    figure("SIGTERM, then the end after s, exit code", f"{time.monotonic() - at:.2f}, {code}")
    await running
    assert code == 0, server.log[-3000:]


def flags(folder: Path) -> list[str]:
    return ["--model-dir", str(folder / "models"), "--drain-timeout", str(DRAIN)]


def report(
    figure: Figures, chaos: Chaos, swarm: Swarm, rests: list[tuple[Usage, dict[str, Any]]]
) -> None:
    usages, accounts = zip(*rests, strict=True)
    figure("seconds, seed", f"{SECONDS:g}, {SEED}")
    figure("outcomes", f"{dict(chaos.outcomes.most_common())}")
    figure("other clients", f"{dict(swarm.outcomes.most_common())}")
    figure("models loaded and stopped", f"{accounts[-1]['started']['loaded']}")
    figure("handlers started and ended", f"{sum(accounts[-1]['started'].values())}")
    for name in ("rss", "threads", "files"):
        figure(name, " ".join(f"{getattr(usage, name)}" for usage in usages))
    for name in ("tasks", "objects", "blocks", "malloc"):
        figure(name, " ".join(f"{account[name]}" for account in accounts))
