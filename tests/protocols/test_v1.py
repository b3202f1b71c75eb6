"""V1 bodies to payloads and results to bodies; pure but for the last few, which go the whole way."""

import datetime
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.datastructures import FormData, MutableHeaders

from modelserve import InvalidInput, Model, ModelServer, ServerSentEvent
from modelserve.errors import BodyTooLarge, NestedTooDeep, NotAcceptable
from modelserve.protocols.codec import ModelRef, StreamFormat
from modelserve.protocols.v1 import V1
from modelserve.tensors import InferOutput, InferResponse
from modelserve.testing import request
from modelserve.wire.encoders import NDJSON, SSE, Encoder
from modelserve.wire.head import Head

JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain; charset=utf-8")
OCTETS = (b"content-type", b"application/octet-stream")
REF = ModelRef("m")


def head_with(**headers: str) -> Head:
    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return Head({"type": "http", "headers": raw})


def decode(body: bytes | bytearray, content_type: str = "application/json") -> Any:
    return V1.decode(body, head_with(content_type=content_type), REF)


def encode(value: Any, payload: Any = None, response_headers: MutableHeaders | None = None) -> Any:
    headers, buffers = V1.encode(value, head_with(), payload, response_headers, REF)
    return headers, b"".join(buffers)


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# --- the request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "json"),
    [
        (b"", True),
        (b"application/json", True),
        (b"application/json; charset=utf-8", True),
        (b"application/json;charset=utf-8", True),
        (b" Application/JSON ", True),
        (b"application/octet-stream", True),
        (b"application/x-www-form-urlencoded", True),
        (b"application/ld+json", True),
        (b"application/vnd.a.b+json; v=1", True),
        (b"application/cloudevents+json", True),
        (b"text/json", False),
        (b"text/plain", False),
        (b"image/svg+json", False),
        (b"image/png", False),
        (b"avro/binary", False),
        (b"application/jsonl", False),
        (b"application/x-ndjson", False),
        (b"multipart/form-data; boundary=x", False),
        (b"x", False),
        (b"\xff", False),
    ],
)
def test_which_media_types_are_read_as_json(content_type: bytes, json: bool) -> None:
    payload = decode(b"[1]", content_type.decode("latin-1"))
    assert payload == ([1] if json else b"[1]")


@pytest.mark.parametrize(
    "content_type", ["", "application/octet-stream", "Application/Octet-Stream;a=b"]
)
@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'{"instances":[1]}', {"instances": [1]}),
        (b" [1]", [1]),
        (b"5", 5),
        (b" \n", b" \n"),
        (b"not json", b"not json"),
        (b"a,b\n1,2\n", b"a,b\n1,2\n"),
        (b"NaN", b"NaN"),
        (b"\x89PNG\r\n", b"\x89PNG\r\n"),
        (b"{\xff", b"{\xff"),
        (b" [1,\xff", b" [1,\xff"),
        (b"\xef\xbb\xbf{}", b"\xef\xbb\xbf{}"),
        (bytearray(b"\xff"), b"\xff"),
    ],
)
def test_a_body_of_an_open_type_is_json_or_bytes(
    content_type: str, body: bytes, payload: Any
) -> None:
    decoded = decode(body, content_type) if content_type else V1.decode(body, head_with(), REF)
    assert decoded == payload
    assert type(decoded) is type(payload)


def test_no_body_at_all_is_no_payload_and_an_empty_file_is_one() -> None:
    with pytest.raises(InvalidInput, match=r"^Unrecognized request format: "):
        V1.decode(b"", head_with(), REF)
    assert decode(b"", "application/octet-stream") == b""


