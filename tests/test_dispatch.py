"""The pipeline answers the same whether it takes its first step plainly or inside a host's scope.

In a cancel scope of the host's a request has a flight from the beginning, elsewhere only once it
has suspended; so each request here is made twice, in a scope and in none.
"""

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.concurrency.flight import Flight
from modelserve.errors import ResponseCut
from modelserve.exchange.exchange import Exchange as ServedExchange
from modelserve.metrics.shared import DIRECTORY_VARIABLE
from modelserve.testing import App, Cut, Exchange, exchange, request

pytestmark = pytest.mark.anyio

PATH = "/v1/models/m:predict"
JSON = {"content-type": "application/json"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # on trio every request has a flight from the beginning


async def value(payload: Any) -> Any:
    return {"got": payload}


async def later(payload: Any) -> Any:
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    return {"got": payload}


async def inside_scopes(payload: Any) -> Any:
    with anyio.move_on_after(0):
        await anyio.sleep(1)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
    return {"got": payload}


async def with_headers(payload: Any, headers: Any) -> Any:
    headers["x-more"] = "1"
    return {"got": payload, "type": headers["content-type"]}


async def with_response_headers(payload: Any, response_headers: Any) -> Any:
    return {"set": len(response_headers)}


async def as_in_kserve(payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
    await asyncio.sleep(0)
    return {"got": payload, "host": "host" in headers, "set": len(response_headers)}


async def sets_headers(payload: Any, response_headers: Any) -> Any:
    response_headers["x-own"] = "1"
    return {"got": payload}


async def sets_its_type(payload: Any, headers: Any, response_headers: Any) -> Any:
    response_headers["content-type"] = "application/vnd.own+json"
    return {"got": payload}


async def listed(payload: Any) -> Any:
    return [payload]


async def text(payload: Any) -> Any:
    return "text"


async def nothing(payload: Any) -> Any:
    return None


async def items(payload: Any) -> Any:
    async def produced() -> Any:
        yield {"n": 1}
        await asyncio.sleep(0)
        yield {"n": 2}

    return produced()


async def rows(payload: Any) -> Any:
    return iter([1, 2, 3])


async def unknown_kind(payload: Any) -> Any:
    return {"object": object()}


async def refuses(payload: Any) -> Any:
    raise InvalidInput("Not this.")


async def refuses_later(payload: Any) -> Any:
    await asyncio.sleep(0)
    raise InvalidInput("Not this.")


async def breaks(payload: Any) -> Any:
    raise KeyError("secret")


async def cancels_itself(payload: Any) -> Any:
    raise asyncio.CancelledError


HOOKS = (
    value, later, inside_scopes, with_headers, with_response_headers, as_in_kserve,
    sets_headers, sets_its_type, listed, text, nothing, items, rows,
    unknown_kind, refuses, refuses_later, breaks, cancels_itself,
)  # fmt: skip


async def reads(client: Exchange) -> None:
    await client.response()


async def reads_slowly(client: Exchange) -> None:
    client.hold()
    await anyio.wait_all_tasks_blocked()
    client.resume()
    await client.response()


async def reads_nothing(client: Exchange) -> None:
    client.hold()
    await client.ended()


async def never_reads(client: Exchange) -> None:
    client.hold()
    await anyio.wait_all_tasks_blocked()
    await anyio.sleep(0.1)  # younger requests are not watched: a timer of the same loop, for 0.02 s
    client.hang_up()


async def sends_in_parts(client: Exchange) -> None:
    client.send_body(b'{"insta', more=True)
    await anyio.wait_all_tasks_blocked()
    client.send_body(b'nces": [1]}')
    await client.response()


async def sends_late(client: Exchange) -> None:
    await anyio.wait_all_tasks_blocked()
    client.send_body(b'{"instances": [1]}')
    await client.response()


async def sends_a_part_and_leaves(client: Exchange) -> None:
    client.send_body(b'{"insta', more=True)
    await anyio.wait_all_tasks_blocked()
    client.hang_up()


async def sends_nothing(client: Exchange) -> None:
    await client.ended()


async def leaves_at_once(client: Exchange) -> None:
    client.hang_up()


Behaviour = Callable[[Exchange], Awaitable[None]]


class Outcome:
    """All that can be seen of one request, by its client and by its operator."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.error: str = ""
        self.metrics: dict[str, float] = {}
        self.lines: list[dict[str, Any]] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return repr(vars(self))


def in_a_scope(app: App) -> App:
    async def host(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope():
            await app(scope, receive, send)

    return host


def without_number(message: Any) -> Any:
    given = message.get("headers", [])
    own = [pair for pair in given if pair[0] not in (b"x-request-id", b"ce-id", b"ce-time")]
    return {**message, "headers": own, "others": len(given) - len(own)}


def counts(text: str) -> dict[str, float]:
    """Return the server's samples that do not depend on how long anything took."""
    lines = [line for line in text.splitlines() if line.startswith(("modelserve_", "request_"))]
    samples = dict(line.rsplit(" ", 1) for line in lines)
    timed = ("_sum{", "_bucket{", "_created{", "_seconds_total{")
    return {name: float(n) for name, n in samples.items() if not any(t in name for t in timed)}


async def outcome(
    hook: Any, *, scoped: bool, behave: Behaviour, caplog: Any, **options: Any
) -> Outcome:
    limits = Limits(
        max_body_bytes=100,
        timeout=0.2 if behave is sends_nothing else None,
        send_timeout=0.2 if behave is reads_nothing else None,
    )
    app = ModelServer(limits=limits)
    model = Model("m")
    vars(model).update(predict=hook)
    app.add_model(model)
    assert (await request(app, "GET", "/v1/models/m")).status == 200  # it is loaded
    seen = Outcome()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            await send(message)
            seen.messages.append(without_number(message))

        await app(scope, receive, noting)

    caplog.clear()
    host = in_a_scope(watched) if scoped else watched
    async with exchange(host, "POST", PATH, **options) as client:
        try:
            await behave(client)
        except Cut:
            pass
    seen.error = type(client.error).__name__
    seen.metrics = counts((await request(app, "GET", "/metrics")).body.decode())
    fields = ("model", "protocol", "verb", "status", "outcome", "items")
    for record in caplog.records:
        if record.name == "modelserve.access":
            line = {name: getattr(record, name) for name in fields}
            seen.lines.append(line | {"stages": sorted(record.stages)})
        else:
            seen.lines.append({"failure": record.msg, "of": repr(record.exc_info[1])})
    assert not app.serving.flights
    assert not app.serving.admission.gate.running
    return seen


async def assert_same(hook: Any, caplog: Any, behave: Behaviour = reads, **options: Any) -> Outcome:
    caplog.set_level(logging.INFO, logger="modelserve")
    plain = await outcome(hook, scoped=False, behave=behave, caplog=caplog, **options)
    scoped = await outcome(hook, scoped=True, behave=behave, caplog=caplog, **options)
    assert plain == scoped
    return plain


@pytest.fixture(autouse=True)
def own_metrics(monkeypatch: Any) -> None:
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)


@pytest.mark.parametrize("hook", HOOKS)
async def test_every_hook_answers_the_same(hook: Any, caplog: Any) -> None:
    seen = await assert_same(hook, caplog, json={"instances": [1]})
    assert seen.messages[0]["others"] == 1
    assert [line for line in seen.lines if "verb" in line]


@pytest.mark.parametrize(
    "body",
    (b"", b"[1]", b"1", b"{", b'{"instances": 1}', b'{"a": 1}', b"\xff", b'["' + b"x" * 200 + b'"]'),
)  # fmt: skip
async def test_every_body_is_answered_the_same(body: bytes, caplog: Any) -> None:
    await assert_same(value, caplog, body=body, headers=JSON)


@pytest.mark.parametrize(
    "headers",
    (
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "text/plain"},
        {},
        JSON | {"x-request-timeout-seconds": "5"},
        JSON | {"x-request-timeout-seconds": "soon"},
        JSON | {"content-encoding": "gzip"},
        JSON | {"content-length": "1000", "expect": "100-continue"},
        JSON | {"accept": "text/event-stream"},
        JSON | {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "s"},
    ),
)
async def test_every_header_means_the_same(headers: dict[str, str], caplog: Any) -> None:
    await assert_same(value, caplog, body=b'{"instances": [1]}', headers=headers)


