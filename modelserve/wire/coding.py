"""The content coding of request bodies (RFC 9110, 8.4.1), and limits on their size. Pure."""

import math
import zlib
from typing import Final

from modelserve.errors import BodyTooLarge, InvalidInput, UnsupportedCoding

__all__ = ["Inflation", "check_length", "inflation", "too_large"]

_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32  # zlib tells them apart by their first bytes
_GZIP: Final = zlib.MAX_WBITS | 16
_GZIP_MAGIC: Final = b"\x1f\x8b"
_STEP_IN: Final = 1 << 16
_STEP_IN_FIRST: Final = 1 << 10  # zlib copies what follows a short member
_STEP_OUT: Final = 1 << 20
# A body of zeros shrinks a thousandfold; large ones with such a ratio are hardly ever legitimate.
_FREE_BYTES: Final = 16 << 20
_RATIO: Final = 200


class Inflation:
    """One body that is being decompressed, step by step.

    A step reads at most 64 KiB and yields at most 1 MiB, so that it is short; it mostly runs
    without the interpreter's lock.

    Attributes:
        limit: The most bytes of the result.
        size: The bytes of the result so far.
        plain: The result, once the end has been reached; None before.
    """

    __slots__ = (
        "_body", "_buffer", "_most_in", "_position", "_stream", "_tail", "_too_large",
        "limit", "plain", "size",
    )  # fmt: skip

    def __init__(self, body: bytes | bytearray, limit: float) -> None:
        self._body = memoryview(body)
        self._position = 0
        self._most_in = _STEP_IN
        self._tail = b""
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._buffer = bytearray()
        self.limit = limit
        self.size = 0
        self.plain: bytes | bytearray | None = None
        self._too_large = too_large(limit)
        by_ratio = max(_FREE_BYTES, _RATIO * len(body))
        if by_ratio < limit:
            self.limit = by_ratio
            self._too_large = BodyTooLarge(
                f"The request body is larger than {_RATIO} times its compressed size."
            )

    def step(self) -> None:
        """Decompress the next part.

        Raises InvalidInput for a body that is broken or does not end with its coding, and
        BodyTooLarge before the result exceeds the limit by more than a byte.
        """
        stream = self._stream
        piece: bytes | memoryview = self._tail or self._next_piece()
        most = int(min(_STEP_OUT, self.limit + 1 - self.size))
        try:
            part = stream.decompress(piece, most)
        except zlib.error:
            raise InvalidInput("The request's body does not have its content-encoding.") from None
        self._tail = b"" if stream.eof else stream.unconsumed_tail
        self.size += len(part)
        if self.size > self.limit:
            raise self._too_large
        if stream.eof:  # what follows it is read again
            self._position -= len(stream.unused_data)
        is_exhausted = not self._tail and self._position == len(self._body)
        is_alone = stream.eof and is_exhausted and not self._buffer
        if not is_alone:
            self._buffer += part  # joining parts at the end would take twice the memory
        if stream.eof and is_exhausted:
            self.plain = part if is_alone else self._buffer
        elif stream.eof:
            self._begin_member()
        elif is_exhausted and len(part) < most:
            raise _wrong_end()

    def run(self, *, most_in: float = math.inf, most_out: float = math.inf) -> None:
        """Run steps to the end, or until this much more has been read or yielded.

        Raises as `step`.
        """
        most_in += self._position
        most_out += self.size
        while self.plain is None and self._position < most_in and self.size < most_out:
            self.step()

    def _begin_member(self) -> None:
        """Begin the next part of a gzip body, which may have several (RFC 1952, 2.2)."""
        start = self._position
        first, following = bytes(self._body[:2]), bytes(self._body[start : start + 2])
        if not first == following == _GZIP_MAGIC:
            raise _wrong_end()
        self._stream = zlib.decompressobj(_GZIP)
        self._most_in = _STEP_IN_FIRST

    def _next_piece(self) -> memoryview:
        piece = self._body[self._position : self._position + self._most_in]
        self._most_in = _STEP_IN
        self._position += len(piece)
        return piece


def inflation(body: bytes | bytearray, coding: bytes, limit: float) -> Inflation | None:
    """Begin to undo the content coding of a body: gzip or deflate; None if it has none.

    Raises UnsupportedCoding for another coding.
    """
    name = coding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name not in (b"gzip", b"x-gzip", b"deflate"):
        raise UnsupportedCoding("The content-encoding of a request may be gzip or deflate.")
    return Inflation(body, limit)


def check_length(content_length: bytes, limit: float) -> None:
    """Raise BodyTooLarge for a declared number of bytes over the limit."""
    if content_length.isdigit() and len(content_length) < 20 and int(content_length) > limit:
        raise too_large(limit)


def too_large(limit: float) -> BodyTooLarge:
    """Return the error for a body over the limit, in bytes."""
    return BodyTooLarge(f"The request body is larger than {limit:.0f} bytes.")


def _wrong_end() -> InvalidInput:
    return InvalidInput("The request's body does not end where its content-encoding does.")