@pytest.mark.parametrize(
    "content_type", ["", "application/octet-stream", "application/x-www-form-urlencoded"]
)
@pytest.mark.parametrize(
    "body", [b"{", b"[1,]", b"{'a':1}", b" \r\n\t[NaN]", b'{"a":1}x', b"[" * 5000]
)
def test_text_that_begins_like_json_must_be_json(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^Unrecognized request format: "):
        decode(body, content_type)


def test_a_form_that_begins_with_a_byte_order_mark_is_meant_as_json() -> None:
    with pytest.raises(InvalidInput, match=r"byte order mark"):
        decode(b'\xef\xbb\xbf{"instances":[1]}', "application/x-www-form-urlencoded")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"a=1&b=2", [("a", "1"), ("b", "2")]),
        (b"a=1&a=2&a=", [("a", "1"), ("a", "2"), ("a", "")]),
        (b"a", [("a", "")]),
        (b"", []),
        (b"&&a=1&", [("a", "1")]),
        (b"a=b=c", [("a", "b=c")]),
        (b"=x", [("", "x")]),
        (b"text=hello+w%6Frld%21&%C3%A4=%E2%82%AC", [("text", "hello world!"), ("ä", "€")]),
        ("ä=€".encode(), [("ä", "€")]),
        (b"a=%zz%4&b=%7B%7D&%=%%41", [("a", "%zz%4"), ("b", "{}"), ("%", "%A")]),
        (
            b"a=\\x41\\\\%5c\\N{DIGIT ONE}&b=\\1\\",
            [("a", "\\x41\\\\\\\\N{DIGIT ONE}"), ("b", "\\1\\")],
        ),
        (bytearray(b"a=1"), [("a", "1")]),
    ],
)
def test_an_urlencoded_body_that_is_no_json_is_a_form(body: bytes, fields: list[Any]) -> None:
    form = decode(body, "application/x-www-form-urlencoded; charset=UTF-8")
    assert isinstance(form, FormData)
    assert form.multi_items() == fields


@pytest.mark.parametrize(
    ("body", "error", "sentence"),
    [
        (b"a=%FF", InvalidInput, "The form has a field that is not UTF-8."),
        (b"%FF=a", InvalidInput, "The form has a field that is not UTF-8."),
        (b"a=1&" * 1000, BodyTooLarge, "A form may have at most 1000 fields and files."),
        (b"a=" + b"1" * ((1 << 20) + 1), BodyTooLarge, "A field of a form may have at most 1048576 bytes; a file may have more."),
        (b"%41" * (1 << 20), BodyTooLarge, "An urlencoded form may have at most 2097152 bytes."),
    ],
)  # fmt: skip
def test_what_no_urlencoded_form_may_have(
    body: bytes, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as failed:
        decode(body, "application/x-www-form-urlencoded")
    assert str(failed.value) == sentence


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"{}", {}),
        (b'{"instances":[1]}', {"instances": [1]}),
        (b'{"instances":[{"b64":"aGk="}]}', {"instances": [{"b64": "aGk="}]}),
        (b'{"inputs":{"a":[1]}}', {"inputs": {"a": [1]}}),
        (b"[]", []),
        (b"1", 1),
        (b'"a"', "a"),
        (b"null", None),
        (b" \n[1] ", [1]),
        ('"ä"'.encode(), "ä"),
        (b'"\\u00e4"', "ä"),
        (b'{"a":1,"a":2}', {"a": 2}),
    ],
)
def test_any_json_value_is_a_payload(body: bytes, payload: Any) -> None:
    assert decode(body) == payload


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a':1}",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b'"\xff"',
        b'"\\ud800"',
        b"\xef\xbb\xbf[]",
        "[]".encode("utf-16"),
        b"[]\0",
        b"[" * 2000,
        b"[" * 2000 + b"]" * 2000,
        b"undefined",
        b"1e400",
    ],
)
def test_what_is_no_json_is_the_clients_fault(body: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^Unrecognized request format: .+"):
        decode(body)


@pytest.mark.parametrize("levels", [254, 1000])
def test_deep_json_is_read(levels: int) -> None:
    assert decode(b"[" * levels + b"]" * levels) is not None


@pytest.mark.parametrize("body", [b"", b"\x00\xff", b"{"])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_other_types_are_raw(body: bytes, kind: type[bytes]) -> None:
    """A body that came in parts is put together in a bytearray; models get bytes."""
    payload = decode(kind(body), "image/png")
    assert (payload, type(payload)) == (body, bytes)


@pytest.mark.parametrize("bad", [5, None, "a", {}, 1.5, True])
def test_instances_must_be_a_list(bad: Any) -> None:
    with pytest.raises(InvalidInput, match=r'^Expected "instances" to be a list$'):
        V1.check({"instances": bad})


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"instances": []},
        {"instances": [1]},
        {"inputs": 5},
        {"inputs": {"a": [1]}},
        {"other": None},
        [],
        5,
        None,
        "a",
        b"\x00",
        np.array([1]),
    ],
)
def test_anything_else_goes_to_the_model(payload: Any) -> None:
    V1.check(payload)


