"""Items to bytes in each form, and the choice of a form from `Accept`."""

import dataclasses
import datetime
import enum
import json
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from modelserve.errors import NestedTooDeep
from modelserve.wire.encoders import (
    COLLECTED,
    NDJSON,
    OCTETS,
    SSE,
    TEXT,
    Encoder,
    ServerSentEvent,
    choose_encoder,
    join_predictions,
    json_item,
    ndjson_failure,
    ndjson_item,
    own_encoder,
    parse_accept,
    raw_item,
    sse_event_item,
    sse_failure,
    sse_item,
    to_json,
)


@dataclasses.dataclass
class Point:
    x: int


class Pair(NamedTuple):
    a: int
    b: int


class Color(enum.Enum):
    RED = "red"


class Tensor:
    """A tensor of a library that orjson does not know."""

    def tolist(self) -> list[float]:
        return [1.0, 2.0]


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# --- JSON ---------------------------------------------------------------------------------------

JSON_VALUES: list[tuple[Any, bytes]] = [
    (None, b"null"),
    (True, b"true"),
    (0, b"0"),
    (-1.5, b"-1.5"),
    (float("nan"), b"null"),
    (float("inf"), b"null"),
    ("ä\n", '"ä\\n"'.encode()),
    ([], b"[]"),
    ({}, b"{}"),
    ((1, "a"), b'[1,"a"]'),
    ({"a": {"b": [1]}}, b'{"a":{"b":[1]}}'),
    ({1: 2}, b'{"1":2}'),
    ({None: 1, True: 2}, b'{"null":1,"true":2}'),
    (Point(1), b'{"x":1}'),
    ({"p": Point(1)}, b'{"p":{"x":1}}'),
    (Color.RED, b'"red"'),
    (datetime.date(2026, 1, 2), b'"2026-01-02"'),
    (datetime.datetime(2026, 1, 2, 3, 4, 5), b'"2026-01-02T03:04:05"'),
    (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
    (np.float32(1.5), b"1.5"),
    (np.int64(7), b"7"),
    (np.bool_(True), b"true"),
    (np.array([[1, 2], [3, 4]]), b"[[1,2],[3,4]]"),
    (np.array([[1, 2], [3, 4]]).T, b"[[1,3],[2,4]]"),
    (np.array([1.0, np.nan]), b"[1.0,null]"),
    (np.array(["a", "b"]), b'["a","b"]'),
    (np.array([]), b"[]"),
    (np.str_("a"), b'"a"'),
    (Tensor(), b"[1.0,2.0]"),
    ({"t": [Tensor()]}, b'{"t":[[1.0,2.0]]}'),
    # beyond 64 bits the standard library writes, and has to know the same
    (1 << 64, b"18446744073709551616"),
    ({"n": -(1 << 70), 1: Point(2)}, b'{"n":-1180591620717411303424,"1":{"x":2}}'),
    ([Point(1 << 70)], b'[{"x":1180591620717411303424}]'),
    ([1 << 70, np.array([1.0, np.nan])], b"[1180591620717411303424,[1.0,null]]"),
    ([1 << 70, np.float32("nan")], b"[1180591620717411303424,null]"),
    ([1 << 64, datetime.date(2026, 1, 2)], b'[18446744073709551616,"2026-01-02"]'),
    ([1 << 64, (math.nan, {"a": math.inf})], b'[18446744073709551616,[null,{"a":null}]]'),
    ([1 << 64, np.array([1, 2])], b"[18446744073709551616,[1,2]]"),
]


@pytest.mark.parametrize(("value", "written"), JSON_VALUES)
def test_json_is_compact_and_takes_what_models_return(value: Any, written: bytes) -> None:
    assert to_json(value) == written


@pytest.mark.parametrize(
    "value", [object(), {"a": object()}, b"x", {1, 2}, 1j, "\ud800", Pair, {(1,): 2}]
)
def test_json_refuses_what_it_cannot_hold(value: Any) -> None:
    with pytest.raises(TypeError):
        to_json(value)


@pytest.mark.parametrize("levels", [1, 253, 254, 255, 400, 800])
def test_json_is_written_deeper_than_orjson_writes(levels: int) -> None:
    assert json.loads(to_json(nested(levels))) == nested(levels)


@pytest.mark.parametrize("factor", [1, 10])
def test_json_too_deep_is_told(factor: int, too_deep: int) -> None:
    with pytest.raises(NestedTooDeep):
        to_json(nested(too_deep * factor))


def test_json_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises((TypeError, ValueError, NestedTooDeep)):
        to_json(value)


@pytest.mark.parametrize("tail", [{1: "a"}, Tensor(), "ä"])
def test_deep_json_keeps_its_meaning(tail: Any) -> None:
    flat = json.loads(to_json([tail]))
    value = json.loads(to_json([nested(300), tail]))
    assert value[1:] == flat


# --- items --------------------------------------------------------------------------------------

ITEMS: list[tuple[Any, bytes | None, bytes | None, bytes | None]] = [
    # item, raw, JSON (a line of NDJSON, an element of the collected), SSE; None is refused
    ("", b"", b'""', b"data: \n\n"),
    ("a", b"a", b'"a"', b"data: a\n\n"),
    ("ä", "ä".encode(), '"ä"'.encode(), "data: ä\n\n".encode()),
    ("a\nb", b"a\nb", b'"a\\nb"', b"data: a\ndata: b\n\n"),
    ("a\r\nb", b"a\r\nb", b'"a\\r\\nb"', b"data: a\ndata: b\n\n"),
    ("a\rb", b"a\rb", b'"a\\rb"', b"data: a\ndata: b\n\n"),
    ("\n", b"\n", b'"\\n"', b"data: \ndata: \n\n"),
    ("a\n\nid: 1", b"a\n\nid: 1", b'"a\\n\\nid: 1"', b"data: a\ndata: \ndata: id: 1\n\n"),
    ("a\u2028b", "a\u2028b".encode(), '"a\u2028b"'.encode(), "data: a\u2028b\n\n".encode()),
    (b"a", b"a", b'"a"', b"data: a\n\n"),
    (b"a\r\nb", b"a\r\nb", b'"a\\r\\nb"', b"data: a\ndata: b\n\n"),
    (b"\xff", b"\xff", None, None),
    (bytearray(b"a"), b"a", b'"a"', b"data: a\n\n"),
    (memoryview(b"a"), b"a", b'"a"', b"data: a\n\n"),
    (memoryview(b"abcd")[::2], b"ac", b'"ac"', b"data: ac\n\n"),
    (np.str_("a"), b"a", b'"a"', b"data: a\n\n"),
    (1, None, b"1", b"data: 1\n\n"),
    (None, None, b"null", b"data: null\n\n"),
    ([1], None, b"[1]", b"data: [1]\n\n"),
    ({"a": "\n"}, None, b'{"a":"\\n"}', b'data: {"a":"\\n"}\n\n'),
    (Point(1), None, b'{"x":1}', b'data: {"x":1}\n\n'),
    (object(), None, None, None),
    ("\ud800", None, None, None),
    (ServerSentEvent("a"), b"a", b'"a"', b"data: a\n\n"),
    (ServerSentEvent("a\nb"), b"a\nb", b'"a\\nb"', b"data: a\ndata: b\n\n"),
    (ServerSentEvent(b"a"), b"a", b'"a"', b"data: a\n\n"),
    (ServerSentEvent({"a": 1}), None, b'{"a":1}', b'data: {"a":1}\n\n'),
    (ServerSentEvent("a", event="e"), b"a", b'"a"', b"event: e\ndata: a\n\n"),
    (ServerSentEvent("a", id="7"), b"a", b'"a"', b"id: 7\ndata: a\n\n"),
    (ServerSentEvent("a", id=""), b"a", b'"a"', b"id: \ndata: a\n\n"),
    (ServerSentEvent("", retry=0), b"", b'""', b"retry: 0\ndata: \n\n"),
    (
        ServerSentEvent(1, event="e", id="7", retry=9),
        None,
        b"1",
        b"event: e\nid: 7\nretry: 9\ndata: 1\n\n",
    ),
    (ServerSentEvent(event="ping"), b"", b"null", b"event: ping\n\n"),
]


def written(encode: Callable[[Any], bytes], item: Any) -> bytes | None:
    try:
        return encode(item)
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize(("item", "raw", "as_json", "sse"), ITEMS)
def test_an_item_in_each_form(
    item: Any, raw: bytes | None, as_json: bytes | None, sse: bytes | None
) -> None:
    assert written(raw_item, item) == raw
    assert written(json_item, item) == as_json
    assert written(ndjson_item, item) == (None if as_json is None else as_json + b"\n")
    assert written(sse_item, item) == sse


@pytest.mark.parametrize("item", [item for item, *_ in ITEMS])
def test_a_line_of_ndjson_is_one_line(item: Any) -> None:
    line = written(ndjson_item, item)
    assert line is None or (line.count(b"\n") == 1 and line.endswith(b"\n") and b"\r" not in line)


@pytest.mark.parametrize(("item", "raw"), [(item, raw) for item, raw, *_ in ITEMS])
def test_raw_is_bytes_and_nothing_else(item: Any, raw: bytes | None) -> None:
    """daphne refuses a memoryview or a bytearray."""
    assert raw is None or type(raw_item(item)) is bytes


def test_bytes_are_copied_when_they_are_encoded() -> None:
    item = bytearray(b"a")
    chunk = raw_item(item)
    item[0] = 0
    assert chunk == b"a"


def read_events(stream: bytes) -> Iterator[dict[str, str]]:
    """Read an event stream as browsers do (WHATWG HTML, 9.2.6)."""
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    for block in text.split("\n\n")[:-1]:
        event: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name == "data" in event else value
        yield event


@pytest.mark.parametrize(
    "text", ["a", "", " a", "a\nb", "\n\n", ": a", "data: a", "a\n\nevent: x", "ä\t", "a\n"]
)
@pytest.mark.parametrize("event", [None, "e"])
def test_an_event_is_read_back(text: str, event: str | None) -> None:
    stream = sse_item(ServerSentEvent(text, event=event)) + sse_item("next")
    first, second = read_events(stream)
    assert first["data"] == text
    assert first.get("event") == event
    assert second == {"data": "next"}


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "a\nb"},
        {"event": "a\r"},
        {"id": "a\nb"},
        {"id": "a\0"},
        {"retry": -1},
        {"retry": 1.5},
        {"retry": "1"},
    ],
)
def test_an_event_with_impossible_fields_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        ServerSentEvent("a", **fields)


