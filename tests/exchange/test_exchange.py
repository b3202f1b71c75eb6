"""One answer a request: its events in order, whatever happens while it is written."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.datastructures import MutableHeaders

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.errors import ResponseCut
from modelserve.testing import Cut, exchange, request
from modelserve.wire.headers import sendable_headers

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
NDJSON = {"accept": "application/x-ndjson"}
SSE = {"accept": "text/event-stream"}
COLLECTED = {"accept": "application/json"}
WATCHED = 0.05  # seconds after which a request is certainly watched


class Recorded:
    """An application that checks the order of what ours sends (ASGI, HTTP message format)."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.kinds: list[str] = []
        self.ended = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def checked(message: Any) -> None:
            assert not self.ended, f"an event after the end of the application: {message}"
            kind = message["type"].removeprefix("http.response.")
            last = kind == "body" and not message.get("more_body", False)
            assert (kind == "start") == (not self.kinds), f"{kind} after {self.kinds}"
            assert "end" not in self.kinds, f"{kind} after {self.kinds}"
            assert kind != "body" or type(message["body"]) is bytes
            self.kinds.append("end" if last else kind)
            await send(message)

        try:
            await self.app(scope, receive, checked)
        finally:
            self.ended = True


def serve(predict: Any, *, limits: Limits | None = None, **hooks: Any) -> Recorded:
    model = Model("m")
    vars(model).update(predict=predict, **hooks)
    return Recorded(ModelServer([model], limits=limits))


# --- the order of events ------------------------------------------------------------------------


async def unary(payload: Any) -> Any:
    return payload


async def two_items(payload: Any) -> AsyncIterator[Any]:
    yield {"n": 1}
    yield {"n": 2}


async def no_items(payload: Any) -> AsyncIterator[Any]:
    return
    yield


async def fails(payload: Any) -> Any:
    raise InvalidInput("no")


async def fails_later(payload: Any) -> AsyncIterator[Any]:
    yield {"n": 1}
    raise InvalidInput("no")


def sync_items(payload: Any) -> Iterator[Any]:
    yield from range(3)


@pytest.mark.parametrize(
    ("predict", "headers", "kinds"),
    [
        (unary, {}, ["start", "end"]),
        (fails, {}, ["start", "end"]),
        (two_items, {}, ["start", "body", "body", "end"]),
        (two_items, SSE, ["start", "body", "body", "end"]),
        (two_items, COLLECTED, ["start", "end"]),
        (no_items, {}, ["start", "end"]),
        (no_items, COLLECTED, ["start", "end"]),
        (fails_later, NDJSON, ["start", "body", "body", "end"]),
        (fails_later, SSE, ["start", "body", "body", "end"]),
        (fails_later, COLLECTED, ["start", "end"]),
        (sync_items, {}, ["start", "body", "body", "body", "end"]),
    ],
)
async def test_one_item_is_one_event(predict: Any, headers: Any, kinds: list[str]) -> None:
    app = serve(predict)
    await request(app, *PREDICT, json=[], headers=headers)
    assert app.kinds == kinds


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/m", "/v2/health/live", "/nowhere"])
async def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    app = serve(unary)
    get = await request(app, "GET", path)
    app = serve(unary)
    head = await request(app, "HEAD", path)
    assert app.kinds == ["start", "end"]
    assert (head.status, head.body) == (get.status, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]
    assert int(get.headers["content-length"]) == len(get.body) > 0


# --- headers that a model sets ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "sent"),
    [
        ({}, []),
        ({"X-A": "1"}, [(b"x-a", b"1")]),
        ({"x-a": "", "x-b": "ä\t~"}, [(b"x-a", b""), (b"x-b", b"\xe4\t~")]),
        ({"Content-Length": "1", "Transfer-Encoding": "chunked", "Connection": "close"}, []),
        ({"content-type": "a/b"}, [(b"content-type", b"a/b")]),
    ],
)
def test_which_headers_a_model_may_set(own: dict[str, str], sent: list[Any]) -> None:
    assert sendable_headers(MutableHeaders(own)) == sent


@pytest.mark.parametrize("kind", ["value", "stream", "collected"])
async def test_headers_that_cannot_be_sent_are_a_500(kind: str) -> None:
    async def value(payload: Any, response_headers: Any) -> Any:
        response_headers["x-a"] = "1\r\nset-cookie: a=b"

    async def stream(payload: Any, response_headers: Any) -> AsyncIterator[Any]:
        response_headers["x-a"] = "1\r\nset-cookie: a=b"
        yield {"n": 1}

    app = serve(value if kind == "value" else stream)
    headers = COLLECTED if kind == "collected" else {}
    response = await request(app, *PREDICT, json=[], headers=headers)
    assert response.status == 500
    assert "set-cookie" not in response.headers


