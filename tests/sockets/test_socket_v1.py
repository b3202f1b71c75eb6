"""Routes, values and errors of V1 and of the health endpoints, byte for byte."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import realserver
from rawclient import Answer, Connection, get, post, request
from realserver import Server, Start, until

JSON = "application/json"


SLOW_HOSTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("h11", "hypercorn")]


@pytest.fixture(scope="module", params=["httptools", "trio", *SLOW_HOSTS])
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    return start(request.param, "v1")


@pytest.fixture(scope="module", params=["httptools", "trio"])
def broken(request: pytest.FixtureRequest, start: Start) -> Server:
    return start(request.param, "broken")


def assert_json(answer: Answer, status: int, body: bytes) -> None:
    assert (answer.status, answer.headers["content-type"], answer.body) == (status, JSON, body)
    assert answer.headers["content-length"] == str(len(body))


def assert_error(answer: Answer, status: int, text: str) -> None:
    assert (answer.status, answer.headers["content-type"]) == (status, JSON)
    assert answer.json == {"error": text}
    assert answer.body.startswith(b'{"error":"'), "compact"


# Routes.

NAMES = [
    "echo", "plain", "headers", "explaining", "with space", "ünï", "per%cent", "a/b", "plus+",
    "%3A", "dot.v1", "-", "predict", "values", "async-values", "errors", "async-errors", "logged",
    "empty-handed",
]  # fmt: skip

GETS = [
    ("/", b'{"status":"alive"}'),
    ("/v1/models/plain", b'{"name":"plain","ready":true}'),
    ("/v2/health/live", b'{"live":true}'),
    ("/v2/health/ready", b'{"ready":true}'),
]


@pytest.mark.parametrize(("path", "body"), GETS)
@pytest.mark.parametrize("query", ["", "?a=1", "?", "?x=%zz&y=/v1"])
def test_get(server: Server, path: str, body: bytes, query: str) -> None:
    assert_json(get(server.port, path + query), 200, body)


def test_models_in_the_order_of_registration(server: Server) -> None:
    answer = get(server.port, "/v1/models")
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert answer.json == {"models": NAMES}
    assert answer.body.startswith(b'{"models":["echo","plain",')


@pytest.mark.parametrize("path", [*(path for path, _ in GETS), "/v1/models", "/v1/models/zz", "/x"])
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    with Connection(server.port) as client:
        client.ask("GET", path)
        whole = client.answer()
        client.ask("HEAD", path)
        head = client.answer(bodiless=True)
        client.ask("GET", path)
        assert client.answer().body == whole.body, "the connection has unread bytes"
    assert head.status == whole.status
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", {"GET", "HEAD"}),
        ("/v1/models", {"GET", "HEAD"}),
        ("/v1/models/plain", {"GET", "HEAD"}),
        ("/v2/health/live", {"GET", "HEAD"}),
        ("/v2/health/ready", {"GET", "HEAD"}),
        ("/v1/models/plain:predict", {"POST"}),
        ("/v1/models/explaining:explain", {"POST"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_method(server: Server, path: str, allowed: set[str], method: str) -> None:
    if method in allowed:
        return
    answer = get(server.port, path, method=method)
    assert answer.status == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed
    assert answer.headers["content-type"] == JSON
    assert method == "HEAD" or list(answer.json) == ["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/x", "/v1", "/v1/", "/v1/models/", "/v1/models/plain/", "/v1/models/plain:predict/",
        "/v2/health/live/", "/v2/health/ready/", "/v2/health", "//", "//v1/models", "/v1//models",
        "/v1/model", "/V1/models", "/v1/models/plain/x", "/v1/models/plain/predict",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_path(server: Server, path: str, method: str) -> None:
    answer = get(server.port, path, method=method)
    assert (answer.status, answer.headers["content-type"]) == (404, JSON)
    assert (list(answer.json), type(answer.json["error"])) == (["error"], str)


UNKNOWN = "Model with name zz does not exist."


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize("body", [b"{}", b"not json", b'{"instances":5}', b""])
def test_unknown_model_comes_before_its_body(server: Server, verb: str, body: bytes) -> None:
    answer = post(server.port, f"/v1/models/zz:{verb}", body=body)
    assert_error(answer, 404, UNKNOWN)


def test_unknown_model(server: Server) -> None:
    assert_error(get(server.port, "/v1/models/zz"), 404, UNKNOWN)


@pytest.mark.parametrize("verb", ["x", "", "Predict", "predict:explain", "predict%20"])
def test_unknown_verb(server: Server, verb: str) -> None:
    answer = post(server.port, f"/v1/models/plain:{verb}", {})
    assert (answer.status, list(answer.json)) == (404, ["error"])


# Model names are percent-decoded; %3Apredict is :predict.


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("plain", "plain"),
        ("pl%61in", "plain"),
        ("with%20space", "with space"),
        ("%C3%BCn%C3%AF", "ünï"),
        ("%c3%bcn%c3%af", "ünï"),
        ("per%25cent", "per%cent"),
        ("a%2Fb", "a/b"),
        ("plus+", "plus+"),
        ("plus%2B", "plus+"),
        ("%253A", "%3A"),
        ("dot%2Ev1", "dot.v1"),
        ("-", "-"),
        ("predict", "predict"),
    ],
)
def test_names_are_percent_decoded(server: Server, segment: str, name: str) -> None:
    assert get(server.port, f"/v1/models/{segment}").json == {"name": name, "ready": True}
    for colon in (":", "%3A", "%3a"):
        answer = post(server.port, f"/v1/models/{segment}{colon}predict", "predicted")
        assert answer.body in (b"predicted", b'"predicted"')


@pytest.mark.parametrize(
    "segment", ["with+space", "a%252Fb", "%25zz", "plain%00", "Plain", "pl%20ain"]
)
def test_names_are_decoded_once(server: Server, segment: str) -> None:
    answer = get(server.port, f"/v1/models/{segment}")
    assert (answer.status, list(answer.json)) == (404, ["error"])
    assert answer.json["error"].endswith(" does not exist.")


@pytest.mark.parametrize("segment", ["%zz", "%", "%f", "%ff", "%c3", "%ed%a0%80", "a%", "%%33"])
def test_broken_percent_encoding_is_not_found(server: Server, segment: str) -> None:
    answer = get(server.port, f"/v1/models/{segment}")
    assert answer.status in (400, 404)
    if answer.headers["content-type"] == JSON:
        assert list(answer.json) == ["error"]


# Not ready: listed, 503, and the others are served.


@pytest.mark.slow
def test_broken_models(broken: Server) -> None:
    port = broken.port
    assert_json(get(port, "/"), 200, b'{"status":"alive"}')
    assert_json(get(port, "/v2/health/live"), 200, b'{"live":true}')
    assert get(port, "/v1/models").json == {"models": ["refusing", "good", "raising", "waiting"]}
    ready = get(port, "/v2/health/ready")
    assert (ready.status, ready.headers["content-type"], list(ready.json)) == (503, JSON, ["error"])
    assert_json(get(port, "/v1/models/good"), 200, b'{"name":"good","ready":true}')
    answer = post(port, "/v1/models/good:predict", {"instances": [1]})
    assert_json(answer, 200, b'{"predictions":[1]}')


@pytest.mark.parametrize("name", ["refusing", "raising", "waiting"])
def test_model_that_is_not_ready(broken: Server, name: str) -> None:
    url = f"/v1/models/{name}"
    answers = [
        get(broken.port, url),
        *(post(broken.port, f"{url}:predict", body=body) for body in (b"{}", b"not json", b"")),
        post(broken.port, f"{url}:explain", {"instances": 5}),
    ]
    for answer in answers:
        assert (answer.status, answer.headers["content-type"]) == (503, JSON)
        assert list(answer.json) == ["error"]
        assert answer.json["error"].startswith(f"Model with name {name} is not ready.")
    assert broken.ledger.of("waiting") == []


def test_model_that_refuses_to_load_has_kserves_text(broken: Server) -> None:
    assert_error(
        get(broken.port, "/v1/models/refusing"), 503, "Model with name refusing is not ready."
    )


def test_alive_while_loading(tmp_path: Any) -> None:
    server = realserver.start("httptools", "loading", tmp_path, readiness=503)
    try:
        assert get(server.port, "/").status == 200
        assert get(server.port, "/v1/models/slow").status == 503
        assert post(server.port, "/v1/models/slow:predict", {}).status == 503
        assert until(lambda: server.readiness() == 200, seconds=10)
        assert get(server.port, "/v1/models/slow").status == 200
        assert post(server.port, "/v1/models/slow:predict", {}).body == b"{}"
    finally:
        server.stop()


# Request bodies, by media type.

JSON_TYPES = [
    None, "application/json", "application/json; charset=utf-8", "Application/JSON", "application/json;",
    "application/vnd.api+json", "application/ld+json; profile=x", "application/octet-stream",
    "application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8",
]  # fmt: skip
OTHER_TYPES = [
    "image/png", "text/plain", "text/plain; charset=utf-8", "audio/wav", "avro/binary",
    "application/avro", "application/xml", "multipart/mixed; boundary=x", "text/json",
    "application/jsonish",
]  # fmt: skip


def send(server: Server, path: str, body: bytes, content_type: str | None) -> Answer:
    headers = {"content_type": content_type} if content_type else {}
    return post(server.port, path, body=body, **headers)


@pytest.mark.parametrize("content_type", JSON_TYPES)
@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], "text", 5, 1.5, None, True, {}, []])
def test_any_json_value(server: Server, content_type: str | None, value: Any) -> None:
    body = json.dumps(value).encode()
    answer = send(server, "/v1/models/echo:predict", body, content_type)
    assert (answer.status, answer.json) == (200, {"echo": value})


@pytest.mark.parametrize("content_type", OTHER_TYPES)
@pytest.mark.parametrize("body", [b"\x89PNG\r\n\x00\xff", b'{"instances":5}', b""])
def test_other_types_are_raw_bytes(server: Server, content_type: str, body: bytes) -> None:
    answer = send(server, "/v1/models/echo:predict", body, content_type)
    assert (answer.status, answer.body.decode()) == (200, repr(body))


BAD_JSON = [
    b"", b" ", b"{", b"not json", b'{"a":1}x', b"{'a':1}", b'{"a":}', b"[1,]", b"\xff\xfe", b"01",
    b"NaN", b"[NaN]", b'{"x":Infinity}', b"[-Infinity]", b'{"instances":[[NaN]]}', b'"\\ud800"',
    '{"a":1}'.encode("utf-16"), b'"\n"', b"\x00", b'{"a":1}\x00', b"+1", b".5", b"nul", b"//x\n1",
    b"a=1&b=2", b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("content_type", ["application/json", "application/a+json"])
@pytest.mark.parametrize("body", BAD_JSON, ids=range(len(BAD_JSON)))
def test_not_json(server: Server, content_type: str, body: bytes) -> None:
    assert_not_json(send(server, "/v1/models/echo:predict", body, content_type))


@pytest.mark.parametrize("content_type", [None, "application/octet-stream"])
@pytest.mark.parametrize("body", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bytes_of_no_type_that_are_not_json(
    server: Server, content_type: str | None, body: bytes
) -> None:
    answer = send(server, "/v1/models/echo:predict", body, content_type)
    if body[:1] in (b"{", b"[") or (content_type, body) == (None, b""):
        assert_not_json(answer)
    else:
        assert (answer.status, answer.body.decode()) == (200, repr(body))


def assert_not_json(answer: Answer) -> None:
    assert (answer.status, answer.headers["content-type"]) == (400, JSON)
    prefix = "Unrecognized request format: "
    assert answer.json["error"].startswith(prefix)
    assert len(answer.json["error"]) > len(prefix)


@pytest.mark.parametrize("instances", [5, "x", None, {}, {"a": [1]}, True, 1.5])
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_instances_must_be_a_list(server: Server, instances: Any, verb: str) -> None:
    answer = post(server.port, f"/v1/models/explaining:{verb}", {"instances": instances})
    assert_error(answer, 400, 'Expected "instances" to be a list')


@pytest.mark.parametrize("inputs", [5, "x", None, {"a": [1]}, [1]])
def test_inputs_may_be_anything(server: Server, inputs: Any) -> None:
    answer = post(server.port, "/v1/models/plain:predict", {"inputs": inputs})
    assert (answer.status, answer.json) == (200, {"inputs": inputs})


def test_instances_are_validated_after_preprocess(server: Server) -> None:
    """The model wraps what comes, so that the dict with "instances" is no longer at the top."""
    answer = post(server.port, "/v1/models/echo:predict", {"instances": 5})
    assert (answer.status, answer.json) == (200, {"echo": {"instances": 5}})


# Values.

TEXT, BYTES = "text/plain; charset=utf-8", "application/octet-stream"
VALUES = [
    ("dict", JSON, '{"a":1,"b":[true,null,"ü"]}'.encode()),
    ("list", JSON, b"[1,2]"),
    ("tuple", JSON, b"[1,2]"),
    ("int", JSON, b"5"),
    ("float", JSON, b"1.5"),
    ("bool", JSON, b"false"),
    ("none", JSON, b"null"),
    ("nan", JSON, b'{"x":null,"y":null,"z":null}'),
    ("array", JSON, b"[[1,2],[3,4]]"),
    ("array of floats", JSON, b'{"p":[0.5,null]}'),
    ("array of half floats", JSON, b"[0.5,1.0]"),
    ("array of booleans", JSON, b"[true,false]"),
    ("array of texts", JSON, b'["a","b"]'),
    ("array, transposed", JSON, b"[[1,3],[2,4]]"),
    ("array, every second", JSON, b"[0,2,4]"),
    ("array, big-endian", JSON, b"[1,2]"),
    ("array, empty", JSON, b"[]"),
    ("array, of no dimension", JSON, b"5"),
    ("numpy float", JSON, b"[1.5,2.5]"),
    ("numpy int", JSON, b'{"n":7,"u":8}'),
    ("numpy bool", JSON, b"true"),
    ("datetime", JSON, b'"2020-01-02T03:04:05"'),
    ("date", JSON, b'["2020-01-02"]'),
    ("dataclass", JSON, b'{"x":1,"y":2.5}'),
    ("keys", JSON, b'{"7":"a","2.5":"b","null":"c","true":"d"}'),
    ("text", TEXT, "hé\nllo".encode()),
    ("empty text", TEXT, b""),
    ("bytes", BYTES, b"\x00\xff"),
    ("empty bytes", BYTES, b""),
    ("nested 300", JSON, b"[" * 300 + b"1" + b"]" * 300),
]


@pytest.mark.parametrize("model", ["values", "async-values"])
@pytest.mark.parametrize(("name", "content_type", "body"), VALUES)
def test_value(server: Server, model: str, name: str, content_type: str, body: bytes) -> None:
    answer = post(server.port, f"/v1/models/{model}:predict", name)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, content_type, body)
    assert answer.headers["content-length"] == str(len(body))


UNUSABLE = ["object", "set", "bytes inside", "surrogate", "surrogate text", "circular"]


@pytest.mark.parametrize("model", ["values", "async-values"])
@pytest.mark.parametrize("name", [*UNUSABLE, "nested 100000"])
def test_value_that_is_not_json(server: Server, model: str, name: str) -> None:
    answer = post(server.port, f"/v1/models/{model}:predict", name)
    assert (answer.status, answer.headers["content-type"], list(answer.json)) == (
        500,
        JSON,
        ["error"],
    )
    assert b"secret" not in answer.body and b"object at" not in answer.body


def test_huge_integer(server: Server) -> None:
    """An int is JSON; orjson refuses more than 64 bits, so either is honest."""
    answer = post(server.port, "/v1/models/values:predict", "huge")
    assert (answer.status, answer.body) == (200, b'{"n":1180591620717411303424}') or (
        answer.status,
        list(answer.json),
    ) == (500, ["error"])


@pytest.mark.parametrize("depth", [200, 254, 255, 300, 500, 900])
def test_nested_request_and_reply(server: Server, depth: int) -> None:
    body = b"[" * depth + b"]" * depth
    answer = post(server.port, "/v1/models/plain:predict", body=body)
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("depth", [1000, 1022, 1024, 1025, 1100])
def test_nested_too_deep_is_the_fault_of_the_request(server: Server, depth: int) -> None:
    body = b"[" * depth + b"]" * depth
    answer = post(server.port, "/v1/models/plain:predict", body=body)
    assert (answer.status, answer.body) == (200, body) or (
        answer.status,
        list(answer.json),
    ) == (400, ["error"])


# Errors.

INTERNAL = "Internal Server Error"
ERRORS = [
    ("InvalidInput", 400, "x must be positive"),
    ("InferenceError", 500, "x"),
    ("UnsupportedProtocol", 501, "Unsupported protocol v9."),
    ("ModelNotFound", 404, UNKNOWN),
    ("ModelNotReady", 503, "Model with name zz is not ready. Wait."),
    ("HTTPException", 418, "teapot"),
    ("HTTPException 404", 404, "Not Found"),
    ("HTTPException 503", 503, "later"),
    *((name, 500, INTERNAL) for name in (
        "ValueError", "KeyError", "ZeroDivisionError", "OSError", "ConnectionResetError",
        "TimeoutError", "AssertionError", "NotImplementedError", "RecursionError", "MemoryError", "StopIteration",
        "StopAsyncIteration", "GeneratorExit", "CancelledError", "ExceptionGroup",
    )),
]  # fmt: skip


@pytest.mark.parametrize("model", ["errors", "async-errors"])
@pytest.mark.parametrize(("name", "status", "text"), ERRORS)
def test_error(server: Server, model: str, name: str, status: int, text: str) -> None:
    with Connection(server.port) as client:
        url = f"/v1/models/{model}:predict"
        client.ask("POST", url, json.dumps(name).encode(), x_request_id="mine")
        answer = client.answer()
        assert_error(answer, status, text)
        assert "secret" not in answer.body.decode() + str(answer.headers)
        assert answer.headers.get("connection", "keep-alive") == "keep-alive"
        client.ask("GET", "/")
        assert client.answer().status == 200, "the connection was kept"


@pytest.fixture(scope="module", params=["httptools", pytest.param("trio", marks=pytest.mark.slow)])
def doomed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A separate server, since an exception that gets through would end it for other tests."""
    server = realserver.start(request.param, "v1", tmp_path_factory.mktemp("doomed"))
    yield server
    server.stop()


