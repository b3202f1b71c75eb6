"""The items of a stream from its bytes, in whatever pieces these come: the way back from encoders.

Pure. A reader is fed the pieces one by one and yields the items that each completes. A record that
tells of an error is no item but a `Failure`.
"""

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import orjson

from modelserve.wire.encoders import ServerSentEvent

__all__ = ["ChunkReader", "EventReader", "Failure", "LineReader", "Reader", "TextReader"]

_ENDS: Final = re.compile(rb"\r\n|\r|\n")
# The fields there are, and which values count.
_VALUES: Final = {
    "data": re.compile(r".*", re.DOTALL),
    "event": re.compile(r"[^\0]*"),
    "id": re.compile(r"[^\0]*"),
    "retry": re.compile(r"[0-9]{1,15}"),
}


class Failure(NamedTuple):
    """A record of an error among the items of a stream."""

    document: Any


class Reader(Protocol):
    """How the bytes of a stream become items. Raises ValueError where they cannot."""

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """Yield the items that end in this piece."""

    def finish(self) -> Iterator[Any]:
        """Yield what is left once the last piece has come."""


class ChunkReader:
    """An item a piece, whatever the pieces are."""

    def feed(self, chunk: bytes) -> Iterator[Any]:
        yield chunk

    def finish(self) -> Iterator[Any]:
        return iter(())


class TextReader:
    """An item a piece, as text; a character cut in two goes with its second half."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, chunk: bytes) -> Iterator[Any]:
        text = self._decoder.decode(chunk)
        if text:
            yield text

    def finish(self) -> Iterator[Any]:
        text = self._decoder.decode(b"", final=True)
        if text:
            yield text


class LineReader:
    """NDJSON: an item a line; blank lines keep a connection alive."""

    def __init__(self) -> None:
        self._lines = _Lines()

    def feed(self, chunk: bytes) -> Iterator[Any]:
        return self._items(self._lines.feed(chunk))

    def finish(self) -> Iterator[Any]:
        return self._items([self._lines.rest()])

    def _items(self, lines: list[bytes]) -> Iterator[Any]:
        for line in lines:
            if line and not line.isspace():
                item = orjson.loads(line)
                yield Failure(item) if _tells_failure(item) else item


class EventReader:
    """Server-sent events, as browsers read them (WHATWG HTML, 9.2.6).

    Data that is a JSON object or array is taken as that, any other as text. Comments are skipped.
    """

    def __init__(self) -> None:
        self._lines = _Lines()
        self._fields: dict[str, str] = {}

    def feed(self, chunk: bytes) -> Iterator[Any]:
        return self._events(self._lines.feed(chunk))

    def finish(self) -> Iterator[Any]:
        return self._events([self._lines.rest(), b""])

    def _events(self, lines: list[bytes]) -> Iterator[Any]:
        for line in lines:
            if line:
                self._take(line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace"))
            elif self._fields:
                fields, self._fields = self._fields, {}
                yield _event(fields)

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        if (rule := _VALUES.get(name)) is not None and rule.fullmatch(value):
            self._fields[name] = value


def _event(fields: dict[str, str]) -> ServerSentEvent | Failure:
    data: Any = fields.get("data")
    if data and data[0] in "{[":
        with suppress(orjson.JSONDecodeError):
            data = orjson.loads(data)
    name = fields.get("event")
    if name == "error" or _tells_failure(data):
        return Failure(data if isinstance(data, dict) else {"error": data})
    retry = int(fields["retry"]) if "retry" in fields else None
    return ServerSentEvent(data, event=name, id=fields.get("id"), retry=retry)


def _tells_failure(item: Any) -> bool:
    """Say whether an item is the record of an error that ends a stream."""
    return isinstance(item, dict) and item.keys() == {"error"} and isinstance(item["error"], str)


class _Lines:
    """Pieces of bytes as whole lines, which end in LF, CR or both."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this piece."""
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        lines = _ENDS.split(chunk)
        self._begun.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(self._begun)
            self._begun = [lines.pop()]
            return lines
        return []

    def rest(self) -> bytes:
        """Return the line that has not ended."""
        rest, self._begun = b"".join(self._begun), []
        return rest
