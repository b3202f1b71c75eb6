"""Run every workload on every server, in rounds, and divide by the bare application of the round.

Within a round all the servers are up and idle; a work is measured on one after the other, so that
a figure and the bare figure that it is divided by are seconds apart. The next round starts the
servers anew and begins with another one.
"""

import contextlib
import datetime
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import competitors, environments, footprint, measures
from benchmarks.competitors import Competitor, Endpoint
from benchmarks.environments import Unavailable
from benchmarks.measures import Figures
from benchmarks.servers import Server, wait_for_port
from benchmarks.works import WORKS, Work

BASE = competitors.NAMES[0]
START_SECONDS = 90.0
DISTURBED_CPUS = 0.25
"""A measurement is repeated if other processes used more than this during it."""


@dataclass(frozen=True)
class Plan:
    """What to run: servers, workloads, rounds and seconds."""

    names: Sequence[str]
    works: Sequence[str]
    rounds: int
    seconds: float
    weigh: bool = True
    retries: int = 0


@dataclass
class Measured:
    """One workload on one server in one round; `problem` says why there are no figures."""

    round: int
    server: str
    work: str
    figures: Figures = field(default_factory=dict)
    problem: str = ""


@dataclass
class Results:
    """All results of a run."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    footprints: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)

    def figure(self, server: str, work: str, figure: str) -> float | None:
        """Return the median of one figure over the rounds; None where there is none."""
        values = self._by_round(server, work, figure).values()
        return statistics.median(values) if values else None

    def ratio(self, server: str, work: str, figure: str, base: str = BASE) -> float | None:
        """Return the median over the rounds of the figure divided by the base's in that round."""
        own, bases = (self._by_round(name, work, figure) for name in (server, base))
        ratios = [own[number] / bases[number] for number in own if bases.get(number)]
        return statistics.median(ratios) if ratios else None

    def problem(self, server: str, work: str) -> str:
        """Return why a server has no figures for a workload; empty if it has, or was not measured."""
        entries = [one for one in self.measured if (one.server, one.work) == (server, work)]
        return next((one.problem for one in entries if one.problem), "")

    def peak_mib(self, server: str) -> float | None:
        """Return the most memory seen under any workload except idle streams."""
        peaks = [
            one.figures["peak_mib"]
            for one in self.measured
            if one.server == server and "peak_mib" in one.figures
        ]
        return max(peaks, default=None)

    def others_cpus(self) -> float | None:
        """Return how many CPUs other processes used, in the median of all measurements."""
        seen = [one.figures["others_cpus"] for one in self.measured if "others_cpus" in one.figures]
        return statistics.median(seen) if seen else None

    def _by_round(self, server: str, work: str, figure: str) -> dict[int, float]:
        return {
            one.round: one.figures[figure]
            for one in self.measured
            if (one.server, one.work) == (server, work) and figure in one.figures
        }

    def as_json(self) -> str:
        """Return the whole as JSON, the medians and ratios written out beside the raw figures."""
        medians = [
            {"server": server, "work": work, "figure": figure, "median": median, "ratio": ratio}
            for server, work, figure in self._keys()
            if (median := self.figure(server, work, figure)) is not None
            for ratio in [self.ratio(server, work, figure)]
        ]
        return json.dumps(asdict(self) | {"medians": medians}, indent=1)

    def _keys(self) -> list[tuple[str, str, str]]:
        return list(
            dict.fromkeys(
                (one.server, one.work, figure) for one in self.measured for figure in one.figures
            )
        )


def from_json(text: str) -> Results:
    """Read back what `Results.as_json` has written."""
    found = json.loads(text)
    found.pop("medians")
    return Results(**found | {"measured": [Measured(**one) for one in found["measured"]]})


def run(plan: Plan, save: Callable[[Results], None]) -> Results:
    """Carry out a plan; `save` is called with the results after every round."""
    results = Results(machine=machine(), plan=asdict(plan))
    pythons = _prepare(plan, results)
    for number in range(plan.rounds):
        _run_round(number, plan, pythons, results)
        save(results)
    return results


