"""Requests that are answered while they are sent, over real sockets."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from rawclient import Connection, Cut
from realserver import Server, Start, hosts, until

MODELS = pytest.mark.parametrize("model", ["rows", "async", "sync"])
HOSTS = hosts("httptools", slow=["h11", "hypercorn", "trio", "granian"])
NDJSON = "application/x-ndjson"


def path_of(model: str) -> str:
    return f"/v1/models/{model}:predict"


def begin(server: Server, model: str, **headers: str) -> Connection:
    client = Connection(server.port)
    head = f"POST {path_of(model)} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n"
    fields = {"content-type": NDJSON, **headers}
    head += "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in fields.items())
    client.send(head.encode() + b"\r\n")
    return client


def send(client: Connection, data: bytes) -> None:
    client.send(b"%x\r\n%b\r\n" % (len(data), data))


@HOSTS
@MODELS
def test_each_result_comes_before_the_next_row_is_sent(
    start: Start, host: str, model: str, key: str
) -> None:
    with begin(start(host, "lines"), model) as client:
        for x in range(5):
            send(client, json.dumps({"key": key, "x": x}).encode() + b"\n")
            if x == 0:
                assert client.head().headers["content-type"] == NDJSON
            assert client.chunk() == b'{"y":%d}\n' % (2 * x)
        send(client, b"bad\n")
        assert json.loads(client.chunk())["line"] == 6
        client.send(b"0\r\n\r\n")
        assert client.chunk() == b""


@HOSTS
@MODELS
def test_a_client_that_leaves_while_it_sends_ends_the_hook(
    start: Start, host: str, model: str, key: str
) -> None:
    server = start(host, "lines")
    client = begin(server, model)
    send(client, json.dumps({"key": key, "x": 1}).encode() + b'\n{"key"')
    client.head()
    assert client.chunk() == b'{"y":2}\n'
    client.close()
    if model != "rows":
        server.ledger.wait(key, "end")


@contextlib.contextmanager
def writing(client: Connection, key: str) -> Iterator[None]:
    """Send rows without an end, and read nothing meanwhile; then leave."""
    lot = json.dumps({"key": key, "x": "x" * 1000}).encode() + b"\n"

    def write() -> None:
        with contextlib.suppress(OSError):
            while True:
                send(client, lot * 100)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the server has cut the connection
            client.socket.shutdown(socket.SHUT_RDWR)
        writer.join()
        client.close()


@hosts(slow=["httptools", "h11", "hypercorn", "trio", "granian"])
def test_a_client_that_writes_all_before_it_reads_is_cut(start: Start, host: str, key: str) -> None:
    server = start(host, "lines")
    client = begin(server, "cut")
    client.socket.settimeout(30)
    with writing(client, key):
        server.ledger.wait(key, "end")
        assert until(lambda: "the client does not read while it sends" in server.log, seconds=20)
        with contextlib.suppress(Cut):
            assert not client.rest().endswith(b"0\r\n\r\n")


@hosts(slow=["httptools", "h11", "hypercorn", "trio", "granian"])
def test_a_client_that_leaves_after_a_long_time_without_reading_ends_the_hook(
    start: Start, host: str, key: str
) -> None:
    server = start(host, "lines")
    with writing(begin(server, "async"), key):
        server.ledger.wait(key, "start")
        time.sleep(5)
    server.ledger.wait(key, "end")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@HOSTS
@MODELS
def test_curl_streams_both_ways(start: Start, host: str, model: str) -> None:
    port = start(host, "lines").port
    url = f"http://127.0.0.1:{port}{path_of(model)}"
    command = ["curl", "-s", "-N", "-m", "10", "-T", "-", "-X", "POST"]
    command += ["-H", f"content-type: {NDJSON}", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as curl:
        assert curl.stdin is not None and curl.stdout is not None
        rest = threading.Event()

        def write() -> None:
            assert curl.stdin is not None
            for x in range(6):
                curl.stdin.write(b'{"x": %d}\n' % x)
                curl.stdin.flush()
                if x == 3:  # curl reads answers between two reads of its input
                    assert rest.wait(10), "no result before the last row"
                time.sleep(0.05)
            curl.stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        first = curl.stdout.readline()
        rest.set()
        writer.join()
        assert first + curl.stdout.read() == b"".join(b'{"y":%d}\n' % (2 * x) for x in range(6))
    assert curl.returncode == 0


@hosts("httptools", slow=["h11", "granian"])  # hypercorn says 100 Continue in any case
def test_what_is_refused_is_refused_before_the_body(start: Start, host: str) -> None:
    server = start(host, "lines")
    for model, headers, status in (
        ("other", {}, 404),
        ("rows", {"accept": "image/png"}, 406),
        ("rows", {"content_encoding": "br"}, 415),
    ):
        with begin(server, model, expect="100-continue", **headers) as client:
            assert client.head().status == status


@HOSTS
@MODELS
def test_a_client_that_reads_afterwards_gets_all(start: Start, host: str, model: str) -> None:
    server = start(host, "lines")

    def rows() -> Iterator[bytes]:
        for x in range(2000):
            yield b'{"x": %d}\n' % x

    for accept in ("*/*", "application/json"):
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        client.request(
            "POST", path_of(model), rows(), {"content-type": NDJSON, "accept": accept},
            encode_chunked=True,
        )  # fmt: skip
        body = client.getresponse().read()
        client.close()
        expected = [{"y": 2 * x} for x in range(2000)]
        if accept == "*/*":
            assert [json.loads(line) for line in body.splitlines()] == expected
        else:
            assert json.loads(body) == {"predictions": expected}