# --- the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "content_type", "body"),
    [
        ({"predictions": [1, 2]}, JSON, b'{"predictions":[1,2]}'),
        ([1, "a"], JSON, b'[1,"a"]'),
        ((1,), JSON, b"[1]"),
        (1, JSON, b"1"),
        (None, JSON, b"null"),
        (True, JSON, b"true"),
        ({}, JSON, b"{}"),
        ({1: float("nan")}, JSON, b'{"1":null}'),
        (np.array([1, 2]), JSON, b"[1,2]"),
        ({"predictions": np.array([1.5])}, JSON, b'{"predictions":[1.5]}'),
        (np.float32(1.5), JSON, b"1.5"),
        (datetime.date(2026, 1, 2), JSON, b'"2026-01-02"'),
        (
            InferResponse("1", "m", [InferOutput("o", [1], "INT8", [5])], use_binary_outputs=True),
            JSON,
            (
                b'{"id":"1","model_name":"m","model_version":null,'
                b'"outputs":[{"name":"o","shape":[1],"datatype":"INT8","data":[5]}]}'
            ),
        ),
        ("ä", TEXT, "ä".encode()),
        ("", TEXT, b""),
        (b"\xff", OCTETS, b"\xff"),
        (bytearray(b"a"), OCTETS, b"a"),
        (memoryview(b"a"), OCTETS, b"a"),
    ],
)
@pytest.mark.parametrize("given", [None, {}])
def test_a_value_as_a_body(
    value: Any, content_type: tuple[bytes, bytes], body: bytes, given: dict[str, str] | None
) -> None:
    headers = None if given is None else MutableHeaders(given)
    assert encode(value, {}, headers) == ([content_type], body)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"x-a": "1"}, [JSON, (b"x-a", b"1")]),
        ({"Content-Type": "a/b"}, [(b"content-type", b"a/b")]),
        ({"content-length": "9", "Connection": "close", "transfer-encoding": "x"}, [JSON]),
        ({"set-cookie": "ä"}, [JSON, (b"set-cookie", "ä".encode("latin-1"))]),
    ],
)
def test_the_headers_that_a_model_sets(given: dict[str, str], sent: list[Any]) -> None:
    assert encode({}, {}, MutableHeaders(given)) == (sent, b"{}")


@pytest.mark.parametrize(
    "given", [{"x": "a\nb"}, {"x": "a\rb"}, {"x": "a\0"}, {"a b": "x"}, {"": "x"}, {"ä": "x"}]
)
def test_headers_that_cannot_be_sent_are_an_error(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="response header"):
        encode({}, {}, MutableHeaders(given))


@pytest.mark.parametrize("value", [" a", "a ", "\ta"])
def test_blanks_around_a_header_are_not_sent(value: str) -> None:
    """h11 refuses such a value: `send` would raise, which is taken for a client that has left."""
    sent, _ = encode({}, {}, MutableHeaders({"x": value}))
    assert sent == [JSON, (b"x", b"a")]


def test_repeated_headers_stay_repeated() -> None:
    given = MutableHeaders()
    given.append("set-cookie", "a=1")
    given.append("set-cookie", "b=2")
    assert encode({}, {}, given)[0] == [JSON, (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.parametrize("value", [object(), {"a": object()}, {1, 2}, [b"x"]])
def test_what_json_cannot_hold_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value, {}, None)


@pytest.mark.parametrize("levels", [254, 255, 900])
def test_a_deep_answer_is_written(levels: int) -> None:
    assert encode(nested(levels), nested(levels), None)[1].count(b"[") == levels


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (nested(300), InvalidInput),
        ({"instances": [{"a": nested(300)}]}, InvalidInput),
        (nested(3), NestedTooDeep),
        (b"raw", NestedTooDeep),
        (None, NestedTooDeep),
    ],
)
def test_an_answer_too_deep_is_the_fault_of_who_made_it_deep(
    payload: Any, error: Any, too_deep: int
) -> None:
    with pytest.raises(error):
        encode(nested(too_deep), payload, None)


# --- streams ------------------------------------------------------------------------------------


def stream_format(
    accept: str | None = None, response_headers: MutableHeaders | None = None
) -> StreamFormat:
    head = head_with() if accept is None else head_with(accept=accept)
    return V1.stream_format(head, None, response_headers, REF)


def test_a_stream_goes_out_as_accept_allows() -> None:
    stream = stream_format("text/event-stream")
    assert stream.encoder({"n": 1}, empty=False) is SSE
    assert stream.headers() == []


def test_a_stream_that_is_not_acceptable() -> None:
    with pytest.raises(NotAcceptable, match="application/x-ndjson"):
        stream_format("image/png", MutableHeaders()).encoder({"n": 1}, empty=False)


