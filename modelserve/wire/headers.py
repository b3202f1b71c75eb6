"""Response headers: those that a model has set, those of an error, and a few constants. Pure."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, TypeAlias

from starlette.datastructures import MutableHeaders

__all__ = ["JSON", "Body", "Header", "error_headers", "length_header", "sendable_headers"]

Header: TypeAlias = tuple[bytes, bytes]
Body: TypeAlias = bytes | bytearray | memoryview

JSON: Final[Header] = (b"content-type", b"application/json")

# RFC 9110, 5.1 and 5.5; names are lower-case, as ASGI wants them.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_FIELD: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_SET_BY_THE_SERVER: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"x-request-id")
)


def sendable_headers(headers: MutableHeaders) -> list[Header]:
    """Return a model's response headers, except those that only a server may set.

    Raises ValueError for a name or a value that HTTP cannot carry.
    """
    for name, value in headers.raw:
        if not _TOKEN.fullmatch(name) or not _FIELD.fullmatch(value):
            raise ValueError(f"The model set a response header that cannot be sent: {name!r}")
    pairs = ((name, value.strip(b" \t")) for name, value in headers.raw)
    return [pair for pair in pairs if pair[0] not in _SET_BY_THE_SERVER]


def error_headers(headers: Mapping[str, str]) -> list[Header]:
    """Return the headers of an error, except the content type and those that cannot be sent."""
    pairs: list[Header] = []
    # They are what a model has put into an exception, which may be anything.
    for name, value in headers.items() if isinstance(headers, Mapping) else ():
        with suppress(Exception):
            pairs += sendable_headers(MutableHeaders({str(name): str(value)}))
    return [pair for pair in pairs if pair[0] != b"content-type"]


def length_header(size: int) -> Header:
    """Return the header with the size of a body, in bytes."""
    return (b"content-length", b"%d" % size)
