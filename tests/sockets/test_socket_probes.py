"""The behaviour by which streaming servers differ, probed on every host and origin of items."""

import contextlib
import json
import threading
import time
from typing import Any

import pytest
from rawclient import Connection, Cut, get, post, read_events
from realserver import Figure, Server, Start, hosts, until

ASYNC = [
    "async-generator:predict",
    "async-iterator:predict",
    "returned-async-generator:predict",
    "awaited-generator:predict",
    "awaitable:predict",
    "function:predict",
    "decorated:predict",
    "decorated-as-coroutine:predict",
    "partial:predict",
    "partial-async:predict",
    "callable:predict",
    "explaining:explain",
    "postprocessed:predict",
    "replaced:predict",
    "from-value:predict",
]
SYNC = [
    "sync-generator:predict",
    "sync-iterator:predict",
    "returned-generator:predict",
    "awaited-sync-generator:predict",
    "awaited-iterator:predict",
    "sync-function:predict",
    "sync-decorated:predict",
    "partial-sync:predict",
    "sync-postprocessed:predict",
    "sync-from-value:predict",
]
FEW = ["async-generator:predict", "sync-generator:predict", "postprocessed:predict"]
HOSTS = ["httptools", "h11", "hypercorn", "trio", "granian"]
PROBES = [
    *(("httptools", origin) for origin in FEW),
    ("trio", FEW[0]),
    *(
        pytest.param("httptools", origin, marks=pytest.mark.slow)
        for origin in ASYNC + SYNC
        if origin not in FEW
    ),
    *(
        pytest.param(host, origin, marks=pytest.mark.slow)
        for host in HOSTS[1:]
        for origin in FEW
        if (host, origin) != ("trio", FEW[0])
    ),
]
GAP = 0.05
SOON = 10  # what is not stopped goes on for minutes
COUNT = 4000
LATE = 100  # items in 5 s
GETS = 20  # answered while others are busy for a second or more

every_probe = pytest.mark.parametrize(("host", "origin"), PROBES)
main_hosts = hosts("httptools", "trio", slow=["h11", "hypercorn", "granian"])


def url(origin: str) -> str:
    return f"/v1/models/{origin}"


def allowance(origin: str) -> float:
    """A sync step cannot be interrupted: the one in progress is waited for."""
    return SOON + (GAP if origin in SYNC else 0)


def take_lines(client: Connection, count: int) -> bytes:
    """Read an answer's head and chunks until so many lines are there; hosts may join chunks."""
    assert client.head().status == 200
    data = b""
    while data.count(b"\n") < count:
        data += client.chunk()
    return data


def stopped(server: Server, key: str, closed: float) -> tuple[int, float]:
    """Wait for the end; return the items made after the client closed, and the delay."""
    end = server.ledger.wait(key, "end")
    late = [x for x in server.ledger.of(key) if x.name == "item" and x.time > closed]
    return len(late), end.time - closed


# An exception before item 1: an honest status.


@every_probe
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [("InvalidInput", 400, "bad item"), ("ValueError", 500, "Internal Server Error")],
)
def test_failure_before_the_first_item(
    start: Start, key: str, host: str, origin: str, error: str, status: int, text: str
) -> None:
    server = start(host, "streams")
    answer = post(server.port, url(origin), {"key": key, "fail_at": 0, "error": error})
    assert (answer.status, answer.json) == (status, {"error": text})
    assert answer.headers["content-type"] == "application/json"
    server.ledger.wait(key, "end")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "text/plain"])
def test_failure_before_the_first_item_in_every_form(start: Start, key: str, accept: str) -> None:
    port = start("httptools", "streams").port
    plan = {"key": key, "fail_at": 0, "before": 0.05}
    answer = post(port, url("async-generator:predict"), plan, accept=accept)
    assert (answer.status, answer.json) == (400, {"error": "bad item"})
    assert answer.headers["content-type"] == "application/json"


# An exception after 3 items: an error record, or a cut.


@every_probe
def test_failure_in_an_ndjson_stream(start: Start, key: str, host: str, origin: str) -> None:
    server = start(host, "streams")
    answer = post(server.port, url(origin), {"key": key, "fail_at": 3, "count": 9})
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert (answer.status, lines) == (200, [{"n": 0}, {"n": 1}, {"n": 2}, {"error": "bad item"}])
    server.ledger.wait(key, "end")


@every_probe
def test_failure_in_an_sse_stream(start: Start, key: str, host: str, origin: str) -> None:
    server = start(host, "streams")
    plan = {"key": key, "fail_at": 3, "count": 9, "error": "ValueError"}
    answer = post(server.port, url(origin), plan, accept="text/event-stream")
    *items, last = read_events(answer.body)
    assert items == [{"data": '{"n":0}'}, {"data": '{"n":1}'}, {"data": '{"n":2}'}]
    assert last == {"event": "error", "data": '{"error":"Internal Server Error"}'}
    server.ledger.wait(key, "end")


