"""gRPC on the wire: frames, trailers, statuses and time-outs. Pure.

The pipeline uses gRPC-Web's form, in which the trailers are a last frame of the body; the code that
sends an answer turns that frame into trailers of HTTP/2, if there are any.
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Final
from urllib.parse import quote, unquote

from modelserve.errors import InvalidInput
from modelserve.wire.headers import Header

__all__ = [
    "CONTENT_TYPE",
    "FRAMES",
    "HEALTH",
    "MESSAGE",
    "OK",
    "SERVICE",
    "STATUS",
    "STREAMS",
    "UNIMPLEMENTED",
    "Calls",
    "Compressed",
    "Frames",
    "Unreadable",
    "code_of_host",
    "code_of_http",
    "frame",
    "is_trailers",
    "message_in",
    "only_message",
    "quoted",
    "read_trailers",
    "seconds_of",
    "split_trailers",
    "trailers",
    "unquoted",
]

SERVICE: Final = "/inference.GRPCInferenceService"
HEALTH: Final = "/grpc.health.v1.Health"
STREAMS: Final = frozenset((f"{SERVICE}/ModelStreamInfer", f"{HEALTH}/Watch"))

CONTENT_TYPE: Final = b"application/grpc"
# In a scope's extensions: the host itself makes trailers of the last frame, and reads errors.
FRAMES: Final = "modelserve.grpc_frames"
STATUS: Final = b"grpc-status"
MESSAGE: Final = b"grpc-message"
OK: Final = 0
UNIMPLEMENTED: Final = 12

_HEAD: Final = Struct(">BI")  # the flags and the length of the payload
_COMPRESSED: Final = 0x01
_TRAILERS: Final = 0x80
# The codes of HTTP statuses that an application answers with.
_CODES: Final = {
    400: 3,  # INVALID_ARGUMENT
    401: 16,  # UNAUTHENTICATED
    403: 7,  # PERMISSION_DENIED
    404: 5,  # NOT_FOUND
    405: 12,  # UNIMPLEMENTED
    408: 4,  # DEADLINE_EXCEEDED
    409: 10,  # ABORTED
    413: 8,  # RESOURCE_EXHAUSTED
    415: 12,
    422: 3,
    429: 14,  # UNAVAILABLE
    499: 1,  # CANCELLED
    500: 13,  # INTERNAL
    501: 12,
    502: 14,
    503: 14,
    504: 4,
}
# The codes of HTTP statuses of answers that are not gRPC's.
# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
_HOST_CODES: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_FAILED_PRECONDITION: Final = 9
_UNKNOWN: Final = 2
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_LEAST_SECONDS: Final = 1e-9  # a time-out of 0 has passed
# Printable characters stay as they are, except `%`, which escapes the others.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# Clients refuse trailers of more than 8 KiB, and a character may take 12 bytes.
_LONGEST: Final = 600


# --- frames -------------------------------------------------------------------------------------


def frame(message: bytes) -> bytes:
    """Return a message in its frame."""
    return _HEAD.pack(0, len(message)) + message


def message_in(body: bytes | bytearray) -> tuple[bytes | bytearray, bool]:
    """Return the one message that a body holds, and whether it is compressed.

    Raises InvalidInput for any other body.
    """
    if len(body) < _HEAD.size:
        raise InvalidInput("The call has no message.")
    flags, size = _HEAD.unpack_from(body)
    if len(body) != _HEAD.size + size or flags & ~_COMPRESSED:
        raise InvalidInput("The body must be exactly one gRPC frame.")
    return body[_HEAD.size :], bool(flags)


class Frames:
    """Frames that arrive in pieces.

    Args:
        limit: The most bytes that a message may have.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the flags and the payload of each frame that the piece completes.

        Raises OverflowError for one over the limit, before it is kept.
        """
        data: bytes | bytearray = piece
        if self._rest:
            self._rest += piece
            data = self._rest
        start = 0
        while len(data) - start >= _HEAD.size:
            flags, size = _HEAD.unpack_from(data, start)
            if size > self._limit:
                raise OverflowError(size)
            end = start + _HEAD.size + size
            if end > len(data):
                break
            yield flags, bytes(data[start + _HEAD.size : end])
            start = end
        if data is self._rest:
            del self._rest[:start]
        else:
            self._rest += data[start:]


class Compressed(bytes):
    """A message that is compressed."""


class Unreadable(bytes):
    """A sentence in the place of a message."""


class Calls:
    """The messages of a stream of requests. One over the limit is skipped without being kept.

    Args:
        limit: The most bytes that a message may have.
    """

    noun = "message"
    at_a_time = 1

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipped = 0  # bytes to come that are skipped

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the messages that the next piece completes."""
        found: list[bytes] = []
        self._rest += piece
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def finish(self) -> list[bytes]:
        """Return the sentence in the place of an incomplete message."""
        if not (self._rest or self._skipped):
            return []
        return [Unreadable(b"The stream ends within a message.")]

    def parse(self, records: Sequence[bytes]) -> tuple[list[bytes], bool]:
        return [*records], True

    def _next(self) -> bytes | None:
        rest = self._rest
        if self._skipped:
            count = min(self._skipped, len(rest))
            del rest[:count]
            self._skipped -= count
        if self._skipped or len(rest) < _HEAD.size:
            return None
        flags, size = _HEAD.unpack_from(rest)
        end = _HEAD.size + size
        if size <= self._limit and flags in (0, _COMPRESSED):
            if len(rest) < end:
                return None
            message = bytes(memoryview(rest)[_HEAD.size : end])
            del rest[:end]
            return Compressed(message) if flags else message
        del rest[: _HEAD.size]
        self._skipped = size
        if size > self._limit:
            return Unreadable(b"The message is larger than %.0f bytes." % self._limit)
        return Unreadable(b"The message is not in a frame of gRPC.")


