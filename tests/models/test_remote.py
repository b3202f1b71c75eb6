"""Models that send their payloads on: a real predictor on a socket, driven through a transformer.

The predictor runs in a thread of its own, on asyncio; the transformer on both backends.
"""

import contextlib
import copy
import pickle
import socket
import ssl
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import certifi
import numpy as np
import orjson
import pytest
import uvicorn

from modelserve import InferenceError, InvalidInput, Limits, Model, ModelServer, ServerSentEvent
from modelserve.models.remote import connect, disconnect
from modelserve.tensors import InferInput, InferOutput, InferRequest, InferResponse
from modelserve.testing import Cut, Response, exchange, lifespan, request

pytestmark = pytest.mark.anyio

JSON = {"accept": "application/json"}
SSE = {"accept": "text/event-stream"}
NDJSON = {"accept": "application/x-ndjson"}


# --- the predictor ------------------------------------------------------------------------------

predictor = ModelServer()
began: dict[str, threading.Event] = defaultdict(threading.Event)
ended: dict[str, threading.Event] = defaultdict(threading.Event)


@predictor.model("echo")
async def echo(payload: Any) -> Any:
    return payload


@predictor.model("headers")
async def headers_seen(payload: Any, headers: Any) -> Any:
    return dict(headers)


@predictor.model("refuses")
async def refuses(payload: Any) -> Any:
    status, reason = payload
    raise InferenceError(reason, status)


@predictor.model("items")
async def items(payload: Any) -> AsyncIterator[Any]:
    for item in payload:
        if item == "raise":
            raise InvalidInput("no more of that")
        yield item


@predictor.model("events")
async def events(payload: Any) -> AsyncIterator[Any]:
    yield ServerSentEvent({"n": 1}, event="token", id="7", retry=10)
    yield ServerSentEvent("two\nlines")


@predictor.model("sound")
async def sound(payload: Any, response_headers: Any) -> AsyncIterator[Any]:
    response_headers["content-type"] = "audio/wav"
    yield b"RIFF"
    yield b"\xff\x00"


@predictor.model("picture")
async def picture(payload: Any, response_headers: Any) -> Any:
    response_headers["content-type"] = "image/png"
    response_headers["x-seed"] = "7"
    return b"\x89PNG"


@predictor.model("value")
async def value(payload: Any) -> Any:
    return payload if isinstance(payload, str) else bytes(payload)


@predictor.model("forms")
async def forms(payload: Any) -> Any:
    kind = type(payload).__name__
    return [kind, payload["instances"][0] if kind == "dict" else payload["a"]]


@predictor.model("endless")
async def endless(payload: Any) -> AsyncIterator[Any]:
    try:
        began[payload].set()
        while True:
            yield {"n": 1}
            await anyio.sleep(0.005)
    finally:
        ended[payload].set()


@predictor.model("steps")
def steps(payload: Any) -> Iterator[Any]:
    yield {"n": 1}
    assert began[payload].wait(5)
    yield {"n": 2}


@predictor.model("hangs")
async def hangs(payload: Any) -> Any:
    try:
        began[payload].set()
        await anyio.sleep_forever()
    finally:
        ended[payload].set()


@predictor.model("double")
async def double(payload: Any) -> InferResponse:
    array = payload.inputs[0].as_numpy()
    output = InferOutput("o", list(array.shape), payload.inputs[0].datatype, array * 2)
    return InferResponse(payload.id, "double", [output], payload.model_version)


@predictor.model("rows")
async def rows(payload: Any) -> AsyncIterator[InferResponse]:
    for number in payload.inputs[0].data:
        yield InferResponse(payload.id, "rows", [InferOutput("o", [1], "INT32", [number])])


@predictor.model("writer")
async def writer(payload: Any) -> AsyncIterator[str]:
    for word in payload["text_input"].split():
        yield word


class Versioned(Model):
    versions = ("2",)

    async def predict(self, payload: Any) -> Any:
        return InferResponse("i", self.name, [], payload.model_version)


