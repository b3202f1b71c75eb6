"""Decode the items of a stream from pieces of bytes: the reverse of encoders. Pure.

A reader is fed the pieces one by one and yields the items that each completes. An error record is
not an item but a `Failure`.
"""

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import orjson

from modelserve.wire.encoders import Item, ServerSentEvent

__all__ = [
    "LONGEST_LINE",
    "ChunkReader",
    "EventReader",
    "Failure",
    "LineReader",
    "Reader",
    "TextReader",
]

# The most bytes that a client keeps of a line that never ends.
LONGEST_LINE: Final = 128 * 1024 * 1024

_LINE_COST: Final = 64  # Python's memory for even the shortest line of an event
_TOO_LONG: Final = "a line or an event is too long"
_ENDS: Final = re.compile(rb"\r\n|\r|\n")
# The fields of an event beside its data, and their valid values.
_VALUES: Final = {
    "event": re.compile(r"[^\0]*"),
    "id": re.compile(r"[^\0]*"),
    "retry": re.compile(r"[0-9]{1,15}"),
}


class Failure(NamedTuple):
    """The record of an error that ended a stream."""

    document: Any


class Reader(Protocol):
    """Decodes the bytes of a stream into items. Raises ValueError for invalid bytes."""

    def feed(self, chunk: bytes) -> Iterator[Item]:
        """Yield the items that end in this piece."""

    def finish(self) -> Iterator[Item]:
        """Yield the items that are left after the last piece."""


class ChunkReader:
    """Each piece is an item."""

    def feed(self, chunk: bytes) -> Iterator[Item]:
        yield chunk

    def finish(self) -> Iterator[Item]:
        return iter(())


class TextReader:
    """Each piece is an item, as text; a divided character belongs to the later item."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, chunk: bytes) -> Iterator[Item]:
        text = self._decoder.decode(chunk)
        if text:
            yield text

    def finish(self) -> Iterator[Item]:
        text = self._decoder.decode(b"", final=True)
        if text:
            yield text


class LineReader:
    """NDJSON: each line is an item, except the blank ones that keep a connection alive."""

    def __init__(self, *, longest: int = LONGEST_LINE) -> None:
        self._lines = _Lines(longest)

    def feed(self, chunk: bytes) -> Iterator[Item]:
        yield from self._items(self._lines.feed(chunk))

    def finish(self) -> Iterator[Item]:
        return self._items([self._lines.finish()])

    def _items(self, lines: list[bytes]) -> Iterator[Item]:
        for line in lines:
            if line and not line.isspace():
                item = orjson.loads(line)
                yield Failure(item) if _is_failure(item) else item


class EventReader:
    """Server-sent events, as browsers read them (WHATWG HTML, 9.2.6).

    Data that is a JSON object or array is parsed, any other is text. Comments are skipped.
    """

    def __init__(self, *, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._lines = _Lines(longest)
        self._fields: dict[str, str] = {}
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Item]:
        yield from self._events(self._lines.feed(chunk))

    def finish(self) -> Iterator[Item]:
        return self._events([self._lines.finish(), b""])

    def _events(self, lines: list[bytes]) -> Iterator[Item]:
        for line in lines:
            if line:
                self._read_field(line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace"))
            elif self._fields or self._data:
                fields, self._fields = self._fields, {}
                if self._data:
                    fields["data"] = "\n".join(self._data)
                    self._data, self._size = [], 0
                yield _event(fields)

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._size += len(value) + _LINE_COST
            if self._size > self._longest:
                raise ValueError(_TOO_LONG)
            self._data.append(value)
        elif (rule := _VALUES.get(name)) is not None and rule.fullmatch(value):
            self._fields[name] = value


def _event(fields: dict[str, str]) -> ServerSentEvent | Failure:
    data: Any = fields.get("data")
    if data and data[0] in "{[":
        with suppress(orjson.JSONDecodeError):
            data = orjson.loads(data)
    name = fields.get("event")
    if name == "error" or _is_failure(data):
        return Failure(data if isinstance(data, dict) else {"error": data})
    retry = int(fields["retry"]) if "retry" in fields else None
    return ServerSentEvent(data, event=name, id=fields.get("id"), retry=retry)


def _is_failure(item: Item) -> bool:
    return isinstance(item, dict) and item.keys() == {"error"} and isinstance(item["error"], str)


class _Lines:
    """Whole lines from pieces of bytes; they end in LF, CR or both."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._unfinished: list[bytes] = []
        self._size = 0  # of the unfinished line
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this piece. Raises ValueError if one is too long."""
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        lines = _ENDS.split(chunk)
        self._unfinished.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(self._unfinished)
            self._unfinished = [lines.pop()]
            self._size = len(self._unfinished[0])
            return lines
        self._size += len(lines[0])
        if self._size > self._longest:
            raise ValueError(_TOO_LONG)
        return []

    def finish(self) -> bytes:
        """Return the last line, which has no end."""
        line, self._unfinished = b"".join(self._unfinished), []
        return line