async def test_a_content_type_that_is_broken_is_a_500() -> None:
    async def predict(payload: Any, response_headers: Any) -> AsyncIterator[Any]:
        response_headers["content-type"] = "text/event-stream\r\nx: y"
        yield "a"

    response = await request(serve(predict), *PREDICT, json=[])
    assert response.status == 500


async def test_collected_documents_have_the_models_headers() -> None:
    async def predict(payload: Any, response_headers: Any) -> AsyncIterator[Any]:
        response_headers["x-a"] = "1"
        yield 1

    response = await request(serve(predict), *PREDICT, json=[], headers=COLLECTED)
    assert response.headers["x-a"] == "1"
    assert response.headers.getlist("content-type") == ["application/json"]
    assert "cache-control" not in response.headers


async def test_an_error_has_none_of_the_models_headers() -> None:
    async def predict(payload: Any, response_headers: Any) -> Any:
        response_headers["x-a"] = "1"
        raise InvalidInput("no")

    response = await request(serve(predict), *PREDICT, json=[])
    assert response.status == 400
    assert "x-a" not in response.headers


# --- failures in band ---------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [NDJSON, SSE])
@pytest.mark.parametrize("reason", ["name \udcff", ValueError("bad")])
async def test_a_record_can_carry_any_reason(headers: Any, reason: Any) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        raise InvalidInput(reason)

    response = await request(serve(predict), *PREDICT, json=[], headers=headers)
    assert b'"error"' in response.chunks[-1]


async def test_a_record_of_generated_text_can_carry_any_reason() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "a"
        raise InvalidInput("name \udcff")

    path = "/v2/models/m/generate_stream"
    response = await request(serve(predict), "POST", path, json={"text_input": "a"})
    assert b'"error"' in response.chunks[-1]


async def test_a_cut_is_the_only_exception_that_leaves() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "a"
        raise ValueError("secret")

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await client.ended()
        assert type(client.error) is ResponseCut
        assert client.error.__cause__ is None
        assert client.error.__suppress_context__


async def test_a_mixed_raw_stream_that_yields_json_is_cut() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "a"
        yield {"n": 1}

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        assert (await client.head()).headers["content-type"].startswith("text/plain")
        assert await client.chunk() == b"a"
        with pytest.raises(Cut):
            await client.chunk()


# --- a client that does not read ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["record", "end", "document", "error"])
async def test_a_client_that_reads_nothing_is_given_up_on(kind: str) -> None:
    release = anyio.Event()

    async def stream(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        await release.wait()
        if kind == "record":
            raise InvalidInput("no")

    async def value(payload: Any) -> Any:
        await release.wait()
        if kind == "error":
            raise InvalidInput("no")

    streams = kind in ("record", "end")
    app = serve(stream if streams else value, limits=Limits(send_timeout=0.05))
    async with exchange(app, *PREDICT, json=[], timeout=10) as client:
        if streams:
            await client.head()
            assert await client.chunk() == b'{"n":1}\n'
        client.hold()
        release.set()
        await client.ended()


async def test_a_client_that_leaves_while_the_failure_is_sent() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        await release.wait()
        raise InvalidInput("no")

    release = anyio.Event()
    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await client.head()
        await client.chunk()
        client.hold()
        release.set()
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()
        assert client.error is None


# --- after the last event -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["value", "stream"])
async def test_clean_up_after_the_last_event_is_not_interrupted(kind: str) -> None:
    cleaned: list[bool] = []

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            await anyio.sleep(WATCHED)
            yield {"n": 1}
            yield {"n": 2}
        finally:
            await anyio.sleep(0.01)
            cleaned.append(True)

    async def first(result: Any) -> Any:
        return await anext(result)

    async def first_as_stream(result: Any) -> AsyncIterator[Any]:
        yield await anext(result)

    app = serve(predict, postprocess=first if kind == "value" else first_as_stream)
    response = await request(app, *PREDICT, json=[])
    assert response.body.strip() == b'{"n":1}'
    assert cleaned == [True]


async def test_a_request_that_is_answered_did_not_end_early() -> None:
    flights: list[Any] = []
    server = ModelServer()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            await anyio.sleep(WATCHED)
            flights.extend(server.serving.flights)
            yield {"n": 1}
            yield {"n": 2}
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)

    async def postprocess(result: Any) -> Any:
        return await anext(result)

    model = Model("m")
    vars(model).update(predict=predict, postprocess=postprocess)
    server.add_model(model)
    assert (await request(server, *PREDICT, json=[])).status == 200
    assert [flight.request.reason for flight in flights] == [None]