@pytest.mark.parametrize("hook", (value, later, items, breaks))
@pytest.mark.parametrize("behave", (reads_slowly, reads_nothing, never_reads, leaves_at_once))
async def test_every_client_that_reads_is_served_the_same(
    hook: Any, behave: Behaviour, caplog: Any
) -> None:
    await assert_same(hook, caplog, behave, json={"instances": [1]})


@pytest.mark.parametrize("hook", (value, later, listed))
@pytest.mark.parametrize(
    "behave",
    (sends_in_parts, sends_late, sends_a_part_and_leaves, sends_nothing, leaves_at_once),
)
async def test_every_client_that_sends_is_served_the_same(
    hook: Any, behave: Behaviour, caplog: Any
) -> None:
    await assert_same(hook, caplog, behave, body=None, headers=JSON)


@pytest.mark.parametrize("after", (0, 1))
async def test_a_send_that_fails_ends_the_request(after: int, caplog: Any) -> None:
    def breaking(app: App) -> App:
        async def host(scope: Any, receive: Any, send: Any) -> None:
            sent: list[Any] = []

            async def broken(message: Any) -> None:
                if len(sent) == after:
                    raise OSError("gone")
                sent.append(message)

            await app(scope, receive, broken)

        return host

    caplog.set_level(logging.INFO, logger="modelserve.access")
    lines = []
    for host in (lambda app: app, in_a_scope):
        app = ModelServer()
        app.model("m")(value)
        await request(app, "GET", "/v1/models/m")
        caplog.clear()
        async with exchange(breaking(host(app)), "POST", PATH, json={"instances": []}) as client:
            await client.ended()
        assert client.error is None
        (line,) = caplog.records
        lines.append((line.status, line.outcome, sorted(line.stages)))
    assert lines[0] == lines[1] == (200, "disconnected", ["predict"])


