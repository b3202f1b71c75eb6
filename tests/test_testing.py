"""The driver of applications: what it returns to a test, and how it behaves to an application."""

from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from modelserve.testing import Cut, Exchange, exchange, lifespan, request, websocket

pytestmark = pytest.mark.anyio


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(chunk: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def sending(*messages: dict[str, Any]) -> Any:
    """Return an application that sends these messages."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("in the application")


async def hanging(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- responses ----------------------------------------------------------------------------------


async def test_a_response_is_its_head_and_its_chunks() -> None:
    app = sending(start(201, (b"x-a", b"1"), (b"x-a", b"2")), body(b"a", more=True), body(b"b"))
    response = await request(app, "GET", "/")
    assert (response.status, response.chunks, response.body) == (201, [b"a", b"b"], b"ab")
    assert response.headers.getlist("X-A") == ["1", "2"]


@pytest.mark.parametrize(
    ("messages", "chunks"),
    [
        ([body()], []),
        ([{"type": "http.response.body"}], []),
        ([body(b"a")], [b"a"]),
        ([body(b"a", more=True), body()], [b"a"]),
        ([body(b"", more=True), body(b"a", more=True), body()], [b"", b"a"]),
        ([body(bytearray(b"a"), more=True), body(b"b")], [b"a", b"b"]),  # type: ignore[arg-type]
    ],
)
async def test_an_event_is_a_chunk(messages: list[Any], chunks: list[bytes]) -> None:
    response = await request(sending(start(), *messages), "GET", "/")
    assert list(response.chunks) == chunks


async def test_a_document_is_read_as_json() -> None:
    assert (await request(sending(start(), body(b'{"a":1}')), "GET", "/")).json() == {"a": 1}


@pytest.mark.parametrize("app", [nothing, failing])
async def test_no_response_is_a_cut(app: Any) -> None:
    with pytest.raises(Cut, match="without a response") as caught:
        await request(app, "GET", "/")
    assert isinstance(caught.value.__cause__, ValueError) == (app is failing)


async def test_a_response_that_is_not_completed_is_a_cut() -> None:
    async with exchange(sending(start(), body(b"a", more=True)), "GET", "/") as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"a"
        with pytest.raises(Cut, match="not completed"):
            await client.chunk()


async def test_the_exception_of_an_application_is_kept() -> None:
    async with exchange(failing, "GET", "/") as client:
        await client.ended()
        assert client.over
        assert str(client.error) == "in the application"


@pytest.mark.parametrize(
    "messages", [[body(b"a")], [start(), start()], [start(), {"type": "http.response.push"}]]
)
async def test_events_out_of_order_are_a_failure(messages: list[Any]) -> None:
    with pytest.raises(AssertionError, match="expected"):
        await request(sending(*messages), "GET", "/")


async def test_events_are_seen_as_they_are_sent() -> None:
    proceed = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"a", more=True))
        await proceed.wait()
        await send(body(b"b"))

    async with exchange(app, "GET", "/") as client:
        await client.head()
        assert await client.chunk() == b"a"
        assert not client.over
        proceed.set()
        assert [chunk async for chunk in client] == [b"b"]
        assert await client.chunk() is None
        await client.ended()
        assert client.over and client.error is None


# --- requests -----------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the headers and the body of the request."""
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            break
    await send(start(200, *scope["headers"]))
    await send(body(b"|".join(parts)))


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, b""),
        ({"body": b"\x00"}, b"\x00"),
        ({"json": {"a": [1]}}, b'{"a":[1]}'),
        ({"json": []}, b"[]"),
        ({"json": 0}, b"0"),
    ],
)
async def test_a_body_is_sent(options: dict[str, Any], sent: bytes) -> None:
    response = await request(echo, "POST", "/", **options)
    assert response.body == sent
    assert response.headers.get("content-type") == (
        "application/json" if "json" in options else None
    )


