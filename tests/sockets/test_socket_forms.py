"""The forms of a stream: which one `Accept` asks for, and how items are written in each."""

import json
from typing import Any

import pytest
from rawclient import Answer, Connection, Cut, post, read_events, request
from realserver import Server, Start, hosts, until

STREAM = "/v1/models/async-generator:predict"
TYPED = "/v1/models/typed:predict"
ORIGINS = ["async-generator", "sync-generator", "sync-iterator", "replaced"]

RAW, NDJSON, SSE, JSON = "raw", "application/x-ndjson", "text/event-stream", "application/json"
REFUSED = "refused"


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start("httptools", "streams")


def ask(server: Server, key: str, items: list[Any], *, accept: str = "*/*", **more: Any) -> Answer:
    plan = {"key": key, "items": items, **more}
    return post(server.port, STREAM, plan, accept=accept)


def media_type(answer: Answer) -> str:
    return answer.headers["content-type"].partition(";")[0]


# Accept: highest q, then specificity, then the client's order; q=0 excludes.

ACCEPTS = [
    # accept, the form of texts, the form of objects
    ("*/*", RAW, NDJSON),
    ("*/*;q=0.1", RAW, NDJSON),
    ("text/event-stream", SSE, SSE),
    ("TEXT/Event-Stream", SSE, SSE),
    ("text/event-stream; charset=utf-8", SSE, SSE),
    ("text/event-stream;charset=utf-8;q=0.5, application/json;q=0.4", SSE, SSE),
    ("  text/event-stream  ;  q=1  ", SSE, SSE),
    ("application/x-ndjson", NDJSON, NDJSON),
    ("application/x-ndjson;q=0.5, text/event-stream;q=0.4", NDJSON, NDJSON),
    ("text/event-stream;q=0.4, application/x-ndjson;q=0.5", NDJSON, NDJSON),
    ("application/x-ndjson;q=0.001, text/event-stream;q=0.002", SSE, SSE),
    ("application/x-ndjson, text/event-stream", NDJSON, NDJSON),
    ("text/event-stream, application/x-ndjson", SSE, SSE),
    ("text/event-stream, application/json", SSE, SSE),
    ("text/event-stream, */*", SSE, SSE),
    ("*/*, text/event-stream", SSE, SSE),
    ("text/event-stream;q=0.5, */*", RAW, NDJSON),
    ("text/event-stream;q=0, */*", RAW, NDJSON),
    ("text/event-stream;Q=0, */*", RAW, NDJSON),
    ("text/event-stream;q=0.000, */*", RAW, NDJSON),
    ("application/json", JSON, JSON),
    ("application/json;profile=x", JSON, JSON),
    ("application/json, text/plain, */*", JSON, JSON),  # axios
    ("application/json, */*", JSON, JSON),
    ("*/*, application/json", JSON, JSON),
    ("application/json, */*;q=0.5", JSON, JSON),
    ("application/json;q=0.9, */*;q=0.8", JSON, JSON),
    ("application/json;q=0.8, */*;q=0.9", RAW, NDJSON),
    ("application/json, text/event-stream", JSON, JSON),
    ("application/json;q=1.000, text/event-stream;q=0.999", JSON, JSON),
    ("application/json;q=0, */*", RAW, NDJSON),
    ("application/*, application/json", JSON, JSON),
    ("text/*, text/event-stream", SSE, SSE),
    ("text/html, text/event-stream;q=0.1", SSE, SSE),
    ("text/html, */*;q=0.1", RAW, NDJSON),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", RAW, NDJSON),  # a browser
    ("text/html", REFUSED, REFUSED),
    ("image/png, text/html;q=0.9", REFUSED, REFUSED),
    ("application/xml", REFUSED, REFUSED),
    ("image/*", REFUSED, REFUSED),
    ("*/*;q=0", REFUSED, REFUSED),
    ("text/event-stream;q=0", REFUSED, REFUSED),
    ("application/json;q=0, text/html", REFUSED, REFUSED),
]

