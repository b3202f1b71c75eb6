"""A `send` that raises: the client has left, or what is around the application has failed."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import trio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Mount

from modelserve import Limits, Model, ModelServer
from modelserve.errors import ResponseCut
from modelserve.testing import _scope, exchange, request

pytestmark = pytest.mark.anyio

PATH = "/v1/models/m:predict"
NDJSON = {"accept": "application/x-ndjson"}


class Fault(Exception):
    """What a middleware raises by mistake."""


class HostDisconnected(Exception):
    """A host's own exception for a client that has left."""


async def value(payload: Any) -> Any:
    return payload


async def value_later(payload: Any) -> Any:
    await anyio.sleep(0.001)
    return payload


async def items(payload: Any) -> AsyncIterator[Any]:
    yield {"n": 1}
    yield {"n": 2}


async def items_later(payload: Any) -> AsyncIterator[Any]:
    for number in range(3):
        await anyio.sleep(0.001)
        yield {"n": number}


def sync_items(payload: Any) -> Iterator[Any]:
    yield from ({"n": 1}, {"n": 2})


async def fails(payload: Any) -> Any:
    raise ValueError


HOOKS = [value, value_later, items, items_later, sync_items]


def breaking(app: Any, exc: Exception, after: int) -> Any:
    """Put a middleware around an application whose `send` raises at an event and all later ones."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        sent: list[Any] = []

        async def broken(message: Any) -> None:
            if len(sent) >= after:
                raise exc
            sent.append(message)
            await send(message)

        await app(scope, receive, broken)

    return middleware


async def in_a_scope(app: Any, scope: Any, receive: Any, send: Any) -> None:
    with anyio.CancelScope():
        await app(scope, receive, send)


async def outcome(app: Any, name: str, status: str) -> bool:
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    labels = f'outcome="{name}",protocol="v1",status="{status}",verb="predict"'
    return f"{labels}}} 1.0" in metrics


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("scoped", [False, True])
async def test_a_fault_around_the_application_is_logged_once_and_raised_again(
    hook: Any, after: int, coalesce: bool, scoped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer(limits=Limits(concurrency=1), coalesce=coalesce)
    app.add_model(hook, "m")
    fault = Fault("a bug")
    host = breaking(app, fault, after)
    if scoped:
        inner = host

        async def host(scope: Any, receive: Any, send: Any) -> None:
            await in_a_scope(inner, scope, receive, send)

    async with exchange(host, "POST", PATH, json={}, headers=NDJSON) as client:
        await client.ended()
    assert client.error is fault
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info and record.exc_info[1] for record in errors] == [fault]
    assert app.serving.statistics().running == 0
    assert await outcome(app, "error", "200")


async def test_a_fault_while_a_failure_is_reported_is_logged_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = ModelServer()
    app.add_model(fails, "m")
    fault = Fault("a bug")
    async with exchange(breaking(app, fault, 0), "POST", PATH, json={}) as client:
        await client.ended()
    assert client.error is fault
    logged = [type(r.exc_info[1]) for r in caplog.records if r.exc_info]
    assert logged == [ValueError, Fault]


@pytest.mark.parametrize("kind", ["stream", "unary"])
async def test_a_fault_while_the_end_is_reported_is_logged_and_raised_again(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer(limits=Limits(timeout=0.3))

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        if kind == "stream":
            yield {"n": 1}
        await anyio.sleep(60)
        yield {"n": 2}

    fault = Fault("a bug")
    host = breaking(app, fault, 2 if kind == "stream" else 0)
    async with exchange(host, "POST", PATH, json={}, headers=NDJSON) as client:
        await client.ended()
    assert client.error is fault
    assert [r.exc_info[1] for r in caplog.records if r.exc_info] == [fault]


async def test_a_fault_of_a_heartbeat_ends_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    class Quiet(Model):
        heartbeat = 0.01

        async def predict(self, payload: Any) -> AsyncIterator[Any]:
            yield {"n": 1}
            await anyio.sleep(60)

    app = ModelServer([Quiet("m")])
    fault = Fault("a bug")
    headers = {"accept": "text/event-stream"}
    async with exchange(breaking(app, fault, 2), "POST", PATH, json={}, headers=headers) as client:
        await client.ended()
    assert client.error is fault
    assert [r.exc_info[1] for r in caplog.records if r.exc_info] == [fault]


GONE = [
    OSError("gone"),
    ConnectionResetError(),
    BrokenPipeError(),
    ClientDisconnect(),
    HostDisconnected(),
    anyio.BrokenResourceError(),
    anyio.ClosedResourceError(),
    trio.BrokenResourceError(),
    ExceptionGroup("of a task group", [OSError("gone")]),
    RuntimeError(
        "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
    ),
]


@pytest.mark.parametrize("exc", GONE, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("hook", [value, items])
@pytest.mark.parametrize("after", [0, 1])
async def test_an_exception_that_says_so_means_that_the_client_has_left(
    exc: Exception, hook: Any, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer()
    app.add_model(hook, "m")
    async with exchange(breaking(app, exc, after), "POST", PATH, json={}) as client:
        await client.ended()
    assert client.error is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert await outcome(app, "disconnected", "200")


async def test_any_exception_after_a_disconnect_means_that_the_client_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = ModelServer()

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        while True:
            yield {"n": 1}

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def raises_once_it_has_left(message: Any) -> None:
            await anyio.sleep(0.001)
            if client.gone:
                try:
                    await anyio.sleep(60)
                finally:
                    raise Fault
            await send(message)

        await app(scope, receive, raises_once_it_has_left)

    async with exchange(host, "POST", PATH, json={}, headers=NDJSON) as client:
        await client.head()
        await anyio.sleep(0.05)  # until it is watched
        client.hang_up()
        await client.ended()
    assert client.error is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- an answer that nobody reads ----------------------------------------------------------------


async def waits(payload: Any) -> Any:
    await anyio.sleep(60)


async def waits_for_an_item(payload: Any) -> AsyncIterator[Any]:
    await anyio.sleep(60)
    yield 1


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


@pytest.mark.parametrize("hook", [waits, waits_for_an_item])
@pytest.mark.parametrize("during", ["body", "hook"])
async def test_middleware_that_wants_an_answer_has_one(hook: Any, during: str) -> None:
    app = ModelServer()
    app.add_model(hook, "m")
    host = Starlette(routes=[Mount("/", app)], middleware=[Middleware(Passing)])
    body = None if during == "body" else b"[]"
    async with exchange(host, "POST", PATH, body=body) as client:
        if during == "body":
            client.send_body(b"[", more=True)
        await anyio.sleep(0.05)
        client.hang_up()
        await client.ended()
    assert client.error is None


@pytest.mark.parametrize("started", [False, True])
async def test_an_empty_499_only_where_nothing_was_sent(started: bool) -> None:
    app = ModelServer()
    sent: list[Any] = []

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        if started:
            yield {"n": 1}
        await anyio.sleep(60)
        yield {"n": 2}

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def recorded(message: Any) -> None:
            sent.append(message.get("status", message.get("body")))
            await send(message)

        await app(scope, receive, recorded)

    async with exchange(host, "POST", PATH, json={}, headers=NDJSON) as client:
        await anyio.sleep(0.05)
        client.hang_up()
        await client.ended()
    assert sent == ([200, b'{"n":1}\n'] if started else [499, b""])
    assert await outcome(app, "disconnected", "200" if started else "499")


# --- a host that drops the coroutine -------------------------------------------------------------


@pytest.mark.parametrize("cleans_up", [False, True])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.slow
def test_nothing_is_sent_when_the_host_drops_the_coroutine(
    cleans_up: bool, started: bool, coalesce: bool, recwarn: pytest.WarningsRecorder
) -> None:
    app = ModelServer(limits=Limits(concurrency=1), coalesce=coalesce)
    sent: list[Any] = []
    steps: list[str] = []

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            if started:
                yield {"n": 1}
            await asyncio.sleep(60)
            yield {"n": 2}
        finally:
            steps.append("begun")
            if cleans_up:
                await asyncio.sleep(0)

    async def run() -> Any:
        body = [{"type": "http.request", "body": b"[]", "more_body": False}]

        async def receive() -> Any:
            if body:
                return body.pop()
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        coroutine = app(_scope("POST", PATH, NDJSON), receive, send)
        task = asyncio.get_running_loop().create_task(coroutine)
        await asyncio.sleep(0.05)
        before = list(sent)
        coroutine.close()
        assert sent == before
        assert steps == ["begun"]
        with pytest.raises(RuntimeError):  # asyncio does not like it
            task.cancel()
            await task

    asyncio.run(run())
    gc.collect()
    assert app.serving.statistics().running == 0
    assert app.serving.statistics().in_flight == 0


async def test_a_cut_is_still_the_hosts_to_show() -> None:
    app = ModelServer()

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "x"
        raise ValueError

    async with exchange(app, "POST", PATH, json={}) as client:
        await client.ended()
    assert isinstance(client.error, ResponseCut)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_host_is_told_why_an_answer_is_cut() -> None:
    app = ModelServer()
    app.model("m", limits=Limits(timeout=0.1))(items)

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def blocked(message: Any) -> None:
            await anyio.sleep_forever()

        await app(scope, receive, blocked)

    async with exchange(host, "POST", PATH, json={}, headers=NDJSON) as client:
        with anyio.fail_after(20):
            await client.ended()
    assert isinstance(client.error, ResponseCut)
    assert client.error.status == 504
    assert client.error.detail == "timeout: the request took longer than 0.1 s"
