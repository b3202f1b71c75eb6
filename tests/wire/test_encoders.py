"""Items to bytes by each encoder."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from modelserve.wire.encoders import (
    COLLECTED,
    NDJSON,
    OCTETS,
    SSE,
    TEXT,
    Encoder,
    ServerSentEvent,
    encode_documents,
    json_item,
    ndjson_item,
    raw_item,
    sse_item,
)


@dataclasses.dataclass
class Point:
    x: int


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
def test_an_item_in_each_format(
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
    assert NDJSON.failure is not None and SSE.failure is not None
    assert json.loads(NDJSON.failure(400, sentence)) == {"error": sentence}
    assert NDJSON.failure(400, sentence).count(b"\n") == 1
    (event,) = read_events(SSE.failure(400, sentence))
    assert event["event"] == "error"
    assert json.loads(event["data"]) == {"error": sentence}


def test_only_raw_streams_have_no_record() -> None:
    assert [encoder.failure is None for encoder in (SSE, NDJSON, TEXT, OCTETS)] == [
        False,
        False,
        1,
        1,
    ]
    assert list(read_events((SSE.idle or b"") + sse_item("a"))) == [{"": ""}, {"data": "a"}]
    assert NDJSON.idle == b"\n"


@pytest.mark.parametrize("items", [[], [1], [1, "a", None, {"b": []}]])
def test_collected_items_are_one_document(items: list[Any]) -> None:
    assert COLLECTED.join is not None
    document = COLLECTED.join([COLLECTED.encode(item) for item in items])
    assert json.loads(document) == {"predictions": items}


@pytest.mark.parametrize(
    ("item", "written"),
    [
        (1, b'data: {"n":1}\n\n'),
        (ServerSentEvent(1), b'data: {"n":1}\n\n'),
        (
            ServerSentEvent(1, event="e", id="7", retry=9),
            b'event: e\nid: 7\nretry: 9\ndata: {"n":1}\n\n',
        ),
    ],
)
def test_items_as_documents(item: Any, written: bytes) -> None:
    assert encode_documents(sse_item, lambda item: {"n": item})(item) == written


def test_encoders_are_values() -> None:
    assert Encoder("a/b", raw_item) == Encoder("a/b", raw_item)
    with pytest.raises(dataclasses.FrozenInstanceError):
        NDJSON.media_type = "x"  # type: ignore[misc]
