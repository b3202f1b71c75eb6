"""Requests that are CloudEvents, and answers that are: attributes and data, in both modes."""

import base64
import datetime
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelserve import InvalidInput, Model, ModelServer, ServerSentEvent
from modelserve.protocols.cloudevents import EventSettings, codec_for
from modelserve.protocols.codec import Codec, ModelRef
from modelserve.protocols.generate import GENERATE
from modelserve.protocols.v1 import V1
from modelserve.protocols.v2 import INFER
from modelserve.tensors import InferOutput, InferResponse
from modelserve.testing import Cut, Response, exchange, lifespan, request
from modelserve.wire.head import Head

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "36077800",
    "ce-source": "https://example.com/event-producer",
    "ce-type": "com.example.sampletype1",
    "ce-time": "2021-01-28T21:04:43.144141+00:00",
}
STRUCTURED = {"content-type": "application/cloudevents+json"}
EVENT = {name.removeprefix("ce-"): text for name, text in BINARY.items()}
OURS = {
    "specversion": "1.0",
    "source": "io.kserve.inference.m",
    "type": "io.kserve.inference.response",
}


def serve(predict: Any, **hooks: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict, **hooks)
    return ModelServer([model])


async def echo(payload: Any) -> Any:
    return payload


async def kind(payload: Any) -> Any:
    return {"kind": type(payload).__name__}


async def items(payload: Any) -> AsyncIterator[Any]:
    for item in payload:
        if item == "raise":
            raise InvalidInput("no more")
        yield bytes.fromhex(item[2:]) if str(item).startswith("0x") else item


def structured(data: Any, **attributes: Any) -> dict[str, Any]:
    return {**EVENT, "data": data, **attributes}


async def ask(app: Any, event: Any, **headers: str) -> Response:
    """Send a structured event."""
    body = event if isinstance(event, bytes) else orjson.dumps(event)
    return await request(app, *PREDICT, body=body, headers=STRUCTURED | headers)


def attributes_of(response: Response) -> dict[str, str]:
    return {n.removeprefix("ce-"): v for n, v in response.headers.items() if n.startswith("ce-")}


def assert_new(attributes: dict[str, Any]) -> None:
    """Check what every reply has that no other has."""
    assert attributes["id"] not in ("", BINARY["ce-id"])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(attributes["time"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)


# --- binary mode --------------------------------------------------------------------------------


async def test_binary_mode() -> None:
    response = await request(serve(echo), *PREDICT, json={"instances": [1]}, headers=BINARY)
    assert (response.status, response.body) == (200, b'{"instances":[1]}')
    assert response.headers["content-type"] == "application/json"
    attributes = attributes_of(response)
    assert_new(attributes)
    assert attributes == OURS | {"id": attributes["id"], "time": attributes["time"]}


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, b'{"a":1}', "dict"),
        ({"content-type": "application/json; charset=utf-8"}, b"[]", "list"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"[]", "list"),
        ({"content-type": "application/octet-stream"}, b"[]", "list"),
        ({"content-type": "avro/binary"}, b"[]", "list"),
        ({}, b"\x00\xff", "bytes"),
        ({}, b"", "bytes"),
        ({}, b"{", "bytes"),
        ({"content-type": "application/octet-stream"}, b"{", "bytes"),
        ({"content-type": "application/avro"}, b"Obj\x01", "bytes"),
        ({"ce-content-type": "application/avro"}, b"Obj\x01", "bytes"),
        (
            {"ce-content-type": "application/avro", "content-type": "application/json"},
            b"Obj\x01",
            "bytes",
        ),
    ],
)
async def test_data_of_binary_mode(headers: Any, body: bytes, expected: str) -> None:
    response = await request(serve(kind), *PREDICT, body=body, headers=BINARY | headers)
    assert (response.status, response.json()) == (200, {"kind": expected})


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-content-type": "application/json"},
        {"ce-content-type": "application/json", "content-type": "image/png"},
        {"ce-content-type": "application/ld+json"},
        {"content-type": "application/json"},
    ],
)
@pytest.mark.parametrize("body", [b"{", b"0\x80\x80\x06World!\x00\x00", b"", b"NaN"])
async def test_data_that_says_it_is_json(headers: Any, body: bytes) -> None:
    response = await request(serve(kind), *PREDICT, body=body, headers=BINARY | headers)
    assert response.status == 400
    words = "Failed to decode or parse binary json cloudevent: "
    assert response.json()["error"].startswith(words)


