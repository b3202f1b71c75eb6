import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route, Router

from modelserve import ModelServer
from modelserve.server.server import model_servers

ROOT = Path(__file__).parents[2]
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL

# What a model does when told to, by files in its own folder, and what it tells by them.
SERVED = """
import os, time
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from modelserve import Limits, Model, ModelServer

HERE = Path(__file__).parent

async def told(name):
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
            await told("go")
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
    await told("go")
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
        """Say whether it serves; there is no waiting for one that has ended."""
        assert self.process.poll() is None, self.log
        return bool(self.served_by)

    @property
    def served_by(self) -> list[tuple[str, int]]:
        """Where it serves and the process that does, once for each process that began to."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        words = [line["message"].split() for line in lines if line["message"][:7] == "Serving"]
        return [(message[2], int(message[4].rstrip(")"))) for message in words]

    @property
    def port(self) -> int:
        return int(self.served_by[0][0].rpartition(":")[2])

    def connect(self, timeout: float = 10) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout)

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
        sock = socket.socket()
        sock.settimeout(10)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
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
        return self.process.wait(within)


Serve = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Serve]:
    """Start `modelserve TARGET`, by default on a port of its own; ended with the test."""
    (tmp_path / "served.py").write_text(SERVED)
    started: list[Running] = []

    def run(
        target: str,
        *flags: str,
        address: tuple[str, ...] = ("--port", "0"),
        stderr: int | None = None,
        **environment: str,
    ) -> Running:
        log_path = tmp_path / f"log{len(started)}"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "modelserve", target, *address, *flags],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
            )
        started.append(Running(process, tmp_path, log_path))
        return started[-1]

    yield run
    for running in started:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, KILL)
        running.process.wait()
        for connection in running.connections:
            connection.close()


@pytest.fixture
def serve(start: Serve) -> Serve:
    """Start it, and wait until it is ready."""

    def run(target: str = "served.py", *flags: str, **options: Any) -> Running:
        running = start(target, *flags, **options)
        path = "/ml" if target.endswith(":host") else ""
        until(running.has_begun)
        if not target.endswith(":plain"):
            until(lambda: running.get(f"{path}/v2/health/ready")[0] == 200)
        return running

    return run


def until(true: Callable[[], Any], within: float = 20.0) -> None:
    ends = time.monotonic() + within
    while not true():
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


# --- finding the model servers ------------------------------------------------------------------


def test_model_servers() -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None: ...

    one, two = ModelServer(), ModelServer()
    inner = Router([Mount("/two", app=CORSMiddleware(two)), Route("/x", endpoint)])
    app = Starlette(routes=[Mount("/one", app=one), Mount("/in", app=inner), Mount("/1", app=one)])
    assert model_servers(one) == [one]
    assert set(model_servers(CORSMiddleware(app))) == {one, two}
    assert len(model_servers(app)) == 2
    assert model_servers(endpoint) == []


# --- connections --------------------------------------------------------------------------------

every_protocol = pytest.mark.parametrize(
    "flags", ["--http httptools --loop uvloop", "--http h11 --loop asyncio"]
)


def post(model: str, version: str = "1.1") -> str:
    head = f"POST /v1/models/{model}:predict HTTP/{version}\r\nhost: x\r\ncontent-length: 2"
    return f"{head}\r\n\r\n{{}}"


@every_protocol
@pytest.mark.parametrize("models", [("words", "pid", "pid"), ("pid", "words", "pid")])
def test_client_that_leaves_with_requests_waiting_behind_the_one_that_runs(
    serve: Serve, models: tuple[str, ...], flags: str
) -> None:
    running = serve("served.py", *flags.split())
    client = running.send(*map(post, models))
    until(lambda: running.has("asked"))
    client.close()
    until(lambda: running.has("finally"), within=5)


@every_protocol
@pytest.mark.parametrize("model", ["large", "endless"])
def test_connection_whose_client_reads_nothing_is_closed(
    serve: Serve, model: str, flags: str
) -> None:
    """Though the answer is complete, or cut, as far as the application is concerned."""
    running = serve("served.py", "--send-timeout", "0.3", *flags.split())
    with running.send(post(model), receive_buffer=4096) as client:
        reset = select.poll()
        reset.register(client, 0)
        assert reset.poll(5000)
    assert "Traceback" not in running.log