BODIES = {
    (RAW, 0): b"ab",
    (NDJSON, 0): b'"a"\n"b"\n',
    (NDJSON, 1): b'{"n":0}\n{"n":1}\n',
    (SSE, 0): b"data: a\n\ndata: b\n\n",
    (SSE, 1): b'data: {"n":0}\n\ndata: {"n":1}\n\n',
    (JSON, 0): b'{"predictions":["a","b"]}',
    (JSON, 1): b'{"predictions":[{"n":0},{"n":1}]}',
}
ITEMS: list[list[Any]] = [["a", "b"], [{"n": 0}, {"n": 1}]]


def assert_form(answer: Answer, form: str, kind: int) -> None:
    if form == REFUSED:
        assert answer.status == 406
        assert answer.headers["content-type"] == "application/json"
        assert list(answer.json) == ["error"]
        assert all(name in answer.json["error"] for name in (SSE, NDJSON, JSON))
        return
    assert (answer.status, answer.body) == (200, BODIES[form, kind])
    assert media_type(answer) == ("text/plain" if form == RAW else form)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(("accept", "of_texts", "of_objects"), ACCEPTS)
def test_accept(
    server: Server, key: str, origin: str, accept: str, of_texts: str, of_objects: str
) -> None:
    for kind, form in enumerate((of_texts, of_objects)):
        plan = {"key": f"{key}-{kind}", "items": ITEMS[kind]}
        answer = post(server.port, f"/v1/models/{origin}:predict", plan, accept=accept)
        assert_form(answer, form, kind)


@pytest.mark.parametrize(("kind", "form"), [(0, RAW), (1, NDJSON)])
def test_no_accept(server: Server, key: str, kind: int, form: str) -> None:
    assert_form(post(server.port, STREAM, {"key": key, "items": ITEMS[kind]}), form, kind)


def test_accept_in_several_lines(server: Server, key: str) -> None:
    body = json.dumps({"key": key, "items": ["a"]}).encode()
    lines = b"accept: text/html\r\naccept: text/event-stream;q=0.2, application/x-ndjson;q=0.1\r\n"
    with Connection(server.port) as client:
        client.send(request("POST", STREAM, body).replace(b"host:", lines + b"host:", 1))
        assert media_type(client.answer()) == SSE


def test_jsonl_is_ndjson(server: Server, key: str) -> None:
    answer = ask(server, key, [{"n": 0}, "b"], accept="application/jsonl")
    assert (answer.status, answer.body) == (200, b'{"n":0}\n"b"\n')
    assert media_type(answer) in ("application/jsonl", NDJSON)


@pytest.mark.parametrize("accept", ["text/*", "text/*;q=0.5, image/png"])
@pytest.mark.parametrize(("kind", "forms"), [(0, {RAW, SSE}), (1, {SSE})])
def test_accept_any_text(server: Server, key: str, accept: str, kind: int, forms: set[str]) -> None:
    answer = ask(server, key, ITEMS[kind], accept=accept)
    form = RAW if media_type(answer) == "text/plain" else SSE
    assert form in forms
    assert_form(answer, form, kind)


@pytest.mark.parametrize("kind", [0, 1])
def test_accept_any_application_type(server: Server, key: str, kind: int) -> None:
    answer = ask(server, key, ITEMS[kind], accept="application/*")
    if kind == 0 and media_type(answer) == "application/octet-stream":
        assert answer.body == b"ab"
    else:
        assert_form(answer, media_type(answer), kind)
        assert media_type(answer) in (NDJSON, JSON)


RAW_ITEMS: list[Any] = ["a", {"$bytes": "ff"}, "b"]


@pytest.mark.parametrize("accept", ["text/plain", "application/octet-stream"])
@pytest.mark.parametrize("first", [0, 1], ids=["text", "bytes"])
def test_accept_raw(server: Server, key: str, accept: str, first: int) -> None:
    answer = ask(server, key, RAW_ITEMS[first:], accept=accept)
    assert (answer.status, answer.body) == (200, b"a\xffb"[first:])
    assert media_type(answer) in ("text/plain", "application/octet-stream")


