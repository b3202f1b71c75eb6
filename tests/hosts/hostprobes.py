"""What a host may be unable to do, one probe each: it returns the words for that, or None.

A probe waits much longer for what a host does than a busy machine takes, so that the words are
never those of a slow machine; what a host does not do costs that time.
"""

import json
import signal
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websockets.sync.client
from hostcalls import asked, read_call
from hostclients import Cut, Exchange, Http1, Http2
from realserver import until
from websockets.exceptions import WebSocketException

from modelserve.wire.grpc import SERVICE, frame

__all__ = ["IN_PROCESS", "SERVED", "Host", "Probe", "echo_over_socket"]

LINES = "application/x-ndjson"
LONG = 15.0  # seconds


@dataclass
class Host:
    """A host that runs the models: how to reach it, and what its models have noted."""

    folder: Path
    connect: Callable[[], Any]
    prefix: str = ""
    process: subprocess.Popen[bytes] | None = None
    echo: Callable[[str], str] | None = None  # over a WebSocket

    def path(self, model: str) -> str:
        return f"{self.prefix}/v1/models/{model}:predict"

    def ask(self, model: str, accept: str = "*/*", **payload: Any) -> Exchange:
        exchange: Exchange = self.connect()
        exchange.ask("POST", self.path(model), json.dumps(payload).encode(), accept)
        return exchange

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        with self.connect() as exchange:
            exchange.ask(method, self.prefix + path)
            return exchange.head(), exchange.whole()

    def notes(self, key: str, event: str) -> bool:
        path = self.folder / "ledger"
        return path.exists() and f"{key} {event}\n" in path.read_text()

    def will_note(self, key: str, event: str, seconds: float = LONG) -> bool:
        return until(lambda: self.notes(key, event), seconds=seconds, every=0.02)

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def release(self, key: str) -> None:
        (self.folder / key).touch()


Probe = Callable[[Host], str | None]


def _line(exchange: Exchange) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = exchange.part()
        if not part:
            raise Cut(line)
        line += part
    return line


def _key() -> str:
    return uuid.uuid4().hex


def answers(host: Host) -> str | None:
    """What each host must do; nothing here may fall short."""

    def ask() -> tuple[int, bytes]:
        with host.ask("echo", instances=[1, "é"]) as exchange:
            return exchange.head(), exchange.whole()

    assert until(lambda: ask()[0] != 503, seconds=LONG), "it is loading"
    status, body = ask()
    assert (status, json.loads(body)) == (200, {"predictions": [1, "é"]}), (status, body)
    assert host.get("/v2/health/live")[0] == 200
    status, body = host.get("/v1/models/none")
    assert (status, json.loads(body)) == (404, {"error": "Model with name none does not exist."})
    status, body = host.get("/v1/models/ec%68o", "HEAD")
    assert (status, body) == (200, b"")
    return None


def calls(host: Host) -> str | None:
    """Call over gRPC-Web, as each host must let one: a message, an error, a stream."""

    def call(method: str, model: str, number: int, key: str = "") -> bytes:
        path, message = f"{host.prefix}{SERVICE}/{method}", asked(model, number, key)
        with host.connect() as exchange:
            exchange.ask("POST", path, frame(message), content_type="application/grpc-web+proto")
            assert exchange.head() == 200
            answer: bytes = exchange.whole()
            return answer

    assert read_call("ModelInfer", call("ModelInfer", "total", 5)) == (0, "", [5])
    assert call("ModelInfer", "total", 0) == b""  # it has the error in its head
    refused = read_call("ModelStreamInfer", call("ModelStreamInfer", "total", 0))
    assert refused == (0, "no zeros, bitte schön", [])
    host.release(key := _key())
    counted = read_call("ModelStreamInfer", call("ModelStreamInfer", "countdown", 3, key))
    assert counted == (0, "", [2, 1, 0])
    return None


def loads_at_the_start(host: Host) -> str | None:
    """Look what came first: the lifespan's start waits for the loading, the first request begins it."""
    notes = (host.folder / "ledger").read_text().splitlines()
    early = notes.index("app load") < notes.index("app request")
    return None if early else "load models at the start"


