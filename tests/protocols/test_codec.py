"""What a protocol may decide, shown by protocols unlike ours: a chat, and one with trailers."""

import gzip
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from time import monotonic
from typing import Any

import anyio
import orjson
import pytest
from starlette.datastructures import MutableHeaders

from modelserve import Limits, Model, ModelServer
from modelserve.dispatch import dispatch
from modelserve.endpoints import Target
from modelserve.errors import InvalidInput, Stopped
from modelserve.exchange.exchange import Exchange
from modelserve.protocols.codec import (
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
    encode_value,
    with_model_headers,
)
from modelserve.protocols.generate import GENERATE, GENERATE_STREAM
from modelserve.protocols.v1 import V1
from modelserve.protocols.v2 import INFER, INFER_STREAM
from modelserve.testing import App, Response, exchange, request
from modelserve.wire.encoders import COLLECTED, SSE, Encoder
from modelserve.wire.head import Head
from modelserve.wire.headers import JSON, Header
from modelserve.wire.json import parse_json, to_json

HEAD = Head({"headers": [(b"accept", b"application/json")]})
EVENTS = (b"content-type", b"text/event-stream")


# --- a chat: the body names the model and chooses the form, errors are objects, [DONE] ends -------


class ChatFormat(StreamFormat):
    """Events or one document, as the payload says, whatever `Accept` does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.payload = args[1]
        self.usage = 0

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        if self.payload.get("stream"):
            return self.events()
        return replace(COLLECTED, encode=self.text, join=self.whole)

    def framed_encoder(self) -> Encoder | None:
        return self.events() if self.payload.get("stream") else None

    def events(self) -> Encoder:
        return replace(SSE, encode=self.chunk, failure=chat_failure, finish=self.last)

    def text(self, item: Item) -> bytes:
        """Return the text of an item; one that reports usage has none."""
        if isinstance(item, dict):
            self.usage = item["usage"]
            return b""
        return str(item).encode()

    def chunk(self, item: Item) -> bytes:
        text = self.text(item).decode()
        return SSE.encode({"delta": text}) if text else b""

    def last(self) -> bytes:
        return SSE.encode({"usage": self.usage}) + SSE.encode("[DONE]")

    def whole(self, texts: list[bytes]) -> bytes:
        document = {"model": self.ref.name, "text": b"".join(texts).decode()}
        return to_json(document | {"usage": self.usage})


class ChatCodec(Codec):
    protocol = "chat"

    def open(self, body: bytes | bytearray, head: Head) -> tuple[ModelRef, Payload]:
        document = parse_json(body)
        if not isinstance(document, dict) or not isinstance(document.get("model"), str):
            raise InvalidInput('Expected "model" to be a string')
        return ModelRef(document["model"]), document

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        stream = self.stream_format(head, payload, response_headers, ref)
        content_type = EVENTS if payload.get("stream") else JSON
        return with_model_headers(content_type, response_headers), [b"".join(sent(stream, [value]))]

    def error(
        self, status: int, sentence: str, error: BaseException | None = None
    ) -> tuple[int, list[Header], bytes]:
        retry: list[Header] = [(b"x-should-retry", b"false")] if status in (500, 501, 504) else []
        return status, [JSON, *retry], to_json(chat_error(status, sentence))


def chat_error(status: int, sentence: str) -> dict[str, Any]:
    return {"error": {"message": sentence, "code": "model_not_found" if status == 404 else None}}


def chat_failure(status: int, sentence: str) -> bytes:
    return b"event: error\n" + SSE.encode(chat_error(status, sentence))


CHAT = ChatCodec(ChatFormat)


def sent(stream: StreamFormat, items: list[Any]) -> list[bytes]:
    """Return the body of a stream as the pipeline sends it; an exception among the items ends it."""
    good = list(takewhile(lambda item: not isinstance(item, Exception), items))
    encoder = stream.encoder(good[0] if good else None, empty=not good)
    chunks = [encoder.encode(item) for item in good]
    if encoder.join is not None:
        return [encoder.join(chunks)]
    if len(good) < len(items):
        assert encoder.failure is not None
        return [*chunks, encoder.failure(500, str(items[len(good)]))]
    return chunks if encoder.finish is None else [*chunks, encoder.finish()]


def chat_stream(**payload: Any) -> StreamFormat:
    return CHAT.stream_format(HEAD, payload, None, ModelRef("m"))


def test_the_body_names_the_model() -> None:
    body = b'{"model":"m","stream":true}'
    assert CHAT.open(body, HEAD) == (ModelRef("m"), {"model": "m", "stream": True})
    with pytest.raises(InvalidInput, match="model"):
        CHAT.open(b"{}", HEAD)


def test_the_payload_chooses_the_form() -> None:
    assert chat_stream(stream=True).encoder("a", empty=False).media_type == "text/event-stream"
    assert chat_stream(stream=False).encoder("a", empty=False).media_type == "application/json"
    assert chat_stream().framed_encoder() is None


def test_a_stream_ends_with_its_last_records() -> None:
    assert sent(chat_stream(stream=True), ["a", {"usage": 3}, "b"]) == [
        b'data: {"delta":"a"}\n\n',
        b"",  # an item that becomes nothing
        b'data: {"delta":"b"}\n\n',
        b'data: {"usage":3}\n\ndata: [DONE]\n\n',
    ]
    assert sent(chat_stream(stream=True), []) == [b'data: {"usage":0}\n\ndata: [DONE]\n\n']


def test_a_stream_that_failed_does_not_look_complete() -> None:
    assert sent(chat_stream(stream=True), ["a", RuntimeError("no")]) == [
        b'data: {"delta":"a"}\n\n',
        b'event: error\ndata: {"error":{"message":"no","code":null}}\n\n',
    ]


def test_state_is_of_one_response() -> None:
    first, second = chat_stream(stream=True), chat_stream(stream=True)
    framed = first.framed_encoder()
    assert framed is not None and framed.finish is not None
    first.encoder("a", empty=False).encode({"usage": 3})
    assert framed.finish().startswith(b'data: {"usage":3}')
    assert sent(second, [])[-1].startswith(b'data: {"usage":0}')


def test_a_stream_may_be_one_document() -> None:
    assert sent(chat_stream(), ["a", {"usage": 3}, "b"]) == [b'{"model":"m","text":"ab","usage":3}']


@pytest.mark.parametrize(
    ("payload", "content_type", "body"),
    [
        ({}, JSON, b'{"model":"m","text":"a","usage":0}'),
        (
            {"stream": True},
            EVENTS,
            b'data: {"delta":"a"}\n\ndata: {"usage":0}\n\ndata: [DONE]\n\n',
        ),
    ],
)
def test_a_value_goes_out_in_the_same_form(payload: Any, content_type: Header, body: bytes) -> None:
    headers = MutableHeaders({"x-a": "1"})
    written = CHAT.encode("a", HEAD, payload, headers, ModelRef("m"))
    assert written == ([content_type, (b"x-a", b"1")], [body])


@pytest.mark.parametrize(
    ("status", "headers"),
    [(404, [JSON]), (503, [JSON]), (500, [JSON, (b"x-should-retry", b"false")])],
)
def test_errors_have_a_shape_and_headers(status: int, headers: list[Header]) -> None:
    code, sent_headers, body = CHAT.error(status, "no")
    assert (code, sent_headers) == (status, headers)
    assert orjson.loads(body)["error"]["message"] == "no"


# --- the chat through the pipeline ----------------------------------------------------------------


def chat(predict: Any, **options: Any) -> App:
    """Return an application with one route, whose path names no model."""
    server = ModelServer(**options)
    server.add_model(predict, "m")
    return chat_of(server)


def chat_of(server: ModelServer) -> App:
    target = Target({"POST": None}, codec=CHAT, verb="chat")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served = Exchange(CHAT, scope, receive, send, monotonic())
        pipeline = dispatch(server.serving, target, served)
        with suppress(Stopped):
            rest = server.serving.flights.start(served, pipeline)
            if rest is not None:
                await rest

    return app


async def words(payload: Any) -> AsyncIterator[str]:
    for word in payload["say"]:
        if word == "raise":
            raise InvalidInput("no such word")
        yield word


async def ask(app: App, headers: dict[str, str] | None = None, **document: Any) -> Response:
    body = orjson.dumps({"model": "m", "say": ["a", "b"], **document})
    if headers == {"content-encoding": "gzip"}:
        body = gzip.compress(body)
    return await request(app, "POST", "/chat", body=body, headers=headers)


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [None, {"content-encoding": "gzip"}, {"ce-specversion": "1.0"}])
async def test_a_chat(headers: dict[str, str] | None) -> None:
    response = await ask(chat(words), headers, stream=True)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.body == (
        b'data: {"delta":"a"}\n\ndata: {"delta":"b"}\n\ndata: {"usage":0}\n\ndata: [DONE]\n\n'
    )
    response = await ask(chat(words), headers)
    assert response.json() == {"model": "m", "text": "ab", "usage": 0}


class Loading(Model):
    """A model whose load waits until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun, self.release = anyio.Event(), anyio.Event()

    async def load(self) -> bool:
        self.begun.set()
        await self.release.wait()
        return True

    async def predict(self, payload: Any) -> str:
        return "old"