@pytest.mark.slow
@every_protocol
def test_client_that_reads_slowly_gets_all(serve: Serve, flags: str) -> None:
    running = serve("served.py", "--send-timeout", "0.3", *flags.split())
    with running.send(post("large"), receive_buffer=4096) as client:
        ends, size = time.monotonic() + 1, 0
        while time.monotonic() < ends:
            size += len(client.recv(1 << 14))
            time.sleep(0.01)
        while size < 20_000_000:
            part = client.recv(1 << 20)
            assert part
            size += len(part)


@pytest.mark.slow
@every_protocol
def test_stream_goes_on_while_its_client_reads_slowly(serve: Serve, flags: str) -> None:
    """Far less at a time than the kernel would hold back for it."""
    running = serve("served.py", "--send-timeout", "0.5", *flags.split())
    with running.send(post("endless"), receive_buffer=1 << 16) as client:
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            assert client.recv(1 << 15)
            time.sleep(0.03)
        size = 0
        while size < 5_000_000:  # more than was under way
            part = client.recv(1 << 20)
            assert part
            size += len(part)


@every_protocol
def test_stream_over_http_1_0_is_not_chunked(serve: Serve, flags: str) -> None:
    running = serve("served.py", *flags.split())
    running.touch("go")
    with running.send(post("words", "1.0")) as client:
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b'{"word":0}\n{"word":1}\n{"word":2}\n'
    assert b"transfer-encoding" not in head.lower()
    assert "Traceback" not in running.log


@every_protocol
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_document_over_http_1_0(serve: Serve, method: str, flags: str) -> None:
    running = serve("served.py", *flags.split())
    with running.send(f"{method} /v2/health/live HTTP/1.0\r\n\r\n") as client:
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.endswith(b'{"live":true}' if method == "GET" else b"\r\n\r\n")
    assert b"content-length: 13" in answer.lower()


# --- the drain ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sig", "flags"),
    [(TERM, ""), (INT, ""), (TERM, "--http h11 --loop asyncio"), (TERM, "--cors-origin *")],
)
def test_drain(serve: Serve, sig: signal.Signals, flags: str) -> None:
    running = serve("served.py", *flags.split())
    with running.stream() as stream:
        running.signal(sig)
        until_draining(running)
        assert running.predict("pid")[0] == 503
        assert running.get("/v1/models/pid")[0] == 503
        assert running.get("/v2/health/live")[0] == 200
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    assert running.has("stopped")
    assert "Traceback" not in running.log


@pytest.mark.parametrize(
    ("accept", "last"),
    [
        ("application/x-ndjson", b'{"error":"server shutting down"}\n'),
        ("text/event-stream", b'event: error\ndata: {"error":"server shutting down"}\n\n'),
    ],
)
def test_end_of_the_drain(serve: Serve, accept: str, last: bytes) -> None:
    running = serve("served.py", "--drain-timeout", "0.3")
    with running.stream(accept=accept) as stream:
        running.signal(TERM)
        assert stream.read().removeprefix(b"\n") == last
        assert running.exit_code(within=2) == 0
    assert running.has("finally")
    assert running.has("stopped")
    assert "Traceback" not in running.log


def test_handler_that_blocks(serve: Serve) -> None:
    running = serve("served.py", "--drain-timeout", "0.5")
    connection = running.start_asking("block")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.5) == 0
    assert "busy threads: block" in running.log
    assert running.has("stopped")  # the other model
    assert "Traceback" not in running.log
    connection.close()


def test_handler_that_blocks_the_event_loop(serve: Serve) -> None:
    running = serve("served.py", "--drain-timeout", "0")
    connection = running.start_asking("block_loop")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.2) == 0
    assert not running.has("stopped")
    connection.close()


def test_log_that_nobody_reads(start: Serve, tmp_path: Path) -> None:
    source = "import logging\n" + SERVED.replace(
        "async def block_loop(payload):\n    block(payload)",
        "async def block_loop(payload):\n"
        '    (HERE / "asked").touch()\n'
        "    while True:\n"
        '        logging.error("x" * 1000)',
    )
    (tmp_path / "served.py").write_text(source)
    running = start("served.py", "--drain-timeout", "0", stderr=subprocess.PIPE)
    pipe = running.process.stderr
    assert pipe is not None
    with pipe:
        while b"Serving" not in (line := pipe.readline()):
            pass
        running.log_path.write_bytes(line)
        until(lambda: running.get("/v2/health/ready")[0] == 200)
        connection = running.start_asking("block_loop")
        until(lambda: running.has("asked"))
        running.signal(TERM)
        assert running.exit_code(within=2.5) == 0
    connection.close()


