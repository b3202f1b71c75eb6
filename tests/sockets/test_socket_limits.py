"""What ends a request apart from its client: limits on time, number and size, and a shutdown."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import realserver
from rawclient import Connection, Cut, get, post, read_events, request
from realserver import Server, Start, hosts, until

every_host = hosts("httptools", "trio", slow=["h11", "hypercorn", "granian"])
both = pytest.mark.parametrize("model", ["async", "sync"])
SOON = 10  # what is not stopped goes on for a minute


def url(model: str) -> str:
    return f"/v1/models/{model}:predict"


# A stream longer than its time limit: an error record or a cut, which says by which limit.

PLANS = {
    "timeout": {"gap": 0.12, "count": 500},
    "idle": {"gap": 1.0, "count": 50},
}


@every_host
@both
@pytest.mark.parametrize("limit", PLANS)
@pytest.mark.slow
def test_time_limits_leave_a_record(
    start: Start, key: str, host: str, model: str, limit: str
) -> None:
    server = start(host, "limited")
    begin = time.monotonic()
    answer = post(server.port, url(model), {"key": key, **PLANS[limit]}, accept="text/event-stream")
    took = time.monotonic() - begin
    *items, last = read_events(answer.body)
    assert items[0] == {"data": '{"n":0}'}
    assert last["event"] == "error"
    text = json.loads(last["data"])["error"]
    assert ("0.6" if limit == "timeout" else "0.3") in text
    server.ledger.wait(key, "end")
    step = PLANS[limit]["gap"] if model == "sync" else 0
    bound = 0.6 if limit == "timeout" else 0.3
    assert bound * 0.9 < took < bound + step + SOON
    assert 1 <= len(items) <= 5 if limit == "timeout" else len(items) == 1


@both
@pytest.mark.parametrize("limit", PLANS)
@pytest.mark.slow
def test_time_limits_cut_a_raw_stream(start: Start, key: str, model: str, limit: str) -> None:
    server = start("httptools", "limited")
    plan: dict[str, Any] = {"key": key, **PLANS[limit], "items": ["a"] * 500}
    with pytest.raises(Cut):
        post(server.port, url(model), plan)
    server.ledger.wait(key, "end")


@pytest.mark.slow
def test_each_limit_has_its_own_text(start: Start, key: str) -> None:
    port = start("httptools", "limited").port
    plans: list[dict[str, Any]] = [*PLANS.values(), {"before": 0.5}]
    bodies = [post(port, url("async"), {"key": key, **plan}).body for plan in plans]
    assert len({json.loads(body.splitlines()[-1])["error"] for body in bodies}) == 3


@every_host
@both
@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "application/json"])
def test_first_item_too_late_has_an_honest_status(
    start: Start, key: str, host: str, model: str, accept: str
) -> None:
    server = start(host, "limited")
    begin = time.monotonic()
    plan = {"key": key, "before": 0.4 if model == "sync" else 60}
    answer = post(server.port, url(model), plan, accept=accept)
    assert (500 <= answer.status < 600, list(answer.json)) == (True, ["error"])
    assert "0.2" in answer.json["error"]
    assert time.monotonic() - begin < (0.4 if model == "sync" else 0.2) + SOON
    server.ledger.wait(key, "end")


@every_host
def test_time_limit_of_a_value(start: Start, key: str, host: str) -> None:
    server = start(host, "limited")
    begin = time.monotonic()
    answer = post(server.port, url("unary"), {"key": key, "before": 60})
    assert time.monotonic() - begin < 0.6 + SOON
    assert (500 <= answer.status < 600, list(answer.json)) == (True, ["error"])
    server.ledger.wait(key, "end")
    assert server.ledger.count(key, "done") == 0


@pytest.mark.parametrize("seconds", ["0.2", ".2", "2e-1"])
def test_time_limit_by_header(start: Start, key: str, seconds: str) -> None:
    server = start("httptools", "queued")
    begin = time.monotonic()
    plan = {"key": key, "before": 60}
    answer = post(server.port, url("unary"), plan, x_request_timeout_seconds=seconds)
    assert (500 <= answer.status < 600, list(answer.json)) == (True, ["error"])
    assert time.monotonic() - begin < 0.2 + SOON
    server.ledger.wait(key, "end")


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "", "nan", "1s", "1,2", "0x1", "-inf", "1 2"])
def test_time_limit_by_header_is_a_positive_number(start: Start, key: str, seconds: str) -> None:
    server = start("httptools", "queued")
    answer = post(server.port, url("unary"), {"key": key}, x_request_timeout_seconds=seconds)
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert server.ledger.of(key) == []


@pytest.mark.slow
def test_body_that_arrives_too_slowly(start: Start, key: str) -> None:
    server = start("httptools", "limited")
    data = request("POST", url("unary"), json.dumps({"key": key}).encode())
    with Connection(server.port) as client:
        client.send(data[:-3])
        answer = client.answer()
    assert (answer.status, answer.json) == (
        408,
        {"error": "request body not received within 0.6 s"},
    )
    assert server.ledger.of(key) == []


@hosts("httptools", slow=["h11", "hypercorn", "granian"])
@both
def test_sending_too_slowly_ends_the_stream(start: Start, key: str, host: str, model: str) -> None:
    """Not on hypercorn with trio, which shields its blocked send from being cancelled."""
    server = start(host, "limited")
    with Connection(server.port, receive_buffer=65536) as client:
        plan = {"key": key, "count": 3000, "size": 65536}
        client.ask("POST", url(model), json.dumps(plan).encode())
        server.ledger.wait(key, "end")
        with pytest.raises(Cut):
            client.answer()
    assert server.ledger.count(key, "item") < 500


# Size.


@every_host
@pytest.mark.parametrize("chunked", [False, True])
def test_body_too_large(start: Start, key: str, host: str, chunked: bool) -> None:
    server = start(host, "limited")
    body = json.dumps({"key": key, "x": "x" * 100_000}).encode()
    data = request("POST", url("unary"), body)
    if chunked:
        head = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        data = head % url("unary").encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with Connection(server.port) as client:
        client.send(data)
        answer = client.answer()
    assert (answer.status, list(answer.json)) == (413, ["error"])
    assert get(server.port, "/").status == 200
    assert server.ledger.of(key) == []


def test_body_as_large_as_it_may_be(start: Start, key: str) -> None:
    server = start("httptools", "limited")
    body = json.dumps({"key": key, "x": ""}).encode()
    body = body.replace(b'""', b'"' + b"x" * (100_000 - len(body)) + b'"')
    assert len(body) == 100_000
    assert post(server.port, url("unary"), body=body).status == 200
    assert post(server.port, url("unary"), body=body + b" ").status == 413


# Number: one runs, two wait, others are refused with Retry-After.


@contextlib.contextmanager
def asking(server: Server, *asks: tuple[str, dict[str, Any]]) -> Iterator[list[Connection]]:
    """Send requests in this order, each over a new connection."""
    with contextlib.ExitStack() as stack:
        clients = []
        for model, plan in asks:
            client = stack.enter_context(Connection(server.port))
            client.ask("POST", url(model), json.dumps(plan).encode())
            clients.append(client)
            time.sleep(0.05)
        yield clients
    assert until(lambda: not server.ledger.running(), seconds=20)


@every_host
@pytest.mark.slow
def test_beyond_the_queue_is_refused(start: Start, key: str, host: str) -> None:
    server = start(host, "queued")
    plans = [("unary", {"key": f"{key}-{n}", "before": 0.4}) for n in range(4)]
    with asking(server, *plans) as clients:
        refused = clients[3].answer()
        assert (refused.status, list(refused.json)) == (503, ["error"])
        assert int(refused.headers["retry-after"]) >= 0
        assert get(server.port, "/").status == 200
        assert [client.answer().status for client in clients[:3]] == [200, 200, 200]
    times = [
        server.ledger.wait(f"{key}-{n}", name).time for n in range(3) for name in ("start", "end")
    ]
    assert times == sorted(times), "one at a time, first come first served"
    assert server.ledger.of(f"{key}-3") == []


@every_host
@both
@pytest.mark.parametrize("ending", ["done", "error", "closed"])
def test_finally_before_the_slot_is_given_on(
    start: Start, key: str, host: str, model: str, ending: str
) -> None:
    server = start(host, "queued")
    first: dict[str, Any] = {"key": f"{key}-1", "gap": 0.05, "count": 4, "cleanup": 0.15}
    if ending == "error":
        first["fail_at"] = 2
    with asking(server, (model, first), ("async", {"key": f"{key}-2"})) as (one, two):
        one.head()
        one.chunk()
        if ending == "closed":
            one.close()
        assert two.answer().status == 200
    assert server.ledger.wait(f"{key}-1", "end").time < server.ledger.wait(f"{key}-2", "start").time


@both
@pytest.mark.slow
def test_finally_before_the_slot_is_given_on_after_a_time_limit(
    start: Start, key: str, model: str
) -> None:
    server = start("httptools", "queued")
    body = json.dumps({"key": f"{key}-1", "gap": 0.1, "count": 40, "cleanup": 0.3}).encode()
    with Connection(server.port) as one, Connection(server.port) as two:
        one.ask("POST", url(model), body, x_request_timeout_seconds="0.35")
        server.ledger.wait(f"{key}-1", "start")
        two.ask("POST", url("async"), json.dumps({"key": f"{key}-2"}).encode())
        assert (one.answer().status, two.answer().status) == (200, 200)
    assert server.ledger.wait(f"{key}-1", "end").time < server.ledger.wait(f"{key}-2", "start").time


@every_host
@pytest.mark.slow
def test_client_that_leaves_the_queue(start: Start, key: str, host: str) -> None:
    server = start(host, "queued")
    plans = [("unary", {"key": f"{key}-{n}", "before": 0.5}) for n in range(3)]
    with asking(server, *plans) as (one, two, three):
        two.close()
        three.close()
        time.sleep(0.1)
        with asking(server, ("unary", {"key": f"{key}-4"})) as (four,):
            assert (one.answer().status, four.answer().status) == (200, 200)
    assert server.ledger.of(f"{key}-1") == server.ledger.of(f"{key}-2") == []


@every_host
def test_slots_survive_clients_that_leave(start: Start, key: str, host: str) -> None:
    server = start(host, "queued")
    for n in range(30):
        model = ("async", "sync", "unary")[n % 3]
        client = Connection(server.port)
        plan = {"key": f"{key}-{n}", "gap": 0.01, "before": 0.01 * (n % 2), "count": 1000}
        client.ask("POST", url(model), json.dumps(plan).encode())
        if n % 4:
            until(lambda n=n: server.ledger.of(f"{key}-{n}"), seconds=20)
        client.close(reset=n % 5 == 0)
    assert post(server.port, url("unary"), {"key": key}).status == 200
    assert until(lambda: not server.ledger.running(), seconds=20)


# Shutdown: what runs is ended with its `finally` before the process is gone.


@hosts("httptools", slow=["h11"])
@pytest.mark.parametrize(
    "model",
    [
        "async-generator",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("sync-generator", "unary")),
    ],
)
@pytest.mark.slow
def test_sigterm_runs_finally(tmp_path: Path, key: str, host: str, model: str) -> None:
    options = ["--timeout-graceful-shutdown", "1"]
    server = realserver.start(host, "streams", tmp_path, *options)
    plan = {"key": key, "count": 2000, "gap": 0.05, "cleanup": 0.3, "before": 0.1}
    if model == "unary":
        plan["before"] = 60
    with Connection(server.port) as client:
        client.ask("POST", url(model), json.dumps(plan).encode())
        server.ledger.wait(key, "start")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    assert server.ledger.count(key, "end") == 1
    assert not realserver.UNTIDY.search(server.log)
