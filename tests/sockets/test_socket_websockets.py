"""WebSockets on real servers, with a client of its own."""

import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import realserver
from realserver import Server, Start, hosts
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

# uvicorn has three ways to speak WebSocket; `httptools` has the one that it chooses itself.
everywhere = hosts("httptools", "hypercorn", slow=("wsproto", "websockets", "trio", "granian-ws"))


def dial(server: Server, path: str, **options: Any) -> ClientConnection:
    url = f"ws://127.0.0.1:{server.port}/v1/models/{path}"
    return connect(url, proxy=None, max_size=None, open_timeout=20, close_timeout=2, **options)


def rest(client: ClientConnection) -> tuple[list[Any], int, str]:
    """Return all further messages, and how it was closed."""
    messages: list[Any] = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(client.recv(timeout=20))
    return messages, client.close_code or 0, client.close_reason or ""


@everywhere
@pytest.mark.parametrize("model", ["echo", "thread", "lists"])
def test_messages_go_both_ways(start: Start, host: str, model: str) -> None:
    server = start(host, "sockets")
    with dial(server, f"{model}:predict", subprotocols=["modelserve.v1", "bearer.eA"]) as client:
        assert client.subprotocol == "modelserve.v1"
        for sent, got in (('{"a": 1}', '{"a":1}'), (b"\xff", b"\xff"), ('"é"', '"é"')):
            client.send(sent)
            assert client.recv(timeout=20) == got
        client.send("nope")
        assert '"message":4}' in str(client.recv(timeout=20))
        client.send(b"x" * 1_000_000)
        client.send("")
        assert rest(client) == ([b"x" * 1_000_000], 1000, "")


@everywhere
def test_a_failure_is_a_last_message_and_a_code(start: Start, host: str) -> None:
    with dial(start(host, "sockets"), "echo:predict") as client:
        client.send('"fail"')
        assert rest(client) == (['{"error":"told to fail"}'], 4429, "told to fail")


@everywhere
def test_a_refusal_is_the_answer_to_the_handshake(start: Start, host: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        dial(start(host, "sockets"), "none:predict")
    assert refused.value.response.status_code == 404
    body = bytes(refused.value.response.body or b"")
    assert body == b'{"error":"Model with name none does not exist."}'


@everywhere
@pytest.mark.parametrize("how", ["closes", "hangs up"])
def test_a_client_that_leaves_ends_the_hook(start: Start, host: str, key: str, how: str) -> None:
    server = start(host, "sockets")
    with dial(server, "watched:predict") as client:
        client.send(f'"{key}"')
        assert client.recv(timeout=20) == f'"{key}"'
        if how == "hangs up":
            client.socket.shutdown(socket.SHUT_RDWR)
    server.ledger.wait(key, "end")


@hosts("httptools", slow=("wsproto", "websockets", "hypercorn", "granian-ws"))
@pytest.mark.slow
def test_a_client_that_does_not_read_is_cut(start: Start, host: str, key: str) -> None:
    server = start(host, "sockets")
    with (
        dial(server, "flood:predict", max_queue=1) as client,
        dial(server, "echo:predict") as other,
    ):
        client.send(f'"{key}"')
        server.ledger.wait(key, "start")
        other.send("1")
        assert other.recv(timeout=20) == "1"
        server.ledger.wait(key, "end")
        client.socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def stopping(host: str, folder: Path, *options: str) -> Any:
    server = realserver.start(host, "sockets", folder, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.slow
def test_the_command_line_closes_with_4503_once_its_drain_is_over(tmp_path: Path) -> None:
    with stopping("modelserve", tmp_path) as server, dial(server, "watched:predict") as client:
        client.send('"k"')
        assert client.recv(timeout=20) == '"k"'
        server.process.terminate()
        assert rest(client) == (
            ['{"error":"server shutting down"}'],
            4503,
            "server shutting down",
        )
        assert server.process.wait(20) == 0
        assert server.ledger.count("k", "end") == 1
        assert "Traceback" not in server.log


def is_held(server: Server, client: ClientConnection) -> bool:
    """Return whether the server's end of a connection is still a file of some process."""
    ends = [f":{server.port:04X}", f":{client.socket.getsockname()[1]:04X}"]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any([row[1][-5:], row[2][-5:]] == ends and row[9] != "0" for row in rows)


@pytest.mark.slow
def test_the_command_line_lets_go_of_a_client_that_never_reads(tmp_path: Path) -> None:
    with (
        stopping("modelserve", tmp_path, "--send-timeout", "0.2") as server,
        dial(server, "flood:predict", max_queue=1) as client,
    ):
        assert is_held(server, client)
        client.send('"k"')
        server.ledger.wait("k", "end")
        assert realserver.until(lambda: not is_held(server, client), seconds=20)
        with suppress(OSError):
            client.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_the_command_line_does_not_compress_and_logs_no_token(tmp_path: Path) -> None:
    with stopping("modelserve", tmp_path) as server:
        with dial(
            server, "echo:predict", subprotocols=["modelserve.v1", "bearer.c2VjcmV0"]
        ) as client:
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
        with pytest.raises(InvalidStatus):
            dial(server, "none:predict")
        server.stop()
        assert "c2VjcmV0" not in server.log
        assert '"level":"error"' not in server.log
