"""Both clients against a real server, and against one that cuts, errs, stalls and lies."""

import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from clocks import Jump, run, wait_long
from scripted import chunked, scripted, serving, whole

from modelserve import InferenceError, Model, ModelServer, ServerSentEvent
from modelserve.client import (
    AnswerError,
    AsyncClient,
    Client,
    ClientError,
    CutShort,
    ItemError,
    TimedOut,
    Unreachable,
    Unreadable,
)
from modelserve.errors import ExtraMissing, InvalidInput
from modelserve.tensors import InferInput, InferOutput, InferRequest, InferResponse

pytestmark = pytest.mark.anyio

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"

server = ModelServer(token="secret")
left = threading.Event()


@server.model("echo")
async def echo(payload: Any) -> Any:
    return payload


@server.model("square")
async def square(payload: Any) -> Any:
    return {"predictions": [n * n for n in payload["instances"]]}


@server.model("items")
async def items(payload: Any) -> AsyncIterator[Any]:
    for item in payload["instances"]:
        if item == "raise":
            raise InvalidInput("no more of that")
        yield item


@server.model("events")
async def events(payload: Any) -> AsyncIterator[Any]:
    yield {"n": 1}
    yield ServerSentEvent({"n": 2}, event="token", id="7")
    yield "two\nlines"


@server.model("endless")
async def endless(payload: Any) -> AsyncIterator[Any]:
    try:
        while True:
            yield {"n": 1}
            await anyio.sleep(0.005)
    finally:
        left.set()


@server.model("refuses")
async def refuses(payload: Any) -> Any:
    raise InferenceError("not today", 422)


@server.model("double")
async def double(payload: Any) -> InferResponse:
    outputs = [
        InferOutput(f"{i.name}2", i.shape, i.datatype, i.as_numpy() * 2) for i in payload.inputs
    ]
    return InferResponse(payload.id, "double", outputs)


class Bot(Model):
    async def chat(self, request: Any) -> AsyncIterator[str]:
        for word in request["messages"][-1]["content"].split():
            if word == "raise":
                raise InferenceError("lost for words", 500)
            yield word.upper()


server.add_model(Bot("bot"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(server) as address:
        yield address


Call = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["sync", "async"])
def calls(request: pytest.FixtureRequest, anyio_backend_name: str) -> Call:
    """Call a method of either client, and read what it gives to its end."""
    if request.param == "sync" and anyio_backend_name == "trio":
        pytest.skip("the sync client has no backend")
    return run_sync if request.param == "sync" else run_async


async def run_sync(url: str, method: str, *args: Any, _: Any = None, **kwargs: Any) -> Any:
    def run() -> Any:
        with Client(url, **{"token": "secret", **(_ or {})}) as client:
            answer = getattr(client, method)(*args, **kwargs)
            return list(answer) if isinstance(answer, Iterator) else answer

    return await anyio.to_thread.run_sync(run)


async def run_async(url: str, method: str, *args: Any, _: Any = None, **kwargs: Any) -> Any:
    async with AsyncClient(url, **{"token": "secret", **(_ or {})}) as client:
        answer = getattr(client, method)(*args, **kwargs)
        if method not in ("map", "pipe"):
            answer = await answer
        return [item async for item in answer] if isinstance(answer, AsyncIterator) else answer


# --- what works ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        ([1, 2], {"instances": [1, 2]}),
        ({"instances": [1], "x": None}, {"instances": [1], "x": None}),
        (b"\xff\x00", b"\xff\x00"),
        (5, 5),
        ({"error": "mine", "line": 1}, {"error": "mine", "line": 1}),
    ],
)
async def test_a_payload_and_its_answer(url: str, calls: Call, payload: Any, answer: Any) -> None:
    assert await calls(url, "predict", "echo", payload) == answer


async def test_one_document_of_a_stream(url: str, calls: Call) -> None:
    assert await calls(url, "predict", "items", [1, "a"]) == {"predictions": [1, "a"]}