predictor.add_model(Versioned("versioned"))


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """What `began` and `ended` know this test by."""
    return str(request.node.name)


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Serve the predictor on a socket, in a thread."""
    with serving(predictor, log_level="error") as address:
        yield address


@contextlib.contextmanager
def serving(app: ModelServer, **settings: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@contextlib.contextmanager
def answering(*answers: bytes, port: int = 0) -> Iterator[tuple[str, list[bytes]]]:
    """Serve these bytes, one answer a connection, the last again and again; keep the requests."""
    listener = socket.create_server(("127.0.0.1", port))
    requests: list[bytes] = []

    def serve() -> None:
        left = list(answers)
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    requests.append(read_request(connection))
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((line for line in lines if line.startswith(b"content-length")), b":0")
    while len(body) < int(length.partition(b":")[2]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def whole(body: bytes, *, status: str = "200 OK", **headers: str) -> bytes:
    """Write an answer as a server does."""
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): text for name, text in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in fields.items() if text)]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def chunked(content_type: str, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + end


# --- the transformer ----------------------------------------------------------------------------


def transformer(name: str, host: str, *, cls: type[Model] = Model, **settings: Any) -> ModelServer:
    model = cls(name)
    for key, setting in {"predictor_host": host, **settings}.items():
        setattr(model, key, setting)
    return ModelServer([model])


async def ask(app: ModelServer, path: str, payload: Any, **headers: str) -> Response:
    fields = {key.replace("_", "-"): text for key, text in headers.items()}
    async with lifespan(app):
        return await request(app, "POST", path, json=payload, headers=fields)


async def passed(host: str, name: str, payload: Any, **headers: str) -> Response:
    return await ask(transformer(name, host), f"/v1/models/{name}:predict", payload, **headers)


async def test_a_value_comes_back(host: str) -> None:
    response = await passed(host, "echo", {"instances": [1, {"a": None}]})
    assert (response.status, response.json()) == (200, {"instances": [1, {"a": None}]})
    assert response.headers["content-type"] == "application/json"


async def test_what_is_forwarded(host: str) -> None:
    sent = {
        "authorization": "Bearer secret",
        "traceparent": "00-1-2-01",
        "tracestate": "a=b",
        "b3": "1-2-1",
        "x-b3-traceid": "1",
        "x-b3-spanid": "2",
        "x-b3-parentspanid": "3",
        "x-b3-sampled": "1",
        "x-b3-flags": "0",
        "x-request-id": "abc",
        "accept": "application/json, */*",
    }
    response = await passed(host, "headers", {}, **sent, cookie="c=1", x_other="o")
    seen = response.json()
    assert {name: seen.get(name) for name in sent} == sent
    assert seen["host"] == host
    assert not {"cookie", "x-other"} & seen.keys()
    assert "authorization" not in response.headers


async def test_a_request_id_that_we_made_is_forwarded(host: str) -> None:
    response = await passed(host, "headers", {})
    assert response.json()["x-request-id"] == response.headers["x-request-id"]
    assert response.json()["accept"] == "*/*"


@pytest.mark.parametrize("bad", ["\x01", "a\x7fb"])
async def test_headers_that_cannot_be_sent_are_left_out(host: str, bad: str) -> None:
    response = await passed(host, "headers", {}, tracestate=bad, b3="ü", accept=bad)
    assert response.status == 200
    assert "tracestate" not in response.json()
    assert response.json()["b3"] == "ü"


async def test_hooks_may_change_what_is_forwarded(host: str) -> None:
    class Signing(Model):
        def preprocess(self, payload: Any, headers: Any) -> Any:
            headers["Authorization"] = "Bearer ours"
            headers["x-request-id"] = "mine"
            return payload

    seen = await ask(transformer("headers", host, cls=Signing), "/v1/models/headers:predict", {})
    assert seen.json()["authorization"] == "Bearer ours"
    assert seen.json()["x-request-id"] == "mine"


async def test_predict_can_be_called_by_hand(host: str) -> None:
    model = Model("headers")
    model.predictor_host = host
    connect(model)
    assert (await model.predict({}))["accept"] == "*/*"
    seen = await model.predict({}, {"TraceParent": "t", "X-Other": "o"})
    assert (seen["traceparent"], seen.get("x-other")) == ("t", None)
    await disconnect(model)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "content_type", "body"),
    [
        ("text", "text/plain; charset=utf-8", b"text"),
        ("", "text/plain; charset=utf-8", b""),
        ([1, 255], "application/octet-stream", b"\x01\xff"),
    ],
)
async def test_text_and_bytes(host: str, payload: Any, content_type: str, body: bytes) -> None:
    response = await passed(host, "value", payload)
    assert (response.headers["content-type"], response.body) == (content_type, body)


@pytest.mark.parametrize("prepares", [False, True])
async def test_a_form_goes_on_as_it_came_unless_a_hook_takes_it(host: str, prepares: bool) -> None:
    class Prepares(Model):
        def preprocess(self, form: Any) -> Any:
            return {"instances": [form["a"]]}

    app = transformer("forms", host, cls=Prepares if prepares else Model)
    async with lifespan(app):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        body = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
        answer = await request(app, "POST", "/v1/models/forms:predict", body=body, headers=headers)
    assert answer.json() == (["dict", "1"] if prepares else ["FormData", "1"])


async def test_a_content_type_of_its_own(host: str) -> None:
    response = await passed(host, "picture", {})
    assert (response.headers["content-type"], response.body) == ("image/png", b"\x89PNG")
    assert "x-seed" not in response.headers


async def test_response_headers_are_copied_where_the_model_says_so(host: str) -> None:
    app = transformer("picture", host, return_response_headers=True)
    response = await ask(app, "/v1/models/picture:predict", {})
    assert response.headers["x-seed"] == "7"
    assert response.headers.getlist("x-request-id") == [response.headers["x-request-id"]]
    assert not {"server", "date", "connection"} & set(response.headers)


async def test_a_type_is_not_kept_by_what_postprocess_makes(host: str) -> None:
    class Measuring(Model):
        async def postprocess(self, result: Any) -> Any:
            return {"predictions": len(result)}

    app = transformer("picture", host, cls=Measuring)
    response = await ask(app, "/v1/models/picture:predict", {})
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"predictions": 4}


async def test_a_body_that_is_not_json_goes_on_as_it_is(host: str) -> None:
    app = transformer("echo", host)
    async with lifespan(app):
        response = await request(
            app, "POST", "/v1/models/echo:predict", body=b"\xff", headers={"content-type": "a/b"}
        )
    assert response.body == b"\xff"


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type", "chunks"),
    [
        ({}, "application/x-ndjson", [b'{"n":1}\n', b'"a"\n', b"null\n", b"[2]\n"]),
        (NDJSON, "application/x-ndjson", [b'{"n":1}\n', b'"a"\n', b"null\n", b"[2]\n"]),
        (
            SSE,
            "text/event-stream",
            [b'data: {"n":1}\n\n', b"data: a\n\n", b"data: null\n\n", b"data: [2]\n\n"],
        ),
        (JSON, "application/json", [b'{"predictions":[{"n":1},"a",null,[2]]}']),
    ],
)
async def test_a_stream_in_every_form(
    host: str, accept: Any, content_type: str, chunks: list[bytes]
) -> None:
    response = await passed(host, "items", [{"n": 1}, "a", None, [2]], **accept)
    assert response.headers["content-type"] == content_type
    assert response.chunks == chunks


async def test_a_stream_of_text(host: str) -> None:
    response = await passed(host, "items", ["a", "ä\n", "b"])
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.body == "aä\nb".encode()


async def test_events_keep_their_fields(host: str) -> None:
    response = await passed(host, "events", [], **SSE)
    assert response.chunks == [
        b'event: token\nid: 7\nretry: 10\ndata: {"n":1}\n\n',
        b"data: two\ndata: lines\n\n",
    ]


async def test_a_stream_with_a_content_type_of_its_own(host: str) -> None:
    response = await passed(host, "sound", [])
    assert (response.headers["content-type"], response.body) == ("audio/wav", b"RIFF\xff\x00")


@pytest.mark.parametrize("accept", [{}, SSE, NDJSON, JSON])
async def test_an_empty_stream(host: str, accept: Any) -> None:
    response = await passed(host, "items", [], **accept)
    assert (response.status, response.body) == (
        200,
        b'{"predictions":[]}' if accept == JSON else b"",
    )


@pytest.mark.parametrize(
    ("accept", "record"),
    [
        ({}, b'{"error":"no more of that"}\n'),
        (SSE, b'event: error\ndata: {"error":"no more of that"}\n\n'),
    ],
)
async def test_a_record_of_an_error_becomes_one(host: str, accept: Any, record: bytes) -> None:
    response = await passed(host, "items", [{"n": 1}, "raise"], **accept)
    assert (response.status, len(response.chunks), response.chunks[-1]) == (200, 2, record)


@pytest.mark.parametrize("accept", [{}, SSE, NDJSON, JSON])
async def test_a_failure_before_the_first_item_is_a_status(host: str, accept: Any) -> None:
    response = await passed(host, "items", ["raise"], **accept)
    assert (response.status, response.json()) == (400, {"error": "no more of that"})


async def test_a_failure_of_raw_text_cuts(host: str) -> None:
    with pytest.raises(Cut):
        await passed(host, "items", ["a", "raise"])


async def test_postprocess_sees_the_items(host: str) -> None:
    class Counting(Model):
        async def postprocess(self, result: Any) -> AsyncIterator[Any]:
            async for item in result:
                yield {"n": item["n"] + 1}

    app = transformer("items", host, cls=Counting)
    response = await ask(app, "/v1/models/items:predict", [{"n": 1}, {"n": 2}])
    assert response.chunks == [b'{"n":2}\n', b'{"n":3}\n']


async def wait_for(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 5)


class Wrapping(Model):
    async def predict(self, payload: Any, headers: Any) -> AsyncIterator[Any]:
        async for item in await super().predict(payload, headers):
            yield item


class Dropping(Model):
    async def postprocess(self, result: Any) -> Any:
        await anext(result)
        return {"predictions": []}


@pytest.mark.parametrize("accept", [{}, SSE, JSON])
async def test_a_client_that_leaves_ends_the_predictors_stream(
    host: str, key: str, accept: Any
) -> None:
    app = transformer("endless", host)
    path = "/v1/models/endless:predict"
    async with lifespan(app):
        async with exchange(app, "POST", path, json=key, headers=accept) as client:
            if accept != JSON:
                assert (await client.head()).status == 200
                assert b'{"n":1}' in (await client.chunk() or b"")
            await wait_for(began[key])
            assert not ended[key].is_set()
        await wait_for(ended[key])


@pytest.mark.parametrize("cls", [Model, Wrapping])
async def test_a_client_that_does_not_read_and_leaves(
    host: str, key: str, cls: type[Model]
) -> None:
    app = transformer("endless", host, cls=cls)
    async with lifespan(app):
        async with exchange(app, "POST", "/v1/models/endless:predict", json=key) as client:
            assert (await client.head()).status == 200
            client.hold()
            await anyio.wait_all_tasks_blocked()
        await wait_for(ended[key])


async def test_a_stream_that_is_not_read_to_its_end_is_closed(host: str, key: str) -> None:
    app = transformer("endless", host, cls=Dropping)
    response = await ask(app, "/v1/models/endless:predict", key)
    assert response.json() == {"predictions": []}
    await wait_for(ended[key])


async def test_a_client_that_leaves_ends_the_predictors_call(host: str, key: str) -> None:
    app = transformer("hangs", host)
    async with lifespan(app):
        async with exchange(app, "POST", "/v1/models/hangs:predict", json=key):
            await wait_for(began[key])
        await wait_for(ended[key])


async def test_items_pass_one_by_one(host: str, key: str) -> None:
    app = transformer("steps", host)
    path = "/v1/models/steps:predict"
    async with lifespan(app), exchange(app, "POST", path, json=key) as client:
        await client.head()
        assert await client.chunk() == b'{"n":1}\n'
        began[key].set()  # only now does the predictor make the next
        assert await client.chunk() == b'{"n":2}\n'
        assert await client.chunk() is None


# --- what may go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 409, 418, 422, 429, 499, 500, 502, 503, 504, 599])
async def test_the_predictors_status_comes_through(host: str, status: int) -> None:
    response = await passed(host, "refuses", [status, "so it is"])
    assert (response.status, response.json()) == (status, {"error": "so it is"})


async def test_what_the_predictor_says_of_a_request(host: str) -> None:
    response = await passed(host, "echo", {"instances": 5})
    assert (response.status, response.json()) == (
        400,
        {"error": 'Expected "instances" to be a list'},
    )
    response = await passed(host, "nowhere", {})
    assert (response.status, b"does not exist" in response.body) == (404, True)


GENERIC = "The predictor answered with status {}."
BROKEN = "The answer of the predictor cannot be read."
CUT = "The answer of the predictor was cut short."


@pytest.mark.parametrize(
    ("answer", "status", "sentence"),
    [
        (whole(b'{"detail":"no"}', status="403 Forbidden"), 403, "no"),
        (whole(b'{"message":"no"}', status="403 Forbidden"), 403, "no"),
        (whole(b'{"detail":[{"loc":1}]}', status="422 No"), 422, GENERIC.format(422)),
        (whole(b"[]", status="404 Not Found"), 404, GENERIC.format(404)),
        (whole(b'{"error":""}', status="404 Not Found"), 404, GENERIC.format(404)),
        (whole(b"<html>", status="502 Bad", content_type="text/html"), 502, GENERIC.format(502)),
        (whole(b"\xff", status="500 No", content_type=""), 500, GENERIC.format(500)),
        (whole(b"{}", status="302 Found", location="http://inside/"), 502, GENERIC.format(302)),
        (whole(b"{}", status="700 What"), 502, GENERIC.format(700)),
        (whole(b"{", content_length="1"), 502, BROKEN),
        (whole(b""), 502, BROKEN),
        (whole(b"\xff", content_type="text/plain"), 502, BROKEN),
        (whole(b"{}", inference_header_content_length="9"), 502, BROKEN),
        (whole(b"{}", inference_header_content_length="x"), 502, BROKEN),
        (chunked("text/plain; charset=latin-1", end=b""), 502, CUT),
        (whole(b"[1", content_length="9"), 502, CUT),
        (chunked("application/json", b"[1", end=b""), 502, CUT),
        (chunked("application/x-ndjson", b"{nonsense\n"), 502, BROKEN),
        (chunked("application/x-ndjson", end=b""), 502, CUT),
        (chunked("text/event-stream", b"event: error\n\n"), 502, "The predictor failed"),
        (b"nonsense\r\n\r\n", 503, "The predictor cannot be reached."),
        (b"", 503, "The predictor cannot be reached."),
    ],
)
async def test_an_answer_that_is_none(answer: bytes, status: int, sentence: str) -> None:
    with answering(answer) as (host, _):
        response = await passed(host, "m", {})
    assert response.status == status
    assert response.json()["error"].startswith(sentence)
    assert host not in response.body.decode()


@pytest.mark.parametrize("where", ["document", "record"])
async def test_the_predictors_place_is_never_shown(where: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    text = f"500 Internal Server Error for url 'http://{address}/v1'".encode()
    answers = {
        "document": whole(b'{"error":"%b"}' % text, status="500 No"),
        "record": chunked("application/x-ndjson", b'{"error":"%b"}\n' % text),
    }
    with answering(answers[where], port=int(address.partition(":")[2])) as (host, _):
        assert host == address
        response = await passed(host, "m", {})
    assert response.status in (500, 502)
    assert address not in response.body.decode()


@pytest.mark.parametrize("chunks", [[b'{"n":1}\n'], [b'{"n":1}\n', b'{"n"']])
async def test_a_stream_that_is_cut_does_not_look_complete(chunks: list[bytes]) -> None:
    with answering(chunked("application/x-ndjson", *chunks, end=b"")) as (host, _):
        response = await passed(host, "m", {})
    assert response.chunks == [b'{"n":1}\n', b'{"error":"%b"}\n' % CUT.encode()]


async def test_the_items_before_a_broken_one_are_sent() -> None:
    with answering(chunked("application/jsonl", b'{"n":1}\n2\nx\n3\n')) as (host, _):
        response = await passed(host, "m", {})
    assert response.chunks == [b'{"n":1}\n', b"2\n", b'{"error":"%b"}\n' % BROKEN.encode()]


async def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    response = await passed(host, "m", {})
    assert (response.status, response.json()) == (
        503,
        {"error": "The predictor cannot be reached."},
    )
    assert host not in str(response)


@pytest.mark.parametrize("bundle", [None, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_tls_is_not_given_up(
    host: str, bundle: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bundle:
        monkeypatch.setenv(bundle, certifi.where())
    response = await ask(transformer("echo", host, use_ssl=True), "/v1/models/echo:predict", {})
    assert response.status == 503


@pytest.mark.slow
async def test_a_predictor_that_is_late(host: str, key: str) -> None:
    app = transformer("hangs", host, timeout=1)
    response = await ask(app, "/v1/models/hangs:predict", key)
    assert response.status == 504
    assert response.json() == {"error": "The predictor did not answer within 1 s."}
    await wait_for(ended[key])


@pytest.mark.slow
async def test_a_predictor_that_is_late_with_an_item(host: str, key: str) -> None:
    app = transformer("steps", host, timeout=1)
    response = await ask(app, "/v1/models/steps:predict", key)
    began[key].set()
    assert response.chunks[0] == b'{"n":1}\n'
    assert b"did not answer within 1 s" in response.chunks[1]


@pytest.mark.slow
async def test_the_servers_own_deadline_holds(host: str, key: str) -> None:
    model = Model("hangs")
    model.predictor_host = host
    app = ModelServer([model], limits=Limits(timeout=1))
    assert (await ask(app, "/v1/models/hangs:predict", key)).status == 504
    await wait_for(ended[key])


async def test_odd_headers_of_the_predictor_pass() -> None:
    answer = whole(b"a", content_type="image/x", x_odd="\u20ac")
    with answering(answer) as (host, _):
        app = transformer("m", host, return_response_headers=True)
        response = await ask(app, "/v1/models/m:predict", {})
    assert (response.status, response.body) == (200, b"a")
    assert response.headers["x-odd"].encode("latin-1").decode() == "\u20ac"


@pytest.mark.parametrize("name", ["retry-after", "www-authenticate"])
async def test_headers_of_an_error_that_a_client_acts_on(name: str) -> None:
    answer = whole(b'{"error":"later"}', status="503 No", **{name: "7"}, x_inside="1")
    with answering(answer) as (host, _):
        response = await passed(host, "m", {})
    assert (response.status, response.headers[name]) == (503, "7")
    assert "x-inside" not in response.headers


async def test_cookies_are_not_kept_for_the_next() -> None:
    with answering(whole(b"{}", set_cookie="session=1; Path=/")) as (host, requests):
        app = transformer("m", host)
        async with lifespan(app):
            for _ in range(2):
                response = await request(app, "POST", "/v1/models/m:predict", json={})
                assert "set-cookie" not in response.headers
    assert len(requests) == 2
    assert b"cookie" not in requests[1].lower()


async def test_unknown_protocols_and_models_without_a_predictor(host: str) -> None:
    response = await ask(transformer("m", host, protocol="grpc-v1"), "/v1/models/m:predict", {})
    assert (response.status, response.json()) == (501, {"error": "Unsupported protocol grpc-v1."})
    for verb in ("predict", "explain"):
        response = await ask(ModelServer([Model("m")]), f"/v1/models/m:{verb}", {})
        assert (response.status, verb in response.json()["error"]) == (501, True)


async def test_without_httpx(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    response = await passed(host, "echo", {})
    assert response.status == 501
    assert "pip install 'modelserve[predictor]'" in response.json()["error"]


async def test_a_request_too_deep_to_be_sent_on(host: str, too_deep: int) -> None:
    body = b"[" * 1020 + b"]" * 1020
    app = transformer("echo", host)
    async with lifespan(app):
        response = await request(app, "POST", "/v1/models/echo:predict", body=body)
    assert response.status == (400 if too_deep <= 1020 else 200)


# --- V2 -----------------------------------------------------------------------------------------

TENSOR = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}


async def infer(app: ModelServer, path: str, document: Any, **headers: str) -> Response:
    return await ask(app, path, document, **headers)


async def test_v2_in_json(host: str) -> None:
    app = transformer("double", host, protocol="v2")
    response = await infer(app, "/v2/models/double/infer", {"id": "7", "inputs": [TENSOR]})
    assert response.body == (
        b'{"model_name":"double","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"o","shape":[2],"datatype":"INT32","parameters":null,"data":[2,4]}]}'
    )


@pytest.mark.parametrize("binary_output", [True, False])
async def test_v2_in_binary(host: str, binary_output: bool) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = InferInput("x", [2, 3], "FP32")
    tensor.set_data_from_numpy(array)
    sent = InferRequest("double", [tensor], "7", parameters={"binary_data_output": binary_output})
    body, length = sent.to_rest()
    app = transformer("double", host, protocol="v2")
    async with lifespan(app):
        response = await request(
            app,
            "POST",
            "/v2/models/double/infer",
            body=body,
            headers={"inference-header-content-length": str(length)},
        )
    if binary_output:
        length = int(response.headers["inference-header-content-length"])
        result = InferResponse.from_bytes(response.body, length)
    else:
        result = InferResponse.from_rest(response.json())
    assert (result.outputs[0].as_numpy() == array * 2).all()


async def test_v2_refusals(host: str) -> None:
    app = transformer("double", host, protocol="v2")
    wanted = {"inputs": [TENSOR], "outputs": [{"name": "zz"}]}
    response = await infer(app, "/v2/models/double/infer", wanted)
    assert (response.status, "'zz'" in response.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "accept", "content_type", "chunks"),
    [
        ("infer", {}, "application/json", 1),
        ("infer", SSE, "text/event-stream", 2),
        ("infer", NDJSON, "application/x-ndjson", 2),
        ("infer_stream", {}, "text/event-stream", 2),
    ],
)
async def test_v2_streams(
    host: str, path: str, accept: Any, content_type: str, chunks: int
) -> None:
    app = transformer("rows", host, protocol="v2")
    response = await infer(app, f"/v2/models/rows/{path}", {"inputs": [TENSOR]}, **accept)
    assert response.headers["content-type"] == content_type
    assert len(response.chunks) == chunks
    assert response.body.count(b'"outputs"') == chunks


@pytest.mark.parametrize(("verb", "texts"), [("generate", ["ab"]), ("generate_stream", ["a", "b"])])
async def test_v2_generates(host: str, verb: str, texts: list[str]) -> None:
    app = transformer("writer", host, protocol="v2")
    response = await infer(app, f"/v2/models/writer/{verb}", {"text_input": "a b"})
    documents = [orjson.loads(chunk.removeprefix(b"data: ")) for chunk in response.chunks]
    assert [document["text_output"] for document in documents] == texts


async def test_v1_in_front_of_v2(host: str) -> None:
    class Bridging(Model):
        def preprocess(self, payload: Any) -> Any:
            numbers = payload["instances"]
            return InferRequest("x", [InferInput("x", [len(numbers)], "FP32", numbers)])

        def postprocess(self, result: Any) -> Any:
            assert isinstance(result, InferResponse)
            return {"predictions": result.outputs[0].as_numpy().tolist()}

    app = transformer("double", host, cls=Bridging, protocol="v2")
    response = await ask(app, "/v1/models/double:predict", {"instances": [1, 2.5]})
    assert response.json() == {"predictions": [2.0, 5.0]}


@pytest.mark.parametrize("verb", ["infer", "generate"])
async def test_a_version_is_asked_for(verb: str) -> None:
    class Two(Model):
        versions = ("2/x",)

    with answering(whole(b'{"text_output":"a"}')) as (host, requests):
        app = transformer("m n", host, cls=Two, protocol="v2")
        document = {"inputs": []} if verb == "infer" else {"text_input": ""}
        await infer(app, f"/v2/models/m%20n/versions/2%2Fx/{verb}", document)
    assert requests[0].startswith(b"POST /v2/models/m%20n/versions/2%2Fx/" + verb.encode())


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_host(certificate: Path) -> Iterator[str]:
    """Serve a predictor and explainer over TLS, in a thread."""
    settings = {"ssl_certfile": certificate, "ssl_keyfile": certificate.with_name("key.pem")}
    with serving(explainer, log_level="critical", **settings) as address:
        yield address


class Explaining(Model):
    """Echo over either verb, and keep what came."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.came: list[Any] = []

    async def predict(self, payload: Any) -> Any:
        self.came.append(payload)
        return payload

    explain = predict


