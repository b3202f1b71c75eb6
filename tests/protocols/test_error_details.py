"""Whatever a model puts into an error is written by every protocol, before and in a stream."""

import datetime
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.exceptions import HTTPException

from modelserve import Model, ModelServer
from modelserve.protocols.codec import Codec, ModelRef
from modelserve.protocols.generate import GENERATE, GENERATE_STREAM
from modelserve.protocols.grpc import GRPC, GRPC_INFER, stream_ending, stream_error
from modelserve.protocols.openai import ChatCodec, EmbeddingsCodec, InvalidParameter, TextCodec
from modelserve.protocols.v1 import V1
from modelserve.protocols.v2 import INFER, INFER_STREAM
from modelserve.testing import request, websocket
from modelserve.wire.encoders import NDJSON, SSE
from modelserve.wire.head import Head
from modelserve.wire.messages import MESSAGES, close_reason, status_of

HEAD = Head({"headers": [(b"accept", b"text/event-stream")]})


class Mute:
    """It has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Array:
    """An array of a library that fails."""

    def tolist(self) -> Any:
        raise MemoryError


def nested(levels: int) -> Any:
    value: Any = "end"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def holds_itself() -> Any:
    value: dict[str, Any] = {"a": 1}
    value["b"] = [value]
    return value


DETAILS: dict[str, Any] = {
    "none": None,
    "empty": "",
    "text": 'a "b"\r\n\x00é',
    "surrogate": "a file named \udcff",
    "long": "é" * 10_000,
    "number": 5,
    "nan": [float("nan"), float("-inf")],
    "dict": {"message": "no", "code": 7},
    "openai": {"error": {"message": "no", "code": float("nan"), "ids": [2**70]}},
    "set": {"message": "no", "ids": {1, 2}},
    "bytes": {"message": b"\xff"},
    "bytes alone": b"\xff",
    "surrogate inside": {"message": "\udcff", "\ud800": 1},
    "fragment": {"message": orjson.Fragment(b'"\\ud800"')},
    "no fragment": [orjson.Fragment(b"{")],
    "keys": {1: 2, (1, 2): 3},
    "keys of JSON": {None: 3, 1.5: 4, True: 5},
    "huge": {"id": 2**70},
    "no digits": 10**5000,
    "complex": {"z": 1j},
    "object": object(),
    "mute": Mute(),
    "mute inside": [Mute()],
    "fails": {"a": Array()},
    "numpy": {"a": np.ones((2, 2)), "at": datetime.date(2026, 1, 2)},
    "exception": ValueError("no"),
    "itself": holds_itself(),
    "deep": nested(190),
    "deeper": nested(260),
    "too deep": nested(900),
    "far too deep": nested(100_000),
}
details = pytest.mark.parametrize("detail", DETAILS.values(), ids=DETAILS.keys())
CODECS = [
    V1,
    INFER,
    INFER_STREAM,
    GENERATE,
    GENERATE_STREAM,
    ChatCodec(clock=float),
    TextCodec(clock=float),
    EmbeddingsCodec(),
    GRPC,
    GRPC_INFER,
]


def failures() -> Iterator[Callable[[int, Any], bytes]]:
    payload = {"stream": True, "messages": []}
    for codec in (V1, INFER_STREAM, GENERATE_STREAM, ChatCodec(clock=float)):
        form = codec.stream_format(HEAD, payload, None, ModelRef("m")).framed_encoder()
        assert form is not None and form.failure is not None
        yield form.failure
    for encoder in (NDJSON, SSE, MESSAGES):
        assert encoder.failure is not None
        yield encoder.failure
    yield stream_ending


@details
def test_every_codec_writes_it(detail: Any) -> None:
    for codec in CODECS:
        status, headers, body = codec.error(400, detail, HTTPException(400))
        assert status == 400
        assert all(
            isinstance(part, bytes) and b"\n" not in part for pair in headers for part in pair
        )
        if codec.protocol != "grpc":
            assert [*orjson.loads(body)] == ["error"]


@details
def test_every_stream_says_it(detail: Any) -> None:
    for failure in failures():
        assert isinstance(failure(400, detail), bytes)
    assert isinstance(stream_error(detail, None), bytes)
    assert MESSAGES.failure is not None
    reason = close_reason(status_of(MESSAGES.failure(400, detail))[1])
    assert len(reason.encode()) <= 123


def test_a_parameter_of_an_error_may_be_anything() -> None:
    error = InvalidParameter("x", "right")
    error.param = {1, 2}  # type: ignore[assignment]
    codec: Codec = EmbeddingsCodec()
    _, _, body = codec.error(400, error.reason, error)
    assert orjson.loads(body)["error"]["param"] == "{1, 2}"


@pytest.mark.parametrize("headers", [{"x": "Łukasz", "y": 1, "z": Mute()}, [("x", "1")], 5])
def test_headers_of_an_error_may_be_anything(headers: Any) -> None:
    error = HTTPException(503, "no", headers)
    _, pairs, _ = EmbeddingsCodec().error(503, "no", error)
    assert (b"retry-after", b"1") in pairs


# --- over all of the application ----------------------------------------------------------------


class Fails(Model):
    """Every hook raises an exception with a detail, at once or after an item."""

    detail: Any = None

    def failure(self) -> HTTPException:
        return HTTPException(422, self.detail, {"x": "Łukasz", "y": 1})  # type: ignore[dict-item]

    async def predict(self, payload: Any) -> Any:
        raise self.failure()

    async def chat(self, document: Any) -> Any:
        raise self.failure()

    async def complete(self, document: Any) -> AsyncIterator[Any]:
        yield "x"
        raise self.failure()

    async def embed(self, document: Any) -> Any:
        raise self.failure()


class Iterates(Fails):
    async def predict(self, payload: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield {"n": 1}
        raise self.failure()


class Streams(Fails):
    async def predict(self, payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        raise self.failure()


def app_for(detail: Any) -> ModelServer:
    Fails.detail = detail
    return ModelServer([Fails("m"), Iterates("i"), Streams("s")])


CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TENSOR = {"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
BEFORE: list[tuple[str, Any, dict[str, str]]] = [
    ("/v1/models/m:predict", {"instances": [1]}, {}),
    ("/v1/models/m:predict", {"a": 1}, EVENT),
    ("/v2/models/m/infer", {"inputs": [TENSOR]}, {}),
    ("/v2/models/m/generate", {"text_input": "x"}, {}),
    ("/v1/chat/completions", CHAT, {}),
    ("/v1/chat/completions", CHAT | {"stream": True}, {}),
    ("/v1/embeddings", {"model": "m", "input": "x"}, {}),
]
AFTER: list[tuple[str, Any, dict[str, str]]] = [
    ("/v1/models/s:predict", [], {"accept": "text/event-stream"}),
    ("/v1/models/s:predict", [], {"accept": "application/x-ndjson"}),
    ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}, {}),
    ("/v2/models/s/generate_stream", {"text_input": "x"}, {}),
]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@details
async def test_a_client_is_answered(detail: Any) -> None:
    app = app_for(detail)
    for path, document, headers in BEFORE:
        answer = await request(app, "POST", path, json=document, headers=headers)
        assert answer.status == 422, path
        assert [*orjson.loads(answer.body)] == ["error"]
    for path, document, headers in AFTER:
        answer = await request(app, "POST", path, json=document, headers=headers)
        assert answer.status == 200 and b"error" in answer.body
    async with websocket(app, "/v1/models/m:predict") as client:
        client.send("1")
        document = orjson.loads(str(await client.message()))
        assert (*document, document["message"]) == ("error", "message", 1)
    async with websocket(app, "/v1/models/i:predict") as client:
        assert (await client.closed()).code == 4422
    lines = {"content-type": "application/x-ndjson"}
    answer = await request(app, "POST", "/v1/models/m:predict", body=b"1\n", headers=lines)
    assert answer.status == 200 and orjson.loads(answer.body)["line"] == 1