@pytest.mark.parametrize("sse", [False, True])
async def test_the_items_of_a_stream(url: str, calls: Call, sse: bool) -> None:
    given = [{"n": 1}, "two\nlines", [None], {"error": "x", "line": 3}]
    found = await calls(url, "stream", "items", given, sse=sse)
    assert found == [{"n": 1}, "two\nlines", [None], ItemError(3, "x")]


async def test_events_with_fields_come_whole(url: str, calls: Call) -> None:
    first, second, third = await calls(url, "stream", "events", [], sse=True)
    assert (first, third) == ({"n": 1}, "two\nlines")
    assert (second.data, second.event, second.id) == ({"n": 2}, "token", "7")


async def test_an_answer_that_does_not_stream_is_one_item(url: str, calls: Call) -> None:
    assert await calls(url, "stream", "square", [3]) == [{"predictions": [9]}]


@pytest.mark.parametrize("binary", [True, False])
async def test_arrays(url: str, calls: Call, binary: bool) -> None:
    given = {"x": np.array([[1.5, 2]], np.float32), "y": np.arange(3)}
    found = await calls(url, "infer", "double", given, binary=binary)
    assert {name: array.dtype.name for name, array in found.items()} == {
        "x2": "float32",
        "y2": "int64",
    }
    assert found["x2"].tolist() == [[3, 4]]
    only = await calls(url, "infer", "double", given, outputs=["y2"], binary=binary)
    assert list(only) == ["y2"]


async def test_a_v2_request_gives_a_v2_response(url: str, calls: Call) -> None:
    request = InferRequest("double", [InferInput("x", [1], "INT32", [4])], request_id="i")
    response = await calls(url, "infer", "double", request)
    assert (response.id, response.outputs[0].data) == ("i", [8])


async def test_readiness_and_names(url: str, calls: Call) -> None:
    assert await calls(url, "ready")
    assert await calls(url, "ready", "echo")
    assert "square" in await calls(url, "models")
    with pytest.raises(AnswerError, match="Model with name zz does not exist"):
        await calls(url, "ready", "zz")


async def test_a_model_that_is_not_ready(calls: Call) -> None:
    with scripted(whole(b'{"error":"loading"}', status="503 x", retry_after="1")) as (url, heads):
        assert await calls(url, "ready") is False
        assert len(heads) == 1


async def test_the_text_of_a_chat(url: str, calls: Call) -> None:
    assert await calls(url, "chat", "bot", [{"role": "user", "content": "a b"}]) == ["A", "B"]
    with pytest.raises(AnswerError, match="lost for words"):
        await calls(url, "chat", "bot", [{"role": "user", "content": "a raise"}])


@pytest.mark.parametrize(("chunk", "at_once"), [(1, 1), (3, 4), (256, 4)])
async def test_rows_are_mapped_in_order(url: str, calls: Call, chunk: int, at_once: int) -> None:
    found = await calls(url, "map", "square", range(20), chunk=chunk, at_once=at_once)
    assert found == [n * n for n in range(20)]
    assert await calls(url, "map", "square", []) == []


async def test_an_async_source_is_mapped(url: str) -> None:
    async def source() -> AsyncIterator[int]:
        for n in range(5):
            yield n

    assert await run_async(url, "map", "square", source(), chunk=2) == [0, 1, 4, 9, 16]


async def test_a_map_reads_no_further_than_it_must(url: str) -> None:
    taken = 0

    async def source() -> AsyncIterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "x" * 10_000

    async with AsyncClient(url, token="secret") as client:
        results = client.map("items", source(), chunk=1, at_once=2)
        assert await anext(results) == "x" * 10_000
        await anyio.sleep(0.1)
        assert taken < 40
        await results.aclose()
        assert [x async for x in results] == []


async def test_a_base_path_and_headers(calls: Call) -> None:
    with scripted(whole(b'{"models":["a"]}')) as (url, heads):
        settings = {"token": "t", "headers": {"X-One": "1"}}
        assert await calls(f"{url}/ml/", "models", _=settings) == ["a"]
        (head,) = heads
        assert head.startswith(b"GET /ml/v1/models HTTP/1.1\r\n")
        assert b"authorization: Bearer t" in head
        assert b"x-one: 1" in head


