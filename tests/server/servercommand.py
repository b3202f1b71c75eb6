"""The command `modelserve` in a process of its own, and what can be seen of it from outside."""

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SLACK = 8.0  # seconds that a busy machine may add to what has to happen in time
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL

# Its models wait for files in its own folder, and touch files to show what they have done.
SERVED = """
import os, time
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from modelserve import Limits, Model, ModelServer

HERE = Path(__file__).parent

async def until_there(name):
    while not (HERE / name).exists():
        await anyio.sleep(0.01)

class Words(Model):
    def load(self):
        while (HERE / "slow-load").exists():
            time.sleep(0.01)
        return True

    async def predict(self, payload):
        try:
            (HERE / "asked").touch()
            yield {"word": 0}
            await until_there("go")
            yield {"word": 1}
            yield {"word": 2}
        finally:
            await anyio.sleep(0.01)
            (HERE / "finally").touch()

    def stop(self):
        (HERE / "stopped").touch()

def block(payload):
    (HERE / "asked").touch()
    time.sleep(60)

async def block_loop(payload):
    block(payload)

async def pid(payload):
    return {"pid": os.getpid()}

def large(payload):
    return "x" * 20_000_000

async def endless(payload):
    while True:
        yield "x" * 65536

app = ModelServer([Words("words")])
for function in (block, block_loop, pid, large, endless):
    app.add_model(function, function.__name__)

async def wait(request):
    await until_there("go")
    return PlainTextResponse("waited")

host = Starlette(
    routes=[Mount("/ml", app=app), Route("/wait", wait)],
    lifespan=app.lifespan,
)
plain = Starlette(routes=[Route("/wait", wait)])
"""


@dataclass
class Running:
    """A command that serves, in a process of its own."""

    process: subprocess.Popen[bytes]
    folder: Path
    log_path: Path
    connections: list[HTTPConnection] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def has_begun(self) -> bool:
        """Return whether it serves; fail if it has ended."""
        assert self.process.poll() is None, self.log
        return bool(self.served_by)

    @property
    def served_by(self) -> list[tuple[str, int]]:
        """The address and the id of each process that has begun to serve."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        words = [line["message"].split() for line in lines if line["message"][:7] == "Serving"]
        return [(message[2], int(message[4].rstrip(")"))) for message in words]

    @property
    def port(self) -> int:
        return int(self.served_by[0][0].rpartition(":")[2])

    def open(self, receive_buffer: int | None = None) -> socket.socket:
        """Connect to where it serves: over TCP, TLS or a Unix domain socket."""
        url = self.served_by[0][0]
        is_unix = url.startswith("unix:")
        sock = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        sock.settimeout(10)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(url.removeprefix("unix:") if is_unix else ("127.0.0.1", self.port))
        if not url.startswith("https:"):
            return sock
        context = ssl.create_default_context(cafile=self.folder / "cert.pem")
        return context.wrap_socket(sock, server_hostname="localhost")

    def connect(self) -> HTTPConnection:
        connection = HTTPConnection("localhost")
        connection.sock = self.open()
        return connection

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask("GET", path)

    def predict(self, model: str, path: str = "") -> tuple[int, Any]:
        return self.ask("POST", f"{path}/v1/models/{model}:predict", '{"instances": []}')

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        connection = self.connect()
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            body = response.read()
            is_json = response.headers["content-type"] == "application/json"
            return response.status, json.loads(body) if is_json else body.decode()
        finally:
            connection.close()

    @contextmanager
    def stream(self, path: str = "", accept: str = "*/*") -> Iterator[HTTPResponse]:
        """Ask for the words, and read the first."""
        connection = self.connect()
        try:
            url = f"{path}/v1/models/words:predict"
            connection.request("POST", url, '{"instances": []}', {"accept": accept})
            response = connection.getresponse()
            assert response.readline().endswith(b'{"word":0}\n')
            yield response
        finally:
            connection.close()

    def send(self, *requests: str, receive_buffer: int | None = None) -> socket.socket:
        """Send requests over a socket of their own, which the caller closes; read nothing."""
        sock = self.open(receive_buffer)
        sock.sendall("".join(requests).encode())
        return sock

    def start_asking(self, model: str, path: str | None = None) -> HTTPConnection:
        """Ask, and do not wait for the answer; the connection is closed with the test."""
        connection = self.connect()
        self.connections.append(connection)
        connection.request("POST", path or f"/v1/models/{model}:predict", '{"instances": []}')
        return connection

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def signal(self, sig: signal.Signals) -> None:
        self.process.send_signal(sig)

    def exit_code(self, within: float) -> int:
        """Return it once the process has ended, in the time that this may take on a busy machine."""
        return self.process.wait(within + SLACK)


Serve = Callable[..., Running]

every_protocol = pytest.mark.parametrize(
    "flags", ["--http httptools --loop uvloop", "--http h11 --loop asyncio"]
)


def until(condition: Callable[[], Any], within: float = 20.0) -> None:
    ends = time.monotonic() + within + SLACK
    while not condition():
        assert time.monotonic() < ends, "waited for too long"
        time.sleep(0.01)


def until_draining(running: Running, path: str = "") -> None:
    until(lambda: running.get(f"{path}/v2/health/ready")[0] == 503, within=2)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def post(model: str, version: str = "1.1") -> str:
    head = f"POST /v1/models/{model}:predict HTTP/{version}\r\nhost: x\r\ncontent-length: 2"
    return f"{head}\r\n\r\n{{}}"
