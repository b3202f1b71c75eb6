"""Faults that clients cause, which must leak nothing."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rawclient import Connection, Cut, get, post, request
from realserver import Server, Start, hosts, until

MODELS = ["unary", "async-generator", "sync-generator", "blocking"]
every_host = hosts("httptools", "trio", slow=["h11", "hypercorn"])
every_model = pytest.mark.parametrize("model", MODELS)


def url(model: str) -> str:
    return f"/v1/models/{model}:predict"


def data_of(model: str, key: str, **plan: Any) -> bytes:
    body = json.dumps({"key": key, "before": 0.05, "gap": 0.05, "count": 100, **plan}).encode()
    return request("POST", url(model), body, content_type="application/json")


@pytest.fixture(scope="module")
def most_threads() -> dict[str, int]:
    """How many threads a server has once all its workers have been at work."""
    return {}


@pytest.fixture
def server(start: Start, host: str, most_threads: dict[str, int]) -> Iterator[Server]:
    """A server that is checked for leaks after the test."""
    server = start(host, "streams")
    if host not in most_threads:
        most_threads[host] = wake_all_workers(server)
    assert settled(server)
    files, logged = server.files(), len(server.log)
    yield server
    assert settled(server), f"still running: {server.ledger.running()}"
    if host != "trio":  # hypercorn's trio worker closes a socket late, or with the next one
        assert until(lambda: server.files() <= files, seconds=20), f"{server.files()} > {files}"
    assert server.threads() <= most_threads[host]
    assert "Traceback" not in server.log[logged:], "a disconnect is not an error of the server"
    assert get(server.port, "/").status == 200
    assert post(server.port, url("unary"), {"key": "after"}).status == 200


def wake_all_workers(server: Server) -> int:
    clients = [Connection(server.port) for _ in range(60)]
    for n, client in enumerate(clients):
        model = ("blocking", "sync-generator")[n % 2]
        client.send(data_of(model, f"warm-{n}", count=1, gap=0, before=0.2))
    for client in clients:
        client.answer()
        client.close()
    return server.threads()


def settled(server: Server) -> bool:
    return until(lambda: not server.ledger.running(), seconds=20)


@every_host
@every_model
def test_close_at_every_stage_of_the_request(server: Server, key: str, model: str) -> None:
    whole = data_of(model, key)
    ends = [*range(0, len(whole), 5), len(whole) - 1]
    for n, end in enumerate(ends):
        client = Connection(server.port)
        client.send(whole[:end])
        client.close(reset=n % 2 == 0)
    time.sleep(0.02)
    assert server.ledger.of(key) == [], "a body cut short is never processed"


@every_host
@every_model
@pytest.mark.parametrize("reset", [True, False])
def test_close_right_after_the_request(server: Server, key: str, model: str, reset: bool) -> None:
    for n in range(10):
        client = Connection(server.port)
        client.send(data_of(model, f"{key}-{n}"))
        client.close(reset=reset)


@every_host
@every_model
def test_close_at_every_stage_of_the_response(server: Server, key: str, model: str) -> None:
    """Ten clients at a time, so that their waits overlap."""
    for sizes in (range(n, n + 50, 5) for n in range(1, 351, 50)):
        clients = [Connection(server.port) for _ in sizes]
        for size, client in zip(sizes, clients, strict=True):
            before = 0.02 if model in ("unary", "blocking") else 0
            data = data_of(model, f"{key}-{size}", count=8, gap=0.005, before=before)
            client.send(data.replace(b"host:", b"connection: close\r\nhost:"))
        for size, client in zip(sizes, clients, strict=True):
            with contextlib.suppress(Cut):
                client.exactly(size)
            client.close(reset=size % 2 == 0)


@every_host
@pytest.mark.parametrize("model", ["async-generator", "sync-generator"])
def test_half_close_ends_a_stream(server: Server, key: str, model: str) -> None:
    with Connection(server.port) as client:
        client.send(data_of(model, key))
        client.head()
        client.socket.shutdown(1)
        server.ledger.wait(key, "end")
    assert server.ledger.count(key, "item") < 10


@every_host
@every_model
def test_half_close_inside_the_request(server: Server, key: str, model: str) -> None:
    with Connection(server.port) as client:
        client.send(data_of(model, key)[:-1])
        client.socket.shutdown(1)
        with contextlib.suppress(Cut):
            assert client.answer().status == 400
    assert server.ledger.of(key) == []


@every_host
@pytest.mark.parametrize("model", ["unary", "sync-generator"])
def test_slow_sender(server: Server, key: str, model: str) -> None:
    with Connection(server.port) as client:
        for byte in data_of(model, key, count=2, gap=0):
            client.send(bytes([byte]))
            time.sleep(0.001)
        assert client.answer().status == 200


@every_host
@pytest.mark.parametrize("model", ["async-generator", "sync-generator"])
def test_slow_reader(server: Server, key: str, model: str) -> None:
    with Connection(server.port, receive_buffer=4096) as client:
        client.send(data_of(model, key, count=100, size=4096, gap=0, before=0))
        client.head()
        body = b""
        for chunk in client.chunks():
            body += chunk
            time.sleep(0.002)
    assert body == b"".join(f"{n:08}".ljust(4096, ".").encode() for n in range(100))


@every_host
@pytest.mark.slow
def test_client_that_never_reads_and_resets(server: Server, key: str) -> None:
    clients = [Connection(server.port, receive_buffer=4096) for _ in range(4)]
    for n, client in enumerate(clients):
        model = MODELS[1 + n % 2]
        client.send(data_of(model, f"{key}-{n}", count=3000, size=65536, gap=0, before=0))
    until(lambda: all(server.ledger.count(f"{key}-{n}", "item") > 5 for n in range(4)), seconds=20)
    for n, client in enumerate(clients):
        client.close(reset=n < 2)


@every_host
def test_pipelined_values(server: Server, key: str) -> None:
    with Connection(server.port) as client:
        client.send(b"".join(data_of("unary", f"{key}-{n}", before=0.01) for n in range(5)))
        for _ in range(5):
            assert client.answer().body == b'{"predictions":[1]}'


@every_host
def test_pipelined_behind_a_stream(server: Server, key: str) -> None:
    plan = {"count": 3, "gap": 0.01}
    with Connection(server.port) as client:
        client.send(data_of("async-generator", f"{key}-1", **plan) + data_of("unary", f"{key}-2"))
        assert client.answer().body == b'{"n":0}\n{"n":1}\n{"n":2}\n'
        assert client.answer().body == b'{"predictions":[1]}'


@hosts("httptools", slow=["h11"])
@every_model
def test_close_with_another_request_pipelined(server: Server, key: str, model: str) -> None:
    """The server may not report it, but a send fails; a long wait in between is bounded."""
    client = Connection(server.port)
    client.send(data_of(model, f"{key}-1", before=0.3) + data_of("unary", f"{key}-2"))
    server.ledger.wait(f"{key}-1", "start")
    client.close(reset=True)
    assert settled(server)
    assert server.ledger.count(f"{key}-1", "item") < 10


@every_host
@every_model
def test_expect_continue(server: Server, key: str, model: str) -> None:
    data = data_of(model, key, count=2, gap=0).replace(b"host:", b"expect: 100-continue\r\nhost:")
    head, _, body = data.partition(b"\r\n\r\n")
    with Connection(server.port) as client:
        client.send(head + b"\r\n\r\n")
        assert client.head().status == 100
        client.send(body)
        assert client.answer().status == 200


@every_host
def test_expect_continue_and_close(server: Server, key: str) -> None:
    data = data_of("unary", key).replace(b"host:", b"expect: 100-continue\r\nhost:")
    with Connection(server.port) as client:
        client.send(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert client.head().status == 100
    assert server.ledger.of(key) == []


@every_host
@every_model
@pytest.mark.parametrize("keep", [b"", b"connection: keep-alive\r\n"])
def test_http_1_0(server: Server, key: str, model: str, keep: bytes) -> None:
    data = data_of(model, key, count=3, gap=0.01)
    data = data.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + keep)
    with Connection(server.port) as client:
        client.send(data)
        body = client.answer().body
    if "generator" in model:
        assert [body.count(b'{"n":%d}\n' % n) for n in range(3)] == [1, 1, 1]
    else:
        assert body == b'{"predictions":[1]}'


@every_host
@every_model
def test_http_1_0_and_close(server: Server, key: str, model: str) -> None:
    with Connection(server.port) as client:
        client.send(data_of(model, key).replace(b"HTTP/1.1", b"HTTP/1.0"))
        server.ledger.wait(key, "start")
    server.ledger.wait(key, "end")


@every_host
@every_model
def test_connection_close(server: Server, key: str, model: str) -> None:
    data = data_of(model, key, count=2, gap=0.01).replace(b"host:", b"connection: close\r\nhost:")
    with Connection(server.port) as client:
        client.send(data)
        assert client.answer().status == 200
        assert client.rest() == b""


@every_host
def test_body_longer_than_announced(server: Server, key: str) -> None:
    """The surplus is refused as the next request, by the server's own parser."""
    statuses = []
    with Connection(server.port) as client, contextlib.suppress(Cut):
        client.send(data_of("unary", key) + b"}}}}\r\n\r\n")
        while True:
            statuses.append(client.answer().status)
    assert statuses in ([200, 400], [400], [200])


@every_host
def test_large_upload_is_abandoned(server: Server, key: str) -> None:
    head = request("POST", url("unary"), content_length="50000000")
    for n in range(5):
        client = Connection(server.port)
        client.send(head + b'{"key":"' + b"x" * 1_000_000)
        client.close(reset=n % 2 == 0)
    assert server.ledger.of(key) == []


@every_host
def test_unread_upload_to_an_unknown_model(server: Server, key: str) -> None:
    """404 comes although the body is still on its way; the server may close after it."""
    with Connection(server.port) as client:
        client.send(request("POST", url("zz"), content_length="1000000") + b"x" * 1000)
        if server.kind in ("httptools", "h11"):
            assert client.head().status == 404


@every_host
def test_many_clients_leave_at_once(server: Server, key: str) -> None:
    clients = []
    for n in range(24):
        client = Connection(server.port)
        client.send(data_of(MODELS[n % 3], f"{key}-{n}", before=0.1, gap=0.02))
        clients.append(client)
    for n in range(24):
        server.ledger.wait(f"{key}-{n}", "start")
    for n, client in enumerate(clients):
        client.close(reset=n % 2 == 0)
    assert until(lambda: not server.ledger.running(), seconds=20)
