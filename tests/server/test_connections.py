import asyncio
import gc
import select
import socket
import struct
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from servercommand import Running, Serve, every_protocol, post, until
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from modelserve import ModelServer
from modelserve.server.connections.mending import mended
from modelserve.server.connections.stalled import StalledConnections

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_only_httptools_is_mended() -> None:
    """If this fails with a new uvicorn, its attributes have changed: see what it still leaves undone."""
    protocol = mended(HttpToolsProtocol)
    assert protocol is not HttpToolsProtocol
    assert issubclass(protocol, HttpToolsProtocol)
    assert issubclass(mended(H11Protocol), H11Protocol)


class AnotherCycle:
    def __init__(self) -> None:
        self.finished = False


@pytest.mark.parametrize("cycle", [AnotherCycle, None])
def test_a_release_with_other_attributes_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, cycle: object
) -> None:
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", cycle)
    assert mended(HttpToolsProtocol) is HttpToolsProtocol


async def test_connection_that_was_reset_is_not_kept_until_its_keep_alive_time_is_over() -> None:
    """uvicorn's protocol leaves the timer, which holds it, where the connection ends in an error."""
    config, state = uvicorn.Config(ModelServer(), log_config=None), ServerState()
    made: list[weakref.ref[Any]] = []

    def make() -> asyncio.Protocol:
        protocol = mended(HttpToolsProtocol)(config, state, {})  # type: ignore[call-arg]
        made.append(weakref.ref(protocol))
        return protocol

    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b'{"live":true}')
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    async with asyncio.timeout(5):
        while state.connections or made[0]() is not None:
            gc.collect()
            await asyncio.sleep(0.01)
    server.close()


class Connection:
    """A connection as `StalledConnections` sees it; `unread` is what its client has not taken."""

    def __init__(self, unread: int, *, complete: bool = True, closing: bool = False) -> None:
        self.unread = unread
        self.closing = closing
        self.aborted = False
        self.transport = self
        self.cycle = self
        self.response_complete = complete

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> socket.socket:
        with socket.socket() as closed:
            return closed

    def abort(self) -> None:
        self.aborted = True


def test_only_clients_that_read_nothing_are_cut() -> None:
    stalled, cut, read, running, done = (
        Connection(7),
        Connection(7, complete=False, closing=True),
        Connection(7),
        Connection(7, complete=False),
        Connection(0),
    )
    connections = {stalled, cut, read, running, done}
    watch = StalledConnections(connections, 1.0)
    for now in (10.0, 10.5, 10.9):
        watch.check(now)
    assert not any(connection.aborted for connection in connections)
    read.unread = 6
    watch.check(11.2)
    assert {connection for connection in connections if connection.aborted} == {stalled, cut}
    connections -= {stalled, cut}
    for now in (11.5, 12.0, 12.3):
        watch.check(now)
    assert read.aborted
    assert not running.aborted and not done.aborted


def test_connections_of_another_kind_are_left_alone() -> None:
    """WebSockets, and those of a release of uvicorn with other attributes."""
    other = Connection(7)
    del other.response_complete
    watch = StalledConnections({object(), other}, 1.0)
    for now in (10.0, 12.0):
        watch.check(now)
    assert not other.aborted


# --- over sockets -------------------------------------------------------------------------------


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


# A whole document, which the application is done with at once, and a stream that it cuts.
UNREAD = pytest.mark.parametrize("model", ["large", "endless"])


def read_nothing(running: Running, model: str) -> None:
    """Send a request and wait until the connection is reset."""
    with running.send(post(model), receive_buffer=4096) as client:
        reset = select.poll()
        reset.register(client, 0)
        assert reset.poll(5000)
    assert "Traceback" not in running.log


@every_protocol
@UNREAD
@pytest.mark.slow
def test_client_that_reads_nothing_is_cut(serve: Serve, model: str, flags: str) -> None:
    read_nothing(serve("served.py", "--send-timeout", "0.3", *flags.split()), model)


@pytest.mark.slow
@every_protocol
@UNREAD
def test_client_that_reads_nothing_over_tls_is_cut(
    serve: Serve, tls: list[str], model: str, flags: str
) -> None:
    read_nothing(serve("served.py", "--send-timeout", "0.3", *flags.split(), *tls), model)


@pytest.mark.slow
@UNREAD
def test_client_that_reads_nothing_of_a_worker_is_cut(serve: Serve, model: str) -> None:
    read_nothing(serve("served.py", "--send-timeout", "0.3", "--workers", "2"), model)


@UNREAD
@pytest.mark.slow
def test_client_that_reads_nothing_from_a_unix_domain_socket_is_cut(
    serve: Serve, tmp_path: Path, model: str
) -> None:
    address = ("--uds", str(tmp_path / "socket"))
    read_nothing(serve("served.py", "--send-timeout", "0.3", address=address), model)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@every_protocol
def test_idle_connection_is_not_cut(serve: Serve, workers: str, flags: str) -> None:
    flags = f"--send-timeout 0.2 --workers {workers} {flags}"
    running = serve("served.py", *flags.split())
    connection = running.connect()
    for pause in (1.0, 0):
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
        time.sleep(pause)
    connection.close()


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("receive_buffer", [1 << 12, 1 << 14])
def test_client_with_a_small_window_that_reads_now_and_then_is_not_cut(
    serve: Serve, tls: list[str], receive_buffer: int, is_tls: bool, flags: str
) -> None:
    """TCP_USER_TIMEOUT would cut it: the window never opens by a whole segment."""
    running = serve("served.py", "--send-timeout", "2", *flags.split(), *tls * is_tls)
    with running.send(post("large"), receive_buffer=receive_buffer) as client:
        for _ in range(15):
            assert client.recv(1 << 16)
            time.sleep(0.5)


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("is_tls", [False, True])
def test_client_that_reads_slowly_gets_all(
    serve: Serve, tls: list[str], is_tls: bool, flags: str
) -> None:
    running = serve("served.py", "--send-timeout", "0.3", *flags.split(), *tls * is_tls)
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
@pytest.mark.slow
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
@pytest.mark.slow
def test_document_over_http_1_0(serve: Serve, method: str, flags: str) -> None:
    running = serve("served.py", *flags.split())
    with running.send(f"{method} /v2/health/live HTTP/1.0\r\n\r\n") as client:
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.endswith(b'{"live":true}' if method == "GET" else b"\r\n\r\n")
    assert b"content-length: 13" in answer.lower()