async def test_headers_are_sent_in_lower_case_and_override_the_default() -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", "X-A": "ä"}
    response = await request(echo, "POST", "/", json=1, headers=headers)
    assert response.headers["x-a"] == "ä"
    assert response.headers.getlist("content-type") == ["application/json; charset=utf-8"]


async def test_a_body_can_be_sent_in_parts() -> None:
    async with exchange(echo, "POST", "/", body=None) as client:
        client.send_body(b"a", more=True)
        await anyio.wait_all_tasks_blocked()
        assert not client.over
        client.send_body(b"b")
        assert (await client.response()).body == b"a|b"


@pytest.mark.parametrize(
    ("path", "decoded", "raw", "query"),
    [
        ("/", "/", b"/", b""),
        ("/a%2Fb", "/a/b", b"/a%2Fb", b""),
        ("/a?b=c/d?e", "/a", b"/a", b"b=c/d?e"),
        ("/%C3%A4", "/ä", b"/%C3%A4", b""),
    ],
)
async def test_the_scope_is_like_a_servers(
    path: str, decoded: str, raw: bytes, query: bytes
) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send(start())
        await send(body())

    await request(app, "GET", path, root_path="/x", extensions={})
    (scope,) = scopes
    assert (scope["type"], scope["method"]) == ("http", "GET")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (decoded, raw, query)
    assert (scope["root_path"], scope["extensions"]) == ("/x", {})