async def test_data_that_is_not_text_has_the_decoders_message() -> None:
    headers = BINARY | {"ce-content-type": "application/json"}
    response = await request(serve(kind), *PREDICT, body=b"0\x80", headers=headers)
    words = "'utf-8' codec can't decode byte 0x80 in position 1: invalid start byte"
    assert response.json()["error"].endswith(f"binary json cloudevent: {words}")


@pytest.mark.parametrize(
    ("text", "meant"),
    [(r'"a \"b\" \\"', 'a "b" \\'), ('"50%2525"', "50%25"), ('"', '"'), ('a "b"', 'a "b"')],
)
async def test_an_attribute_may_be_a_quoted_string(text: str, meant: str) -> None:
    extra = {"ce-specversion": '"1.0"', "ce-subject": text}
    app = serve(echo)
    response = await request(app, *PREDICT, json=[1], headers=BINARY | extra)
    assert (response.status, response.body) == (200, b"[1]")
    head = head_with(BINARY | extra)
    codec: Any = codec_for(V1, head, FIXED)
    codec.decode(b"[1]", head, ModelRef("m"))
    assert codec.attributes["subject"] == meant


@pytest.mark.parametrize("missing", ["ce-specversion", "ce-id", "ce-source", "ce-type"])
async def test_a_request_without_all_four_is_none(missing: str) -> None:
    headers = {name: text for name, text in BINARY.items() if name != missing}
    response = await request(serve(echo), *PREDICT, json=[1], headers=headers)
    assert (response.json(), attributes_of(response)) == ([1], {})


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
async def test_an_empty_attribute(name: str) -> None:
    response = await request(serve(echo), *PREDICT, json=[], headers=BINARY | {f"ce-{name}": ""})
    assert (response.status, name in response.json()["error"]) == (400, True)
    response = await ask(serve(echo), structured([], **{name: ""}))
    assert (response.status, name in response.json()["error"]) == (400, True)


@pytest.mark.parametrize("version", ["0.4", "0.3", "2", "one"])
async def test_another_version(version: str) -> None:
    headers = BINARY | {"ce-specversion": version}
    response = await request(serve(echo), *PREDICT, json=[], headers=headers)
    assert (response.status, repr(version) in response.json()["error"]) == (400, True)
    response = await ask(serve(echo), structured([], specversion=version))
    assert (response.status, repr(version) in response.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("value", "content_type", "body"),
    [
        ("text", "text/plain; charset=utf-8", b"text"),
        (b"\xff", "application/octet-stream", b"\xff"),
        (None, "application/json", b"null"),
    ],
)
async def test_values_that_are_not_documents(value: Any, content_type: str, body: bytes) -> None:
    async def predict(payload: Any) -> Any:
        return value

    response = await request(serve(predict), *PREDICT, json=[], headers=BINARY)
    assert (response.headers["content-type"], response.body) == (content_type, body)
    assert response.headers["ce-type"] == OURS["type"]


async def test_attributes_that_the_model_sets() -> None:
    async def predict(payload: Any, response_headers: Any) -> Any:
        response_headers["ce-type"] = "mine"
        return {}

    response = await request(serve(predict), *PREDICT, json=[], headers=BINARY)
    assert response.headers.getlist("ce-type") == ["mine"]


async def test_an_error_is_no_event() -> None:
    async def predict(payload: Any) -> Any:
        raise InvalidInput("no")

    for response in (
        await request(serve(predict), *PREDICT, json=[], headers=BINARY),
        await ask(serve(predict), structured([])),
    ):
        assert (response.status, response.json()) == (400, {"error": "no"})
        assert response.headers["content-type"] == "application/json"


async def test_explain() -> None:
    app = serve(echo, explain=echo)
    response = await request(app, "POST", "/v1/models/m:explain", json=[1], headers=BINARY)
    assert (response.body, response.headers["ce-specversion"]) == (b"[1]", "1.0")


