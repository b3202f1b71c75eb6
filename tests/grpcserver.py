"""A real server with gRPC's own port, for the clients of others."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Server", "served", "until"]

SERVED = """
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np

from modelserve import InvalidInput, Model, ModelServer
from modelserve.tensors import InferOutput, InferRequest, InferResponse

HERE = Path(__file__).parent
INPUTS = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


class Echo(Model):
    versions = ("1", "2")
    platform = "numpy"

    async def predict(self, payload):
        outputs = []
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            outputs.append(InferOutput(tensor.name, list(array.shape), tensor.datatype, array))
        version, parameters = payload.model_version, payload.parameters
        return InferResponse(payload.id, self.name, outputs, version, parameters=parameters)

    def get_input_types(self):
        return INPUTS

    def get_output_types(self):
        return INPUTS


def of(number, payload=None):
    id = None if payload is None else payload.id
    return InferResponse(id, "m", [InferOutput("o", [1], "INT32", [number])])


class Count(Model):
    async def predict(self, payload):
        try:
            for number in range(int(payload.inputs[0].as_numpy().ravel()[0])):
                yield of(number, payload)
                await anyio.sleep(0.005)
        finally:
            (HERE / "finally").touch()


class Sum(Model):
    async def predict(self, payload: AsyncIterator[InferRequest]):
        total = 0
        async for each in payload:
            total += int(each.inputs[0].as_numpy().ravel()[0])
            yield of(total)


class Large(Model):
    async def predict(self, payload):
        block = np.zeros(65_536, np.float32)
        for number in range(10_000):
            (HERE / "made").write_text(str(number))
            yield InferResponse(None, "m", [InferOutput("o", [65_536], "FP32", block)])


class Refuses(Model):
    async def predict(self, payload):
        raise InvalidInput("not like this: 100%, über")


app = ModelServer(
    [Echo("echo"), Count("count"), Sum("sum"), Large("large"), Refuses("refuses")], control=True
)
"""


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found


class Server:
    def __init__(self, folder: Path, source: str = SERVED, *flags: str) -> None:
        self.folder = folder
        (folder / "served.py").write_text(source)
        log = (folder / "log").open("wb")
        command = [sys.executable, "-m", "modelserve", "served.py", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--log-format", "json", *flags], cwd=folder, stderr=log
        )
        log.close()
        until(lambda: "Serving on" in self.log or self.process.poll() is not None)
        self.grpc = f"127.0.0.1:{self._found(r'gRPC is served on [^ ]*?:([0-9]+)')}"

    def _found(self, pattern: str, text: str | None = None) -> str:
        found = re.search(pattern, self.log if text is None else text)
        assert found is not None, self.log
        return found[1]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(self._found(r"VmRSS:\s+(\d+)", status)) / 1024


@contextmanager
def served(folder: Path, source: str = SERVED, *flags: str) -> Iterator[Server]:
    """Serve in a process of its own; flags are added to the command line."""
    server = Server(folder, source, *flags)
    yield server
    server.process.terminate()
    assert server.process.wait(40) == 0, server.log
    assert "Traceback" not in server.log
