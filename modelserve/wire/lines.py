"""The lines of a streamed body, as they arrive in pieces. Pure.

A cutter turns pieces of bytes into records: lines of JSON, or the pieces as they are. All records
are counted, blank ones too, so that an error can name its line.
"""

from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

__all__ = ["BLANK", "MOST_AT_ONCE", "BadLine", "Cutter", "Lines", "Parser", "Pieces"]

MOST_AT_ONCE: Final = 256  # records that are parsed and answered together


class BadLine(NamedTuple):
    """The value in place of a line that is no instance; `error` is a sentence."""

    error: str


class _TooLong(bytes):
    """The record in place of a line that was not kept."""


BLANK: Final = BadLine("blank")  # the value in place of a line that is skipped
_TOO_LONG: Final = _TooLong()


class Parser(Protocol):
    """Parses records.

    Attributes:
        noun: The word for a record in an error.
        at_a_time: The most records that a hook of whole payloads is given at once.
    """

    noun: str
    at_a_time: int

    def parse(self, records: Sequence[Any]) -> tuple[list[Any], bool]:
        """Return the values of the records, and whether none is a BadLine."""


class Cutter(Parser, Protocol):
    """Cuts arriving bytes into records, and parses them."""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the records that the next piece completes."""

    def finish(self) -> list[bytes]:
        """Return the record that the end completes, if there is one."""


class Lines:
    """Lines of JSON. A line over the limit, in bytes, is skipped without being kept."""

    noun = "line"
    at_a_time = MOST_AT_ONCE

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        lines = piece.split(b"\n")
        rest = lines.pop()
        if lines:
            if self._size:
                lines[0] = self._closed(lines[0])
            if len(piece) > self._limit:
                lines = [self._checked(line) for line in lines]
        if rest:
            self._size += len(rest)
            if self._size > self._limit:
                self._rest.clear()
            else:
                self._rest += rest
        return lines

    def finish(self) -> list[bytes]:
        return [self._closed(b"")] if self._size else []

    def parse(self, records: Sequence[bytes]) -> tuple[list[Any], bool]:
        try:
            return [*map(orjson.loads, records)], True
        except orjson.JSONDecodeError:
            return [self._parsed(line) for line in records], False

    def _closed(self, end: bytes) -> bytes:
        """Return the line that began in earlier pieces."""
        is_long = self._size + len(end) > self._limit
        line = _TOO_LONG if is_long else bytes(self._rest + end)
        self._rest.clear()
        self._size = 0
        return line

    def _checked(self, line: bytes) -> bytes:
        return _TOO_LONG if len(line) > self._limit else line

    def _parsed(self, line: bytes) -> Any:
        if line.startswith(BOM_UTF8):  # as files of Windows begin
            line = line.removeprefix(BOM_UTF8)
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError as exc:
            if line is _TOO_LONG:
                return BadLine(f"longer than {self._limit:.0f} bytes")
            if not line or line.isspace():
                return BLANK
            return BadLine(f"not JSON: {exc.msg} (column {exc.colno})")


class Pieces:
    """Bytes in pieces as they arrive."""

    noun = "piece"
    at_a_time = MOST_AT_ONCE

    def feed(self, piece: bytes) -> list[bytes]:
        return [piece] if piece else []

    def finish(self) -> list[bytes]:
        return []

    def parse(self, records: Sequence[bytes]) -> tuple[list[Any], bool]:
        return [*records], True