# --- structured mode ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON",
    ],
)
async def test_structured_mode(content_type: str) -> None:
    event = structured({"instances": [1]})
    response = await ask(serve(echo), event, **{"content-type": content_type})
    assert response.status == 200
    assert response.headers["content-type"] == "application/cloudevents+json"
    assert attributes_of(response) == {}
    reply = response.json()
    assert_new(reply)
    assert reply == OURS | {"id": reply["id"], "time": reply["time"], "data": {"instances": [1]}}


async def test_time_is_optional() -> None:
    event = structured([1])
    del event["time"]
    assert (await ask(serve(echo), event)).json()["data"] == [1]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"data": {"a": 1}}, "dict"),
        ({"data": "text", "datacontenttype": "text/plain"}, "str"),
        ({"data": None}, "NoneType"),
        ({"data_base64": base64.b64encode(b"[1]").decode()}, "list"),
        ({"data_base64": base64.b64encode(b"\xff").decode()}, "bytes"),
        ({"data_base64": ""}, "bytes"),
    ],
)
async def test_data_of_structured_mode(members: Any, expected: str) -> None:
    response = await ask(serve(kind), EVENT | members)
    assert response.json()["data"] == {"kind": expected}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "Unrecognized request format"),
        (b"", "Unrecognized request format"),
        (b"[]", "object"),
        (orjson.dumps(EVENT), '"data"'),
        (orjson.dumps(EVENT | {"data": 1, "data_base64": ""}), '"data"'),
        (orjson.dumps(EVENT | {"data_base64": "%"}), "base64"),
        (orjson.dumps(EVENT | {"data_base64": "ü"}), "base64"),
        (orjson.dumps(EVENT | {"data_base64": 5}), "base64"),
        (orjson.dumps({"data": 1}), '"specversion"'),
        (orjson.dumps(structured(1, id=5)), '"id"'),
        (orjson.dumps(structured(1, source=None)), '"source"'),
        (orjson.dumps(structured(1, type=["a"])), '"type"'),
        (orjson.dumps(structured({"instances": 5})), "instances"),
        (
            orjson.dumps(EVENT | {"data_base64": "ew==", "datacontenttype": "application/json"}),
            "binary json cloudevent",
        ),
    ],
)
async def test_bad_structured_events(body: bytes, word: str) -> None:
    response = await ask(serve(echo), body)
    assert (response.status, word in response.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("value", "content_type", "members"),
    [
        ("text", None, {"datacontenttype": "text/plain; charset=utf-8", "data": "text"}),
        (b"\xff", None, {"datacontenttype": "application/octet-stream", "data_base64": "/w=="}),
        (b"\xff", "text/plain", {"datacontenttype": "text/plain", "data_base64": "/w=="}),
        (b"{}", "image/png", {"datacontenttype": "image/png", "data_base64": "e30="}),
        ('{"a":1}', "application/json", {"data": {"a": 1}}),
        ('{"a":1}', "a/b+json", {"datacontenttype": "a/b+json", "data": {"a": 1}}),
        ("{", "application/json", {"data_base64": "ew=="}),
        (None, None, {"data": None}),
        ([[1]] * 2, None, {"data": [[1], [1]]}),
    ],
)
async def test_what_becomes_of_values(value: Any, content_type: str | None, members: Any) -> None:
    async def predict(payload: Any, response_headers: Any) -> Any:
        if content_type:
            response_headers["content-type"] = content_type
            response_headers["x-own"] = "1"
        return value

    response = await ask(serve(predict), structured([]))
    assert response.headers["content-type"] == "application/cloudevents+json"
    assert response.headers.get("x-own") == ("1" if content_type else None)
    assert {k: v for k, v in response.json().items() if k not in EVENT} == members


async def test_a_deep_request_is_answered(too_deep: int) -> None:
    body = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":%b}'
    response = await ask(serve(echo), body % (b"[" * 500 + b"]" * 500))
    assert response.status == 200
    assert b"[" * 500 in response.body
    response = await request(
        serve(echo),
        "POST",
        "/v2/models/m/infer",
        body=body % (b"[" * 1010 + b"]" * 1010),
        headers=STRUCTURED,
    )
    assert response.status == 400
    assert ("too deep" in response.json()["error"]) == (too_deep <= 1010)


# --- streams ------------------------------------------------------------------------------------


