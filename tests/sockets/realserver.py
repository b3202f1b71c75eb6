"""Real servers in other processes, and what can be seen of them from outside."""

import atexit
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import rawclient

T = TypeVar("T")

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent

COMMANDS = {
    "httptools": "uvicorn --http httptools --loop uvloop --port {port} {app}",
    "h11": "uvicorn --http h11 --loop asyncio --port {port} {app}",
    "hypercorn": "hypercorn --workers 0 --worker-class asyncio -b 127.0.0.1:{port} {app}",
    "trio": "hypercorn --workers 0 --worker-class trio -b 127.0.0.1:{port} {app}",
    "granian": "granian --interface asgi --no-ws --port {port} {app}",
    # with other WebSockets than uvicorn chooses by itself
    "wsproto": "uvicorn --ws wsproto --port {port} {app}",
    "websockets": "uvicorn --ws websockets --port {port} {app}",
    "granian-ws": "granian --interface asgi --ws --port {port} {app}",
    "daphne": "daphne -p {port} {app}",
    "modelserve": "modelserve --port {port} --drain-timeout 0.2 {app}",
}

# What a server's log must never hold, whatever its clients did.
UNTIDY = re.compile(
    r"never retrieved|never awaited|was destroyed but|ignored GeneratorExit"
    r"|Exception ignored|asynchronous generator is already running|Warning:|Fatal Python"
)


class Event(NamedTuple):
    name: str
    time: float
    thread: str


@dataclass
class Ledger:
    """The file to which the handlers of one server append what they do, one line an event."""

    path: Path
    offset: int = 0
    events: dict[str, list[Event]] = field(default_factory=dict, repr=False)
    balance: dict[str, int] = field(default_factory=dict, repr=False)

    def of(self, key: str) -> list[Event]:
        self._read()
        return self.events.get(key, [])

    def count(self, key: str, name: str) -> int:
        return sum(event.name == name for event in self.of(key))

    def wait(self, key: str, name: str, *, seconds: float = 20.0) -> Event:
        """Wait for an event and return its first occurrence."""

        def find() -> Event | None:
            return next((event for event in self.of(key) if event.name == name), None)

        event = until(find, seconds=seconds)
        assert event is not None, f"no {name!r} within {seconds} s; there is {self.of(key)[-5:]}"
        return event

    def running(self) -> set[str]:
        """The keys whose every "start" is not matched by an "end"."""
        self._read()
        return {key for key, count in self.balance.items() if count}

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.decode().splitlines():
            key, name, at, thread = line.split(" ")
            self.events.setdefault(key, []).append(Event(name, float(at), thread))
            step = {"start": 1, "end": -1}.get(name, 0)
            self.balance[key] = self.balance.get(key, 0) + step


@dataclass
class Server:
    kind: str
    port: int
    process: subprocess.Popen[bytes]
    ledger: Ledger
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def readiness(self) -> int:
        assert self.process.poll() is None, f"the server ended:\n{self.log}"
        try:
            return rawclient.get(self.port, "/v2/health/ready").status
        except (OSError, rawclient.Cut):
            return 0

    def proc(self, name: str) -> Path:
        return Path("/proc", str(self.process.pid), name)

    def threads(self) -> int:
        return len(list(self.proc("task").iterdir()))

    def files(self) -> int:
        return len(list(self.proc("fd").iterdir()))

    def memory(self) -> int:
        """Resident memory in bytes."""
        line = next(x for x in self.proc("status").read_text().splitlines() if "VmRSS" in x)
        return int(line.split()[1]) * 1024

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


Start = Callable[[str, str], Server]
Figure = Callable[[str, float], None]


def hosts(*names: str, slow: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Run a test on these kinds of server, and on the slow ones where slow tests are run."""
    more = [pytest.param(name, marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize("host", [*names, *more])


def start(kind: str, app: str, folder: Path, *options: str, readiness: int = 200) -> Server:
    """Run `apps/<app>.py` on a free port and return once its readiness answers as expected."""
    port = free_port()
    ledger = folder / f"{app}-{kind}.ledger"
    ledger.touch()
    log = folder / f"{app}-{kind}.log"
    command = COMMANDS[kind].format(port=port, app=f"apps.{app}:app").split()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT)]),
        "PYTHONUNBUFFERED": "1",
        "LEDGER": str(ledger),
    }
    warnings = "ignore" if kind == "websockets" else "default"  # uvicorn's own deprecation
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", warnings, "-m", *command, *options],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    atexit.register(process.kill)  # where pytest has forgotten a fixture, after a failed rerun
    server = Server(kind, port, process, Ledger(ledger), log)
    try:
        assert until(lambda: server.readiness() == readiness, seconds=20), server.log
    except BaseException:
        server.process.kill()
        server.process.wait()
        raise
    return server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], T], *, seconds: float, every: float = 0.005) -> T:
    """Ask until the answer is true or time is up; return the last answer."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(every)
    return answer