async def test_whose_headers_count(calls: Call) -> None:
    with scripted(FINE) as (url, heads):
        settings = {"headers": {"Accept": "a/b", "X": "1"}}
        await calls(url, "predict", "m", 1, _=settings)
        await calls(url, "predict", "m", 1, _=settings, headers={"accept": "c/d"})
        assert [b"accept: a/b" in head for head in heads] == [True, False]
        assert b"accept: c/d" in heads[1]
        assert b"x: 1" in heads[1]


# --- what does not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "status", "sentence"),
    [("refuses", 422, "not today"), ("zz", 404, "Model with name zz does not exist.")],
)
async def test_the_servers_error(
    url: str, calls: Call, model: str, status: int, sentence: str
) -> None:
    for method in ("predict", "stream", "map"):
        with pytest.raises(AnswerError) as caught:
            await calls(url, method, model, [1])
        assert (caught.value.status, str(caught.value)) == (status, sentence)


@pytest.mark.parametrize("sse", [False, True])
async def test_an_error_in_a_stream_comes_after_its_items(url: str, sse: bool) -> None:
    found = []
    with (
        pytest.raises(AnswerError, match=r"^no more of that$"),
        Client(url, token="secret") as client,
    ):
        found.extend(client.stream("items", [1, 2, "raise"], sse=sse))
    assert [str(item) for item in found] == ["1", "2"]


async def test_a_wrong_token(url: str, calls: Call) -> None:
    with pytest.raises(AnswerError, match="Unauthorized") as caught:
        await calls(url, "predict", "echo", 1, _={"token": "x"})
    assert caught.value.status == 401


BROKEN = [
    (chunked(NDJSON, b'{"n":1}\n', end=b""), CutShort),
    (chunked(NDJSON, b'{"n":1}\n{"n":'), CutShort),
    (chunked(SSE, b'data: {"n":1}\n\n', b"data: 2\n"), CutShort),
    (chunked(SSE, b'data: {"n":1}\n\n', end=b"5\r\nda"), CutShort),
    (chunked(NDJSON, b'{"n":1}\n', b"{]\n"), Unreadable),
    (chunked(NDJSON, b'{"n":1}\n', end=b"zz\r\n"), Unreadable),
]


@pytest.mark.parametrize(("answer", "error"), BROKEN)
async def test_a_stream_that_breaks(calls: Call, answer: bytes, error: type[Exception]) -> None:
    with scripted(answer) as (url, _), Client(url) as client:
        stream = client.stream("m", 1)
        assert next(stream) == {"n": 1}
        with pytest.raises(error):
            next(stream)
        with pytest.raises(error):
            await calls(url, "stream", "m", 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", CutShort),
        (b"HTTP/1.1 2", CutShort),
        (b"SSH-2.0\r\n\r\n", Unreadable),
        (whole(b"{]"), Unreadable),
        (whole(b'{"n":1}', content_length="9"), CutShort),
        (whole(b"\xff\xff", content_encoding="gzip"), Unreadable),
        (whole(b"{}", status="302 x", location="/x"), AnswerError),
        (whole(b"<html>", status="502 Bad Gateway"), AnswerError),
    ],
)
async def test_an_answer_that_is_none(calls: Call, answer: bytes, error: type[Exception]) -> None:
    with scripted(answer) as (url, heads):
        for method in ("predict", "map"):
            with pytest.raises(error):
                await calls(url, method, "m", [1])
        with pytest.raises(error):
            await calls(url, "models", _={"retries": 0})
        assert len(heads) == 3  # none was tried again


@pytest.mark.parametrize(
    "body",
    [b'{"outputs":5}', b'{"model_name":"m","outputs":[{"name":"a","shape":[3],"datatype":"INT8","data":[1]}]}', b"[]"],
)  # fmt: skip
async def test_tensors_that_are_none(calls: Call, body: bytes) -> None:
    with scripted(whole(body)) as (url, _), pytest.raises(Unreadable):
        await calls(url, "infer", "m", {"x": np.zeros(1)})