def test_an_event_shows_itself() -> None:
    event = ServerSentEvent("a", event="e", id="7", retry=9)
    assert repr(event) == "ServerSentEvent('a', event='e', id='7', retry=9)"


@pytest.mark.parametrize("sentence", ["no", 'a "b"\n\nc', "ä", ""])
def test_a_failure_is_a_record(sentence: str) -> None:
    assert json.loads(ndjson_failure(sentence)) == {"error": sentence}
    assert ndjson_failure(sentence).count(b"\n") == 1
    (event,) = read_events(sse_failure(sentence))
    assert event["event"] == "error"
    assert json.loads(event["data"]) == {"error": sentence}


def test_only_raw_forms_have_no_record() -> None:
    assert [form.failure is None for form in (SSE, NDJSON, TEXT, OCTETS)] == [False, False, 1, 1]
    assert list(read_events((SSE.idle or b"") + sse_item("a"))) == [{"": ""}, {"data": "a"}]
    assert NDJSON.idle == b"\n"


@pytest.mark.parametrize("items", [[], [1], [1, "a", None, {"b": []}]])
def test_collected_items_are_one_document(items: list[Any]) -> None:
    assert json.loads(join_predictions([json_item(item) for item in items])) == {
        "predictions": items
    }


# --- the choice ---------------------------------------------------------------------------------