@pytest.mark.parametrize("model", ["errors", "async-errors"])
@pytest.mark.parametrize("name", ["BaseExceptionGroup", "SystemExit", "KeyboardInterrupt"])
def test_exception_that_would_end_a_program(doomed: Server, model: str, name: str) -> None:
    answer = post(doomed.port, f"/v1/models/{model}:predict", name)
    assert_error(answer, 500, INTERNAL)
    assert get(doomed.port, "/").status == 200


def test_explain_that_is_missing(server: Server) -> None:
    answer = post(server.port, "/v1/models/plain:explain", {})
    assert (answer.status, list(answer.json)) == (501, ["error"])


def test_explain_never_reflects_request_headers(server: Server) -> None:
    secrets = {"authorization": "Bearer s3cret", "cookie": "s3cret", "x_other": "s3cret"}
    answer = post(server.port, "/v1/models/explaining:explain", [1], **secrets)
    assert_json(answer, 200, b'{"explained":[1]}')
    assert "s3cret" not in str(answer.headers)
    assert not {"authorization", "cookie", "x-other"} & set(answer.headers)


def test_traceback_is_logged_once_with_the_request_id(server: Server, key: str) -> None:
    text = f"secret of {key}."
    answer = post(server.port, "/v1/models/logged:predict", text, x_request_id=f"id-of-{key}")
    assert_error(answer, 500, INTERNAL)
    assert until(lambda: text in server.log, seconds=20)
    assert server.log.count(f"ValueError: {text}") == 1
    before = server.log[: server.log.index(f"ValueError: {text}")]
    assert f"id-of-{key}" in before[before.rindex("Traceback") - 300 :]