async def test_it_drives_any_application() -> None:
    async def document(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    async def stream(request: Request) -> StreamingResponse:
        async def items() -> Any:
            yield "a"
            yield "b"

        return StreamingResponse(items())

    routes = [Route("/document", document, methods=["POST"]), Route("/stream", stream)]
    app = Starlette(routes=routes)
    assert (await request(app, "POST", "/document", json={"a": 1})).json() == {"a": 1}
    assert (await request(app, "GET", "/stream")).chunks == [b"a", b"b"]
    assert (await request(app, "GET", "/nowhere")).status == 404


# --- a client that hangs up or stops reading ----------------------------------------------------


async def test_a_hang_up_looks_as_it_does_on_servers() -> None:
    seen: list[str] = []
    received = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        received.set()
        seen.extend([(await receive())["type"] for _ in range(3)])
        await send(start())  # does nothing
        await send(body(b"a"))

    async with exchange(app, "GET", "/") as client:
        await received.wait()
        client.hang_up()
        await client.ended()
        assert client.error is None
        with pytest.raises(Cut):
            await client.head()
    assert seen == ["http.request"] + ["http.disconnect"] * 3


async def test_after_the_last_event_comes_a_disconnect() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        await send(body())
        seen.append((await receive())["type"])

    await request(app, "GET", "/")
    assert seen == ["http.disconnect"]


async def test_a_body_that_was_sent_before_a_hang_up_is_lost() -> None:
    seen: list[str] = []
    proceed = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await proceed.wait()
        seen.append((await receive())["type"])

    async with exchange(app, "GET", "/") as client:
        client.hang_up()
        proceed.set()
        await client.ended()
    assert seen == ["http.disconnect"]


async def test_leaving_the_block_hangs_up_and_waits() -> None:
    async with exchange(hanging, "GET", "/") as client:
        assert not client.over
    assert client.over


async def test_a_client_that_holds_blocks_the_application() -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for number in range(3):
            await send(body(b"x", more=True))
            sent.append(number)
        await send(body())

    async with exchange(app, "GET", "/") as client:
        client.hold()
        await anyio.wait_all_tasks_blocked()
        assert sent == []
        client.resume()
        assert (await client.response()).body == b"xxx"

    async with exchange(app, "GET", "/") as client:
        client.hold()
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()  # a hang-up resumes it too
        assert client.error is None


async def test_a_wait_is_bounded() -> None:
    client = Exchange(hanging, {}, timeout=0.02)
    with pytest.raises(TimeoutError):
        await client.head()
    with pytest.raises(TimeoutError):
        await client.ended()


async def test_an_application_that_does_not_end_is_a_failure() -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()

    release = anyio.Event()
    with pytest.raises(TimeoutError):
        async with exchange(stuck, "GET", "/", timeout=0.02):
            pass
    release.set()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_application_runs_outside_of_the_tests_cancel_scopes() -> None:
    async with exchange(hanging, "GET", "/") as client:
        assert client.task is not None
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
        assert not client.over


# --- the lifespan -------------------------------------------------------------------------------


class Life:
    """An application that records its lifespan, and fails at a given stage."""

    def __init__(self, *, failing: str = "", raises: bool = False) -> None:
        self.log: list[str] = []
        self.failing = failing
        self.raises = raises

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        for stage in ("startup", "shutdown"):
            self.log.append((await receive())["type"])
            if self.failing == stage:
                if self.raises:
                    raise ValueError("no disk")
                await send({"type": f"lifespan.{stage}.failed", "message": "no disk"})
                return
            await send({"type": f"lifespan.{stage}.complete"})


async def test_a_lifespan_is_run_around_a_block() -> None:
    life = Life()
    async with lifespan(life):
        assert life.log == ["lifespan.startup"]
    assert life.log == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("stage", ["startup", "shutdown"])
async def test_a_lifespan_that_fails_raises(stage: str, raises: bool) -> None:
    life = Life(failing=stage, raises=raises)
    ran = []
    with pytest.raises(RuntimeError, match=f"{stage} failed") as caught:
        async with lifespan(life):
            ran.append(True)
    assert ran == ([True] if stage == "shutdown" else [])
    if raises:
        assert isinstance(caught.value.__cause__, ValueError)
    else:
        assert "no disk" in str(caught.value)


async def test_a_lifespan_is_ended_after_an_error_in_the_block() -> None:
    life = Life()
    with pytest.raises(KeyError):
        async with lifespan(life):
            raise KeyError
    assert life.log == ["lifespan.startup", "lifespan.shutdown"]


# --- WebSockets ---------------------------------------------------------------------------------


async def repeating(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    scope["left"] = message["code"]


async def test_a_websocket_is_its_messages_and_its_close() -> None:
    app = sending(
        {"type": "websocket.accept"},
        {"type": "websocket.send", "text": "a", "bytes": None},
        {"type": "websocket.send", "bytes": b"b"},
        {"type": "websocket.close", "code": 4400, "reason": "why"},
    )
    async with websocket(app, "/") as client:
        assert [message async for message in client] == ["a", b"b"]
        assert await client.closed() == (4400, "why")


@pytest.mark.parametrize(("code", "seen"), [(1001, 1001), (None, 1006)])
async def test_what_was_sent_is_read_before_the_close(code: int | None, seen: int) -> None:
    async with websocket(repeating, "/", subprotocols=["a", "b"], accept=False) as client:
        assert await client.accepted() == "a"
        client.send("text")
        client.send(b"")
        if code is not None:
            client.close(code)
        assert [await client.message(), await client.message()] == ["text", b""]
    assert client.exchange.scope["left"] == seen


async def test_a_refusal_is_a_response() -> None:
    app = sending(
        {"type": "websocket.http.response.start", "status": 401, "headers": [(b"a", b"b")]},
        {"type": "websocket.http.response.body", "body": b"x", "more_body": True},
        {"type": "websocket.http.response.body", "body": b"y"},
    )
    async with websocket(app, "/", accept=False) as client:
        denial = await client.denial()
    assert (denial.status, denial.headers["a"], denial.body) == (401, "b", b"xy")


async def test_a_close_before_the_handshake_is_a_403() -> None:
    async with websocket(sending({"type": "websocket.close"}), "/", accept=False) as client:
        assert (await client.denial()).status == 403


@pytest.mark.parametrize("app", [nothing, failing])
async def test_an_application_that_does_not_close_is_cut(app: Any) -> None:
    async with websocket(app, "/", accept=False) as client:
        with pytest.raises(Cut):
            await client.message()
    with pytest.raises(Cut):
        async with websocket(app, "/"):
            pass