@pytest.mark.anyio
async def test_a_chat_that_waits_for_a_load_gets_the_model_that_replaced_it() -> None:
    async def new(payload: Any) -> str:
        return "new"

    server, loading = ModelServer(), Loading("m")
    server.add_model(loading)
    async with exchange(chat_of(server), "POST", "/chat", json={"model": "m"}) as client:
        await loading.begun.wait()
        await anyio.wait_all_tasks_blocked()
        server.add_model(new, "m")
        loading.release.set()
        assert (await client.response()).json()["text"] == "new"


@pytest.mark.anyio
@pytest.mark.parametrize("model", ["m", "zz"])
async def test_the_body_of_a_chat_counts_while_it_is_uploaded(model: str) -> None:
    server = ModelServer()
    server.add_model(words, "m")
    budget = server.serving.admission.budget
    async with exchange(chat_of(server), "POST", "/chat", body=None) as client:
        body = orjson.dumps({"model": model, "say": ["a"]})
        client.send_body(body[:9], more=True)
        await anyio.wait_all_tasks_blocked()
        assert budget.held == 9
        client.send_body(body[9:])
        assert (await client.response()).status == (200 if model == "m" else 404)
    assert budget.held == 0


@pytest.mark.anyio
async def test_a_chat_that_fails() -> None:
    document = b'{"error":{"message":"no such word","code":null}}'
    response = await ask(chat(words), say=["a", "raise"], stream=True)
    assert response.status == 200
    assert response.body == b'data: {"delta":"a"}\n\nevent: error\ndata: ' + document + b"\n\n"
    for stream in (True, False):
        response = await ask(chat(words), say=["raise"], stream=stream)
        assert (response.status, response.body) == (400, document)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"model": "zz"}, 404, "Model with name zz does not exist."),
        ({"model": 5}, 400, 'Expected "model" to be a string'),
        ({"say": ["x" * 200]}, 413, "The request body is larger than 100 bytes."),
        ({"say": 5}, 500, "Internal Server Error"),
    ],
)
async def test_errors_of_a_chat(document: Any, status: int, message: str) -> None:
    response = await ask(chat(words, limits=Limits(max_body_bytes=100)), **document)
    assert (response.status, response.json()["error"]["message"]) == (status, message)
    assert ("x-should-retry" in response.headers) is (status == 500)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_a_chat_ends_it(stream: bool) -> None:
    waiting, closed = anyio.Event(), anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            waiting.set()
            await anyio.sleep_forever()
        finally:
            closed.set()

    body = orjson.dumps({"model": "m", "stream": stream})
    async with exchange(chat(predict), "POST", "/chat", body=body) as client:
        await waiting.wait()
        client.hang_up()
        await client.ended()
    assert closed.is_set()