explaining = Explaining("echo")
explainer = ModelServer([explaining])


@pytest.mark.parametrize("first", ["predict", "explain"])
@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
async def test_an_explainer_is_verified_beside_a_predictor_without_tls(
    host: str, tls_host: str, scheme: str, first: str
) -> None:
    app = transformer("echo", f"http://{host}", explainer_host=f"{scheme}://{tls_host}")
    explaining.came.clear()
    async with lifespan(app):
        for verb in (first, "predict", "explain", "predict"):
            response = await request(app, "POST", f"/v1/models/echo:{verb}", json=[1])
            assert response.status == (503 if verb == "explain" else 200)
    assert explaining.came == []


@pytest.mark.parametrize("first", ["predict", "explain"])
async def test_a_predictor_is_verified_beside_an_explainer_without_tls(
    tls_host: str, first: str
) -> None:
    explaining.came.clear()
    with answering(whole(b"{}")) as (plain, _):
        app = transformer("echo", plain, explainer_host=f"http://{plain}", use_ssl=True)
        app.serving.registry.get("echo").model.predictor_host = tls_host
        async with lifespan(app):
            for verb in (first, "predict", "explain"):
                response = await request(app, "POST", f"/v1/models/echo:{verb}", json={})
                assert response.status == (503 if verb == "predict" else 200)
    assert explaining.came == []