def streams(host: Host) -> str | None:
    key = _key()
    with host.ask("steps", LINES, key=key) as exchange:
        try:
            assert exchange.head() == 200
            assert json.loads(_line(exchange)) == {"item": 1}
        except TimeoutError:
            return "stream item by item"
        finally:
            host.release(key)
        assert json.loads(_line(exchange)) == {"item": 2}
        assert exchange.part() == b""
    return None


def notices_leaving(host: Host) -> str | None:
    key = _key()
    exchange = host.ask("steps", LINES, key=key)
    with exchange:
        exchange.head()
        _line(exchange)
    if not host.will_note(key, "cleaning"):
        host.release(key)
        return "notice clients that leave"
    return None if host.will_note(key, "clean") else "let clean-up complete"


def cuts_failures(host: Host) -> str | None:
    with host.ask("break") as exchange:
        try:
            if exchange.head() != 200:
                return None  # it waits for the whole answer, and then knows better
            while exchange.part():
                pass
        except Cut:
            return None
        except TimeoutError:
            return "cut a raw stream that fails (it hangs)"
    return "cut a raw stream that fails (it looks complete)"


def answers_meanwhile(host: Host) -> str | None:
    exchange = host.connect()
    assert isinstance(exchange, Http1 | Http2)
    with exchange:
        exchange.upload(host.path("double"))
        exchange.feed(b"1\n")
        try:
            assert exchange.head() == 200
            assert _line(exchange) == b"2\n"
        except TimeoutError:
            return "answer while a request is sent"
        exchange.feed(b"2\n")
        assert _line(exchange) == b"4\n"
        exchange.feed(b"")
        assert exchange.whole() == b""
    return None


def holds_back(host: Host) -> str | None:
    """Look how a client that reads nothing ends: by the model's end, or by `send_timeout`."""
    key = _key()
    with host.ask("flood", key=key) as exchange:
        exchange.head()
        host.will_note(key, "clean")
    if host.notes(key, "done"):
        return "hold back a model whose client reads nothing"
    return None if host.notes(key, "clean") else "cut off a client that reads nothing"


def opens_sockets(host: Host) -> str | None:
    try:
        assert host.echo is not None and "hello" in host.echo(host.path("echo"))
    except (AssertionError, OSError, WebSocketException):
        return "WebSocket"
    return None


def echo_over_socket(port: int, path: str) -> str:
    url = f"ws://127.0.0.1:{port}{path}"
    with websockets.sync.client.connect(url, proxy=None, open_timeout=10) as socket:
        socket.send('"hello"')
        return str(socket.recv(10))


def drains(host: Host) -> str | None:
    """Look what SIGTERM does to a stream that does not end by itself, and to its clean-up."""
    assert host.process is not None
    key = _key()
    with host.ask("steps", LINES, key=key) as exchange:
        exchange.head()
        _line(exchange)
        host.process.send_signal(signal.SIGTERM)
        until(lambda: host.notes(key, "cleaning") or host.has_ended(), seconds=LONG, every=0.02)
        waited = not host.notes(key, "cleaning") and not host.has_ended()
        host.release(key)
        found = _end(exchange)
    until(lambda: host.notes(key, "clean") or host.has_ended(), seconds=LONG, every=0.02)
    if waited:
        return "end streams at SIGTERM (it waits)"
    if not host.notes(key, "clean"):
        return "let clean-up complete at SIGTERM"
    return found


def _end(exchange: Exchange) -> str | None:
    try:
        rest = exchange.whole()
    except Cut:
        return "end streams with a record at SIGTERM (they are cut)"
    except TimeoutError:
        return "end streams at SIGTERM (they hang)"
    return None if b"error" in rest else "end streams with a record at SIGTERM (they look complete)"


def stops_models(host: Host) -> str | None:
    assert host.process is not None
    try:
        host.process.wait(LONG)
    except subprocess.TimeoutExpired:
        return "stop at SIGTERM"
    return None if host.notes("app", "stop") else "call `stop`"


# In this order: the last ones end the server.
IN_PROCESS: list[Probe] = [
    answers,
    calls,
    loads_at_the_start,
    streams,
    cuts_failures,
    opens_sockets,
]
SERVED: list[Probe] = [
    *IN_PROCESS,
    notices_leaving,
    answers_meanwhile,
    holds_back,
    drains,
    stops_models,
]