TEXTS, BYTES, OTHER = "a", b"a", {"n": 1}
AXIOS = "application/json, text/plain, */*"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

CHOICES: list[tuple[str | None, Any, str | None]] = [
    (None, OTHER, "application/x-ndjson"),
    (None, TEXTS, "text/plain; charset=utf-8"),
    (None, BYTES, "application/octet-stream"),
    (None, bytearray(b"a"), "application/octet-stream"),
    (None, memoryview(b"a"), "application/octet-stream"),
    (None, None, "application/x-ndjson"),
    (None, ServerSentEvent("a"), "text/plain; charset=utf-8"),
    (None, ServerSentEvent({"n": 1}), "application/x-ndjson"),
    ("", OTHER, "application/x-ndjson"),
    ("*/*", OTHER, "application/x-ndjson"),
    ("*/*", TEXTS, "text/plain; charset=utf-8"),
    ("*", TEXTS, "text/plain; charset=utf-8"),
    ("*/*;q=0.1", BYTES, "application/octet-stream"),
    (BROWSER, TEXTS, "text/plain; charset=utf-8"),
    ("text/event-stream", OTHER, "text/event-stream"),
    ("text/event-stream", TEXTS, "text/event-stream"),
    ("text/event-stream", BYTES, "text/event-stream"),
    ("TEXT/Event-Stream", OTHER, "text/event-stream"),
    ("text/event-stream; charset=utf-8", OTHER, "text/event-stream"),
    ("application/x-ndjson", OTHER, "application/x-ndjson"),
    ("application/x-ndjson", TEXTS, "application/x-ndjson"),
    ("application/jsonl", OTHER, "application/jsonl"),
    ("application/ndjson", TEXTS, "application/ndjson"),
    ("application/json", OTHER, "application/json"),
    ("application/json", TEXTS, "application/json"),
    ("application/json, */*;q=0.5", OTHER, "application/json"),
    ("application/json;q=0.5, */*", TEXTS, "text/plain; charset=utf-8"),
    (AXIOS, OTHER, "application/json"),
    (AXIOS, TEXTS, "application/json"),
    ("text/plain", TEXTS, "text/plain; charset=utf-8"),
    ("text/plain", BYTES, "text/plain; charset=utf-8"),  # the name that is acceptable
    ("text/plain", OTHER, None),
    ("application/octet-stream", BYTES, "application/octet-stream"),
    ("application/octet-stream", TEXTS, "application/octet-stream"),
    ("application/octet-stream", OTHER, None),
    ("text/*", OTHER, "text/event-stream"),
    ("text/*", TEXTS, "text/plain; charset=utf-8"),
    ("application/*", OTHER, "application/x-ndjson"),
    ("application/*", BYTES, "application/octet-stream"),
    # the highest quality, then what is more specific, then the client's order
    ("text/event-stream;q=0.5, application/x-ndjson", OTHER, "application/x-ndjson"),
    ("text/event-stream, application/x-ndjson", OTHER, "text/event-stream"),
    ("application/x-ndjson, text/event-stream", OTHER, "application/x-ndjson"),
    ("*/*, text/event-stream", OTHER, "text/event-stream"),
    ("text/*, application/json", OTHER, "application/json"),
    ("text/plain, text/event-stream;q=0.1", OTHER, "text/event-stream"),
    ("text/event-stream;q=0.9;x=y, */*;q=0.8", OTHER, "text/event-stream"),
    ("text/event-stream ; q = 0.1 , application/json", OTHER, "application/json"),
    # q=0 excludes
    ("text/event-stream;q=0", OTHER, None),
    ("text/event-stream;q=0, */*", OTHER, "application/x-ndjson"),
    ("application/x-ndjson;q=0, */*", OTHER, "text/event-stream"),
    ("application/x-ndjson;q=0, text/event-stream;q=0, */*", OTHER, "application/json"),
    ("text/plain;q=0, */*", TEXTS, "application/x-ndjson"),
    ("text/*;q=0, */*", TEXTS, "application/x-ndjson"),
    ("text/*;q=0, text/event-stream", TEXTS, "text/event-stream"),
    ("*/*;q=0", TEXTS, None),
    ("*/*;q=0, application/json", TEXTS, "application/json"),
    # nothing
    ("image/png", OTHER, None),
    ("image/*", BYTES, None),
    ("text/html", TEXTS, None),
    # garbage is skipped
    ("garbage", OTHER, "application/x-ndjson"),
    (",,;;", OTHER, "application/x-ndjson"),
    ("*/json", OTHER, "application/x-ndjson"),
    ("garbage, text/event-stream", OTHER, "text/event-stream"),
    ("text/event-stream;q=x", OTHER, "text/event-stream"),
    ("text/event-stream;q=2, application/json", OTHER, "text/event-stream"),
    ("text/event-stream;q=-1, application/json", OTHER, "application/json"),
]