async def test_a_certificate_that_is_trusted(
    host: str, tls_host: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    app = transformer("echo", host, explainer_host=f"https://{tls_host}")
    async with lifespan(app):
        for verb in ("predict", "explain"):
            response = await request(app, "POST", f"/v1/models/echo:{verb}", json=[7])
            assert response.json() == [7]


async def test_connections_are_tried_again_as_often_as_each_call_says() -> None:
    tries: list[None] = []

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                tries.append(None)
                connection.close()  # before the handshake

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        app = transformer("m", f"https://127.0.0.1:{listener.getsockname()[1]}")
        model = app.serving.registry.get("m").model
        async with lifespan(app):
            for retries in (0, 1, 0):
                tries.clear()
                model.retries = retries
                assert (await request(app, "POST", "/v1/models/m:predict", json=1)).status == 503
                assert len(tries) == retries + 1


async def test_the_connections_of_every_kind_are_closed(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    closed = [threading.Event(), threading.Event()]

    def serve_one_connection(listener: socket.socket, closed: threading.Event) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            while True:
                read_request(connection)
                connection.sendall(answer)
        closed.set()

    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as secure,
    ):
        threads = [
            threading.Thread(target=serve_one_connection, args=pair, daemon=True)
            for pair in zip((plain, secure), closed, strict=True)
        ]
        for thread in threads:
            thread.start()
        hosts = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (plain, secure)]
        app = transformer("m", hosts[0], explainer_host=f"https://{hosts[1]}")
        async with lifespan(app):
            for verb in ("predict", "explain"):
                response = await request(app, "POST", f"/v1/models/m:{verb}", json={})
                assert response.json() == {}
            assert not any(event.is_set() for event in closed)
        for event in closed:
            assert await anyio.to_thread.run_sync(event.wait, 5)
        for thread in threads:
            thread.join()


