"""Start a server, sum up what its processes use, and end every one of them."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Self

from benchmarks import accounts
from benchmarks.competitors import ROOT
from benchmarks.environments import Unavailable
from benchmarks.payloads import REPORT_VARIABLE

STOP_SECONDS = 5.0
QUIET_CPU = 0.05
"""A server that uses less of one CPU than this is idle."""


class Server:
    """One competitor's server: its processes, its port, its log."""

    def __init__(self, name: str, python: Path, command: Sequence[str]) -> None:
        self.name = name
        self.port, spare = free_ports(2)
        self._folder = tempfile.TemporaryDirectory(prefix=f"benchmark-{name}-")
        self._log: IO[bytes] = (Path(self._folder.name) / "log").open("w+b")
        self.report = Path(self._folder.name) / "ends"
        self.report.touch()
        words = [word.format(port=self.port, spare=spare) for word in command]
        self._process = subprocess.Popen(
            [str(python), *words],
            cwd=ROOT,
            env=_environment(python, self.report),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._seen: dict[int, str] = {}

    def alive(self) -> bool:
        """Return whether the first process still runs."""
        return self._process.poll() is None

    def log_tail(self, lines: int = 8) -> str:
        """Return the end of what the server has printed."""
        self._log.flush()
        text = (Path(self._folder.name) / "log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its processes, ended children included."""
        return sum(accounts.cpu_seconds(pid) for pid in self.pids())

    def memory(self) -> int:
        """Return the bytes of memory of all its processes (PSS)."""
        return sum(accounts.memory(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        """Return its processes: all below the first, and those seen before that still run."""
        table = accounts.process_table()
        found = accounts.descendants(self._process.pid, table)
        known = [pid for pid, born in self._seen.items() if pid in table and table[pid][1] == born]
        self._seen = {pid: table[pid][1] for pid in {*found, *known} if pid in table}
        return list(self._seen)

    def wait_until_quiet(self, seconds: float = 10.0) -> bool:
        """Wait until the server is idle; return whether it was in time."""
        deadline = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.2)
            now = self.cpu_seconds()
            if now - before <= QUIET_CPU * 0.2:
                return True
            before = now
        return False

    def ask_to_stop(self) -> None:
        """Ask the first process to end; do not wait for it."""
        if self.alive():
            self._signal([self._process.pid], signal.SIGTERM)

    def stop(self) -> None:
        """Ask the processes to end, and kill by their ids those that do not."""
        pids = self.pids()
        self.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self._running(pids) and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.02)
        self._signal(self._running([*pids, *self.pids()]), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._log.close()
        self._folder.cleanup()

    def _running(self, pids: Sequence[int]) -> list[int]:
        table = accounts.process_table()
        return [pid for pid in set(pids) if pid in table and table[pid][1] == self._seen.get(pid)]

    @staticmethod
    def _signal(pids: Sequence[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def running(name: str, python: Path, command: Sequence[str]) -> Iterator[Server]:
    """Run a server for the length of a block, and end it however the block ends."""
    server = Server(name, python, command)
    try:
        yield server
    finally:
        server.stop()


def wait_for_port(server: Server, seconds: float) -> None:
    """Return once the server accepts a connection; raise `Unavailable` if it never does."""
    deadline = time.monotonic() + seconds
    while server.alive() and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    what = f"does not listen after {seconds:g} s" if server.alive() else "ended at its start"
    raise Unavailable(f"{what}:\n{server.log_tail()}")


class MemoryPeak:
    """Sample the memory of a server while a block runs; `peak` is the most that was seen."""

    def __init__(self, server: Server, every: float = 0.5) -> None:
        self.peak = 0
        self._server = server
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, self._server.memory())

    def _sample(self) -> None:
        while not self._done.wait(self._every):
            self.peak = max(self.peak, self._server.memory())


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


def _environment(python: Path, report: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return kept | {
        "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "TMPDIR": str(report.parent),
        REPORT_VARIABLE: str(report),
    }