@pytest.mark.parametrize(("accept", "first", "media_type"), CHOICES)
def test_the_choice_of_a_form(accept: str | None, first: Any, media_type: str | None) -> None:
    encoder = choose_encoder(accept, first)
    assert (encoder and encoder.media_type) == media_type
    if media_type is not None:
        assert choose_encoder(accept, None, empty=True) is not None


@pytest.mark.parametrize(("accept", "first"), [(accept, first) for accept, first, _ in CHOICES])
def test_a_form_that_is_chosen_takes_the_first_item(accept: str | None, first: Any) -> None:
    encoder = choose_encoder(accept, first)
    assert encoder is None or isinstance(encoder.encode(first), bytes)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "application/x-ndjson"),
        ("*/*", "application/x-ndjson"),
        ("text/event-stream", "text/event-stream"),
        ("application/jsonl", "application/jsonl"),
        ("application/json", "application/json"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("application/octet-stream", "application/octet-stream"),
        ("image/png", None),
    ],
)
def test_a_stream_without_items_has_any_form(accept: str | None, media_type: str | None) -> None:
    encoder = choose_encoder(accept, None, empty=True)
    assert (encoder and encoder.media_type) == media_type


@pytest.mark.parametrize(
    ("accept", "any_stream"),
    [
        (None, True),
        ("", True),
        ("image/png", False),
        ("image/png, */*;q=0", False),
        ("text/plain", True),
        ("application/octet-stream", True),
        ("*/*;q=0.001", True),
    ],
)
def test_whether_any_stream_could_be_sent(accept: str | None, any_stream: bool) -> None:
    assert (choose_encoder(accept, None, empty=True) is not None) is any_stream


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("", []),
        ("a/b", [("a/b", 1.0)]),
        ("a/b;q=0.5, c/d", [("c/d", 1.0), ("a/b", 0.5)]),
        ("*/*, a/*, a/b", [("a/b", 1.0), ("a/*", 1.0), ("*/*", 1.0)]),
        ("a/b;level=1;q=0.3", [("a/b", 0.3)]),
        ("a/b;Q=0.3", [("a/b", 0.3)]),
        ("a/, /b, a, */b, a/b/c", [("a/b/c", 1.0)]),
    ],
)
def test_ranges_are_read_in_the_order_of_preference(header: str, ranges: list[Any]) -> None:
    assert [tuple(r) for r in parse_accept(header)] == ranges


