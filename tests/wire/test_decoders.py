"""Reading the items of a stream from bytes that come in pieces."""

from typing import Any

import pytest

from modelserve import ServerSentEvent
from modelserve.wire.decoders import ChunkReader, EventReader, Failure, LineReader, TextReader

S = ServerSentEvent
STREAMS: list[tuple[Any, bytes, list[Any]]] = [
    (LineReader, b"", []),
    (LineReader, b'{"a":1}\n\n 2 \r\n"x"\nnull\n', [{"a": 1}, 2, "x", None]),
    (LineReader, b'{"error":"x","n":1}\n{"error":5}', [{"error": "x", "n": 1}, {"error": 5}]),
    (LineReader, b'1\n{"error":"x"}\n', [1, Failure({"error": "x"})]),
    (EventReader, b"", []),
    (EventReader, b":\n\n: hello\n\n", []),
    (EventReader, b"data: a\n\ndata:b\n\n", [S("a"), S("b")]),
    (EventReader, b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [S("a"), S("b"), S("c")]),
    (EventReader, b"data: a\r\ndata: b\r\n\r\n", [S("a\nb")]),
    (EventReader, b"data\ndata:  x\n\n", [S("\n x")]),
    (EventReader, b"\xef\xbb\xbfdata: a\n\n", [S("a")]),
    (EventReader, b'data: {"a":\ndata: 1}\n\ndata: [1\n\n', [S({"a": 1}), S("[1")]),
    (EventReader, b'data: 5\n\ndata: null\n\ndata: "x"\n\n', [S("5"), S("null"), S('"x"')]),
    (
        EventReader,
        b"event: e\nid: 1\nretry: 5\nretry: x\nother: y\ndata: a\n\nid: 2\n\n",
        [S("a", event="e", id="1", retry=5), S(id="2")],
    ),
    (EventReader, b"id: a\0b\nevent: a\0b\ndata: x\n\n", [S("x")]),
    (EventReader, b"data: \xff\n\n", [S("�")]),
    (EventReader, b"data: a", [S("a")]),
    (EventReader, b'event: error\ndata: {"error":"x"}\n\n', [Failure({"error": "x"})]),
    (EventReader, b"event: error\ndata: x\n\n", [Failure({"error": "x"})]),
    (EventReader, b'data: {"error":"x"}\n\n', [Failure({"error": "x"})]),
]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(("reader", "data", "expected"), STREAMS)
def test_streams_in_pieces(reader: Any, data: bytes, expected: list[Any], size: int) -> None:
    reading = reader()
    found = [item for i in range(0, len(data), size) for item in reading.feed(data[i : i + size])]
    found += reading.finish()
    assert [repr(item) for item in found] == [repr(item) for item in expected]


def test_an_item_is_there_with_its_last_byte() -> None:
    lines, events = LineReader(), EventReader()
    assert list(lines.feed(b'{"a":1}\n{"b')) == [{"a": 1}]
    assert [event.data for event in events.feed(b"data: a\r\n\r")] == ["a"]
    assert list(events.feed(b"\ndata")) == []


def test_text_and_pieces() -> None:
    text = TextReader()
    assert [*text.feed(b"a\xc3"), *text.feed(b"\xa4"), *text.feed(b"\xc3")] == ["a", "ä"]
    assert list(text.finish()) == ["�"]
    pieces = ChunkReader()
    assert [*pieces.feed(b"a\xc3"), *pieces.finish()] == [b"a\xc3"]


@pytest.mark.parametrize("data", [b"x\n", b"\xff\n", b"{\n"])
def test_lines_that_are_no_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        list(LineReader().feed(data))


def test_an_empty_piece_between_cr_and_lf_is_no_end_of_a_line() -> None:
    reader = EventReader()
    pieces = [b"data: a\r", b"", b"\ndata: b\r\n\r\n"]
    items = [item for piece in pieces for item in reader.feed(piece)]
    assert [item.data for item in items] == ["a\nb"]


DATA = b"data: 67890123456789012345678901\n"  # 26 characters


@pytest.mark.parametrize(
    ("reader", "short", "long"),
    [
        (LineReader, b'"%b"\n\r1\n' % (b"x" * 190), b'"' + b"x" * 200),
        (EventReader, DATA + DATA + b"\n" + DATA + b"\n", DATA * 3),
        (EventReader, DATA + b"\n", b"data: " + b"x" * 200),
        (EventReader, b": no\n" * 90, b": " + b"x" * 200),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_never_ends_is_not_kept(reader: Any, short: bytes, long: bytes, size: int) -> None:
    reading = reader(longest=200)
    for piece in (short[i : i + size] for i in range(0, len(short), size)):
        list(reading.feed(piece))
    with pytest.raises(ValueError, match="too long"):
        for piece in (long[i : i + size] for i in range(0, len(long), size)):
            list(reading.feed(piece))