async def test_a_stream_of_structured_events() -> None:
    response = await ask(serve(items), structured([{"n": 1}, "two", "0xff"]))
    assert response.headers["content-type"] == "application/x-ndjson"
    events = [orjson.loads(chunk) for chunk in response.chunks]
    for event in events:
        assert_new(event)
    assert len({event["id"] for event in events}) == 3
    assert [{k: v for k, v in event.items() if k not in EVENT} for event in events] == [
        {"data": {"n": 1}},
        {"data": "two"},
        {"datacontenttype": "application/octet-stream", "data_base64": "/w=="},
    ]


async def test_a_stream_of_structured_events_as_sse() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield "one"
        yield ServerSentEvent({"n": 2}, event="token", id="7")

    response = await ask(serve(predict), structured([]), accept="text/event-stream")
    assert response.headers["content-type"] == "text/event-stream"
    assert response.chunks[0].startswith(b'data: {"specversion":"1.0"')
    assert response.chunks[1].startswith(b'event: token\nid: 7\ndata: {"specversion":"1.0"')
    assert orjson.loads(response.chunks[1].split(b"data: ")[1])["data"] == {"n": 2}


@pytest.mark.parametrize("accept", ["application/json", "application/cloudevents+json"])
async def test_a_stream_collected_is_one_event(accept: str) -> None:
    response = await ask(serve(items), structured([1, {"a": 2}]), accept=accept)
    assert response.headers["content-type"] == "application/cloudevents+json"
    assert response.json()["data"] == {"predictions": [1, {"a": 2}]}
    assert_new(response.json())


@pytest.mark.parametrize("headers", [{}, {"accept": "application/x-ndjson"}])
async def test_a_stream_in_binary_mode(headers: Any) -> None:
    response = await request(
        serve(items), *PREDICT, json=[{"n": 1}, {"n": 2}], headers=BINARY | headers
    )
    assert response.headers["content-type"] == "application/x-ndjson"
    assert_new(attributes_of(response))
    assert response.headers["ce-source"] == OURS["source"]
    assert response.chunks == [b'{"n":1}\n', b'{"n":2}\n']


async def test_raw_text_in_binary_mode() -> None:
    response = await request(serve(items), *PREDICT, json=["a", "b"], headers=BINARY)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["ce-specversion"] == "1.0"
    assert response.chunks == [b"a", b"b"]
    with pytest.raises(Cut):
        await request(serve(items), *PREDICT, json=["a", "raise"], headers=BINARY)


async def test_a_stream_of_events_that_fails_ends_in_an_error() -> None:
    response = await ask(serve(items), structured(["a", "raise"]))
    assert response.chunks[-1] == b'{"error":"no more"}\n'
    response = await ask(serve(items), structured(["raise"]))
    assert (response.status, response.json()) == (400, {"error": "no more"})


async def test_nothing_acceptable() -> None:
    for response in (
        await ask(serve(items), structured([1]), accept="image/png"),
        await request(serve(items), *PREDICT, json=[1], headers=BINARY | {"accept": "image/png"}),
    ):
        assert response.status == 406


@pytest.mark.parametrize("binary", [True, False])
async def test_heartbeats_between_events(binary: bool) -> None:
    release = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        await release.wait()
        yield {"n": 2}

    app = serve(predict, heartbeat=0.01)
    headers = {**(BINARY if binary else STRUCTURED), "accept": "application/x-ndjson"}
    body = orjson.dumps(structured([]))
    async with exchange(app, *PREDICT, body=body, headers=headers) as client:
        await client.head()
        assert b'"n":1' in (await client.chunk() or b"")
        assert await client.chunk() == b"\n"
        release.set()
        assert b'"n":2' in b"".join([chunk async for chunk in client])


# --- what replies say of themselves -------------------------------------------------------------


async def test_source_and_type_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CE_SOURCE", "https://ours/ü 50%")
    monkeypatch.setenv("CE_TYPE", "ours.type")
    app = serve(echo)
    monkeypatch.setenv("CE_TYPE", "too late")
    response = await request(app, *PREDICT, json=[], headers=BINARY)
    assert response.headers["ce-source"] == "https://ours/%C3%BC%2050%25"
    assert response.headers["ce-type"] == "ours.type"
    reply = (await ask(app, structured([]))).json()
    assert (reply["source"], reply["type"]) == ("https://ours/ü 50%", "ours.type")