def test_a_quality_that_is_not_a_number_does_not_win() -> None:
    one, other = "text/event-stream;q=nan", "application/json"
    for accept in (f"{one}, {other}", f"{other}, {one}"):
        assert [r.quality == r.quality for r in parse_accept(accept)] == [True, True]


@pytest.mark.parametrize("length", [10, 256, 257, 60_000])
def test_a_header_of_any_length_is_read(length: int) -> None:
    header = "text/event-stream," + "x" * (length - 18)
    encoder = choose_encoder(header, OTHER)
    assert encoder is not None and encoder.media_type == "text/event-stream"


# --- a content type of the model's own ----------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "failure", "item", "sent"),
    [
        ("audio/wav", None, b"a", b"a"),
        ("text/csv; charset=utf-8", None, "ä", "ä".encode()),
        ("text/event-stream", sse_failure, "data: a\n\n", b"data: a\n\n"),
        ("Text/Event-Stream; charset=utf-8", sse_failure, b"a", b"a"),
        ("text/event-stream", sse_failure, ServerSentEvent("a", id="1"), b"id: 1\ndata: a\n\n"),
        ("application/x-ndjson", ndjson_failure, "1\n", b"1\n"),
        ("application/jsonl", ndjson_failure, b"1\n", b"1\n"),
    ],
)
def test_items_pass_as_they_are_under_an_own_type(
    content_type: str, failure: Any, item: Any, sent: bytes
) -> None:
    encoder = own_encoder(content_type)
    assert encoder.media_type == content_type
    assert encoder.failure is failure
    assert encoder.encode(item) == sent
    with pytest.raises(TypeError):
        encoder.encode({"n": 1})


def test_an_event_is_framed_under_an_own_type_only_if_it_is_one() -> None:
    assert sse_event_item(ServerSentEvent("a")) == b"data: a\n\n"
    assert sse_event_item("a") == b"a"


def test_encoders_are_values() -> None:
    assert Encoder("a/b", raw_item) == Encoder("a/b", raw_item)
    with pytest.raises(dataclasses.FrozenInstanceError):
        NDJSON.media_type = "x"  # type: ignore[misc]
    assert COLLECTED.join is join_predictions