def alive(*kinds: type) -> set[int]:
    return {id(found) for found in gc.get_objects() if isinstance(found, kinds)}


@pytest.mark.slow
async def test_a_request_that_never_waits_needs_no_flight() -> None:
    gc.collect()
    others = alive(Flight)  # those that other tests have kept
    found: list[int] = []

    async def counting(payload: Any) -> Any:
        found.append(len(alive(Flight) - others))
        return {}

    app = ModelServer()
    app.model("m")(counting)
    await request(app, "GET", "/v1/models/m")
    await request(app, "POST", PATH, json={})
    await request(in_a_scope(app), "POST", PATH, json={})
    assert found == [0, 1]


@pytest.mark.parametrize("given", ({}, {"x-request-id": "given-1"}))
async def test_a_hook_and_the_client_see_one_request_id(given: dict[str, str]) -> None:
    seen: list[bytes] = []

    async def hook(payload: Any, headers: Any) -> Any:
        seen.append(headers.request_id)
        return {} if payload["plain"] else [payload]

    app = ModelServer()
    app.model("m")(hook)
    await request(app, "GET", "/v1/models/m")
    for plain in (True, False):
        answer = await request(app, "POST", PATH, json={"plain": plain}, headers=given)
        assert answer.headers["x-request-id"].encode() == seen.pop()


async def test_a_request_that_waits_holds_its_slot() -> None:
    release = anyio.Event()

    async def waiting(payload: Any) -> Any:
        await release.wait()
        return {}

    app = ModelServer(limits=Limits(concurrency=1, queue=0))
    app.model("m")(waiting)
    await request(app, "GET", "/v1/models/m")
    async with exchange(app, "POST", PATH, json={}) as first:
        await anyio.wait_all_tasks_blocked()
        assert (await request(app, "POST", PATH, json={})).status == 503
        metrics = counts((await request(app, "GET", "/metrics")).body.decode())
        assert metrics['modelserve_in_flight{model_name="m"}'] == 1
        release.set()
        assert (await first.response()).status == 200
    assert (await request(app, "POST", PATH, json={})).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("hook", (value, refuses, refuses_later, items, later))
async def test_nothing_is_left_to_the_garbage_collector(hook: Any) -> None:
    app = ModelServer()
    app.model("m")(hook)
    await request(app, "POST", PATH, json={})
    gc.collect()
    gc.disable()
    others = alive(Flight, ServedExchange)
    try:
        await request(app, "POST", PATH, json={})
        assert alive(Flight, ServedExchange) <= others
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("traits", [{}, {"coalesce": True}, {"heartbeat": 0.01}])
async def test_a_stream_leaves_nothing_to_the_garbage_collector(traits: dict[str, Any]) -> None:
    async def slow_items(payload: Any) -> AsyncIterator[Any]:
        for n in range(3):
            await anyio.sleep(0.02)  # long enough to be watched
            yield n

    model = Model("m")
    vars(model).update(predict=slow_items, **traits)
    app = ModelServer([model])
    headers = {"accept": "text/event-stream"}
    await request(app, "POST", PATH, json={}, headers=headers)
    gc.collect()
    gc.disable()
    others = alive(Flight, ServedExchange)
    try:
        await request(app, "POST", PATH, json={}, headers=headers)
        await anyio.wait_all_tasks_blocked()
        assert alive(Flight, ServedExchange) <= others
    finally:
        gc.enable()