def test_the_model_may_set_the_content_type_of_a_stream() -> None:
    given = MutableHeaders({"content-type": "audio/wav", "x-a": "1"})
    stream = stream_format("image/png", given)
    assert stream.encoder(b"a", empty=False).media_type == "audio/wav"
    assert stream.headers() == [(b"content-type", b"audio/wav"), (b"x-a", b"1")]


def test_headers_without_a_type_leave_the_choice_to_accept() -> None:
    stream = stream_format(None, MutableHeaders({"x-a": "1"}))
    assert stream.encoder({"n": 1}, empty=False) == NDJSON


@pytest.mark.parametrize(
    ("accept", "given", "encoder"),
    [
        (None, None, None),
        ("*/*", None, None),
        ("text/event-stream", None, SSE),
        ("application/x-ndjson", {"x-a": "1"}, NDJSON),
        ("text/event-stream", {"content-type": "audio/wav"}, None),
    ],
)
def test_what_is_known_of_a_stream_before_its_first_item(
    accept: str | None, given: dict[str, str] | None, encoder: Encoder | None
) -> None:
    headers = None if given is None else MutableHeaders(given)
    assert stream_format(accept, headers).framed_encoder() == encoder


# --- the whole way ------------------------------------------------------------------------------


async def echo(payload: Any, headers: Any, response_headers: Any) -> Any:
    return payload


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize(
    ("payload", "headers", "body"),
    [
        (b'{"instances": [1]}', {}, b'{"instances":[1]}'),
        (b'{"instances": [1]}', {"content-type": "application/json"}, b'{"instances":[1]}'),
        (b"\xff", {"content-type": "image/png"}, b"\xff"),
        (b'"text"', {}, b"text"),
    ],
)
async def test_a_payload_comes_back(verb: str, payload: bytes, headers: Any, body: bytes) -> None:
    model = Model("m")
    vars(model)[verb] = echo
    path = f"/v1/models/m:{verb}"
    headers = {**headers, "authorization": "Bearer secret", "accept": "image/png"}
    response = await request(ModelServer([model]), "POST", path, body=payload, headers=headers)
    assert (response.status, response.body) == (200, body)
    assert "authorization" not in response.headers


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"{", 400, "Unrecognized request format: "),
        (b'{"instances":5}', 400, 'Expected "instances" to be a list'),
        (b"", 400, "Unrecognized request format: "),
    ],
)
async def test_a_bad_body_is_400(body: bytes, status: int, error: str) -> None:
    app = ModelServer()
    app.add_model(echo, "m")
    response = await request(app, "POST", "/v1/models/m:predict", body=body)
    assert response.status == status
    assert response.json()["error"].startswith(error)


@pytest.mark.anyio
async def test_instances_are_checked_after_preprocess() -> None:
    model = Model("m")

    async def preprocess(payload: Any) -> Any:
        return {"instances": [payload["instances"]]}

    vars(model).update(preprocess=preprocess, predict=echo)
    response = await request(
        ModelServer([model]), "POST", "/v1/models/m:predict", json={"instances": 5}
    )
    assert response.json() == {"instances": [5]}


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["predict", "explain"])
async def test_a_hook_that_is_missing_is_501(verb: str) -> None:
    app = ModelServer([Model("m")])
    response = await request(app, "POST", f"/v1/models/m:{verb}", json={})
    assert response.status == 501
    assert response.json() == {"error": f"Model m does not implement {verb}."}


@pytest.mark.anyio
async def test_a_reply_as_deep_as_its_request_is_written_or_refused() -> None:
    app = ModelServer()
    app.add_model(echo, "m")
    for levels in (200, 300, 900, 1020):
        body = orjson.dumps([]).replace(b"[]", b"[" * levels + b"]" * levels)
        response = await request(app, "POST", "/v1/models/m:predict", body=body)
        assert (response.status, response.body) == (200, body) or (
            response.status == 400 and "nested" in response.json()["error"]
        )


@pytest.mark.anyio
@pytest.mark.parametrize("value", [ServerSentEvent("a"), object(), {"a": b"x"}])
async def test_a_value_that_cannot_be_written_is_500(value: Any) -> None:
    async def predict(payload: Any) -> Any:
        return value

    app = ModelServer()
    app.add_model(predict, "m")
    response = await request(app, "POST", "/v1/models/m:predict", json={})
    assert (response.status, response.json()) == (500, {"error": "Internal Server Error"})
