"""Models over a WebSocket, message by message."""

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from modelserve import InferenceError, InvalidInput, Limits, Model, ModelServer
from modelserve.testing import Closed, Cut, lifespan, request, websocket

pytestmark = pytest.mark.anyio

PATH = "/v1/models/m:predict"
Anything = Any


def served(function: Any, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    app.add_model(function, "m")
    return app


async def echo(instances: AsyncIterator[Anything]) -> AsyncIterator[Anything]:
    async for x in instances:
        if x == "fail":
            raise InferenceError("told to fail", 429)
        yield x


def echo_in_thread(instances: Iterator[Anything]) -> Iterator[Anything]:
    for x in instances:
        if x == "fail":
            raise InferenceError("told to fail", 429)
        yield x


async def lists(payload: dict[str, Any]) -> dict[str, Any]:
    [x] = payload["instances"]  # one message at a time
    if x == "fail":
        raise InferenceError("told to fail", 429)
    if x == "break":
        raise ValueError("a secret")
    return {"predictions": [x]}


def lists_in_thread(payload: dict[str, Any]) -> dict[str, Any]:
    return {"predictions": payload["instances"]}


ITERATORS = [echo, echo_in_thread]
LISTS = [lists, lists_in_thread]


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_each_message_is_an_instance_and_each_item_a_message(function: Any) -> None:
    async with websocket(served(function), PATH) as client:
        for sent, got in [('{"a": 1}', '{"a":1}'), (b"\xff\x00", b"\xff\x00"), ('"s"', '"s"')]:
            client.send(sent)
            assert await client.message() == got
        client.send("")
        assert await client.closed() == Closed(1000, "")
        await client.ended()
    assert client.exchange.error is None


@pytest.mark.parametrize("end", ["", b""])
@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_an_empty_message_ends_the_input_and_the_rest_follows(
    function: Any, end: Any
) -> None:
    async with websocket(served(function), PATH) as client:
        for number in range(300):
            client.send(str(number))
        client.send(end)
        client.send("7")  # nobody asks for it any more
        assert [message async for message in client] == [str(number) for number in range(300)]
        assert await client.closed() == Closed(1000, "")


async def test_nothing_in_is_nothing_out() -> None:
    async with websocket(served(echo), PATH) as client:
        client.send("")
        assert [message async for message in client] == []
        assert (await client.closed()).code == 1000


async def test_items_are_not_tied_to_messages() -> None:
    async def frames(instances: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        yield "ready"
        size = 0
        async for frame in instances:
            size += len(frame)
            if size >= 4:
                yield {"size": size}
                size = 0
        yield b""

    async with websocket(served(frames), PATH) as client:
        assert await client.message() == '"ready"'  # before anything was sent
        client.send(b"123")
        client.send(b"4")
        assert await client.message() == '{"size":4}'
        client.send(b"")
        assert await client.message() == b""
        assert (await client.closed()).code == 1000


async def test_a_hook_may_return_one_value() -> None:
    async def count(instances: AsyncIterator[Any]) -> dict[str, int]:
        return {"n": len([x async for x in instances])}

    async with websocket(served(count), PATH) as client:
        client.send("1")
        client.send("")
        assert [message async for message in client] == ['{"n":1}']


async def test_explain_has_a_websocket_too() -> None:
    class Explains(Model):
        async def explain(self, payload: Any) -> Any:
            return {"explanations": [-x for x in payload["instances"]]}

    async with websocket(ModelServer([Explains("m")]), "/v1/models/m:explain") as client:
        client.send("3")
        assert await client.message() == "-3"


async def test_preprocess_and_headers_reach_the_hook() -> None:
    class Adds(Model):
        async def preprocess(self, payload: Any, headers: Any) -> Any:
            return {"instances": [headers["x-add"] + x for x in payload["instances"]]}

        async def predict(self, payload: Any) -> Any:
            return {"predictions": payload["instances"]}

    headers = {"X-Add": "a", "Content-Type": "application/json", "Content-Length": "7"}
    async with websocket(ModelServer([Adds("m")]), PATH, headers=headers) as client:
        client.send('"b"')
        assert await client.message() == '"ab"'


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [echo, *LISTS])
async def test_a_bad_message_is_told_by_its_number_and_the_stream_goes_on(function: Any) -> None:
    limits = Limits(max_line_bytes=10, max_body_bytes=5)
    async with websocket(served(function, limits=limits), PATH) as client:
        for sent in ("1", "nope", '"' + "x" * 20 + '"', b"123456", "5"):
            client.send(sent)
        got = [await client.message() for _ in range(5)]
        assert got[0] == "1" and got[4] == "5"
        assert str(got[1]).startswith('{"error":"not JSON: ') and '"message":2}' in str(got[1])
        assert got[2] == '{"error":"longer than 10 bytes","message":3}'
        assert got[3] == '{"error":"longer than 5 bytes","message":4}'


@pytest.mark.parametrize("function", [echo, lists])
async def test_a_bad_message_may_end_it(function: Any) -> None:
    async with websocket(served(function), PATH + "?on_error=stop") as client:
        client.send("1")
        assert await client.message() == "1"
        client.send("nope")
        last = str(await client.message())
        assert last.startswith('{"error":"message 2: not JSON: ')
        closed = await client.closed()
        assert closed.code == 4400 and closed.reason.startswith("message 2: not JSON: ")


async def test_an_instance_that_fails_fails_alone_the_first_too() -> None:
    async with websocket(served(lists), PATH) as client:
        for sent in ('"break"', '"fail"', "3"):
            client.send(sent)
        assert await client.message() == '{"error":"Internal Server Error","message":1}'
        assert await client.message() == '{"error":"told to fail","message":2}'
        assert await client.message() == "3"


@pytest.mark.parametrize("function", ITERATORS)
@pytest.mark.parametrize("before", [0, 1])
async def test_a_stream_that_fails_ends_with_its_status(function: Any, before: int) -> None:
    async with websocket(served(function), PATH) as client:
        for _ in range(before):
            client.send("1")
            assert await client.message() == "1"
        client.send('"fail"')
        assert await client.message() == '{"error":"told to fail"}'
        assert await client.closed() == Closed(4429, "told to fail")


async def test_a_reason_is_as_long_as_a_close_frame() -> None:
    async def fails(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield 1
        raise InvalidInput("é" * 100)

    async with websocket(served(fails), PATH) as client:
        assert await client.closed() == Closed(4400, "é" * 61)


async def test_an_item_that_no_message_can_hold_is_a_failure() -> None:
    async def yields_objects(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for _ in instances:
            yield object()

    async with websocket(served(yields_objects), PATH) as client:
        client.send("1")
        assert await client.message() == '{"error":"Internal Server Error"}'
        assert (await client.closed()).code == 4500


async def test_a_hook_that_fails_at_once_is_a_500_before_or_after_the_handshake() -> None:
    def fails(instances: Any) -> Any:
        raise ValueError("a secret")

    async def predict(instances: AsyncIterator[Any]) -> Any:
        return fails(instances)

    async with websocket(served(predict), PATH, accept=False) as client:
        try:
            await client.accepted()
        except Cut as refused:
            assert "'status': 500" in str(refused)
        else:
            assert (await client.closed()).code == 4500


# --- the handshake -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/v1/models/none:predict", 404, "Model with name none does not exist."),
        (PATH + "?on_error=maybe", 400, "on_error may be continue or stop."),
        (PATH.replace("predict", "explain"), 501, "Model m does not implement explain."),
        ("/v2/models/m/infer", 404, "Not Found"),
        ("/v2/health/ready", 404, "Not Found"),
        ("/nowhere", 404, "Not Found"),
    ],
)
@pytest.mark.parametrize("can_deny", [True, False])
async def test_what_can_be_refused_is_refused_in_the_handshake(
    path: str, status: int, error: str, can_deny: bool
) -> None:
    more: dict[str, Any] = {} if can_deny else {"extensions": None}
    async with websocket(served(echo), path, accept=False, **more) as client:
        denial = await client.denial()
        await client.ended()
    assert denial.status == (status if can_deny else 403)
    if can_deny:
        assert denial.json() == {"error": error}
        assert denial.headers["content-type"] == "application/json"
        assert len(denial.headers["x-request-id"]) == 28
    assert client.exchange.error is None


async def test_a_token_is_a_header_or_a_subprotocol() -> None:
    app = served(echo, token="secret")
    right: list[dict[str, Any]] = [
        {"headers": {"Authorization": "Bearer secret"}},
        {"subprotocols": ["bearer.c2VjcmV0", "modelserve.v1"]},
        {"subprotocols": ["bearer.c2VjcmV0"], "headers": {"Origin": "https://else.org"}},
    ]
    for options in right:
        async with websocket(app, PATH, accept=False, **options) as client:
            chosen = await client.accepted()
            assert chosen == ("modelserve.v1" if len(options.get("subprotocols", [])) > 1 else None)
    wrong: list[dict[str, Any]] = [
        {},
        {"subprotocols": ["bearer.c2Vj"]},
        {"subprotocols": ["bearer.c2VjcmV0"], "headers": {"Authorization": "Bearer other"}},
    ]
    for options in wrong:
        async with websocket(app, PATH, accept=False, **options) as client:
            assert (await client.denial()).status == 401


async def test_a_hook_does_not_see_the_token_among_the_subprotocols() -> None:
    seen: list[Any] = []

    async def predict(payload: Any, headers: Any) -> Any:
        seen.append((headers.get("sec-websocket-protocol"), headers.scope["subprotocols"]))
        return {"predictions": [1]}

    offered = ["modelserve.v1", "bearer.c2VjcmV0"]
    given = {"Sec-WebSocket-Protocol": ", ".join(offered)}
    async with websocket(served(predict), PATH, subprotocols=offered, headers=given) as client:
        client.send("1")
        await client.message()
    assert seen == [("modelserve.v1", ["modelserve.v1"])]


@pytest.mark.parametrize(
    ("origin", "options", "allowed"),
    [
        ("http://127.0.0.1:8080", {}, True),
        ("https://else.org", {}, False),
        ("https://else.org", {"origins": ["https://else.org"]}, True),
        ("https://evil.org", {"origins": ["https://else.org"]}, False),
        ("https://evil.org", {"origins": ["*"]}, True),
        ("null", {}, False),
    ],
)
async def test_pages_of_other_origins_are_refused(
    origin: str, options: dict[str, Any], allowed: bool
) -> None:
    app = served(echo, **options)
    async with websocket(app, PATH, headers={"Origin": origin}, accept=False) as client:
        if allowed:
            assert await client.accepted() is None
        else:
            denial = await client.denial()
            assert denial.status == 403 and b"--cors-origin" in denial.body
            assert origin.encode() not in denial.body


async def test_the_id_of_the_request_is_the_clients() -> None:
    app = served(echo)
    async with websocket(app, PATH, headers={"X-Request-ID": "mine"}, accept=False) as client:
        await anyio.wait_all_tasks_blocked()
        accept = client.exchange._sent[0]
        assert accept["headers"] == [(b"x-request-id", b"mine")]


# --- slots, limits, leaving ----------------------------------------------------------------------


async def test_a_full_queue_is_told_in_the_handshake() -> None:
    app = served(echo, limits=Limits(concurrency=1, queue=0))
    async with websocket(app, PATH), websocket(app, PATH, accept=False) as second:
        denial = await second.denial()
        assert denial.status == 503 and denial.headers["retry-after"]
    async with websocket(app, PATH) as third:
        third.send("1")
        assert await third.message() == "1"


async def test_one_that_waits_for_a_slot_is_open_and_may_leave() -> None:
    app = served(echo, limits=Limits(concurrency=1))
    async with (
        websocket(app, PATH) as first,
        websocket(app, PATH) as second,
        websocket(app, PATH) as third,
    ):
        third.send("3")
        await anyio.wait_all_tasks_blocked()
        assert app.serving.statistics().waiting == 2
        second.close(1001)
        await second.ended()
        assert app.serving.statistics().waiting == 1
        first.send("")
        assert (await first.closed()).code == 1000
        assert await third.message() == "3"


async def test_a_message_counts_while_its_websocket_waits_for_a_slot() -> None:
    app = served(echo, limits=Limits(concurrency=1, max_queued_bytes=1 << 20))
    budget = app.serving.admission.budget
    async with (
        websocket(app, PATH) as first,
        websocket(app, PATH) as second,
        websocket(app, PATH) as third,
    ):
        await anyio.wait_all_tasks_blocked()
        third.send(b"x" * (1 << 20))
        closed = await third.closed()
        assert closed == Closed(4503, "The server is busy and its queue is full.")
        await anyio.wait_all_tasks_blocked()
        second.send(b"x" * (2 << 20))  # one alone may be larger
        await anyio.wait_all_tasks_blocked()
        assert budget.held >= 2 << 20
        async with websocket(app, PATH, accept=False) as fourth:
            assert (await fourth.denial()).status == 503
        first.send("")
        assert len(await second.message() or "") == 2 << 20
        assert budget.held == 0


class Watching(Model):
    """A model that tells how its hook has ended."""

    def __init__(self, **limits: Any) -> None:
        super().__init__("m")
        self.limits = Limits(**limits)
        self.cleaned = anyio.Event()

    async def predict(self, instances: AsyncIterator[Any]) -> AsyncIterator[Any]:  # type: ignore[override]
        try:
            async for x in instances:
                yield x
        finally:
            await anyio.lowlevel.checkpoint()
            self.cleaned.set()


@pytest.mark.parametrize("how", [1000, 1001, 1006, "raises", "runtime"])
@pytest.mark.parametrize("stage", ["open", "result"])
async def test_a_client_that_leaves_ends_the_hook(how: Any, stage: str) -> None:
    model = Watching()
    inner = ModelServer([model])
    raised = {"raises": OSError("gone"), "runtime": RuntimeError("after sending 'websocket.close'")}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def failing(message: Any) -> None:
            if message["type"] != "websocket.accept":
                raise raised[how]
            await send(message)

        await inner(scope, receive, failing if how in raised else send)

    async with websocket(app, PATH) as client:
        if stage == "result" or how in raised:
            client.send("1")
        if how not in raised:
            if stage == "result":
                await client.message()
            client.close(how)
        await client.ended()
        if stage == "result" or how in raised:
            await model.cleaned.wait()
    assert client.exchange.error is None
    assert len(inner.serving.flights) == 0
    assert inner.serving.admission.gate.running == 0


@pytest.mark.parametrize(
    ("limits", "code", "reason"),
    [
        ({"input_timeout": 0.3}, 4408, "input_timeout: no message was received for 0.3 s"),
        ({"timeout": 0.3}, 4504, "timeout: the request took longer than 0.3 s"),
        ({"idle_timeout": 0.3}, 4504, "idle_timeout: no item was produced for 0.3 s"),
    ],
)
async def test_limits_on_time_close_it(limits: Any, code: int, reason: str) -> None:
    model = Watching(**limits)
    async with websocket(ModelServer([model]), PATH) as client:
        client.send("1")
        assert await client.message() == "1"
        assert await client.message() == f'{{"error":"{reason}"}}'
        assert await client.closed() == Closed(code, reason)
        await model.cleaned.wait()


async def test_a_client_that_reads_nothing_is_cut_and_blocks_nobody() -> None:
    model = Watching(send_timeout=0.1)
    app = ModelServer([model])
    async with websocket(app, PATH) as stuck, websocket(app, PATH) as other:
        stuck.exchange.hold()
        stuck.send("1")
        other.send("2")
        assert await other.message() == "2"
        await stuck.ended()
    assert stuck.exchange.error is None
    assert len(app.serving.flights) == 0


async def test_a_client_that_reads_nothing_is_not_read_either() -> None:
    app = served(echo)
    frame = b"x" * 100_000
    async with websocket(app, PATH) as client:
        client.exchange.hold()
        for _ in range(100):
            client.send(frame)
        await anyio.wait_all_tasks_blocked()
        assert len(client.exchange._to_app) > 50  # the host keeps them, and stops reading
        client.exchange.resume()
        client.send("")
        assert [message async for message in client] == [frame] * 100


async def test_a_drain_closes_it() -> None:
    app = served(echo, limits=Limits(drain_timeout=0.05))
    async with lifespan(app):
        client_context = websocket(app, PATH)
        client = await client_context.__aenter__()
        client.send("1")
        assert await client.message() == "1"
    assert await client.message() == '{"error":"server shutting down"}'
    assert await client.closed() == Closed(4503, "server shutting down")
    await client_context.__aexit__(None, None, None)


async def test_a_draining_server_refuses_new_ones() -> None:
    app = served(echo)
    app.serving.refuse_new()
    async with websocket(app, PATH, accept=False) as client:
        assert (await client.denial()).status == 503


async def test_a_client_that_is_gone_before_the_handshake_is_nothing() -> None:
    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "websocket", "path": PATH, "headers": []}
    await served(echo)(scope, receive, send)