class Message(dict[str, Any]):
    """A message that can be watched: a plain dict knows no weak references."""


async def test_the_body_is_let_go_once_it_is_decoded() -> None:
    messages: list[weakref.ref[Message]] = []
    alive_in_hook: list[bool] = []

    async def hook(payload: Any) -> Any:
        await asyncio.sleep(0)
        alive_in_hook.append(messages[0]() is not None)
        return [payload]

    app = ModelServer()
    app.model("m")(hook)
    await request(app, "GET", "/v1/models/m")

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def watched() -> Any:
            message = Message(await receive())
            messages.append(weakref.ref(message))
            return message

        await app(scope, watched, send)

    assert (await request(host, "POST", PATH, json={})).status == 200
    assert alive_in_hook == [False]


@pytest.mark.parametrize("late", (False, True))
async def test_a_body_that_is_refused_by_its_length_is_not_waited_for(late: bool) -> None:
    ended: list[str] = []
    app = ModelServer(limits=Limits(max_body_bytes=100))
    app.model("m")(value)
    await request(app, "GET", "/v1/models/m")
    headers = JSON | {"content-length": "101"}

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def noting() -> Any:
            try:
                return await receive()
            finally:
                ended.append("receive")

        await app(scope, noting, send)

    body = None if late else b"{}"
    async with exchange(host, "POST", PATH, body=body, headers=headers) as client:
        assert (await client.response()).status == 413
    assert not ended


async def test_one_message_that_makes_no_sense_is_counted() -> None:
    app = ModelServer()
    app.model("m")(value)
    await request(app, "GET", "/v1/models/m")
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": None}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode()}
    headers = [(b"content-type", b"application/json")]
    await asyncio.create_task(app({**scope, "headers": headers}, receive, send))
    assert sent[0]["status"] == 500
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'outcome="error",protocol="v1",status="500",verb="predict"} 1.0' in metrics


async def test_a_send_that_is_cancelled_at_once_is_counted() -> None:
    app = ModelServer()
    app.model("m")(value)
    await request(app, "GET", "/v1/models/m")

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def cancelled(message: Any) -> None:
            raise asyncio.CancelledError

        await app(scope, receive, cancelled)

    async with exchange(host, "POST", PATH, json={}) as client:
        await client.ended()
    assert isinstance(client.error, ResponseCut)
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'outcome="error",protocol="v1",status="200",verb="predict"} 1.0' in metrics
    assert not app.serving.admission.gate.running


async def test_a_hook_that_calls_its_own_application_has_its_slot() -> None:
    inner: list[int] = []

    async def hook(payload: Any) -> Any:
        if payload["outer"]:
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": b'{"outer": false}'}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode()}
            headers = [(b"content-type", b"application/json")]
            await app({**scope, "headers": headers}, receive, send)
            inner.append(sent[0]["status"])
        return {}

    app = ModelServer(limits=Limits(concurrency=1, queue=0))
    app.model("m")(hook)
    await request(app, "GET", "/v1/models/m")
    assert (await request(app, "POST", PATH, json={"outer": True})).status == 200
    assert inner == [503]


async def test_the_time_of_a_hook_is_its_own(caplog: Any) -> None:
    class Slow:
        def tolist(self) -> list[int]:
            time.sleep(0.05)
            return [1]

    async def hook(payload: Any) -> Any:
        return {"slow": Slow()}

    caplog.set_level(logging.INFO, logger="modelserve.access")
    app = ModelServer()
    app.model("m")(hook)
    await request(app, "GET", "/v1/models/m")
    assert (await request(app, "POST", PATH, json={})).json() == {"slow": [1]}
    assert caplog.records[-1].stages["predict"] < 0.05 <= caplog.records[-1].seconds