@pytest.mark.parametrize("model", ["words", "block", "block_loop"])
def test_second_signal_ends_at_once(serve: Serve, model: str) -> None:
    running = serve()
    connection = running.start_asking(model)
    until(lambda: running.has("asked"))
    running.signal(TERM)
    time.sleep(0.3)  # nothing tells of the first signal while the event loop is blocked
    assert running.process.poll() is None
    running.signal(TERM)
    assert running.exit_code(within=1) == 128 + TERM
    connection.close()


def test_idle_connection_does_not_hold_up_the_end(serve: Serve) -> None:
    running = serve()
    connection = running.connect()
    connection.request("GET", "/")
    connection.getresponse().read()
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert connection.sock.recv(1) == b""
    connection.close()


@pytest.mark.parametrize("flags", ["", "--http h11 --loop asyncio"])
def test_connection_without_a_request_is_answered_at_the_end(serve: Serve, flags: str) -> None:
    """One that was accepted in time reads a 503, though the listener has gone meanwhile."""
    running = serve("served.py", *flags.split())
    with running.send() as client:
        running.ask("GET", "/v2/health/live")  # it has been accepted by now
        running.signal(TERM)
        until(lambda: not listens(running.port))
        client.sendall(post("pid").encode())
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert running.exit_code(within=2) == 0


def test_load_that_blocks_does_not_hold_up_the_end(start: Serve) -> None:
    running = start("served.py")
    running.touch("slow-load")
    until(running.has_begun)
    assert running.get("/v2/health/ready")[0] == 503
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert "busy threads: load of words" in running.log
    assert not running.has("stopped")


@pytest.mark.parametrize(("sig", "workers"), [(TERM, "1"), (INT, "1"), (TERM, "2"), (INT, "2")])
def test_signal_during_the_import(
    start: Serve, tmp_path: Path, sig: signal.Signals, workers: str
) -> None:
    (tmp_path / "slow.py").write_text(
        "from pathlib import Path\nimport time\nPath('importing').touch()\ntime.sleep(60)\n"
    )
    running = start("slow.py", "--workers", workers)
    until(lambda: running.has("importing"))
    os.killpg(running.process.pid, sig)
    assert running.exit_code(within=2) == 0
    assert running.log == ""


def test_mounted(serve: Serve) -> None:
    running = serve("served.py:host")
    with running.stream("/ml") as stream:
        waiting = running.start_asking("", path="/wait")
        running.signal(TERM)
        until_draining(running, "/ml")
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    waiting.close()
    assert running.has("stopped")