@pytest.mark.parametrize("model", ["errors", "async-errors"])
@pytest.mark.slow
def test_errors_with_debugging_on(start: Start, model: str) -> None:
    port = start("httptools", "debugging").port
    answer = post(port, f"/v1/models/{model}:predict", "ValueError")
    assert_error(answer, 500, "ValueError : secret-value")


# response_headers.


@pytest.mark.parametrize("as_bytes", [True, False])
def test_response_headers(server: Server, as_bytes: bool) -> None:
    headers = {
        "X-Mine": "1",
        "content-length": "1",
        "Transfer-Encoding": "chunked",
        "connection": "close",
    }
    with Connection(server.port) as client:
        body = json.dumps({"headers": headers, "bytes": as_bytes}).encode()
        client.ask("POST", "/v1/models/headers:predict", body)
        answer = client.answer()
        assert (answer.status, answer.headers["x-mine"]) == (200, "1")
        assert answer.body == (b"body" if as_bytes else b'{"a":1}')
        assert not {"transfer-encoding", "connection"} & set(answer.headers)
        client.ask("GET", "/")
        assert client.answer().status == 200


@pytest.mark.parametrize("name", ["content-type", "Content-Type"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_own_content_type_of_a_value(server: Server, name: str, as_bytes: bool) -> None:
    plan = {"headers": {name: "application/x-mine"}, "bytes": as_bytes}
    answer = post(server.port, "/v1/models/headers:predict", plan)
    assert answer.headers["content-type"] == "application/x-mine"


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_line_ends_in_headers_are_an_error(server: Server, key: str, end: str) -> None:
    plan = {"key": key, "headers": {"x-mine": f"a{end}x-forged: 1"}}
    answer = post(server.port, "/v1/models/headers:predict", plan)
    assert (answer.status, list(answer.json)) == (500, ["error"])
    assert "x-forged" not in answer.headers


# HTTP.


def test_requests_over_one_connection(server: Server) -> None:
    with Connection(server.port) as client:
        for n in range(50):
            client.ask("POST", "/v1/models/plain:predict", json.dumps({"n": n}).encode())
            assert client.answer().json == {"n": n}


def test_chunked_request(server: Server) -> None:
    with Connection(server.port) as client:
        head = b"POST /v1/models/plain:predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        client.send(head)
        for piece in (b'{"a"', b": [1, 2", b"]}"):
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert client.answer().json == {"a": [1, 2]}


def test_big_body(server: Server) -> None:
    value = {"a": "x" * 5_000_000}
    assert post(server.port, "/v1/models/plain:predict", value).json == value


def test_get_with_a_body(server: Server) -> None:
    with Connection(server.port) as client:
        client.send(request("GET", "/", b"body"))
        assert client.answer().body == b'{"status":"alive"}'
        client.ask("GET", "/v2/health/live")
        assert client.answer().body == b'{"live":true}'