@pytest.mark.parametrize("length", ["x", "-1", "99"])
async def test_a_wrong_length_of_binary_tensors(calls: Call, length: str) -> None:
    answer = whole(b"{}", inference_header_content_length=length)
    with scripted(answer) as (url, _), pytest.raises(Unreadable):
        await calls(url, "infer", "m", {"x": np.zeros(1)})


@pytest.mark.parametrize("body", [b'{"predictions":[1]}', b'{"predictions":5}', b"[1,4]"])
async def test_a_wrong_number_of_predictions(calls: Call, body: bytes) -> None:
    with scripted(whole(body)) as (url, _), pytest.raises(Unreadable, match="each of 2 rows"):
        await calls(url, "map", "m", [1, 2])


async def test_rows_are_explained(calls: Call) -> None:
    with scripted(whole(b'{"explanations":[2,4]}')) as (url, heads):
        assert await calls(url, "map", "m", [1, 2], verb="explain") == [2, 4]
    assert b"m:explain" in heads[0]


@pytest.mark.parametrize(
    ("kind", "empty"),
    [
        ("application/x-ndjson", []),
        (SSE, []),
        ("text/plain", ""),
        ("application/octet-stream", b""),
    ],
)
async def test_the_value_of_a_stream_without_items(calls: Call, kind: str, empty: Any) -> None:
    with scripted(whole(b"", content_type=kind)) as (url, _):
        assert await calls(url, "predict", "m", [1]) == empty


@pytest.mark.parametrize("event", [b"id: 1", b"event: ping", b"retry: 9"])
async def test_an_event_of_a_chat_may_have_no_data(calls: Call, event: bytes) -> None:
    text = b'data: {"choices":[{"delta":{"content":"a"}}]}'
    answer = chunked(SSE, b"\n\n".join([text, event, text, b"data: [DONE]", b""]))
    with scripted(answer) as (url, _):
        assert await calls(url, "chat", "m", []) == ["a", "a"]


async def test_a_chat_that_does_not_end(calls: Call) -> None:
    answer = chunked(SSE, b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
    with scripted(answer) as (url, _), pytest.raises(CutShort):
        await calls(url, "chat", "m", [])


@pytest.mark.parametrize("method", ["predict", "stream", "map", "pipe"])
def test_a_server_that_says_nothing(anyio_backend: str, method: str) -> None:
    begun, over = threading.Event(), threading.Event()

    def say_nothing(connection: socket.socket, rest: bytes) -> None:
        begun.set()
        over.wait(30)

    async def main(jump: Jump) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_long, jump, begun)
            with pytest.raises(TimedOut, match=r"Nothing came from the server for 60 s"):
                await run_async(url, method, "m", [1], _={"timeout": 60})
            tasks.cancel_scope.cancel()
        over.set()

    with scripted(say_nothing) as (url, _):
        run(anyio_backend, main)


@pytest.mark.parametrize("method", ["predict", "pipe"])
def test_a_server_that_says_nothing_to_an_ordinary_program(method: str) -> None:
    over = threading.Event()
    with scripted(lambda connection, rest: over.wait(30) and None) as (url, _):
        with Client(url, timeout=1) as client, pytest.raises(TimedOut, match="for 1 s"):
            list(getattr(client, method)("m", [1]))
        over.set()


@pytest.mark.parametrize("method", ["predict", "stream", "map", "pipe"])
async def test_no_server(calls: Call, method: str) -> None:
    with scripted(b"") as (url, _):
        pass
    with pytest.raises(Unreachable, match="cannot be reached"):
        await calls(url, method, "m", [1])


@pytest.mark.parametrize("method", ["predict", "pipe"])
async def test_a_header_that_cannot_be_sent(url: str, calls: Call, method: str) -> None:
    with pytest.raises(ClientError, match="cannot be sent"):
        await calls(url, method, "m", [1], headers={"x": "a\nb"})


# --- trying again -------------------------------------------------------------------------------

BUSY = whole(b'{"error":"busy"}', status="503 x", retry_after="0")
FINE = whole(b'{"predictions":[1]}')