# --- explainers, settings, connections ----------------------------------------------------------


@pytest.mark.parametrize("accept", [{}, SSE])
async def test_explain(accept: Any) -> None:
    explainer = [whole(b'{"explanations":[1]}'), whole(b'{"explanations":[1]}')]
    with answering(*explainer) as (host, requests):
        app = transformer("m", "", explainer_host=host)
        response = await ask(app, "/v1/models/m:explain", {"instances": [1]}, **accept)
    assert response.json() == {"explanations": [1]}
    assert requests[0].startswith(b"POST /v1/models/m:explain HTTP/1.1")
    assert requests[0].endswith(b'{"instances":[1]}')


async def test_connections_are_kept_and_closed() -> None:
    requests: list[bytes] = []
    closed = threading.Event()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    def serve_one_connection(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            while True:
                requests.append(read_request(connection))
                connection.sendall(answer)
        closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one_connection, args=(listener,))
        thread.start()
        app = transformer("m", f"127.0.0.1:{listener.getsockname()[1]}")
        async with lifespan(app):
            for _ in range(3):
                response = await request(app, "POST", "/v1/models/m:predict", json={})
                assert response.json() == {}
            assert not closed.is_set()
        assert await anyio.to_thread.run_sync(closed.wait, 5)
        thread.join()
    assert len(requests) == 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_one_model_in_two_event_loops(host: str, anyio_backend: str) -> None:
    app = transformer("echo", host)
    for backend in ("asyncio", "trio", "asyncio"):
        for _ in range(2):

            async def ask_once() -> Response:
                return await ask(app, "/v1/models/echo:predict", [1])

            assert anyio.run(ask_once, backend=backend).json() == [1]