def machine() -> dict[str, Any]:
    """Describe the machine."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line for line in info.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "client": "wrk for unary calls" if measures.WRK else "our client for all",
        "load_average_at_start": os.getloadavg()[0],
    }


def _prepare(plan: Plan, results: Results) -> dict[str, Path]:
    """Make the environments; return the Python of each competitor that could be installed."""
    pythons: dict[str, Path] = {}
    for name in plan.names:
        competitor = competitors.load(name)
        try:
            pythons[name] = environments.ensure(name, competitor.REQUIREMENTS)
        except Unavailable as reason:
            _skip(results, name, reason)
            continue
        results.versions[name] = environments.versions(pythons[name], _packages(competitor))
        if plan.weigh:
            results.footprints[name] = footprint.weigh(competitor, pythons[name])
        _say(f"{name}: {_versions_line(results.versions[name])}")
    return pythons


def _packages(competitor: Competitor) -> list[str]:
    own = ["modelserve"] if any(one.startswith("-e") for one in competitor.REQUIREMENTS) else []
    named = [re.split(r"[>[]", one)[0] for one in competitor.REQUIREMENTS if one[:2] != "-e"]
    usual = [
        "uvicorn",
        "uvloop",
        "httptools",
        "starlette",
        "fastapi",
        "anyio",
        "orjson",
        "pydantic",
    ]
    return list(dict.fromkeys([*own, *named, *usual]))


def _versions_line(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _run_round(number: int, plan: Plan, pythons: dict[str, Path], results: Results) -> None:
    names = [name for name in pythons if name not in results.skipped]
    with contextlib.ExitStack() as stack:
        fleet = Fleet(number, pythons, results)
        stack.callback(fleet.stop)
        for name in names:
            fleet.start(name)
        for work in _due(plan, number):
            for name in _rotated(names, number):
                _measure(number, fleet, name, work, plan, results)


def _due(plan: Plan, number: int) -> list[Work]:
    works = [WORKS[name] for name in plan.works]
    return [work for work in works if number == 0 or not work.once]


def _rotated(names: Sequence[str], number: int) -> list[str]:
    """Begin each round with another server, so that none is always first or last."""
    shift = (number * 3) % len(names) if names else 0
    return [*names[shift:], *names[:shift]]


class Fleet:
    """The servers of one round, all up, one under load at a time."""

    def __init__(self, number: int, pythons: dict[str, Path], results: Results) -> None:
        self._number = number
        self._pythons = pythons
        self._results = results
        self._servers: dict[str, Server] = {}

    def start(self, name: str) -> None:
        """Start a server, wait for its first answer, note how long that took."""
        begun = time.monotonic()
        server = self._spawn(name)
        self._servers[name] = server
        try:
            _await_answer(server, competitors.load(name))
        except Unavailable as reason:
            _skip(self._results, name, reason)
            self._drop(name)
        else:
            figures = {"seconds": time.monotonic() - begun, "mib": server.memory() / 2**20}
            self._results.measured.append(Measured(self._number, name, "start", figures))

    def _spawn(self, name: str) -> Server:
        return Server(name, self._pythons[name], competitors.load(name).COMMAND)

    def has(self, name: str) -> bool:
        """Return whether this server is up."""
        return name in self._servers

    def get(self, name: str) -> Server:
        """Return a running server. Raises `Unavailable` if it did not start."""
        if name not in self._servers:
            raise Unavailable("it did not start again")
        return self._servers[name]

    @contextlib.contextmanager
    def fresh(self, name: str) -> Iterator[Server]:
        """Run another server of the same kind for the length of a block."""
        server = self._spawn(name)
        try:
            _await_answer(server, competitors.load(name))
            yield server
        finally:
            server.stop()

    def settle(self, name: str) -> None:
        """Let a server finish its work; restart one that does not."""
        server = self._servers[name]
        if not (server.alive() and server.wait_until_quiet()):
            _say(f"{name}: still busy, or gone, after the client has left: started anew")
            self._drop(name)
            self.start(name)

    def _drop(self, name: str) -> None:
        self._servers.pop(name).stop()

    def stop(self) -> None:
        """End every server that is still up, all at the same time."""
        for server in self._servers.values():
            server.ask_to_stop()
        with contextlib.ExitStack() as stack:
            for server in self._servers.values():
                stack.callback(server.stop)
        self._servers.clear()


def _await_answer(server: Server, competitor: Competitor) -> None:
    """Return once a unary call gets the right response."""
    wait_for_port(server, START_SECONDS)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return measures.check(server, WORKS["unary-1"], competitor.ENDPOINTS["unary"])
        except measures.Failed as reason:
            if not server.alive() or time.monotonic() > deadline:
                raise Unavailable(f"does not answer: {reason}\n{server.log_tail()}") from reason
            time.sleep(0.1)


def _measure(
    number: int, fleet: Fleet, name: str, work: Work, plan: Plan, results: Results
) -> None:
    endpoint = competitors.load(name).ENDPOINTS.get(work.kind)
    if endpoint is None or not fleet.has(name):
        return
    entry = Measured(number, name, work.name)
    results.measured.append(entry)
    try:
        entry.figures = _undisturbed(fleet, name, work, endpoint, plan)
    except (measures.Failed, Unavailable) as problem:
        entry.problem = str(problem)
    _say(f"round {number + 1}, {work.name}, {name}: {entry.problem or _line(entry.figures)}")


def _undisturbed(fleet: Fleet, name: str, work: Work, endpoint: Endpoint, plan: Plan) -> Figures:
    """Return the figures of the first undisturbed measurement, or of the least disturbed one."""
    tries: list[Figures] = []
    while len(tries) <= plan.retries:
        tries.append(_figures(fleet, name, work, endpoint, plan.seconds))
        if tries[-1]["others_cpus"] <= DISTURBED_CPUS:
            return tries[-1]
    return min(tries, key=lambda figures: figures["others_cpus"])


def _figures(fleet: Fleet, name: str, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    if work.fresh:
        with fleet.fresh(name) as own:
            return measures.measure(own, work, endpoint, seconds)
    figures = measures.measure(fleet.get(name), work, endpoint, seconds)
    fleet.settle(name)
    return figures


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())


def _skip(results: Results, name: str, reason: Exception) -> None:
    results.skipped[name] = str(reason)
    _say(f"{name}: skipped: {reason}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
