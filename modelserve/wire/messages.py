"""The messages of a WebSocket: parse those of the client, and turn items into messages. Pure.

Each item is a message of its own. Only a failure is an event of bytes, as in the answer to any
other request.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import orjson

from modelserve.wire.encoders import Encoder, Item, ServerSentEvent, json_item
from modelserve.wire.json import error_document, to_json
from modelserve.wire.lines import BadLine
from modelserve.wire.values import JSON_OPTIONS, to_builtin

__all__ = ["MESSAGES", "Messages", "as_message", "close_reason", "status_of"]

_STATUS: Final = Struct(">H")
_REASON_BYTES: Final = 123  # of a close frame (RFC 6455, 5.5)
_BYTES: Final = (bytes, bytearray, memoryview)


class Messages:
    """Parses a client's messages: JSON as text, or bytes. One over its limit is not parsed.

    Args:
        text_limit, bytes_limit: The limits of one message, in bytes.
    """

    noun = "message"
    at_a_time = 1

    def __init__(self, text_limit: float, bytes_limit: float) -> None:
        self._text_limit = text_limit
        self._bytes_limit = bytes_limit

    def feed(self, piece: Any) -> list[Any]:
        """Return a message, text or bytes, as it is; nothing for an empty one."""
        return [piece] if piece else []

    def finish(self) -> list[Any]:
        return []

    def parse(self, records: Sequence[Any]) -> tuple[list[Any], bool]:
        values = [*map(self._parsed, records)]
        return values, BadLine not in map(type, values)

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


# --- outgoing messages --------------------------------------------------------------------------


def as_message(item: Item) -> str | bytes:
    """Return an item as a message: bytes as they are, anything else, text too, as JSON."""
    if type(item) is dict:  # most are
        try:
            return orjson.dumps(item, to_builtin, JSON_OPTIONS).decode()
        except orjson.JSONEncodeError:
            pass  # `to_json` has a fallback, or the right error
    if isinstance(item, ServerSentEvent):
        item = item.data
    return bytes(item) if isinstance(item, _BYTES) else to_json(item).decode()


def _failure(status: int, detail: Any) -> bytes:
    return _STATUS.pack(status) + error_document(detail)


# Items are not part of a body, but the failure that ends them is.
MESSAGES: Final = Encoder("application/json", json_item, _failure)


def status_of(failure: bytes) -> tuple[int, bytes]:
    """Return the status and the document of a failure written by the encoder of messages."""
    return _STATUS.unpack_from(failure)[0], failure[_STATUS.size :]


def close_reason(document: bytes) -> str:
    """Return the sentence of an error document, cut to the size of a close frame."""
    detail = orjson.loads(document)["error"]
    text = detail if isinstance(detail, str) else orjson.dumps(detail).decode()
    return text.encode()[:_REASON_BYTES].decode(errors="ignore")