@pytest.mark.parametrize("accept", ["text/plain", "application/octet-stream"])
@pytest.mark.parametrize("first", [0, 1], ids=["text", "bytes"])
def test_accept_raw_is_answered_with_the_type_asked_for(
    server: Server, key: str, accept: str, first: int
) -> None:
    assert media_type(ask(server, key, RAW_ITEMS[first:], accept=accept)) == accept


@pytest.mark.parametrize("accept", ["text/plain", "application/octet-stream"])
def test_accept_raw_for_objects_is_an_error(server: Server, key: str, accept: str) -> None:
    answer = ask(server, key, [{"n": 0}], accept=accept)
    assert (answer.status in (406, 500), list(answer.json)) == (True, ["error"])
    server.ledger.wait(key, "end")


ODD_ACCEPTS = [
    "", ",", ";", ",,,", "q=1", "*", "/", "text", "text/", "/plain", "*/plain", "text/event-stream;q=",
    "text/event-stream;q=x", "text/event-stream;q=2", "text/event-stream;q=-1", "*/*;q=nan",
    "*/*;q=inf", "*/*;q=1e9", "*/*;q", "*/*;;", 'text/plain;x="a,b", text/event-stream',
    'text/event-stream;x="', "text/event-stream" * 500, ",".join(["a/b"] * 3000), "\xff/\xfe",
    "text/event-stream;q=0.5;q=0", "application/json;q=\u0661".encode().decode("latin-1"),
]  # fmt: skip


@pytest.mark.parametrize("accept", ODD_ACCEPTS)
def test_odd_accept_is_answered(server: Server, key: str, accept: str) -> None:
    answer = ask(server, key, [{"n": 0}], accept=accept)
    assert answer.status in (200, 406)
    assert until(lambda: not server.ledger.running(), seconds=20)


# 406 comes before the hook runs where registration knows that it streams, else the iterator closes.


@pytest.mark.parametrize(
    "model", ["async-generator", "sync-generator", "function", "partial-async", "postprocessed"]
)
def test_refusal_before_the_hook_runs(server: Server, key: str, model: str) -> None:
    url = f"/v1/models/{model}:predict"
    assert post(server.port, url, {"key": key}, accept="text/html").status == 406
    assert server.ledger.of(key) == []


@pytest.mark.parametrize("model", ["async-iterator", "sync-iterator", "awaited-iterator"])
def test_refusal_closes_the_iterator(server: Server, key: str, model: str) -> None:
    url = f"/v1/models/{model}:predict"
    assert post(server.port, url, {"key": key}, accept="text/html").status == 406
    server.ledger.wait(key, "closed")
    assert until(lambda: not server.ledger.running(), seconds=20)


@pytest.mark.parametrize("accept", ["text/html", "text/event-stream", "image/png;q=0", "x"])
def test_values_and_errors_ignore_accept(server: Server, key: str, accept: str) -> None:
    unary = post(server.port, "/v1/models/unary:predict", {"key": key}, accept=accept)
    unknown = post(server.port, "/v1/models/zz:predict", {"key": key}, accept=accept)
    assert (unary.status, unary.body) == (200, b'{"predictions":[1]}')
    assert unknown.status == 404
    assert {unary.headers["content-type"], unknown.headers["content-type"]} == {JSON}


# SSE: one space, lines split on CR, LF and CRLF, nothing else.

TEXTS = [
    ("", "data: \n\n"),
    ("a", "data: a\n\n"),
    (" a", "data:  a\n\n"),
    ("a\nb", "data: a\ndata: b\n\n"),
    ("a\rb", "data: a\ndata: b\n\n"),
    ("a\r\nb", "data: a\ndata: b\n\n"),
    ("a\n\rb", "data: a\ndata: \ndata: b\n\n"),
    ("a\r\n\r\nb", "data: a\ndata: \ndata: b\n\n"),
    ("a\n\nevent: evil", "data: a\ndata: \ndata: event: evil\n\n"),
    ("a\n", "data: a\ndata: \n\n"),
    ("\n", "data: \ndata: \n\n"),
    ("\r\n", "data: \ndata: \n\n"),
    ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g", "data: a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n\n"),
    ("\x00\ufeffü€😀", "data: \x00\ufeffü€😀\n\n"),
    (":comment", "data: :comment\n\n"),
]


