"""Rows a second of a body that is streamed while it is answered, beside a bare application.

One connection sends all rows and reads all results at the same time, from two threads. The memory
is that of the server's process: before, and its highest while the rows went through.
"""

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import accounts

KINDS = ("bare", "lists", "bare_iterator", "iterator")
ROW = b'{"x": 12345, "name": "a row of an ordinary size", "more": [1.5, 2.5, 3.5]}\n'
LOT_ROWS = 2000


def run(rows: int, rounds: int, host: str = "uvicorn", kinds: Sequence[str] = KINDS) -> str:
    """Measure all kinds in turn; return a table."""
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for kind in kinds:
            with serving(host) as (port, pid):
                send_rows(port, kind, 10_000)
                before, used = resident(pid), cpu_seconds(pid)
                with peak(pid) as highest:
                    seconds = send_rows(port, kind, rows)
                rates[kind].append(rows / seconds)
                cpu[kind].append((cpu_seconds(pid) - used) / rows * 1e6)
                memory[kind] = (before, highest[0])
    lines = [f"{host}, {rows} rows of {len(ROW)} bytes, median of {rounds}"]
    for kind in kinds:
        rate = statistics.median(rates[kind])
        ratio = statistics.median(
            ours / bare for ours, bare in zip(rates[kind], rates[kinds[0]], strict=True)
        )
        before, most = memory[kind]
        lines.append(
            f"{kind:14} {rate:10.0f} rows/s {ratio:6.2f} of {kinds[0]}"
            f" {statistics.median(cpu[kind]):6.2f} us CPU a row"
            f" {before:7.1f} -> {most:.1f} MB"
        )
    return "\n".join(lines)


@contextmanager
def serving(host: str, target: str = "benchmarks.apps.duplex:app") -> Iterator[tuple[int, int]]:
    """Run an application on a host of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "uvicorn": ["--port", str(port), "--log-level", "warning"],
        "hypercorn": ["--bind", f"127.0.0.1:{port}"],
        "granian": ["--port", str(port), "--interface", "asgi", "--no-log"],
    }
    command = [sys.executable, "-m", host, target, *options[host]]
    process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def send_rows(port: int, kind: str, rows: int) -> float:
    """Send rows and read their results; return the seconds until the last."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as client:
        head = f"POST /v1/models/{kind}:predict HTTP/1.1\r\nhost: x\r\n"
        head += "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        writer = threading.Thread(target=_write, args=(client, rows))
        writer.start()
        found = _read(client)
        writer.join()
    assert found == rows, f"{found} results for {rows} rows"
    return time.perf_counter() - began


def _write(client: socket.socket, rows: int) -> None:
    while rows:
        lot = ROW * min(rows, LOT_ROWS)
        client.sendall(b"%x\r\n%b\r\n" % (len(lot), lot))
        rows -= min(rows, LOT_ROWS)
    client.sendall(b"0\r\n\r\n")


def _read(client: socket.socket) -> int:
    found, tail = 0, b""
    while not tail.endswith(b"0\r\n\r\n"):
        data = client.recv(1 << 18)
        if not data:
            break
        found += data.count(b'{"y"')
        found += (tail[-3:] + data[:3]).count(b'{"y"')  # across two pieces
        tail = (tail + data)[-8:]
    return found


def resident(pid: int) -> float:
    """Return the memory of a process and its children, in MB."""
    pids = [pid, *_children(pid)]
    return sum(_rss(one) for one in pids) / 1024


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children."""
    return sum(accounts.cpu_seconds(one) for one in [pid, *_children(pid)])


@contextmanager
def peak(pid: int) -> Iterator[list[float]]:
    """Sample the memory of a process; the list has the highest."""
    highest, stop = [0.0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.05):
            highest[0] = max(highest[0], resident(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield highest
    finally:
        stop.set()
        thread.join()


def main(arguments: Any = None) -> None:
    """Run from `python -m benchmarks.duplex ROWS ROUNDS HOST KIND,...`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    rows, rounds, host, kinds = [
        *given,
        *["1000000", "3", "uvicorn", ",".join(KINDS)][len(given) :],
    ]
    print(run(int(rows), int(rounds), host, kinds.split(",")))


if __name__ == "__main__":
    main()