async def test_a_deadline_after_the_last_event_is_none() -> None:
    # A regression: a time-out that passes while what is left is closed cancels
    # that, and the record of a request that was answered with 200 will say "timeout". `answered`
    # does not help: it is set before the last `send`, which `send_timeout` must still end
    # (test_a_client_that_reads_nothing_is_given_up_on). What counts is that the send has returned.
    flights: list[Any] = []
    cleaned: list[bool] = []
    server = ModelServer(limits=Limits(timeout=0.1))

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            yield {"n": 2}
        finally:
            await anyio.sleep(0.2)
            flights.extend(server.serving.flights)
            cleaned.append(True)

    async def first(result: Any) -> Any:
        return await anext(result)

    model = Model("m")
    vars(model).update(predict=predict, postprocess=first)
    server.add_model(model)
    response = await request(server, *PREDICT, json=[])
    assert (response.status, cleaned) == (200, [True])
    assert [flight.request.reason for flight in flights] == [None]


# --- a request that ends early ------------------------------------------------------------------


async def stubborn_value(payload: Any) -> Any:
    try:
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        return {"too": "late"}


async def stubborn_stream(payload: Any) -> AsyncIterator[Any]:
    yield {"n": 1}
    try:
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        yield {"too": "late"}


async def raises_when_cancelled(payload: Any) -> Any:
    try:
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        raise InvalidInput("late") from None


@pytest.mark.parametrize("kind", ["value", "stream", "collected", "own scope"])
async def test_a_handler_that_never_waits_for_long_is_cancelled_at_once(kind: str) -> None:
    """The shield of a clean-up may not go up while the cancellation is still on its way.

    A `checkpoint()` (trio opens a cancelled scope of its own in there), or any scope of the
    handler's that is cancelled at that moment, would see no cancellation outside of itself and
    swallow it.
    """
    started, cleaned = anyio.Event(), []

    async def clean_up() -> None:
        await anyio.sleep(0.001)
        cleaned.append(True)

    async def step() -> None:
        started.set()
        if kind == "own scope":
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.sleep(60)
        await anyio.lowlevel.checkpoint()

    async def value(payload: Any) -> Any:
        try:
            while True:
                await step()
        finally:
            await clean_up()

    async def stream(payload: Any) -> AsyncIterator[Any]:
        try:
            while True:
                await step()
                yield {"n": 1}
        finally:
            await clean_up()

    streams = kind in ("stream", "collected")
    app = serve(stream if streams else value)
    headers = COLLECTED if kind == "collected" else NDJSON
    async with exchange(app, *PREDICT, json=[], headers=headers) as client:
        await started.wait()
        client.hang_up()
        with anyio.move_on_after(10):
            await client.ended()
        assert client.over
    assert cleaned == [True]


@pytest.mark.parametrize("where", ["in the body", "at the end"])
async def test_a_handler_that_waits_in_its_task_group_cleans_up(where: str) -> None:
    # A regression on trio ("at the end"): a nursery that waits for its children keeps the
    # cancellation for itself and raises it when they have ended, so `_drive` sees none delivered;
    # the first await of the clean-up then gets it, once more as the handler sees it.
    cleaned: list[bool] = []
    started = anyio.Event()

    async def predict(payload: Any) -> Any:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 60)
                started.set()
                if where == "in the body":
                    await anyio.sleep(60)
        finally:
            await anyio.sleep(0.001)
            await anyio.lowlevel.checkpoint()
            cleaned.append(True)

    async with exchange(serve(predict), *PREDICT, json=[]) as client:
        await started.wait()
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()
    assert cleaned == [True]


