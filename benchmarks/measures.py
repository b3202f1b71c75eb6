"""Measure one workload on one running server, in named figures."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from benchmarks import client
from benchmarks.accounts import OtherProcesses
from benchmarks.competitors import Endpoint
from benchmarks.payloads import MARK, RECORD_BYTES
from benchmarks.servers import MemoryPeak, Server
from benchmarks.works import Work

Figures = dict[str, float]

WRK = shutil.which("wrk")
WRK_SCRIPT = Path(__file__).resolve().parent / "post.lua"
MIB = 1 << 20
KIB = 1 << 10
CANCELS = 100
"""How many of the open streams are closed one by one."""
UNNOTICED_SECONDS = 1.0
"""After this, a clean-up that has not run counts as a hang-up that was not noticed."""


class Failed(Exception):
    """A server failed in a workload; the message says how."""


def check(server: Server, work: Work, endpoint: Endpoint) -> None:
    """Raise `Failed` unless the endpoint gives a whole answer with the right number of items."""
    if work.kind in ("idle", "cancel"):
        return
    try:
        status, received = client.ask(server.port, _message(endpoint))
    except OSError as error:
        raise Failed(f"no answer: {error}") from error
    if status != 200:
        raise Failed(f"status {status}: {received[-200:].decode(errors='replace')}")
    if received.count(MARK) != endpoint.items:
        raise Failed(f"{received.count(MARK)} items where {endpoint.items} were asked for")
    if _MEASURES[work.kind] is unary and b"8.0" not in received:
        raise Failed(f"the answer is not the echo: {received[-200:].decode(errors='replace')}")


def measure(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    """Return the figures of one workload, measured for about this many seconds."""
    check(server, work, endpoint)
    others = OtherProcesses(server)
    try:
        figures = _MEASURES[work.kind](server, work, endpoint, seconds)
    except OSError as error:
        raise Failed(str(error) or type(error).__name__) from error
    return figures | {"others_cpus": others.cpus()}


def unary(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    """Requests a second, latency, CPU time a request."""
    _drive(server, work, endpoint, min(1.0, seconds / 2))
    with MemoryPeak(server) as memory:
        if WRK:
            found = _wrk(server, work, endpoint, max(1, round(seconds)))
        else:
            found = _unary_figures(_drive(server, work, endpoint, seconds))
    return found | {"peak_mib": memory.peak / MIB}


def stream(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    """Items a second, CPU time an item."""
    with MemoryPeak(server) as memory:
        load = _drive(server, work, endpoint, seconds)
    if not load.items:
        raise Failed("no items")
    return {
        "per_second": load.items / load.seconds,
        "cpu_us": load.cpu_seconds / load.items * 1e6,
        "errors": load.errors,
        "peak_mib": memory.peak / MIB,
    }


def first(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    """Time to the first item, one stream at a time on one connection."""
    client.first_items(server.port, _message(endpoint), count=5, seconds=seconds)
    found = client.first_items(server.port, _message(endpoint), count=500, seconds=seconds)
    return {"p50_ms": _percentile(found, 50) * 1e3, "p99_ms": _percentile(found, 99) * 1e3}


def idle(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    """Memory a stream that has sent one item and waits."""
    message = _message(endpoint)
    with client.held_streams(server.port, message, 50, seconds=30):
        pass
    server.wait_until_quiet()
    before = server.memory()
    with client.held_streams(server.port, message, work.connections, seconds=60):
        server.wait_until_quiet()
        after = server.memory()
    return {"kib_a_stream": (after - before) / work.connections / KIB}


def cancel(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> Figures:
    """Time from a client's close to the end of the handler's clean-up.

    The server writes down when each clean-up ran; both clocks are CLOCK_MONOTONIC.
    """
    message = _message(endpoint)
    with (
        client.held_streams(server.port, message, work.connections, seconds=60) as peers,
        server.report.open("rb", buffering=0) as report,
    ):
        report.seek(0, os.SEEK_END)
        noticed = _close([peers[0]], report)
        if not noticed:
            return {"unnoticed": work.connections}
        for peer in peers[1:CANCELS]:
            noticed += _close([peer], report)
        rest = _close(peers[CANCELS:], report)
    return {
        "p50_ms": _percentile(noticed, 50) * 1e3,
        "p99_ms": _percentile(noticed, 99) * 1e3,
        "all_ms": max(rest, default=0.0) * 1e3,
        "unnoticed": work.connections - len(noticed) - len(rest),
    }


def _close(peers: Sequence[socket.socket], report: IO[bytes]) -> list[float]:
    """Close streams; return after how many seconds the clean-up of each ran, if it did."""
    closed = time.monotonic_ns()
    for peer in peers:
        peer.close()
    ends: list[float] = []
    deadline = time.monotonic() + UNNOTICED_SECONDS
    while len(ends) < len(peers) and time.monotonic() < deadline:
        time.sleep(0.001)
        ends += [(moment - closed) / 1e9 for moment in _moments(report)]
    return ends


def _moments(report: IO[bytes]) -> list[int]:
    """Return when each clean-up ran that has been recorded since the last call."""
    data = report.read()
    return [
        int.from_bytes(data[at : at + RECORD_BYTES], "little")
        for at in range(0, len(data), RECORD_BYTES)
    ]


_MEASURES = {
    "unary": unary,
    "unary_sync": unary,
    "batched": unary,
    "one_by_one": unary,
    "bytes": stream,
    "ndjson": stream,
    "sse": stream,
    "chat": stream,
    "joined": stream,
    "sync": stream,
    "paced": first,
    "idle": idle,
    "cancel": cancel,
}


def _message(endpoint: Endpoint) -> bytes:
    return client.request(endpoint.path, endpoint.body, accept=endpoint.accept)


def _drive(server: Server, work: Work, endpoint: Endpoint, seconds: float) -> client.Load:
    return client.drive(
        server.port,
        _message(endpoint),
        connections=work.connections,
        seconds=seconds,
        warm=min(1.0, seconds / 2),
        cpu=server.cpu_seconds,
    )


def _unary_figures(load: client.Load) -> Figures:
    if not load.requests:
        raise Failed("no answers")
    return {
        "per_second": load.requests / load.seconds,
        "p50_ms": _percentile(load.latencies, 50) * 1e3,
        "p99_ms": _percentile(load.latencies, 99) * 1e3,
        "cpu_us": load.cpu_seconds / load.requests * 1e6,
        "errors": load.errors,
    }


def _wrk(server: Server, work: Work, endpoint: Endpoint, seconds: int) -> Figures:
    before = server.cpu_seconds()
    found = run_wrk(server.port, endpoint, connections=work.connections, seconds=seconds)
    cpu = server.cpu_seconds() - before
    if not found["requests"]:
        raise Failed("no answers")
    return {
        "per_second": found["requests"] / found["microseconds"] * 1e6,
        "p50_ms": found["p50"] / 1e3,
        "p99_ms": found["p99"] / 1e3,
        "cpu_us": cpu / found["requests"] * 1e6,
        "errors": found["errors"],
    }


def run_wrk(port: int, endpoint: Endpoint, *, connections: int, seconds: int) -> Figures:
    """Run wrk once and return what its script prints."""
    command = [WRK or "wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s"]
    command += [
        "--timeout",
        "20s",
        "-s",
        str(WRK_SCRIPT),
        f"http://127.0.0.1:{port}{endpoint.path}",
    ]
    done = subprocess.run(
        [*command, "--", endpoint.body.decode(), endpoint.accept],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"requests"')]
    if not lines:
        raise Failed(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
    return dict(json.loads(lines[0]))


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