async def test_many_at_a_time(host: str) -> None:
    app = transformer("echo", host)
    answers: list[Any] = []

    async def one(number: int) -> None:
        response = await request(app, "POST", "/v1/models/echo:predict", json=[number])
        answers.append(response.json()[0])

    async with lifespan(app), anyio.create_task_group() as group:
        for number in range(60):
            group.start_soon(one, number)
    assert sorted(answers) == list(range(60))


async def test_a_registered_model_can_be_pickled(host: str) -> None:
    app = transformer("echo", host)
    assert (await ask(app, "/v1/models/echo:predict", [1])).json() == [1]
    other = ModelServer([pickle.loads(pickle.dumps(app.serving.registry.get("echo").model))])
    assert (await ask(other, "/v1/models/echo:predict", [2])).json() == [2]


async def test_a_copy_of_a_registered_model_calls_its_own_predictor(host: str) -> None:
    model = Model("echo")
    model.predictor_host = "127.0.0.1:1"
    ModelServer([model])
    other = copy.copy(model)
    other.predictor_host = host
    assert (await ask(ModelServer([other]), "/v1/models/echo:predict", [1])).json() == [1]


async def test_a_model_calls_its_predictor_from_its_own_hook(host: str) -> None:
    class Adding(Model):
        async def predict(self, payload: Any, headers: Any = None) -> Any:
            return [*await super().predict(payload, headers), "added"]

    app = transformer("echo", host, cls=Adding)
    assert (await ask(app, "/v1/models/echo:predict", [1])).json() == [1, "added"]