async def test_a_call_is_made_again_when_the_server_says_so(calls: Call) -> None:
    for method in ("predict", "stream", "map"):
        with scripted(BUSY, BUSY, FINE) as (url, heads):
            assert await calls(url, method, "m", [1])
            assert len(heads) == 3


@pytest.mark.parametrize(
    ("answer", "settings", "count"),
    [
        (BUSY, {}, 3),
        (BUSY, {"retries": 0}, 1),
        (whole(b"{}", status="503 x"), {}, 1),
        (whole(b"{}", status="503 x", retry_after="3600"), {}, 1),
        (whole(b"{}", status="503 x", retry_after="Sun, 06 Nov 1994 08:49:37 GMT"), {}, 3),
        (whole(b"{}", status="503 x", retry_after="Fri, 06 Nov 2099 08:49:37 GMT"), {}, 1),
        (whole(b"{}", status="503 x", retry_after="soon"), {}, 1),
        (whole(b"{}", status="500 x", retry_after="0"), {}, 1),
    ],
)
async def test_how_often(calls: Call, answer: bytes, settings: Any, count: int) -> None:
    with scripted(answer) as (url, heads):
        with pytest.raises(AnswerError):
            await calls(url, "predict", "m", [1], _=settings)
        assert len(heads) == count


async def test_an_idempotent_call_is_made_again_after_a_cut(calls: Call) -> None:
    with scripted(b"", FINE) as (url, heads):
        assert await calls(url, "predict", "m", [1], idempotent=True) == {"predictions": [1]}
        assert len(heads) == 2


# --- leaving ------------------------------------------------------------------------------------


async def test_closing_a_stream_stops_the_model(url: str) -> None:
    left.clear()
    with Client(url, token="secret") as client, client.stream("endless", 1) as stream:
        assert next(stream) == {"n": 1}
    assert await anyio.to_thread.run_sync(left.wait, 30)


async def test_cancelling_a_stream_stops_the_model(url: str) -> None:
    left.clear()
    async with AsyncClient(url, token="secret") as client:
        came = anyio.Event()

        async def read() -> None:
            async for item in await client.stream("endless", 1):
                assert item == {"n": 1}
                came.set()

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await came.wait()
                tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(left.wait, 30)


async def test_an_exception_in_the_clients_body_comes_out_as_it_is(url: str) -> None:
    with pytest.raises(KeyError):
        async with AsyncClient(url) as client:
            client.map("square", range(10))
            raise KeyError


async def test_a_client_may_be_cancelled_from_outside(url: str) -> None:
    with anyio.move_on_after(0.1) as scope:
        async with AsyncClient(url) as client:
            client.map("square", range(10))
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_tasks_need_the_context(url: str) -> None:
    client = AsyncClient(url)
    with pytest.raises(RuntimeError, match="use it with `async with`"):
        client.pipe("m", [])
    await client.aclose()


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "http://a:x", "http://u:p@a", "http://a?x=1", "http://a b", "http://a\n"])  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="is not the address of a server"):
            kind(url)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"retries": -1}, {"token": ""}, {"token": "a b"}])  # fmt: skip
def test_what_a_client_cannot_be_told(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout must|The token"):
        Client("http://localhost", **settings)


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ExtraMissing, match=r"needs httpx: pip install 'modelserve\[client\]'"):
        Client("http://localhost")


@pytest.mark.parametrize("rows", ["text", b"bytes", {"a": 1}])
def test_what_are_no_rows(url: str, rows: Any) -> None:
    with Client(url) as client, pytest.raises(TypeError, match="Rows must be an iterable"):
        next(client.map("m", rows))


def test_inputs_without_names(url: str) -> None:
    with Client(url) as client, pytest.raises(TypeError, match="arrays by their names, not list"):
        client.infer("m", [1.0])  # type: ignore[arg-type]


def test_inputs_without_numpy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with Client(url) as client, pytest.raises(ImportError, match=r"modelserve\[tensors\]"):
        client.infer("m", {"x": [1.0]})


def test_a_dtype_that_v2_does_not_have(url: str) -> None:
    with Client(url) as client, pytest.raises(InvalidInput, match="complex128"):
        client.infer("m", {"x": np.zeros(1, complex)})
