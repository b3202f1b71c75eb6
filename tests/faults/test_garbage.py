"""Whatever is sent to any route: no exception leaves the application, and nothing is a 500.

MODELSERVE_GARBAGE_EXAMPLES is how many requests each test makes up; if it is set, other ones in
every run.
"""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from eventstream import interpret
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelserve import Limits, Model, ModelServer
from modelserve.errors import ResponseCut
from modelserve.tensors import InferOutput, InferRequest, InferResponse
from modelserve.testing import Cut, Exchange, Response

pytestmark = pytest.mark.slow

EXAMPLES = os.environ.get("MODELSERVE_GARBAGE_EXAMPLES")
quick = settings(
    max_examples=int(EXAMPLES or 150),
    deadline=None,
    derandomize=EXAMPLES is None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- an application that accepts everything -----------------------------------------------------


class Echo(Model):
    """Sends back what it got; a request of V2 is no value."""

    async def predict(self, payload):
        return {"id": payload.id} if isinstance(payload, InferRequest) else payload

    def explain(self, payload, headers=None):
        return {"explanations": sorted(headers)}


class Words(Model):
    async def predict(self, payload):
        for item in payload if isinstance(payload, list) else [payload]:
            yield str(item)


class Documents(Model):
    def predict(self, payload):
        for item in payload if isinstance(payload, list) else [repr(payload)]:
            yield {"item": item}


class Tensors(Model):
    async def predict(self, payload):
        if not isinstance(payload, InferRequest):
            return {}
        outputs = [InferOutput(t.name, t.shape, t.datatype, t.data) for t in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)

    def get_input_types(self):
        return [{"name": "x", "datatype": "INT32", "shape": [-1]}]


class Writer(Model):
    async def predict(self, payload):
        text = payload.get("text_input") if isinstance(payload, dict) else payload
        for word in str(text).split():
            yield word


class NotReady(Model):
    def predict(self, payload: Any) -> Any:
        raise NotImplementedError

    def load(self):
        return False


MODELS = ("echo", "words", "documents", "tensors", "writer", "not-ready")


def make_app() -> ModelServer:
    models = (Echo, Words, Documents, Tensors, Writer, NotReady)
    return ModelServer(
        [model(name) for model, name in zip(models, MODELS, strict=True)],
        limits=Limits(max_body_bytes=20_000),
        token=None,
        control=True,
    )


# --- what is sent -------------------------------------------------------------------------------

NAMES = st.sampled_from((*MODELS, "zz", "", "a b", "é", "%2F", "echo%00", "%3A", "echo%3Apredict"))
ROUTES = (
    "/",
    "/metrics",
    "/v1/models",
    "/v1/models/{}",
    "/v1/models/{}:predict",
    "/v1/models/{}%3Apredict",
    "/v1/models/{}:explain",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/{}",
    "/v2/models/{}/ready",
    "/v2/models/{}/infer",
    "/v2/models/{}/infer_stream",
    "/v2/models/{}/generate",
    "/v2/models/{}/generate_stream",
    "/v2/models/{}/versions/1",
    "/v2/models/{}/versions/1/infer",
    "/v2/repository/index",
    "/v2/repository/models/{}/load",
    "/v2/repository/models/{}/unload",
)
known_paths = st.builds(str.format, st.sampled_from(ROUTES), NAMES).map(
    lambda path: path.encode("utf-8")
)
some_paths = st.lists(
    st.sampled_from(
        (b"v1", b"v2", b"models", b"echo", b":predict", b"infer", b"%", b"%ff", b"..", b"")
    )
    | st.binary(max_size=6),
    max_size=6,
).map(lambda parts: b"/" + b"/".join(parts))
paths = known_paths | some_paths | st.binary(max_size=30)

methods = st.sampled_from(
    ("GET", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "")
) | st.text(max_size=8)

SENSIBLE = {
    b"accept": (
        *(
            b"*/*",
            b"text/event-stream",
            b"application/x-ndjson",
            b"application/json",
            b"text/plain",
        ),
        *(b"image/png", b"*/*;q=0", b"application/json, */*;q=0.1", b",;,", b"text/*;q=x"),
        b"application/openmetrics-text; version=1.0.0",
    ),
    b"content-type": (
        *(
            b"application/json",
            b"text/plain",
            b"application/cloudevents+json",
            b"image/png",
            b"/;=",
        ),
        b"application/x+json; charset=utf-16",
    ),
    b"content-length": (b"0", b"5", b"-1", b"99999999999999999999999", b"20001", b"\xb2"),
    b"inference-header-content-length": (b"0", b"2", b"60", b"-1", b"1e3", b"\xb2", b"9" * 30),
    b"x-request-timeout-seconds": (b"10", b"0", b"-1", b"nan", b"inf", b"1e-9", b"1e400", b"x"),
    b"x-request-id": (b"abc", b"\xff", b"a b", b"x" * 200, b"a\r\nb: c"),
    b"authorization": (b"Bearer x", b"\xff"),
    b"ce-specversion": (b"1.0", b"0.3"),
    b"ce-id": (b"1",),
    b"ce-source": (b"s",),
    b"ce-type": (b"t",),
    b"expect": (b"100-continue",),
    b"transfer-encoding": (b"chunked",),
}
header = st.sampled_from(sorted(SENSIBLE)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(SENSIBLE[name]) | st.binary(max_size=12))
)
headers = st.lists(header | st.tuples(st.binary(max_size=6), st.binary(max_size=6)), max_size=4)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab\u20ac", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def usually(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The value, or, one time in eight, anything at all."""
    return st.integers(0, 7).flatmap(lambda n: strategy if n else json_values)