# --- records -------------------------------------------------------------------------------------


async def test_a_websocket_is_one_request_in_the_metrics() -> None:
    app = served(echo)
    async with websocket(app, PATH) as client:
        client.send("1")
        client.send("2")
        client.send("")
        await client.closed()
        await client.ended()
    async with websocket(app, PATH) as client:
        client.send("1")
        await client.message()
        client.close()
        await client.ended()
    async with websocket(app, "/v1/models/none:predict", accept=False) as client:
        await client.denial()
        await client.ended()
    text = (await request(app, "GET", "/metrics")).body.decode()
    rows = [line for line in text.splitlines() if line.startswith("modelserve_requests_total{")]
    assert len([row for row in rows if 'protocol="ws"' in row]) == 3
    for words in (('"done"', '"200"'), ('"disconnected"', '"200"'), ('"error"', '"404"')):
        assert any(all(word in row for word in words) for row in rows), rows
    assert 'modelserve_stream_items_total{model_name="m"} 3.0' in text


async def test_models_of_threads_leave_none_behind() -> None:
    ended = threading.Event()

    def endless(instances: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from instances
        finally:
            ended.set()

    app = served(endless)
    async with websocket(app, PATH) as client:
        client.send("1")
        assert await client.message() == "1"
    assert ended.is_set()
    assert app.serving.statistics().busy_threads == ()


async def test_a_test_is_told_what_came_instead() -> None:
    with pytest.raises(Cut):
        async with websocket(served(echo), "/nowhere"):
            pass
