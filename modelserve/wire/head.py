"""Read one request: its headers, its id, its time limit and its body."""

import hmac
import math
import os
import sys
import zlib
from collections.abc import Iterator, MutableMapping
from itertools import product
from typing import Any, Final

from starlette.datastructures import MutableHeaders

from modelserve.concurrency.flight import Receive
from modelserve.errors import BodyTooLarge, ClientGone, InvalidInput, UnsupportedCoding
from modelserve.limits import Deadlines

__all__ = [
    "NEW_IDS",
    "HookHeaders",
    "Request",
    "check_length",
    "read_body",
    "sane_id",
    "uncompressed",
]

Scope = MutableMapping[str, Any]

_PAIRS: Final = [b"%02x" % n for n in range(256)]
# The ids of requests that bring none: a process' own random 16 digits, and 12 that count. By
# `itertools` alone, since formatting a number takes 0.2 us more.
NEW_IDS: Final[Iterator[bytes]] = map(
    b"".join, product([os.urandom(8).hex().encode()], *[_PAIRS] * 6)
)
_ID_LENGTH: Final = 128
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32  # by what it begins with
_PRINTABLE: Final = bytes(range(33, 127))


class HookHeaders(MutableHeaders, MutableMapping[str, str]):  # type: ignore[misc]
    """Headers as hooks see them: a mutable, case-insensitive mapping with lower-case keys.

    `scope` and `request_id` are those of the request that they came with, as it came.
    """

    scope: Scope | None = None
    request_id: bytes = b""

    @classmethod
    def of(cls, scope: Scope, request_id: bytes) -> "HookHeaders":
        """Return a copy of a request's headers that hooks may write to."""
        headers = cls(raw=list(scope["headers"]))
        headers.scope = scope
        headers.request_id = request_id
        return headers


class Request:
    """One request: its headers, each decoded only when it is asked for, and how to get its body."""

    __slots__ = ("headers", "id", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive | None = None) -> None:
        self.scope = scope
        self.receive: Any = receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])  # the last where one is repeated
        given = self.headers.get(b"x-request-id")
        self.id = next(NEW_IDS) if given is None else sane_id(given)

    def get(self, name: bytes) -> bytes:
        """Return a header's value, empty where there is none; the last where it is repeated."""
        return self.headers.get(name, b"")

    def has(self, name: bytes) -> bool:
        return name in self.headers

    @property
    def accept(self) -> str | None:
        """The `Accept` header; its lines joined where there are several (RFC 9110, 5.3)."""
        last = self.headers.get(b"accept")
        if last is None:
            return None
        if len(self.headers) == len(self.scope["headers"]):  # none is repeated
            return last.decode("latin-1")
        values = [value for name, value in self.scope["headers"] if name == b"accept"]
        return b",".join(values).decode("latin-1")

    @property
    def has_connection(self) -> bool:
        """Whether the protocol has a connection that the client can be asked to close."""
        return str(self.scope.get("http_version", "")).startswith("1")

    def may_pass(self, token: str) -> bool:
        """Say whether this bearer token was given; in constant time."""
        scheme, _, given = self.get(b"authorization").partition(b" ")
        same = hmac.compare_digest(given.strip(), token.encode())
        return same and scheme.lower() == b"bearer"

    def deadlines(self, limits: Deadlines) -> Deadlines:
        """Return the limits on time, less where the client asks for less (Ray Serve's header).

        Raises InvalidInput for a header that is not a positive number.
        """
        asked = self.headers.get(b"x-request-timeout-seconds")
        if asked is None:
            return limits
        seconds = _positive(asked)
        if limits.timeout is not None:
            seconds = min(seconds, limits.timeout)
        return limits._replace(timeout=seconds)


async def read_body(receive: Receive, limit: float, content_length: bytes) -> bytes | bytearray:
    """Read a request's body to its end.

    Raises BodyTooLarge as soon as it is known to be over the limit, in bytes, with or without a
    content length; ClientGone if the client leaves before its end.
    """
    check_length(content_length, limit)
    body = bytearray()
    while True:
        try:
            message = await receive()
        except Exception as exc:  # whatever it is, the client has left
            raise ClientGone from exc
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise _too_large(limit)
        more = message.get("more_body")
        if not (more or body):
            return part  # as most are, whole and not copied
        body += part
        if not more:
            return body


def uncompressed(body: bytes | bytearray, coding: bytes, limit: float) -> bytes | bytearray:
    """Undo the content coding of a body, gzip or deflate (RFC 9110, 8.4.1).

    Raises UnsupportedCoding for another one, InvalidInput for a body that is not in it, and
    BodyTooLarge where it grows over the limit, in bytes, before it has.
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
        raise _too_large(limit)
    if not stream.eof or stream.unused_data:
        raise InvalidInput("The request's body does not end where its content-encoding does.")
    return plain


def check_length(content_length: bytes, limit: float) -> None:
    """Raise BodyTooLarge for a number of bytes over the limit."""
    if len(content_length) <= 4 and limit >= 10_000:
        return  # as most are
    if content_length.isdigit() and len(content_length) < 20 and int(content_length) > limit:
        raise _too_large(limit)


def _too_large(limit: float) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {limit:.0f} bytes.")


def sane_id(given: bytes) -> bytes:
    """Return the client's id if it is printable and of a sane length, else a new one."""
    if given and len(given) <= _ID_LENGTH and not given.translate(None, _PRINTABLE):
        return given
    return next(NEW_IDS)


def _positive(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise InvalidInput("x-request-timeout-seconds must be a positive number.")
    return seconds