@pytest.mark.parametrize(("text", "event"), TEXTS)
def test_text_as_an_event(server: Server, key: str, text: str, event: str) -> None:
    answer = ask(server, key, [text, {"$bytes": text.encode().hex()}], accept=SSE)
    assert answer.body.decode() == event * 2


@pytest.mark.parametrize(
    ("item", "data"),
    [
        ({"a": "x\ny", "b": None}, '{"a":"x\\ny","b":null}'),
        ([1, 2], "[1,2]"),
        (5, "5"),
        (True, "true"),
        ({"$none": 0}, "null"),
        ({"$nan": "nan"}, "null"),
        ({"a": "ü"}, '{"a":"ü"}'),
        ({"$numpy": [[1, 2], [3, 4]]}, "[[1,2],[3,4]]"),
        ({"$numpy": 1.5}, "1.5"),
    ],
)
def test_objects_in_every_form(server: Server, key: str, item: Any, data: str) -> None:
    bodies = [
        ask(server, key, [item], accept=accept).body.decode() for accept in (SSE, NDJSON, JSON)
    ]
    assert bodies == [f"data: {data}\n\n", f"{data}\n", f'{{"predictions":[{data}]}}']


SENT_EVENTS = [
    ({"data": "x"}, {"data": "x"}),
    ({"data": "x\ny", "event": "e"}, {"event": "e", "data": "x\ny"}),
    ({"data": {"a": 1}, "id": "7"}, {"id": "7", "data": '{"a":1}'}),
    ({"data": [1], "retry": 1500}, {"retry": "1500", "data": "[1]"}),
    ({"data": "", "event": "e", "id": "1", "retry": 0},
     {"event": "e", "id": "1", "retry": "0", "data": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "event"), SENT_EVENTS)
def test_server_sent_event(server: Server, key: str, fields: Any, event: Any) -> None:
    answer = ask(server, key, [{"$sse": fields}, "next"], accept=SSE)
    assert read_events(answer.body) == [event, {"data": "next"}]


@pytest.mark.parametrize("field", ["event", "id"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n"])
def test_server_sent_event_cannot_be_forged(server: Server, key: str, field: str, end: str) -> None:
    item = {"$sse": {"data": "x", field: f"1{end}data: forged"}}
    answer = ask(server, key, ["a", item, "b"], accept=SSE)
    events = read_events(answer.body)
    assert events[0] == {"data": "a"}
    assert not any("forged" in event.get("data", "") for event in events)


def test_server_sent_event_elsewhere_gives_its_data(server: Server, key: str) -> None:
    items = [{"$sse": {"data": {"a": 1}, "event": "e"}}, {"$sse": {"data": "x", "id": "1"}}]
    texts = items[1:] * 2
    assert ask(server, key, items, accept=NDJSON).body == b'{"a":1}\n"x"\n'
    assert ask(server, key, items, accept=JSON).body == b'{"predictions":[{"a":1},"x"]}'
    assert ask(server, key, texts, accept="text/plain").body == b"xx"
    assert ask(server, key, items).body == b'{"a":1}\n"x"\n'
    assert ask(server, key, texts).body == b"xx"


def test_no_end_event(server: Server, key: str) -> None:
    assert ask(server, key, [], accept=SSE).body == b""


# Under */* the first item fixes the form.


@pytest.mark.parametrize(
    ("items", "content_type", "body"),
    [
        (["a", {"$bytes": "ff00"}, "ü"], "text/plain; charset=utf-8", b"a\xff\x00\xc3\xbc"),
        ([{"$bytes": "ff"}, "a"], "application/octet-stream", b"\xffa"),
        (["a", "", {"$bytes": ""}, "b"], "text/plain; charset=utf-8", b"ab"),
        (["", "b"], "text/plain; charset=utf-8", b"b"),
        ([{"n": 1}, "a\nb", {"$bytes": "c3bc"}, 5], NDJSON, '{"n":1}\n"a\\nb"\n"ü"\n5\n'.encode()),
        ([5, "a"], NDJSON, b'5\n"a"\n'),
        ([None, "a"], NDJSON, b'null\n"a"\n'),
    ],
)
def test_first_item_fixes_the_form(
    server: Server, key: str, items: list[Any], content_type: str, body: bytes
) -> None:
    answer = ask(server, key, items)
    assert (answer.headers["content-type"], answer.body) == (content_type, body)


@pytest.mark.parametrize("accept", ["*/*", SSE, NDJSON, "text/plain"])
def test_empty_stream(server: Server, key: str, accept: str) -> None:
    answer = ask(server, key, [], accept=accept)
    assert (answer.status, answer.body) == (200, b"")
    server.ledger.wait(key, "end")


# An item that its form cannot carry is an item error.

BAD_BYTES = {"$bytes": "80"}
NOT_JSON = {"$object": 0}


@pytest.mark.parametrize("item", [BAD_BYTES, NOT_JSON])
@pytest.mark.parametrize("accept", [SSE, NDJSON, JSON])
def test_bad_first_item_has_an_honest_status(
    server: Server, key: str, item: Any, accept: str
) -> None:
    answer = ask(server, key, [item, "b"], accept=accept, gap=0.01)
    assert (answer.status, media_type(answer), list(answer.json)) == (500, JSON, ["error"])
    assert b"object at" not in answer.body
    server.ledger.wait(key, "end")


@pytest.mark.parametrize("item", [BAD_BYTES, NOT_JSON])
def test_bad_item_in_sse_leaves_a_record(server: Server, key: str, item: Any) -> None:
    first, last = read_events(ask(server, key, ["a", item, "b"], accept=SSE, gap=0.01).body)
    assert (first, last["event"], list(json.loads(last["data"]))) == (
        {"data": "a"}, "error", ["error"],
    )  # fmt: skip
    server.ledger.wait(key, "end")


@pytest.mark.parametrize("item", [BAD_BYTES, NOT_JSON])
@pytest.mark.parametrize("accept", [NDJSON, "*/*"])
def test_bad_item_in_ndjson_leaves_a_record(
    server: Server, key: str, item: Any, accept: str
) -> None:
    lines = ask(server, key, [{"n": 0}, item, "b"], accept=accept, gap=0.01).body.splitlines()
    assert (lines[0], [*json.loads(lines[1])]) == (b'{"n":0}', ["error"])
    assert len(lines) == 2
    server.ledger.wait(key, "end")


@pytest.mark.parametrize("item", [{"n": 0}, 5, None, NOT_JSON])
@pytest.mark.parametrize("accept", ["*/*", "text/plain"])
def test_bad_item_in_raw_cuts(server: Server, key: str, item: Any, accept: str) -> None:
    with pytest.raises(Cut):
        ask(server, key, ["a", item, "b"], accept=accept, gap=0.01)
    server.ledger.wait(key, "end")


@pytest.mark.parametrize("item", [BAD_BYTES, NOT_JSON])
def test_bad_item_while_collecting_has_an_honest_status(
    server: Server, key: str, item: Any
) -> None:
    answer = ask(server, key, ["a", "b", item], accept=JSON)
    assert (answer.status, list(answer.json)) == (500, ["error"])


# Records carry what an ordinary answer would say, and no more.


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("InvalidInput", "bad item"),
        ("InferenceError", "broke down"),
        ("NotImplementedError", "Internal Server Error"),
        ("HTTPException", "too often"),
        ("ValueError", "Internal Server Error"),
        ("KeyError", "Internal Server Error"),
        ("RuntimeError", "Internal Server Error"),
        ("TimeoutError", "Internal Server Error"),
        ("ExceptionGroup", "Internal Server Error"),
    ],
)
def test_record_text(server: Server, key: str, error: str, text: str) -> None:
    plan = {"fail_at": 1, "error": error}
    sse = ask(server, key, ["a", "b"], accept=SSE, **plan).body
    lines = ask(server, key, ["a", "b"], accept=NDJSON, **plan).body
    record = json.dumps({"error": text}, separators=(",", ":")).encode()
    assert sse == b"data: a\n\nevent: error\ndata: " + record + b"\n\n"
    assert lines == b'"a"\n' + record + b"\n"
    assert b"secret" not in sse + lines


# Collected JSON.


@pytest.mark.parametrize("url", [STREAM, "/v1/models/explaining:explain"])
@pytest.mark.parametrize("items", [[], ["a"], [{"n": 1}, "a", 5, None, [1]]])
def test_collected(server: Server, key: str, url: str, items: list[Any]) -> None:
    answer = post(server.port, url, {"key": key, "items": items}, accept=JSON)
    assert answer.headers["content-type"] == "application/json"
    assert "transfer-encoding" not in answer.headers
    assert answer.body == json.dumps({"predictions": items}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        ("InvalidInput", 400, "bad item"),
        ("NotImplementedError", 500, "Internal Server Error"),
        ("HTTPException", 429, "too often"),
        ("ValueError", 500, "Internal Server Error"),
    ],
)
@pytest.mark.parametrize("origin", ORIGINS)
def test_failure_while_collecting(
    server: Server, key: str, origin: str, error: str, status: int, text: str
) -> None:
    plan = {"key": key, "count": 9, "fail_at": 3, "error": error}
    answer = post(server.port, f"/v1/models/{origin}:predict", plan, accept=JSON)
    assert (answer.status, answer.json) == (status, {"error": text})
    server.ledger.wait(key, "end")