async def test_a_model_outside_of_a_server_calls_its_predictor(host: str) -> None:
    model = Model("echo")
    with pytest.raises(NotImplementedError, match=r"^Model echo does not implement predict\.$"):
        await model.predict({})
    model.predictor_host = host
    assert await model.predict([1]) == [1]
    await disconnect(model)


# --- readiness ----------------------------------------------------------------------------------


class Waking(Model):
    """It becomes ready when a test says so, and answers when it is not as well."""

    def load(self) -> bool:
        return False

    async def predict(self, payload: Any) -> Any:
        return payload


@pytest.fixture
def waking() -> Iterator[tuple[str, Model]]:
    model = Waking("m")
    with serving(ModelServer([model]), log_level="error") as address:
        yield address, model


PROBES = ("/v2/health/ready", "/v1/models/m", "/v2/models/m/ready")


async def probe(app: ModelServer) -> set[int]:
    return {(await request(app, "GET", path)).status for path in PROBES}


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_probes_ask_the_predictor_where_the_model_says_so(
    waking: tuple[str, Model], protocol: str
) -> None:
    address, model = waking
    app = transformer("m", address, protocol=protocol, predictor_health_check=True)
    unasked = transformer("m", address, protocol=protocol)
    async with lifespan(app), lifespan(unasked):
        assert (await probe(app), await probe(unasked)) == ({503}, {200})
        response = await request(app, "GET", "/v1/models/m")
        assert response.json() == {"error": "Model with name m is not ready."}
        model.ready = True
        assert (await probe(app), await probe(unasked)) == ({200}, {200})
        await app.ready()


