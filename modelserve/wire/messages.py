"""The messages of a WebSocket: what the client's are, and how items become messages. Pure.

The answer to a request is made of events of bytes. Over a WebSocket each record in such an event
has a head of its own, so that what was put together on the way can be taken apart again.
"""

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any, Final

import orjson

from modelserve.wire.encoders import Encoder, Item, ServerSentEvent
from modelserve.wire.json import error_document, to_json
from modelserve.wire.lines import BadLine
from modelserve.wire.values import JSON_OPTIONS, to_builtin

__all__ = [
    "BINARY",
    "FAILURE",
    "MESSAGES",
    "Messages",
    "close_reason",
    "split",
    "status_of",
]

# What a record becomes: a text message; a binary one; or the last, a text message of a failure.
TEXT: Final = 0
BINARY: Final = 1
FAILURE: Final = 2

_HEAD: Final = Struct(">BI")
_STATUS: Final = Struct(">H")
_REASON_BYTES: Final = 123  # of a close frame (RFC 6455, 5.5)
_BYTES: Final = (bytes, bytearray, memoryview)


class Messages:
    """What a client sends: JSON as text, or bytes. A message over its limit is not looked at.

    Args:
        text_limit, bytes_limit: Of one message, in bytes.
    """

    noun = "message"
    at_a_time = 1

    def __init__(self, text_limit: float, bytes_limit: float) -> None:
        self._text_limit = text_limit
        self._bytes_limit = bytes_limit

    def feed(self, piece: Any) -> list[Any]:
        """Return a message, text or bytes, as it is; an empty one is none."""
        return [piece] if piece else []

    def finish(self) -> list[Any]:
        return []

    def parse(self, records: Sequence[Any]) -> tuple[list[Any], bool]:
        values = [self._parsed(record) for record in records]
        return values, BadLine not in {*map(type, values)}

    def _parsed(self, record: Any) -> Any:
        if type(record) is not str:
            return record if len(record) <= self._bytes_limit else _too_long(self._bytes_limit)
        if len(record) * 4 > self._text_limit and len(record.encode()) > self._text_limit:
            return _too_long(self._text_limit)
        try:
            return orjson.loads(record)
        except orjson.JSONDecodeError as exc:
            return BadLine(f"not JSON: {exc.msg} (column {exc.colno})")


def _too_long(limit: float) -> BadLine:
    return BadLine(f"longer than {limit:.0f} bytes")


# --- what goes out ------------------------------------------------------------------------------


def _encode(item: Item) -> bytes:
    """Write one item: bytes as a binary message, any other as JSON, text too."""
    if type(item) is dict:  # most are
        try:
            text = orjson.dumps(item, to_builtin, JSON_OPTIONS)
            return _HEAD.pack(TEXT, len(text)) + text
        except orjson.JSONEncodeError:
            pass  # `to_json` has a fallback, or says what is wrong
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, _BYTES):
        data = bytes(item)
        return _HEAD.pack(BINARY, len(data)) + data
    text = to_json(item)
    return _HEAD.pack(TEXT, len(text)) + text


def _failure(status: int, detail: Any) -> bytes:
    document = error_document(detail)
    return _HEAD.pack(FAILURE, _STATUS.size + len(document)) + _STATUS.pack(status) + document


MESSAGES: Final = Encoder("application/json", _encode, _failure, remark=_encode)


def split(event: bytes) -> Iterable[tuple[int, bytes]]:
    """Return the records of an event, each with what becomes of it."""
    if event:
        kind, size = _HEAD.unpack_from(event)
        if _HEAD.size + size == len(event):
            return ((kind, event[_HEAD.size :]),)
    return _each(event)


def _each(event: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(event):
        kind, size = _HEAD.unpack_from(event, place)
        place += _HEAD.size
        yield kind, event[place : place + size]
        place += size


def status_of(failure: bytes) -> tuple[int, bytes]:
    """Return the status and the document of a FAILURE."""
    return _STATUS.unpack_from(failure)[0], failure[_STATUS.size :]


def close_reason(document: bytes) -> str:
    """Return the sentence of an error document, as far as a close frame can hold it."""
    detail = orjson.loads(document)["error"]
    text = detail if isinstance(detail, str) else orjson.dumps(detail).decode()
    return text.encode()[:_REASON_BYTES].decode(errors="ignore")