async def test_the_environment_is_read_when_the_server_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = serve(echo)
    monkeypatch.setenv("CE_TYPE", "in-between")
    async with lifespan(app):
        monkeypatch.setenv("CE_TYPE", "too late")
        response = await request(app, *PREDICT, json=[], headers=BINARY)
    assert response.headers["ce-type"] == "in-between"


async def test_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CE_MERGE", "True")
    app = serve(echo)
    extra = {
        "ce-subject": "a%20b",
        "ce-trace": "50%25",
        "ce-datacontenttype": "x/y",
        "ce-content-type": "application/json",
    }
    response = await request(app, *PREDICT, json=[1], headers=BINARY | extra)
    attributes = attributes_of(response)
    assert_new(attributes)
    kept = {"subject": "a%20b", "trace": "50%25"}
    assert attributes == OURS | kept | {k: attributes[k] for k in ("id", "time")}

    event = structured([1], subject="a b", trace=5, datacontenttype="application/json", odd=[1])
    reply = (await ask(app, event)).json()
    assert_new(reply)
    kept = {"subject": "a b", "trace": 5, "data": [1]}
    assert reply == OURS | kept | {k: reply[k] for k in ("id", "time")}


@pytest.mark.parametrize("text", ["", "false", "1", "yes"])
def test_settings(text: str) -> None:
    settings = FIXED.with_variables({"CE_MERGE": text})
    assert (settings.source, settings.type, settings.merge) == (None, OURS["type"], False)


def head_with(headers: dict[str, str]) -> Head:
    return Head({"headers": [(k.encode(), v.encode()) for k, v in headers.items()]})


def test_an_ordinary_request_costs_nothing_more() -> None:
    assert codec_for(V1, head_with({"content-type": "application/json"}), FIXED) is V1


FIXED = EventSettings(
    new_id=lambda: 7, now=lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
)


def test_the_bytes_of_a_structured_reply() -> None:
    head = head_with(STRUCTURED)
    codec = codec_for(V1, head, FIXED)
    payload = codec.decode(orjson.dumps(structured([1])), head, ModelRef("m"))
    headers, buffers = codec.encode({"n": payload}, head, payload, None, ModelRef("m"))
    assert headers == [(b"content-type", b"application/cloudevents+json")]
    assert b"".join(buffers) == (
        b'{"specversion":"1.0","id":"7","source":"io.kserve.inference.m",'
        b'"type":"io.kserve.inference.response","time":"2026-01-02T00:00:00+00:00",'
        b'"data":{"n":[1]}}'
    )


def test_the_headers_of_a_binary_reply() -> None:
    head = head_with(BINARY)
    codec = codec_for(V1, head, FIXED)
    payload = codec.decode(b"[1]", head, ModelRef("m"))
    headers, buffers = codec.encode({"n": payload}, head, payload, None, ModelRef("m"))
    assert buffers == [b'{"n":[1]}']
    assert headers == [
        (b"content-type", b"application/json"),
        (b"ce-specversion", b"1.0"),
        (b"ce-id", b"7"),
        (b"ce-source", b"io.kserve.inference.m"),
        (b"ce-type", b"io.kserve.inference.response"),
        (b"ce-time", b"2026-01-02T00:00:00+00:00"),
    ]


@pytest.mark.parametrize("codec", [V1, INFER, GENERATE])
@pytest.mark.parametrize("headers", [STRUCTURED, BINARY])
def test_an_event_is_of_the_protocol_of_its_path(codec: Codec, headers: dict[str, str]) -> None:
    head = head_with(headers | {"inference-header-content-length": "9"})
    around = codec_for(codec, head, FIXED)
    assert around is not codec
    assert (around.protocol, around.always_streams) == (codec.protocol, codec.always_streams)
    assert around.json_length(head) == codec.json_length(head)
    assert around.error(400, "no") == codec.error(400, "no")


# --- V2 -----------------------------------------------------------------------------------------