def document(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return usually(
        st.fixed_dictionaries({}, optional={name: usually(value) for name, value in fields.items()})
    )


DATATYPES = (
    "INT8",
    "INT64",
    "UINT8",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BOOL",
    "BYTES",
    "bytes",
    "x",
)
tensors = document(
    name=st.sampled_from(("x", "y")),
    shape=st.lists(st.integers(-1, 3), max_size=3),
    datatype=st.sampled_from(DATATYPES),
    data=st.lists(
        st.integers(-200, 300) | st.booleans() | st.floats() | st.text(max_size=3), max_size=4
    ),
    parameters=document(binary_data_size=st.integers(-1, 8)),
)
infer_documents = document(
    id=st.text(max_size=3),
    inputs=st.lists(tensors, max_size=2),
    outputs=st.lists(
        document(name=st.sampled_from(("x", "y")), parameters=document(binary_data=st.booleans())),
        max_size=2,
    ),
    parameters=document(binary_data_output=st.booleans()),
)
v1_documents = document(instances=st.lists(json_values, max_size=3), inputs=json_values)
texts = document(text_input=st.text(max_size=20), parameters=document(n=st.integers()))
written = (json_values | infer_documents | v1_documents | texts).map(
    lambda value: json.dumps(value).encode()
)
deep = st.integers(1, 3000).map(lambda n: b"[" * n + b"]" * n)
bodies = st.lists(written | st.binary(max_size=40) | deep, max_size=3) | written.map(lambda b: [b])


@dataclass(frozen=True)
class Message:
    """One request, as the host hands it over."""

    method: str
    raw_path: bytes
    headers: list[tuple[bytes, bytes]]
    body: list[bytes]
    extra: dict[str, Any]

    @property
    def scope(self) -> dict[str, Any]:
        path = unquote(self.raw_path.decode("latin-1"), errors="replace")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": path,
            "raw_path": self.raw_path,
            "query_string": b"",
            "root_path": "",
            "headers": self.headers,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8080),
        }
        scope |= self.extra
        return {key: value for key, value in scope.items() if value is not None}

    def has(self, name: bytes) -> bool:
        return any(key == name for key, _ in self.headers)


extras = st.fixed_dictionaries(
    {},
    optional={
        "root_path": st.sampled_from(("/ml", "/v1", "ml", "/", "/v1/models")) | st.text(max_size=4),
        "app_root_path": st.text(max_size=3),
        "raw_path": st.none(),
        "http_version": st.sampled_from(("1.0", "2", "3", "")),
        "query_string": st.binary(max_size=5),
        "client": st.none(),
        "asgi": st.none(),
    },
)
messages = st.builds(Message, methods, paths, headers, bodies, extras)


# --- what comes back ----------------------------------------------------------------------------