@pytest.mark.parametrize("kind", ["sleep", "own limit", "own limit, shielded"])
async def test_an_end_that_coincides_with_a_time_limit_of_the_handlers_own(kind: str) -> None:
    # A regression on trio ("sleep" and "own limit"): a cancellation whose source is a
    # "deadline" does not count as delivered. But where the deadline of an inner scope (a sleep has one)
    # passes as the request is ended, that is the one that is delivered, and it does not stop at
    # the inner scope, since the outer one is cancelled and in sight: the handler's clean-up begins
    # without a shield and is cancelled at its first await. What counts is whether the outer scope
    # is hidden from the task by a shield of the handler's at that moment.
    cleaned: list[bool] = []

    async def predict(payload: Any) -> Any:
        try:
            started.set()
            while True:
                if kind == "sleep":
                    await anyio.sleep(0.002)
                else:
                    with anyio.move_on_after(0.002, shield="shielded" in kind):
                        await anyio.sleep(60)
                await anyio.lowlevel.checkpoint()
        finally:
            await anyio.sleep(0.001)
            await anyio.lowlevel.checkpoint()
            cleaned.append(True)

    app = serve(predict).app
    for _ in range(20):  # trio takes turns in no fixed order
        started = anyio.Event()
        async with exchange(app, *PREDICT, json=[]) as client:
            await started.wait()
            await anyio.wait_all_tasks_blocked()
            time.sleep(0.004)  # noqa: ASYNC251 - the limit passes while nobody has a turn
            client.hang_up()
            with anyio.move_on_after(10):
                await client.ended()
            assert client.over
    assert len(cleaned) == 20


@pytest.mark.parametrize("predict", [stubborn_value, raises_when_cancelled])
async def test_an_answer_after_the_deadline_is_not_sent(predict: Any) -> None:
    app = serve(predict, limits=Limits(timeout=0.05))
    response = await request(app, *PREDICT, json=[])
    assert response.status == 504
    assert app.kinds == ["start", "end"]


@pytest.mark.parametrize("headers", [NDJSON, SSE])
async def test_an_item_after_the_deadline_is_not_sent(headers: Any) -> None:
    app = serve(stubborn_stream, limits=Limits(idle_timeout=0.3))
    response = await request(app, *PREDICT, json=[], headers=headers)
    assert app.kinds == ["start", "body", "body", "end"]
    assert b"idle_timeout" in response.chunks[-1]


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("headers", [NDJSON, COLLECTED])
async def test_a_deadline_while_items_are_made(kind: str, headers: Any) -> None:
    stop = threading.Event()

    async def on_loop(payload: Any) -> AsyncIterator[Any]:
        while True:
            yield {"n": 1}
            await anyio.sleep(0.001)

    def in_thread(payload: Any) -> Iterator[Any]:
        while not stop.wait(0.001):
            yield {"n": 1}

    app = serve(on_loop if kind == "async" else in_thread, limits=Limits(timeout=0.05))
    response = await request(app, *PREDICT, json=[], headers=headers)
    if headers is COLLECTED:
        assert response.status == 504
    else:
        assert b"timeout: " in response.chunks[-1]
    assert app.kinds[-1] == "end"


async def test_a_deadline_while_the_client_reads_nothing_cuts() -> None:
    app = serve(two_items, limits=Limits(timeout=0.3))
    async with exchange(app, *PREDICT, json=[]) as client:
        client.hold()
        await client.ended()
        assert type(client.error) is ResponseCut


async def test_an_error_while_ending_early_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def predict(payload: Any) -> Any:
        try:
            await anyio.sleep(60)
        finally:
            raise ValueError("in clean-up")

    app = serve(predict, limits=Limits(timeout=0.05))
    assert (await request(app, *PREDICT, json=[])).status == 504
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("kind", ["value", "stream"])
async def test_whatever_clean_up_raises_stays_inside(raised: BaseException, kind: str) -> None:
    async def value(payload: Any) -> Any:
        try:
            await anyio.sleep(60)
        finally:
            raise raised

    async def stream(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            await anyio.sleep(60)
        finally:
            raise raised

    app = serve(value if kind == "value" else stream, limits=Limits(timeout=0.05))
    error: BaseException | None = None
    scope, receive, send = await one_request()
    try:
        await app(scope, receive, send)
    except BaseException as exc:
        error = exc
    assert error is None


async def one_request() -> Any:
    """Return a request whose client never leaves, to be run in the test's own task."""
    body: list[Any] = [{"type": "http.request", "body": b"[]", "more_body": False}]

    async def receive() -> Any:
        if not body:
            await anyio.sleep_forever()
        return body.pop()

    async def send(message: Any) -> None:
        await anyio.lowlevel.checkpoint()

    headers = [(b"accept", b"application/x-ndjson")]
    scope = {"type": "http", "method": "POST", "path": PREDICT[1], "headers": headers}
    return scope, receive, send


async def test_a_send_that_fails_while_ending_early_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A deadline finds the pipeline inside `send`, and the host's `send` raises what it likes."""
    scope, receive, _ = await one_request()

    async def send(message: Any) -> None:
        if message.get("body"):
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("gone")

    app = serve(two_items, limits=Limits(timeout=0.3))
    with pytest.raises(ResponseCut):
        await app(scope, receive, send)
    assert caplog.records == []
