"""Encode the items of a stream as bytes. Pure.

An `Encoder` is a few functions with the same signatures for raw bytes, NDJSON and server-sent
events. Collected JSON is an encoder too, whose items are joined with `join`. `accept` chooses the
encoder of a stream, once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from modelserve.wire.json import error_document, to_json
from modelserve.wire.media import LINE_TYPES
from modelserve.wire.values import JSON_OPTIONS, to_builtin

__all__ = [
    "COLLECTED",
    "NDJSON",
    "OCTETS",
    "SSE",
    "TEXT",
    "Encoder",
    "Item",
    "ServerSentEvent",
    "encode_documents",
    "json_item",
    "natural_encoder",
    "ndjson_item",
    "ndjson_items",
    "raw_item",
    "sse_item",
]

Item: TypeAlias = Any  # what a hook yields
_OF_JSON: Final = frozenset((bool, dict, float, int, list, str, type(None)))


class ServerSentEvent:
    """One event with full control over its fields (WHATWG HTML, 9.2).

    `data` is text, sent as it is, or any JSON value; None leaves the field out. `retry` is in
    milliseconds. In forms other than SSE only `data` is sent.

    Raises ValueError if `event` or `id` contains a line break, or `id` a NUL.
    """

    __slots__ = ("data", "event", "id", "retry")

    def __init__(
        self,
        data: Any = None,
        *,
        event: str | None = None,
        id: str | None = None,
        retry: int | None = None,
    ) -> None:
        for name, value in (("event", event), ("id", id)):
            if value is not None and any(c in value for c in "\r\n\0"):
                raise ValueError(f"The {name} of a server-sent event must be one line: {value!r}")
        if retry is not None and (not isinstance(retry, int) or retry < 0):
            raise ValueError(f"retry must be a whole number of milliseconds, not {retry!r}")
        self.data = data
        self.event = event
        self.id = id
        self.retry = retry

    def __repr__(self) -> str:
        return (
            f"ServerSentEvent({self.data!r}, event={self.event!r}, "
            f"id={self.id!r}, retry={self.retry!r})"
        )


@dataclass(frozen=True, slots=True)
class Encoder:
    """How the items of one stream are written.

    Attributes:
        media_type: The content type of the response.
        encode: Writes one item as a record, or as none or several. Raises TypeError or ValueError
            for an invalid item.
        failure: Writes the last record of a stream that failed, from the status and the detail of
            the error; None if the connection has to be cut instead.
        finish: Returns the last bytes of a complete stream.
        idle: The bytes that keep a connection alive between items.
        remark: Writes a record that is no item, such as the error of one line of the request; None
            if the form has none.
        encode_all: Writes several items as `encode` would, but faster; None if there is no such
            way.
        options: The options for orjson to write a dict as `encode` would; None if there are none.
        join: Joins all encoded items into one document; they are collected instead of streamed.
    """

    media_type: str
    encode: Callable[[Item], bytes]
    failure: Callable[[int, Any], bytes] | None = None
    finish: Callable[[], bytes] | None = None
    idle: bytes | None = None
    join: Callable[[list[bytes]], bytes] | None = None
    remark: Callable[[Any], bytes] | None = None
    encode_all: Callable[[Sequence[Item]], bytes] | None = None
    options: int | None = None


def encode_documents(
    encode: Callable[[Item], bytes], document: Callable[[Item], Any]
) -> Callable[[Item], bytes]:
    """Return an `encode` that converts items to documents first; an event keeps its fields."""

    def encode_item(item: Item) -> bytes:
        if not isinstance(item, ServerSentEvent):
            return encode(document(item))
        data = document(item.data)
        return encode(ServerSentEvent(data, event=item.event, id=item.id, retry=item.retry))

    return encode_item


# --- raw ----------------------------------------------------------------------------------------


def raw_item(item: Item) -> bytes:
    """Pass bytes as they are and text as UTF-8."""
    if type(item) is bytes:
        return item
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, ServerSentEvent):
        return b"" if item.data is None else raw_item(item.data)
    raise TypeError(f"An item of a raw stream must be str or bytes, not {type(item).__name__}")


TEXT: Final = Encoder("text/plain; charset=utf-8", raw_item)
OCTETS: Final = Encoder("application/octet-stream", raw_item)

# --- JSON, collected or a line an item ----------------------------------------------------------


def json_item(item: Item) -> bytes:
    """Write one item as JSON; bytes must be UTF-8 and become a string."""
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, bytes | bytearray | memoryview):
        item = bytes(item).decode()
    return to_json(item)


LINE_OPTIONS: Final = JSON_OPTIONS | orjson.OPT_APPEND_NEWLINE


def ndjson_item(item: Item) -> bytes:
    """Write one item as one line of JSON."""
    if type(item) is dict:  # most are
        try:
            return orjson.dumps(item, to_builtin, LINE_OPTIONS)
        except orjson.JSONEncodeError:
            pass  # `json_item` has a fallback, or the right error
    return json_item(item) + b"\n"


def ndjson_items(items: Sequence[Item]) -> bytes:
    """Write each item as one line of JSON."""
    if _OF_JSON.issuperset(map(type, items)):
        dumps, options = orjson.dumps, JSON_OPTIONS | orjson.OPT_APPEND_NEWLINE
        try:
            return b"".join([dumps(item, to_builtin, options) for item in items])
        except orjson.JSONEncodeError:
            pass  # as in `ndjson_item`
    return b"".join(map(ndjson_item, items))


def _ndjson_failure(status: int, detail: Any) -> bytes:
    return error_document(detail) + b"\n"


def _join_predictions(items: list[bytes]) -> bytes:
    return b'{"predictions":[' + b",".join(items) + b"]}"


NDJSON: Final = Encoder(
    LINE_TYPES[0],
    ndjson_item,
    _ndjson_failure,
    idle=b"\n",
    remark=ndjson_item,
    encode_all=ndjson_items,
    options=LINE_OPTIONS,
)
COLLECTED: Final = Encoder("application/json", json_item, join=_join_predictions)

# --- server-sent events -------------------------------------------------------------------------


def sse_item(item: Item) -> bytes:
    """Write one item as one event: text with a `data:` field a line, the rest as JSON."""
    if type(item) is dict:  # most are
        return b"data: %b\n\n" % to_json(item)
    if isinstance(item, ServerSentEvent):
        return b"".join(_sse_fields(item)) + b"\n"
    return _sse_data(item) + b"\n"


def _sse_failure(status: int, detail: Any) -> bytes:
    return b"event: error\ndata: " + error_document(detail) + b"\n\n"


def _sse_fields(event: ServerSentEvent) -> Iterable[bytes]:
    if event.event is not None:
        yield b"event: %b\n" % event.event.encode()
    if event.id is not None:
        yield b"id: %b\n" % event.id.encode()
    if event.retry is not None:
        yield b"retry: %d\n" % event.retry
    if event.data is not None:
        yield _sse_data(event.data)


def _sse_data(value: Any) -> bytes:
    if isinstance(value, str):
        text = value.encode()
    elif isinstance(value, bytes | bytearray | memoryview):
        text = bytes(value)
        text.decode()  # an event stream is UTF-8
    else:
        return b"data: " + to_json(value) + b"\n"
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"data: " + text.replace(b"\n", b"\ndata: ") + b"\n"


SSE: Final = Encoder("text/event-stream", sse_item, _sse_failure, idle=b":\n\n", remark=sse_item)


# --- where the client has no preference ---------------------------------------------------------


def natural_encoder(first: Item) -> Encoder:
    """Return the encoder by the first item alone: raw for text and bytes, else NDJSON."""
    if isinstance(first, ServerSentEvent):
        return natural_encoder(first.data)
    if isinstance(first, str):
        return TEXT
    if isinstance(first, bytes | bytearray | memoryview):
        return OCTETS
    return NDJSON
