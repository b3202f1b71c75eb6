"""Triton's generate extension over the wire: text in, text out, whole or an event a piece."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson
import pydantic
import pytest

from modelserve import InvalidInput, Model, ModelServer, ServerSentEvent
from modelserve.protocols.codec import ModelRef
from modelserve.protocols.generate import GENERATE
from modelserve.tensors import InferOutput, InferResponse
from modelserve.testing import Response, exchange, request
from modelserve.wire.head import Head

pytestmark = pytest.mark.anyio

WHOLE = "/v2/models/m/generate"
STREAM = "/v2/models/m/generate_stream"
ASKED = {"text_input": "a b", "parameters": {"max_tokens": 5}}


def serve(predict: Any, **settings: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict, **settings)
    return ModelServer([model])


async def words(payload: Any) -> AsyncIterator[str]:
    for word in payload["text_input"].split():
        if word == "raise":
            raise InvalidInput("no such word")
        yield word


async def ask(app: Any, path: str, body: Any = ASKED, **headers: str) -> Response:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return await request(app, "POST", path, body=raw, headers=headers)


def text(*values: str, datatype: str = "BYTES") -> InferResponse:
    return InferResponse("1", "m", [InferOutput("o", [len(values)], datatype, list(values))])


def answer(text_output: Any, **more: Any) -> dict[str, Any]:
    return {"text_output": text_output, **more, "model_name": "m", "model_version": None}


# --- the request --------------------------------------------------------------------------------


async def test_the_hook_gets_the_document() -> None:
    seen = []

    async def predict(payload: Any) -> str:
        seen.append(payload)
        return "x"

    body = ASKED | {"stream": False, "id": 5}
    for path in (WHOLE, STREAM):
        assert (await ask(serve(predict), path, body)).status == 200
    assert seen == [body, body]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "x"])
async def test_any_content_type_is_json(content_type: str) -> None:
    response = await ask(serve(words), WHOLE, **{"content-type": content_type})
    assert response.json() == answer("ab")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "Unrecognized request format"),
        (b"{", "Unrecognized request format"),
        (b"\xff", "Unrecognized request format"),
        (b"[" * 2000, "Unrecognized request format"),
        (b"[]", "object"),
        (b'"a"', "object"),
        (b"{}", "text_input"),
        (b'{"text_input":null}', "text_input"),
        (b'{"text_input":["a"]}', "text_input"),
        (b'{"text_input":5}', "text_input"),
        (b'{"text_input":"a","parameters":[]}', "parameters"),
        (b'{"text_input":"a","parameters":null}', "parameters"),
        (b'{"text_input":"a","parameters":"x"}', "parameters"),
    ],
)
@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_bad_requests(path: str, body: bytes, word: str) -> None:
    response = await ask(serve(words), path, body)
    assert (response.status, word in response.json()["error"]) == (400, True)


def test_parameters_may_be_left_out() -> None:
    head = Head({"headers": []})
    assert GENERATE.decode(b'{"text_input":""}', head, ModelRef("m")) == {"text_input": ""}


@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_methods_models_and_versions(path: str) -> None:
    app = serve(words, versions=["2"])
    response = await request(app, "GET", path)
    assert (response.status, response.headers["allow"]) == (405, "POST")
    assert (await ask(app, path.replace("/m/", "/zz/"))).status == 404
    assert (await ask(app, path.replace("/m/", "/m/versions/3/"))).status == 404
    response = await ask(app, path.replace("/m/", "/m/versions/2/"))
    assert response.body.count(b'"model_version":"2"') == len(response.chunks)


# --- the whole text -----------------------------------------------------------------------------

VALUES = [
    ("text", answer("text")),
    (b"text", answer("text")),
    ({"text_output": "x", "finish_reason": "stop"}, answer("x", finish_reason="stop")),
    ({"text_output": ["x"]}, answer(["x"])),
    ({"text_output": "x", "model_name": "mine"}, answer("x")),
    ({"n": 1}, answer('{"n":1}')),
    (5, answer("5")),
    (text("a", "b"), answer("ab")),
    (
        InferResponse("1", "m", [*text("5", datatype="INT8").outputs, *text("a").outputs]),
        answer("a"),
    ),
]


@pytest.mark.parametrize(("value", "document"), VALUES)
async def test_values(value: Any, document: Any) -> None:
    async def predict(payload: Any) -> Any:
        return value

    response = await ask(serve(predict), WHOLE)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == document
    response = await ask(serve(predict), STREAM)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.body == b"data: " + orjson.dumps(document) + b"\n\n"


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "image/png"])
async def test_a_stream_is_put_together(accept: str) -> None:
    response = await ask(serve(words), WHOLE, accept=accept)
    assert response.headers["content-type"] == "application/json"
    assert response.body == b'{"text_output":"ab","model_name":"m","model_version":null}'


class Piece(pydantic.BaseModel):
    text_output: str
    token: int


@pytest.mark.parametrize(
    ("items", "document"),
    [
        (
            [{"text_output": "a", "n": 1}, {"n": 2, "text_output": "b", "finish_reason": "stop"}],
            answer("ab", n=2, finish_reason="stop"),
        ),
        (["a", {"text_output": "b", "usage": {"tokens": 2}}], answer("ab", usage={"tokens": 2})),
        ([{"text_output": "a"}, {"text_output": None, "end": True}], answer("a", end=True)),
        ([{"text_output": "a", "model_name": "mine"}], answer("a")),
        ([ServerSentEvent({"text_output": "a", "n": 1}), "b"], answer("ab", n=1)),
        ([Piece(text_output="a", token=1), Piece(text_output="b", token=2)], answer("ab", token=2)),
    ],
)
async def test_members_of_a_models_own_are_kept(items: Any, document: Any) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for item in items:
            yield item

    assert (await ask(serve(predict), WHOLE)).json() == document
    events = (await ask(serve(predict), STREAM)).body.split(b"\n\n")
    last = orjson.loads(events[-2].removeprefix(b"data: "))
    assert last.keys() <= document.keys()


async def test_an_object_is_its_document() -> None:
    async def predict(payload: Any) -> Any:
        return Piece(text_output="a", token=1)

    for path in (WHOLE, STREAM):
        body = (await ask(serve(predict), path)).body
        assert orjson.loads(body.removeprefix(b"data: ")) == answer("a", token=1)


async def test_a_stream_of_nothing() -> None:
    response = await ask(serve(words), WHOLE, {"text_input": ""})
    assert response.json() == answer("")
    response = await ask(serve(words), STREAM, {"text_input": ""})
    assert (response.status, response.body) == (200, b"")


@pytest.mark.parametrize(
    "value",
    [
        InferResponse("1", "m", []),
        InferResponse("1", "m", [InferOutput("o", [1], "INT8", [1])]),
        InferResponse("1", "m", [InferOutput("o", [1], "BYTES", [b"\xff"])]),
        b"\xff",
        object(),
    ],
)
@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_no_text_is_the_models_fault(path: str, value: Any) -> None:
    async def predict(payload: Any) -> Any:
        return value

    assert (await ask(serve(predict), path)).status == 500


async def test_own_headers() -> None:
    async def predict(payload: Any, response_headers: Any) -> AsyncIterator[str]:
        response_headers["x-own"] = "1"
        yield "a"

    for path in (WHOLE, STREAM):
        assert (await ask(serve(predict), path)).headers["x-own"] == "1"


# --- events -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["*/*", "application/json", "image/png"])
async def test_an_event_a_piece(accept: str) -> None:
    response = await ask(serve(words), STREAM, accept=accept)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.chunks == [
        b'data: {"text_output":"a","model_name":"m","model_version":null}\n\n',
        b'data: {"text_output":"b","model_name":"m","model_version":null}\n\n',
    ]


async def test_items_of_many_kinds() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield b"a"
        yield text("b")
        yield {"text_output": "c", "n": 1}
        yield ServerSentEvent("d", event="token")
        yield ServerSentEvent({"text_output": "e", "n": 1})

    response = await ask(serve(predict), STREAM)
    documents = [orjson.loads(chunk.partition(b"data: ")[2]) for chunk in response.chunks]
    assert documents == [
        answer("a"),
        answer("b"),
        answer("c", n=1),
        answer("d"),
        answer("e", n=1),
    ]
    assert (await ask(serve(predict), WHOLE)).json() == answer("abcde", n=1)


async def test_an_error_is_a_document() -> None:
    response = await ask(serve(words), STREAM, {"text_input": "a raise"})
    assert response.status == 200
    assert response.chunks[1] == b'data: {"error":"no such word"}\n\n'


@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_a_failure_before_the_first_piece_is_a_status(path: str) -> None:
    response = await ask(serve(words), path, {"text_input": "raise"})
    assert (response.status, response.json()) == (400, {"error": "no such word"})


async def test_a_failure_of_the_whole_is_a_status() -> None:
    response = await ask(serve(words), WHOLE, {"text_input": "a raise"})
    assert (response.status, response.json()) == (400, {"error": "no such word"})


@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_a_client_that_leaves_ends_the_work(path: str) -> None:
    waiting, closed = anyio.Event(), anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            waiting.set()
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with exchange(serve(predict), "POST", path, body=orjson.dumps(ASKED)) as client:
        await waiting.wait()
        if path == STREAM:
            assert (await client.head()).status == 200
    assert closed.is_set()


async def test_heartbeats_only_where_they_are_asked_for() -> None:
    release = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[str]:
        yield "a"
        await release.wait()

    app = serve(predict, heartbeat=0.01)
    headers = {"accept": "text/event-stream"}
    body = orjson.dumps(ASKED)
    async with exchange(app, "POST", STREAM, body=body, headers=headers) as client:
        await client.head()
        await client.chunk()
        assert await client.chunk() == b":\n\n"
        release.set()
        assert {chunk async for chunk in client} <= {b":\n\n"}