INFER = {"inputs": [{"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}]}


async def double(payload: Any) -> InferResponse:
    array = payload.inputs[0].as_numpy()
    return InferResponse(payload.id, "m", [InferOutput("o", [2], "INT32", array * 2)])


async def each(payload: Any) -> AsyncIterator[InferResponse]:
    for number in payload.inputs[0].data:
        yield InferResponse("i", "m", [InferOutput("o", [1], "INT32", [number])])


async def write(payload: Any) -> AsyncIterator[str]:
    yield payload["text_input"]
    yield "!"


async def say(payload: Any) -> InferResponse:
    return InferResponse("7", "m", [InferOutput("o", [1], "BYTES", ["hi"])])


@pytest.mark.parametrize(
    ("path", "data", "answer"),
    [
        (
            "/v1/models/m:predict",
            [],
            (
                b'{"id":"7","model_name":"m","model_version":null,'
                b'"outputs":[{"name":"o","shape":[1],"datatype":"BYTES","data":["hi"]}]}'
            ),
        ),
        (
            "/v2/models/m/generate",
            {"text_input": "?"},
            b'{"text_output":"hi","model_name":"m","model_version":null}',
        ),
    ],
)
async def test_a_response_in_structured_mode_is_what_its_path_makes_of_it(
    path: str, data: Any, answer: bytes
) -> None:
    response = await request(
        serve(say), "POST", path, body=orjson.dumps(structured(data)), headers=STRUCTURED
    )
    assert response.body.endswith(b'"data":' + answer + b"}")


@pytest.mark.parametrize("parameters", [{}, {"binary_data_output": True}])
async def test_v2_in_structured_mode_is_json(parameters: Any) -> None:
    response = await request(
        serve(double),
        "POST",
        "/v2/models/m/infer",
        body=orjson.dumps(structured(INFER | {"id": "7", "parameters": parameters})),
        headers=STRUCTURED,
    )
    assert response.headers["content-type"] == "application/cloudevents+json"
    assert "inference-header-content-length" not in response.headers
    data = response.json()["data"]
    assert (data["id"], data["outputs"][0]["data"]) == ("7", [2, 4])


async def test_v2_in_binary_mode() -> None:
    path = "/v2/models/m/infer"
    response = await request(serve(double), "POST", path, json=INFER, headers=BINARY)
    assert response.json()["outputs"][0]["data"] == [2, 4]
    assert response.headers["ce-source"] == OURS["source"]
    response = await request(serve(double), "POST", path, body=b"\xff", headers=BINARY)
    assert response.status == 400


@pytest.mark.parametrize(
    ("verb", "predict", "data", "shown"),
    [
        ("infer_stream", each, INFER, [[1], [2]]),
        ("generate_stream", write, {"text_input": "a"}, ["a", "!"]),
    ],
)
async def test_v2_streams_of_structured_events(
    verb: str, predict: Any, data: Any, shown: Any
) -> None:
    response = await request(
        serve(predict),
        "POST",
        f"/v2/models/m/{verb}",
        body=orjson.dumps(structured(data)),
        headers=STRUCTURED,
    )
    assert response.headers["content-type"] == "text/event-stream"
    found = [orjson.loads(chunk.removeprefix(b"data: "))["data"] for chunk in response.chunks]
    assert [d.get("text_output") or d["outputs"][0]["data"] for d in found] == shown


@pytest.mark.parametrize(
    ("verb", "predict", "data", "shown"),
    [
        ("infer", each, INFER, [1, 2]),
        ("generate", write, {"text_input": "a"}, "a!"),
    ],
)
async def test_v2_collected_is_one_event(verb: str, predict: Any, data: Any, shown: Any) -> None:
    body = orjson.dumps(structured(data))
    response = await request(
        serve(predict), "POST", f"/v2/models/m/{verb}", body=body, headers=STRUCTURED
    )
    found = response.json()["data"]
    assert (found.get("text_output") or found["outputs"][0]["data"]) == shown


# --- garbage ------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)
NAMES = st.sampled_from([*EVENT, "data", "data_base64", "datacontenttype", "x"])


@pytest.mark.slow
@given(event=st.binary(max_size=40) | st.dictionaries(NAMES, VALUES).map(EVENT.__or__))
@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@pytest.mark.parametrize("verb", ["v1/models/m:predict", "v2/models/m/infer"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_garbage_is_no_fault_of_ours(verb: str, event: Any, anyio_backend: str) -> None:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    for headers in (STRUCTURED, BINARY):
        response = await request(serve(kind), "POST", f"/{verb}", body=body, headers=headers)
        assert response.status in (200, 400)