class Complaints(logging.Handler):
    """What the package has logged as an error: unexpected exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def complaints() -> Iterator[Complaints]:
    handler = Complaints()
    logger = logging.getLogger("modelserve")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


async def ask(app: ModelServer, message: Message, *, hang_up: bool = False) -> Response | None:
    """Send a request; return the answer, None for one that was cut. Nothing may be raised."""
    client = Exchange(app, message.scope, timeout=10)
    if hang_up:
        client.send_body(b"".join(message.body), more=True)
    else:
        *parts, last = message.body or [b""]
        for part in parts:
            client.send_body(part, more=True)
        client.send_body(last)
    response = None
    async with anyio.create_task_group() as group:
        group.start_soon(client.run)
        if hang_up:
            await anyio.lowlevel.checkpoint()
            client.hang_up()
        else:
            try:
                response = await client.response()
            except Cut:
                pass
        await client.ended()
    assert client.error is None or isinstance(client.error, ResponseCut), client.error
    assert response is not None or hang_up or message.has(b"x-request-timeout-seconds")
    return response


def look_at(message: Message, response: Response) -> None:
    status, body = response.status, response.body
    assert status == 200 or 400 <= status <= 599, status
    assert status != 500, body
    assert response.headers["x-request-id"].isprintable()
    if message.method == "HEAD":
        assert body == b""
        return
    content_type = response.headers["content-type"]
    if "content-length" in response.headers:
        assert int(response.headers["content-length"]) == len(body)
    if status >= 400:
        assert content_type == "application/json"
        error = json.loads(body)
        assert list(error) == ["error"] and isinstance(error["error"], str) and error["error"]
    elif content_type == "application/json":
        json.loads(body)
    elif content_type == "text/event-stream":
        assert interpret(body).rest == ""
    elif content_type == "application/x-ndjson":
        assert body.endswith(b"\n") or not body
        for line in body.splitlines():
            json.loads(line)
    if status == 405:
        assert response.headers["allow"]
    if status == 503:
        assert "Traceback" not in body.decode()


def check(runner: asyncio.Runner, complaints: Complaints, message: Message) -> Response | None:
    complaints.records.clear()
    response = runner.run(ask(make_app(), message))
    if response is not None:
        look_at(message, response)
    assert not complaints.records, [r.getMessage() for r in complaints.records]
    return response


# --- the tests ----------------------------------------------------------------------------------


@quick
@given(message=messages)
def test_anything(runner: asyncio.Runner, complaints: Complaints, message: Message) -> None:
    check(runner, complaints, message)


@quick
@given(path=known_paths, headers=headers, body=bodies)
def test_any_body_to_every_route(
    runner: asyncio.Runner,
    complaints: Complaints,
    path: bytes,
    headers: list[tuple[bytes, bytes]],
    body: list[bytes],
) -> None:
    check(runner, complaints, Message("POST", path, headers, body, {}))


@quick
@given(
    body=infer_documents, tail=st.binary(max_size=16), accept=st.sampled_from(SENSIBLE[b"accept"])
)
def test_any_tensors(
    runner: asyncio.Runner, complaints: Complaints, body: Any, tail: bytes, accept: bytes
) -> None:
    head = json.dumps(body).encode()
    length = (b"inference-header-content-length", b"%d" % len(head))
    headers = [(b"accept", accept), *([length] if tail else [])]
    for verb in (b"infer", b"infer_stream"):
        path = b"/v2/models/tensors/" + verb
        check(runner, complaints, Message("POST", path, headers, [head + tail], {}))


@quick
@given(body=v1_documents | json_values, accept=st.sampled_from(SENSIBLE[b"accept"]))
@example(body=[], accept=b"*/*")
@example(body="\r\n\r\ndata: x", accept=b"text/event-stream")
def test_any_payload_through_every_form(
    runner: asyncio.Runner, complaints: Complaints, body: Any, accept: bytes
) -> None:
    for model in (b"echo", b"words", b"documents"):
        path = b"/v1/models/%b:predict" % model
        data = json.dumps(body).encode()
        check(runner, complaints, Message("POST", path, [(b"accept", accept)], [data], {}))


@quick
@given(message=messages)
def test_a_client_that_disconnects_in_mid_request(
    runner: asyncio.Runner, complaints: Complaints, message: Message
) -> None:
    complaints.records.clear()
    runner.run(ask(make_app(), message, hang_up=True))
    assert not complaints.records


@quick
@given(method=methods, path=known_paths)
def test_head_and_get_agree(
    runner: asyncio.Runner, complaints: Complaints, method: str, path: bytes
) -> None:
    got = check(runner, complaints, Message("GET", path, [], [], {}))
    head = check(runner, complaints, Message("HEAD", path, [], [], {}))
    assert got is not None and head is not None
    assert got.status == head.status
    assert got.headers["content-type"] == head.headers["content-type"]
    other = check(runner, complaints, Message(method, path, [], [], {}))
    assert other is not None
    if got.status == 405 and method not in ("GET", "HEAD"):
        allowed = got.headers["allow"].split(", ")
        assert (other.status == 405) == (method not in allowed)