# --- gRPC-web: errors are a 200 with trailers, the last record is a frame of trailers --------------


def frame(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + len(data).to_bytes(4) + data


class FrameFormat(StreamFormat):
    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        return Encoder(
            "application/grpc-web",
            encode=lambda item: frame(0, item),
            failure=lambda status, sentence: frame(0x80, b"grpc-status: 13"),
            finish=lambda: frame(0x80, b"grpc-status: 0"),
        )


class FrameCodec(Codec):
    protocol = "grpc"

    def error(
        self, status: int, sentence: str, error: BaseException | None = None
    ) -> tuple[int, list[Header], bytes]:
        return 200, [(b"content-type", b"application/grpc-web"), (b"grpc-status", b"13")], b""


def test_an_error_may_have_another_status() -> None:
    status, headers, body = FrameCodec(FrameFormat, always_streams=True).error(500, "no")
    assert (status, dict(headers)[b"grpc-status"], body) == (200, b"13", b"")


def test_trailers_end_a_stream() -> None:
    stream = FrameCodec(FrameFormat, always_streams=True).stream_format(
        HEAD, b"", None, ModelRef("m")
    )
    assert sent(stream, [b"a"]) == [frame(0, b"a"), frame(0x80, b"grpc-status: 0")]
    assert sent(stream, [b"a", RuntimeError("no")])[1] == frame(0x80, b"grpc-status: 13")


# --- the defaults -------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Codec(), V1, INFER, INFER_STREAM, GENERATE, GENERATE_STREAM])
def test_an_error_is_one_sentence_unless_a_protocol_says_otherwise(codec: Codec) -> None:
    assert codec.error(418, "no") == (418, [JSON], b'{"error":"no"}')


def test_a_codec_that_does_nothing() -> None:
    codec, ref = Codec(), ModelRef("m")
    codec.check(5)
    assert codec.json_length(HEAD) is None
    assert codec.document("a", None, ref) == "a"
    assert codec.stream_format(HEAD, None, None, ref).headers() == []
    assert codec.stream_format(HEAD, None, None, ref).framed_encoder() is None
    for use in (
        lambda: codec.open(b"", HEAD),
        lambda: codec.decode(b"", HEAD, ref),
        lambda: codec.encode(5, HEAD, None, None, ref),
        lambda: codec.stream_format(HEAD, None, None, ref).encoder(1, empty=False),
    ):
        with pytest.raises(NotImplementedError):
            use()


@pytest.mark.parametrize(
    ("codec", "declared", "length"),
    [(INFER, b"12", b"12"), (INFER_STREAM, b"12", b"12"), (INFER, None, None), (V1, b"12", None)],
)
def test_only_tensors_have_json_in_front(
    codec: Codec, declared: bytes | None, length: bytes | None
) -> None:
    headers = [] if declared is None else [(b"inference-header-content-length", declared)]
    assert codec.json_length(Head({"headers": headers})) == length


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        (None, [JSON]),
        ({}, [JSON]),
        ({"x-a": "1"}, [JSON, (b"x-a", b"1")]),
        ({"Content-Type": "a/b", "x-a": "1"}, [(b"content-type", b"a/b"), (b"x-a", b"1")]),
    ],
)
def test_the_headers_that_a_model_has_set(given: dict[str, str] | None, headers: Any) -> None:
    response_headers = None if given is None else MutableHeaders(given)
    assert with_model_headers(JSON, response_headers) == headers
    assert encode_value({}, None, response_headers) == (headers, b"{}")
