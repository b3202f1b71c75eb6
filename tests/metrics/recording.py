"""Record requests as an application does, in this process and in others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modelserve.metrics.series import ModelSeries
from modelserve.metrics.shared import DIRECTORY_VARIABLE
from modelserve.metrics.telemetry import Telemetry

WORKER = """
import sys
from modelserve.metrics.telemetry import Telemetry
from recording import record

telemetry = Telemetry()
series = telemetry.model("m", ["predict"])
series.in_flight.add(float(sys.argv[1]))
for line in sys.stdin:
    record(series, stages={"predict": 0.2})
    print("recorded", flush=True)
"""


def ending(**extra: Any) -> Any:
    """How a request ended: with 200 and no error, unless something else is given."""
    usual = {"status": 200, "error": None, "admitted": True, "seconds": {}, "stream": None}
    return SimpleNamespace(**usual | extra)


def record(
    series: ModelSeries,
    *,
    protocol: str = "v1",
    verb: str = "predict",
    seconds: float = 0.25,
    request_id: bytes = b"",
    **extra: Any,
) -> None:
    extra["seconds"] = extra.pop("stages", {})
    series.record(protocol, verb, ending(**extra), seconds, request_id)


def environment(**extra: str) -> dict[str, str]:
    """Variables of a process that can import this module."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **extra}


def python(code: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *args]
    return subprocess.run(
        command, check=True, env=environment(), stdout=subprocess.PIPE, text=True
    ).stdout


class Worker:
    """A process that shares a directory and records requests on demand."""

    def __init__(self, directory: Path, running: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(running)],
            env=environment(**{DIRECTORY_VARIABLE: str(directory)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def record(self, times: int = 1) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        for _ in range(times):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "recorded\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextmanager
def worker(directory: Path, *, running: int) -> Iterator[Worker]:
    started = Worker(directory, running)
    try:
        yield started
    finally:
        started.kill()


@contextmanager
def shared(directory: Path) -> Iterator[Telemetry]:
    telemetry = Telemetry(directory)
    try:
        yield telemetry
    finally:
        telemetry.close()
