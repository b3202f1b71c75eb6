"""The content coding of request bodies (RFC 9110, 8.4.1), and limits on their size. Pure."""

import sys
import zlib
from typing import Final

from modelserve.errors import BodyTooLarge, InvalidInput, UnsupportedCoding

__all__ = ["check_length", "decompressed", "too_large"]

_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32  # zlib tells them apart by their first bytes


def decompressed(body: bytes | bytearray, coding: bytes, limit: float) -> bytes | bytearray:
    """Undo the content coding of a body: gzip, deflate or none.

    Raises UnsupportedCoding for another coding, InvalidInput for a body that is not in it, and
    BodyTooLarge before the result grows over the limit, in bytes.
    """
    name = coding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name not in (b"gzip", b"x-gzip", b"deflate"):
        raise UnsupportedCoding("The content-encoding of a request may be gzip or deflate.")
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        plain = stream.decompress(body, int(min(limit, sys.maxsize - 1)) + 1)
    except zlib.error:
        raise InvalidInput("The request's body does not have its content-encoding.") from None
    if len(plain) > limit:
        raise too_large(limit)
    if not stream.eof or stream.unused_data:
        raise InvalidInput("The request's body does not end where its content-encoding does.")
    return plain


def check_length(content_length: bytes, limit: float) -> None:
    """Raise BodyTooLarge for a declared number of bytes over the limit."""
    if content_length.isdigit() and len(content_length) < 20 and int(content_length) > limit:
        raise too_large(limit)


def too_large(limit: float) -> BodyTooLarge:
    """Return the error for a body over the limit, in bytes."""
    return BodyTooLarge(f"The request body is larger than {limit:.0f} bytes.")