@every_probe
def test_failure_in_a_raw_stream(start: Start, key: str, host: str, origin: str) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "items": ["a", "b", "c", "d"], "fail_at": 3, "gap": 0.01}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        assert client.head().status == 200
        data = b""
        with pytest.raises(Cut):
            for chunk in client.chunks():
                data += chunk
    assert data == b"abc"
    server.ledger.wait(key, "end")


# The client closes: no more items are made, `finally` ran.


@every_probe
def test_client_closes_a_stream(
    start: Start, figure: Figure, key: str, host: str, origin: str
) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "count": COUNT, "gap": GAP}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        take_lines(client, 3)
        closed = time.monotonic()
    late, delay = stopped(server, key, closed)
    figure(f"from close to `finally`, {'sync' if origin in SYNC else 'async'} on {host}", delay)
    assert late <= LATE
    assert delay < allowance(origin)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json", "*/*"])
@pytest.mark.parametrize("origin", ["async-generator:predict", "sync-generator:predict"])
@main_hosts
def test_client_resets_a_stream_in_any_form(
    start: Start, key: str, host: str, origin: str, accept: str
) -> None:
    server = start(host, "streams")
    client = Connection(server.port)
    plan = {"key": key, "items": ["text"] * COUNT, "gap": GAP}
    client.ask("POST", url(origin), json.dumps(plan).encode(), accept=accept)
    until(lambda: server.ledger.count(key, "item") >= 2, seconds=20)
    closed = time.monotonic()
    client.close(reset=True)
    late, delay = stopped(server, key, closed)
    assert late <= LATE
    assert delay < allowance(origin)


@every_probe
def test_client_closes_before_the_first_item(
    start: Start, figure: Figure, key: str, host: str, origin: str
) -> None:
    server = start(host, "streams")
    before = 0.3 if origin in SYNC else 20
    with Connection(server.port) as client:
        plan = {"key": key, "count": COUNT, "gap": GAP, "before": before}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        server.ledger.wait(key, "start")
        closed = time.monotonic()
    late, delay = stopped(server, key, closed)
    if origin not in SYNC:
        figure(f"from close before item 1 to `finally`, async on {host}", delay)
    assert late <= LATE
    assert delay < SOON + (before + GAP if origin in SYNC else 0)


@main_hosts
def test_cleanup_that_waits_is_completed(start: Start, key: str, host: str) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "count": COUNT, "gap": GAP, "cleanup": 0.2}
        client.ask("POST", url("async-generator:predict"), json.dumps(plan).encode())
        take_lines(client, 1)
        closed = time.monotonic()
    late, delay = stopped(server, key, closed)
    assert late <= LATE
    assert 0.2 <= delay < 0.2 + SOON


@main_hosts
@pytest.mark.parametrize("seconds", [0, 0.02, 0.7])
def test_client_closes_during_a_unary_predict(
    start: Start, figure: Figure, key: str, host: str, seconds: float
) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        client.ask("POST", url("unary:predict"), json.dumps({"key": key, "before": 60}).encode())
        server.ledger.wait(key, "start")
        time.sleep(seconds)
        closed = time.monotonic()
    end = server.ledger.wait(key, "end")
    figure(f"from close to `finally`, unary on {host}", end.time - closed)
    assert server.ledger.count(key, "done") == 0
    assert end.time - closed < SOON


@main_hosts
def test_client_closes_during_a_blocking_predict(start: Start, key: str, host: str) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "before": 0.3}
        client.ask("POST", url("blocking:predict"), json.dumps(plan).encode())
        server.ledger.wait(key, "start")
    server.ledger.wait(key, "end")
    assert post(server.port, url("unary:predict"), {"key": f"{key}-next"}).status == 200


# One thread from the beginning to the end of a sync generator.


@hosts("httptools", "trio")
@pytest.mark.parametrize("origin", SYNC)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "closed"])
def test_sync_items_come_from_one_thread(
    start: Start, key: str, host: str, origin: str, whole: bool
) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "count": 10 if whole else 1000, "gap": 0.002}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        take_lines(client, 10)
    server.ledger.wait(key, "end")
    assert len({x.thread for x in server.ledger.of(key) if x.name != "closed"}) == 1


# A client that never reads stalls the production; memory stays bounded.


@main_hosts
@pytest.mark.parametrize("origin", ["async-generator:predict", "sync-generator:predict"])
@pytest.mark.slow
def test_client_never_reads(start: Start, key: str, host: str, origin: str) -> None:
    server = start(host, "streams")
    memory = server.memory()
    with Connection(server.port, receive_buffer=65536) as client:
        plan = {"key": key, "count": 3000, "size": 65536}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        made = stalled_at(server, key)
        assert 0 < made < 500, "production did not stall"
        assert server.memory() - memory < 40_000_000
        closed = time.monotonic()
    late, delay = stopped(server, key, closed)
    assert late <= 1, "what was blocked may make one more item before it is cancelled"
    assert delay < 0.5


@main_hosts
@pytest.mark.parametrize("origin", ["async-generator:predict", "sync-generator:predict"])
@pytest.mark.slow
def test_client_reads_after_a_pause(start: Start, key: str, host: str, origin: str) -> None:
    server = start(host, "streams")
    with Connection(server.port, receive_buffer=65536) as client:
        plan = {"key": key, "count": 300, "size": 65536}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        assert 0 < stalled_at(server, key) < 300
        body = client.answer().body
    assert body == b"".join(f"{n:08}".ljust(65536, ".").encode() for n in range(300))


def stalled_at(server: Server, key: str) -> int:
    """Wait until no item has been made for 0.3 s; return how many there are."""

    def unchanged() -> bool:
        before = server.ledger.count(key, "item")
        time.sleep(0.3)
        return 0 < before == server.ledger.count(key, "item")

    assert until(unchanged, seconds=20)
    return server.ledger.count(key, "item")


# Blocking and restless handlers do not stop the server from answering others: while one runs, many
# answers come. How long each takes depends on the machine too.


def get_times(port: int) -> list[float]:
    """GET a number of times over one connection; return how long each answer took."""
    times = []
    with Connection(port) as client:
        for _ in range(GETS):
            begin = time.monotonic()
            client.ask("GET", "/v2/health/live")
            assert client.answer().status == 200
            times.append(time.monotonic() - begin)
            time.sleep(0.002)
    return times


@main_hosts
@pytest.mark.slow
def test_other_requests_during_a_blocking_predict(
    start: Start, figure: Figure, key: str, host: str
) -> None:
    server = start(host, "streams")
    with Connection(server.port) as one, Connection(server.port) as two:
        plan: dict[str, Any] = {"key": key, "before": 2}
        one.ask("POST", url("blocking:predict"), json.dumps(plan).encode())
        two.ask("POST", url("sync-generator:predict"), json.dumps(plan).encode())
        server.ledger.wait(key, "start")
        times = get_times(server.port)
        assert server.ledger.count(key, "end") == 0
        figure(f"slowest of {GETS} GETs during a blocking predict on {host}", max(times))
        assert one.answer().status == two.answer().status == 200


@main_hosts
@pytest.mark.parametrize("model", ["restless", "sync-restless"])
@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
def test_other_requests_during_a_restless_stream(
    start: Start, figure: Figure, key: str, host: str, model: str, accept: str
) -> None:
    server = start(host, "streams")
    client = Connection(server.port)
    plan = {"key": key, "count": 1_500_000}
    client.ask("POST", url(f"{model}:predict"), json.dumps(plan).encode(), accept=accept)
    reader = threading.Thread(target=drain, args=[client])
    reader.start()
    server.ledger.wait(key, "start")
    times = get_times(server.port)
    assert server.ledger.count(key, "end") == 0
    figure(f"slowest of {GETS} GETs during {model} as {accept} on {host}", max(times))
    closed = time.monotonic()
    client.socket.shutdown(2)
    reader.join()
    client.close(reset=True)
    delay = server.ledger.wait(key, "end", seconds=20).time - closed
    figure(f"from close to `finally`, {model} as {accept} on {host}", delay)
    assert delay < 0.5


def drain(client: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while client.socket.recv(1 << 20):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("model", ["restless", "sync-restless"])
def test_a_million_items_arrive(start: Start, figure: Figure, key: str, model: str) -> None:
    server = start("httptools", "streams")
    begin = time.monotonic()
    plan = {"key": key, "count": 1_000_000}
    answer = post(server.port, url(f"{model}:predict"), plan)
    figure(f"a million items from {model}", time.monotonic() - begin)
    assert len(answer.body) == 40_000_000
    assert get(server.port, "/").status == 200


# An item is one chunk, and is sent before the next one is made.


@hosts("httptools", "h11", "hypercorn", "trio")
@pytest.mark.parametrize("origin", FEW)
@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream", "text/plain"])
def test_one_item_is_one_chunk(start: Start, key: str, host: str, origin: str, accept: str) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "items": ["a", "b\nc", "d"]}
        client.ask("POST", url(origin), json.dumps(plan).encode(), accept=accept)
        client.head()
        chunks = list(client.chunks())
    assert (
        chunks
        == {
            "application/x-ndjson": [b'"a"\n', b'"b\\nc"\n', b'"d"\n'],
            "text/event-stream": [b"data: a\n\n", b"data: b\ndata: c\n\n", b"data: d\n\n"],
            "text/plain": [b"a", b"b\nc", b"d"],
        }[accept]
    )


@every_probe
def test_an_item_is_sent_before_the_next_is_made(
    start: Start, figure: Figure, key: str, host: str, origin: str
) -> None:
    server = start(host, "streams")
    with Connection(server.port) as client:
        plan = {"key": key, "count": 2, "gap": GAP}
        client.ask("POST", url(origin), json.dumps(plan).encode())
        assert take_lines(client, 1) == b'{"n":0}\n'
        received = time.monotonic()
        assert list(client.chunks()) == [b'{"n":1}\n']
    first, second = [x.time for x in server.ledger.of(key) if x.name == "item"]
    figure(f"from making an item to its arrival on {host}", received - first)
    assert received < second