def is_trailers(flags: int) -> bool:
    """Return whether a frame with these flags holds trailers."""
    return bool(flags & _TRAILERS)


# --- trailers -----------------------------------------------------------------------------------


def trailers(code: int, message: str = "", others: Iterable[Header] = ()) -> bytes:
    """Return a status as the frame that ends an answer."""
    pairs = [(STATUS, b"%d" % code), *others]
    if message:
        pairs.append((MESSAGE, quoted(message)))
    block = b"".join(b"%b:%b\r\n" % pair for pair in pairs)
    return _HEAD.pack(_TRAILERS, len(block)) + block


_ENDING: Final = trailers(OK)


def only_message(body: bytes) -> bytes | None:
    """Return the message of an answer that is one message and a status of OK, as most are."""
    if len(body) < _HEAD.size or not body.endswith(_ENDING):
        return None
    flags, size = _HEAD.unpack_from(body)
    end = _HEAD.size + size
    if flags or end + len(_ENDING) != len(body):
        return None
    return body[_HEAD.size : end]


def split_trailers(body: bytes) -> tuple[bytes, list[Header]]:
    """Return the frames of messages among whole frames, and the trailers, if there are any."""
    end = 0
    while end < len(body):
        flags, size = _HEAD.unpack_from(body, end)
        if flags & _TRAILERS:
            return body[:end], read_trailers(body[end + _HEAD.size :])
        end += _HEAD.size + size
    return body, []


def read_trailers(block: bytes) -> list[Header]:
    """Return the content of the frame of the trailers."""
    lines = (line.partition(b":") for line in block.split(b"\r\n") if line)
    return [(name.strip().lower(), value.strip()) for name, _, value in lines]


def quoted(message: str) -> bytes:
    """Return a message as a header can hold it, cut if it is too long."""
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    return quote(message, safe=_PLAIN, errors="replace").encode()


def unquoted(message: bytes) -> str:
    """Return a message that a header holds."""
    return unquote(message.decode("latin-1"), errors="replace")


# --- statuses, time-outs ------------------------------------------------------------------------


def code_of_http(status: int) -> int:
    """Return the code of a status of HTTP."""
    code = _CODES.get(status)
    if code is None:
        code = _FAILED_PRECONDITION if 400 <= status < 500 else _UNKNOWN
    return code


def code_of_host(status: int) -> int:
    """Return the code of an answer that is not gRPC's, by its status of HTTP."""
    return _HOST_CODES.get(status, _UNKNOWN)


def seconds_of(timeout: bytes) -> float | None:
    """Return the seconds in a `grpc-timeout`, more than 0; None for an invalid one."""
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        return None
    return max(int(found[1]) * _UNITS[found[2]], _LEAST_SECONDS)