def test_collecting_is_capped(server: Server, key: str) -> None:
    answer = post(server.port, STREAM, {"key": key, "count": 99, "size": 1 << 20}, accept=JSON)
    assert (answer.status, list(answer.json)) == (500, ["error"])
    server.ledger.wait(key, "end")
    assert 60 <= server.ledger.count(key, "item") <= 66


def test_collecting_below_the_cap(server: Server, key: str) -> None:
    answer = post(server.port, STREAM, {"key": key, "count": 60, "size": 1 << 20}, accept=JSON)
    assert (answer.status, len(answer.body) // (1 << 20)) == (200, 60)


# A model's own content type beats Accept; a failure cuts, except under its own SSE or NDJSON type.


def ask_typed(server: Server, key: str, content_type: str, items: list[Any], **more: Any) -> Answer:
    plan = {"key": key, "headers": {"Content-Type": content_type}, "items": items}
    accept = more.pop("accept", "*/*")
    return post(server.port, TYPED, {**plan, **more}, accept=accept)


@pytest.mark.parametrize("accept", ["*/*", SSE, NDJSON, JSON, "text/plain"])
def test_own_content_type(server: Server, key: str, accept: str) -> None:
    answer = ask_typed(
        server, key, "text/csv; header=absent", ["a,b\n", {"$bytes": "ff"}], accept=accept
    )
    assert (answer.status, answer.body) == (200, b"a,b\n\xff")
    assert answer.headers["content-type"] == "text/csv; header=absent"
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("items", [["a", "b"], ["a", {"n": 1}]])
def test_failure_under_its_own_type_cuts(server: Server, key: str, items: list[Any]) -> None:
    with pytest.raises(Cut):
        ask_typed(server, key, "text/csv", items, fail_at=2, gap=0.01)
    server.ledger.wait(key, "end")


def test_bad_first_item_under_its_own_type(server: Server, key: str) -> None:
    answer = ask_typed(server, key, "text/csv", [{"n": 1}])
    assert (answer.status, media_type(answer)) == (500, JSON)


@pytest.mark.parametrize("content_type", [SSE, "text/event-stream; charset=utf-8"])
@pytest.mark.parametrize("items", [["data: x\n\n", "y"], ["data: x\n\n", {"n": 1}]])
def test_failure_under_its_own_sse_type(
    server: Server, key: str, content_type: str, items: list[Any]
) -> None:
    answer = ask_typed(server, key, content_type, items[:1], fail_at=1)
    record = b'event: error\ndata: {"error":"bad item"}\n\n'
    assert (answer.status, answer.body) == (200, b"data: x\n\n" + record)


@pytest.mark.parametrize("content_type", [NDJSON, "Application/X-NDJSON; charset=utf-8"])
def test_failure_under_its_own_ndjson_type(server: Server, key: str, content_type: str) -> None:
    answer = ask_typed(server, key, content_type, ['{"x": 1}\n'], fail_at=1)
    assert answer.headers["content-type"] == content_type
    assert answer.body == b'{"x": 1}\n{"error":"bad item"}\n'


def test_bad_item_under_its_own_sse_type(server: Server, key: str) -> None:
    answer = ask_typed(server, key, SSE, ["data: x\n\n", {"n": 1}, "data: y\n\n"])
    assert answer.body.startswith(b"data: x\n\nevent: error\ndata: {")
    assert b"data: y" not in answer.body


# response_headers: framing headers are dropped, CR and LF are an error.


@pytest.mark.parametrize("accept", ["*/*", SSE, NDJSON, JSON])
def test_response_headers_of_a_stream(server: Server, key: str, accept: str) -> None:
    headers = {
        "X-Mine": "1",
        "Content-Length": "1",
        "transfer-encoding": "identity",
        "CONNECTION": "close",
    }
    plan = {"key": key, "headers": headers, "items": ["a", "b"]}
    with Connection(server.port) as client:
        client.ask("POST", TYPED, json.dumps(plan).encode(), accept=accept)
        answer = client.answer()
        assert (answer.status, answer.headers["x-mine"]) == (200, "1")
        assert "connection" not in answer.headers
        assert answer.headers.get("transfer-encoding", "chunked") == "chunked"
        client.ask("GET", "/")
        assert client.answer().body == b'{"status":"alive"}'


BAD_HEADERS = [
    {"x-mine": "a\r\nx-forged: 1"}, {"x-mine": "a\nx-forged: 1"}, {"x-mine": "a\rx-forged: 1"},
    {"x-mine": "\n"}, {"x-mine": "a\r\n"}, {"content-type": "text/csv\r\nx-forged: 1"},
    {"x-mine\r\nx-forged": "1"}, {"x-mine: 1\nx-forged": "1"},
]  # fmt: skip


@hosts("httptools", "h11", "hypercorn", "trio")
@pytest.mark.parametrize("headers", BAD_HEADERS)
def test_line_ends_in_headers_are_an_error(
    start: Start, key: str, host: str, headers: dict[str, str]
) -> None:
    server = start(host, "streams")
    answer = post(server.port, TYPED, {"key": key, "headers": headers, "items": ["a", "b"]})
    assert (answer.status, media_type(answer), list(answer.json)) == (500, JSON, ["error"])
    assert "x-forged" not in answer.headers
    server.ledger.wait(key, "end")


ODD_HEADERS = [
    {"x-mine": "a\x00b"}, {"x-mine": "→"}, {"x-mine": "é"}, {"x mine": "1"}, {"": "1"},
    {"x-mine": 5}, {"x-mine": None}, {"x-mine:": "1"}, {"ü": "1"}, {"x-mine": " a "},
    {"x-mine": "a\t"}, {"x-mine": "a\tb"}, {"x-mine": ""}, {"x-mine": "\x01"}, {"x-mine": "\x7f"},
]  # fmt: skip


@hosts("httptools", "h11", "hypercorn", "trio")
@pytest.mark.parametrize("headers", ODD_HEADERS)
def test_odd_headers_are_sent_or_an_error(
    start: Start, key: str, host: str, headers: dict[str, Any]
) -> None:
    server = start(host, "streams")
    answer = post(server.port, TYPED, {"key": key, "headers": headers, "items": ["a", "b"]})
    assert answer.status in (200, 500)
    assert answer.body == b"ab" or list(answer.json) == ["error"]
    assert until(lambda: not server.ledger.running(), seconds=20)


# Every stream tells proxies not to buffer it.


@pytest.mark.parametrize("accept", ["*/*", SSE, NDJSON, "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_proxies_do_not_buffer(server: Server, key: str, accept: str, origin: str) -> None:
    plan = {"key": key, "items": ["a"]}
    answer = post(server.port, f"/v1/models/{origin}:predict", plan, accept=accept)
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