async def test_requests_do_not_wait_for_what_probes_ask() -> None:
    with answering(whole(b"[1]")) as (host, requests):
        app = transformer("m", host, predictor_health_check=True)
        async with lifespan(app):
            assert (await request(app, "POST", "/v1/models/m:predict", json=[1])).status == 200
    assert [line.split()[0] for line in requests] == [b"POST"]


async def test_a_model_that_is_not_well_does_not_ask_its_predictor(host: str) -> None:
    class Unwell(Model):
        def healthy(self) -> bool:
            return False

    app = transformer("echo", host, cls=Unwell, predictor_health_check=True)
    async with lifespan(app):
        assert (await request(app, "GET", "/v1/models/echo")).status == 503


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (whole(b'{"name":"m","ready":true}'), 200),
        (whole(b'{"name":"m","ready":false}'), 503),
        (whole(b'{"model_version_status":[]}'), 200),
        (whole(b"", content_type=""), 200),
        (whole(b"{}", status="404 Not Found"), 503),
        (b"", 503),
    ],
)
async def test_what_says_that_a_predictor_is_ready(answer: bytes, status: int) -> None:
    with answering(answer) as (host, requests):
        app = transformer("m", host, predictor_health_check=True)
        async with lifespan(app):
            assert (await request(app, "GET", "/v1/models/m")).status == status
    assert [line.partition(b"\r\n")[0] for line in requests] == [b"GET /v1/models/m HTTP/1.1"]