def test_other_application(serve: Serve) -> None:
    running = serve("served.py:plain")
    connection = running.connect()
    connection.request("GET", "/wait")
    time.sleep(0.2)
    running.signal(TERM)
    until(lambda: not is_listening(running.port), within=2)
    running.touch("go")
    assert connection.getresponse().read() == b"waited"
    assert running.exit_code(within=2) == 0
    connection.close()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- where it listens ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_unix_domain_socket(serve: Serve, tmp_path: Path, workers: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    address = ("--uds", str(path), "--workers", workers)
    running = serve("served.py:plain", address=address)
    assert running.served_by[0][0] == f"unix:{path}"
    running.touch("go")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:
            assert answer.read().endswith(b"waited")
    running.signal(TERM)
    assert running.exit_code(within=2) == 0
    assert not path.exists()


def test_ipv6(serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    running = serve("served.py:plain", "--host", "::1")
    assert running.served_by[0][0].startswith("http://[::1]:")


def test_tls(serve: Serve, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    made = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    flags = ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"]
    running = serve("served.py:plain", *flags)
    assert running.served_by[0][0].startswith("https://")
    running.touch("go")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    connection = HTTPSConnection("localhost", running.port, context=context, timeout=10)
    connection.request("GET", "/wait")
    assert connection.getresponse().read() == b"waited"
    connection.close()


# --- worker processes ---------------------------------------------------------------------------


def serve_with_workers(serve: Serve, *flags: str, **environment: str) -> Running:
    running = serve("served.py", "--workers", "2", *flags, **environment)
    until(lambda: len(running.served_by) == 2)
    return running


def pids(running: Running) -> set[int]:
    return {pid for _, pid in running.served_by}


def test_killed_worker_is_replaced(serve: Serve) -> None:
    running = serve_with_workers(serve)
    victim, other = pids(running)
    os.kill(victim, KILL)
    until(lambda: not is_alive(victim))
    assert running.get("/v2/health/live")[0] == 200
    until(lambda: len(pids(running)) == 3)
    until(lambda: pids(running) - {victim, other} <= answering(running))
    running.signal(TERM)
    assert running.exit_code(within=3) == 0
    assert not any(map(is_alive, pids(running)))
    assert "signal 9" in running.log


def answering(running: Running) -> set[int]:
    answers = [running.predict("pid") for _ in range(8)]
    return {body["pid"] for status, body in answers if status == 200}


def test_any_worker_shows_the_metrics_of_all(serve: Serve) -> None:
    running = serve_with_workers(serve)
    until(lambda: answering(running) == pids(running))
    shown = {running.get("/metrics")[1] for _ in range(8)}
    counts = {line for text in shown for line in text.splitlines() if "requests_total{" in line}
    assert len(counts) == 1
    assert float(counts.pop().split()[-1]) % 8 == 0
    running.signal(TERM)
    assert running.exit_code(within=3) == 0


@pytest.mark.parametrize("sig", [TERM, INT])
def test_workers_drain(serve: Serve, sig: signal.Signals) -> None:
    running = serve_with_workers(serve)
    with running.stream() as stream:
        os.killpg(running.process.pid, sig)  # as a terminal's Ctrl-C, or systemd
        until_draining(running)
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
        assert running.exit_code(within=2) == 0
    assert running.has("stopped")
    assert not any(map(is_alive, pids(running)))
    assert "Traceback" not in running.log


def test_listener_is_closed_with_the_last_worker_that_answers(serve: Serve, tmp_path: Path) -> None:
    """Not with the process: a connection that nobody will accept is refused, not kept waiting."""
    stop = "def stop(self):\n        (HERE / 'stopping').touch()\n        time.sleep(60)"
    source = SERVED.replace("def stop(self):", f"{stop}\n", 1)
    (tmp_path / "served.py").write_text(source)
    running = serve("served.py", "--workers", "2")
    running.signal(TERM)
    until(lambda: running.has("stopping"))
    until(lambda: not listens(running.port), within=1)


@pytest.mark.slow
def test_worker_whose_handler_blocks(serve: Serve) -> None:
    running = serve_with_workers(serve, "--drain-timeout", "0.5")
    connection = running.start_asking("block_loop")
    until(lambda: running.has("asked"))
    running.signal(TERM)
    assert running.exit_code(within=2.5) == 0
    assert not any(map(is_alive, pids(running)))
    connection.close()


def test_second_signal_ends_all_workers_at_once(serve: Serve) -> None:
    running = serve_with_workers(serve)
    with running.stream():
        running.signal(TERM)
        until_draining(running)
        running.signal(INT)
        assert running.exit_code(within=1) == 128 + INT
        until(lambda: not any(map(is_alive, pids(running))), within=1)


def test_workers_end_with_their_supervisor(serve: Serve, tmp_path: Path) -> None:
    running = serve_with_workers(serve, MODELSERVE_METRICS_DIR=str(tmp_path))
    running.signal(KILL)
    until(lambda: not any(map(is_alive, pids(running))), within=3)


@pytest.mark.slow
def test_worker_that_cannot_be_replaced_leaves_the_others(serve: Serve, tmp_path: Path) -> None:
    running = serve_with_workers(serve)
    victim, _ = pids(running)
    (tmp_path / "served.py").write_text("import not_there_at_all")
    os.kill(victim, KILL)
    until(lambda: "not_there_at_all" in running.log)
    (tmp_path / "served.py").write_text(SERVED)
    assert running.predict("pid")[0] == 200
    until(lambda: len(pids(running)) == 3)
    running.signal(TERM)
    assert running.exit_code(within=3) == 0


def test_application_that_does_not_start(start: Serve, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no licence'})\n"
    )
    for workers in ("1", "2"):
        running = start("failing.py", "--workers", workers)
        assert running.exit_code(within=10) == 3
        assert "no licence" in running.log


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_slow_import_is_waited_for(serve: Serve, tmp_path: Path, workers: str) -> None:
    hold = "import ctypes\nctypes.PyDLL(None).sleep(15)\n"  # holds the interpreter's lock
    (tmp_path / "served.py").write_text(hold + SERVED)
    running = serve("served.py", "--workers", workers)
    until(lambda: len(running.served_by) == int(workers), within=30)
    assert "is replaced" not in running.log
    running.signal(TERM)
    assert running.exit_code(within=3) == 0
