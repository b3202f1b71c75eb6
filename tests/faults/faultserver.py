"""The command `modelserve` in another process, and what can be seen of it from outside."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
APP = FOLDER / "faultapp.py"

# The raw client and the free ports of the socket tests; their own imports need their folder.
sys.path.append(str(FOLDER.parent / "sockets"))

import rawclient
from rawclient import request
from realserver import UNTIDY, free_port, until

__all__ = [
    "Command",
    "Figures",
    "Usage",
    "at_rest",
    "raise_file_limit",
    "request",
    "serving",
    "until",
]

# Notes one figure of a test: what it is, and its value; `faultfixtures` prints them.
Figures = Callable[[str, str], None]

_GAUGE = re.compile(rb"^modelserve_(in_flight|queued)\{.*\} (\S+)$", re.MULTILINE)


class Usage(NamedTuple):
    """What a process uses: bytes of memory, threads, file descriptors."""

    pss: int
    rss: int
    threads: int
    files: int


@dataclass
class Command:
    """A running `modelserve`."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def is_ready(self, path: str = "/v2/health/ready") -> bool:
        assert self.process.poll() is None, f"the server ended:\n{self.log[-5000:]}"
        try:
            return rawclient.get(self.port, path).status == 200
        except (OSError, rawclient.Cut):
            return False

    def ask(self, model: str, value: Any) -> Any:
        answer = rawclient.post(self.port, f"/v1/models/{model}:predict", value)
        assert answer.status == 200, answer
        return answer.json

    def account(self, **payload: Any) -> Any:
        return self.ask("account", payload)

    def metrics(self) -> bytes:
        return rawclient.get(self.port, "/metrics").body

    def slots(self) -> float:
        """Return how many requests run or wait, by the metrics."""
        return sum(float(value) for _, value in _GAUGE.findall(self.metrics()))

    def usage(self, pid: int | None = None) -> Usage:
        proc = Path("/proc", str(pid or self.process.pid))
        return Usage(
            pss=_kilobytes(proc / "smaps_rollup", "Pss:") * 1024,
            rss=_kilobytes(proc / "status", "VmRSS:") * 1024,
            threads=len(list((proc / "task").iterdir())),
            files=len(list((proc / "fd").iterdir())),
        )

    def cpu_seconds(self) -> float:
        fields = Path("/proc", str(self.process.pid), "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, sig: int) -> float:
        """Send a signal; return when."""
        at = time.monotonic()
        self.process.send_signal(sig)
        return at

    def exit_code(self, *, within: float) -> int:
        return self.process.wait(within)

    def untidy(self) -> str | None:
        """Return what the log must never hold."""
        found = UNTIDY.search(self.log)
        return found and self.log[max(0, found.start() - 500) : found.end() + 1500]


@contextmanager
def serving(
    folder: Path, *flags: str, port: int = 0, name: str = "log", ready: bool = True
) -> Iterator[Command]:
    """Serve the application of this folder until the block ends, if it has not ended before.

    Without `ready`, models that never load are not waited for.
    """
    port = port or free_port()
    log_path = folder / name
    command = [sys.executable, "-m", "modelserve", str(APP), "--port", str(port)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning", "--log-format", "human", *flags],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Command(process, port, log_path)
    try:
        path = "/v2/health/ready" if ready else "/v1/models/account"
        assert until(lambda: server.is_ready(path), seconds=30, every=0.02), server.log
        yield server
    finally:
        process.kill()
        process.wait()


def at_rest(server: Command) -> tuple[Usage, dict[str, Any]]:
    """Wait until the server is idle; return its resources and its account."""

    def idle() -> bool:
        account = server.account()
        return account["started"] == account["ended"]

    assert until(idle, seconds=10, every=0.1), difference(server.account())
    assert until(lambda: server.slots() == 0, seconds=5, every=0.1), server.metrics().decode()
    account = server.account()
    files = server.usage().files
    until(lambda: server.usage().files < files, seconds=0.5)
    return server.usage(), account


def difference(account: dict[str, Any]) -> str:
    missing = {
        name: count - account["ended"].get(name, 0) for name, count in account["started"].items()
    }
    return f"handlers without an end: { ({k: v for k, v in missing.items() if v}) }"


def raise_file_limit() -> int:
    """Allow as many open files as may be, here and in the processes started from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _kilobytes(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
