"""Write one answer: what has been sent of it, a whole document, and how a failure is told.

One `Reply` is the answer to one request. It knows what has been sent, so it alone decides how a
failure is told: an ordinary status before the start, an error record or a cut after it. Two tasks
may use it, never at once: the walk, and, once the flight has a reason to end, the farewell.
Every `send` of the walk looks at the reason first. Streams are written by `streams`.
"""

import logging
import re
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import anyio
import anyio.lowlevel
from starlette.datastructures import MutableHeaders

from modelserve.concurrency.flight import Flight, Phase
from modelserve.errors import ClientGone, Stopped, describe, is_expected
from modelserve.metrics.series import ModelSeries
from modelserve.wire.encoders import Encoder, error_document

__all__ = ["JSON", "Body", "Header", "Reply", "Send", "length_header", "model_headers"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Body = bytes | bytearray | memoryview

logger = logging.getLogger("modelserve")

_SEND: Final = Phase.SEND  # as globals they are found six times as fast
_DONE: Final = Phase.DONE
_PART_BYTES: Final = 1 << 20
JSON: Final[Header] = (b"content-type", b"application/json")
_ID: Final = b"x-request-id"
_CLOSE: Final[Header] = (b"connection", b"close")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_FIELD: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST_HEADERS: Final = frozenset((b"content-length", b"transfer-encoding", b"connection", _ID))


_NO_SECONDS: Final[Mapping[str, float]] = {}


class Reply:
    """The answer to one request, what has been sent of it, and what is recorded of it."""

    __slots__ = (
        "admitted",
        "bodiless",
        "closes_connection",
        "complete",
        "cut",
        "encoder",
        "error",
        "first_item",
        "flight",
        "items",
        "lock",
        "request_id",
        "seconds",
        "send",
        "sending",
        "series",
        "started",
        "status",
    )

    def __init__(self, send: Send, flight: Flight, request_id: bytes) -> None:
        self.send = send
        self.flight = flight
        self.request_id = request_id
        self.bodiless = self.closes_connection = False  # the first is for HEAD
        self.encoder: Encoder | None = None
        self.lock: anyio.Lock | None = None
        # what has been sent
        self.status = 0
        self.started = self.sending = self.complete = self.cut = False
        # what is recorded
        self.series: ModelSeries | None = None
        self.error: BaseException | None = None
        self.admitted = False
        self.seconds = _NO_SECONDS
        self.items = 0
        self.first_item: float | None = None

    # -- a whole document

    def document(
        self, status: int, headers: list[Header], buffers: Sequence[Body]
    ) -> Coroutine[Any, Any, None]:
        """Send a whole answer, in order; large buffers in parts, so that none is copied whole.

        Raises ClientGone if the client has left.
        """
        self.go_on(_SEND)
        if len(buffers) == 1 and type(buffers[0]) is bytes:
            return self.whole(status, headers, buffers[0])
        return self._parts(status, headers, buffers)

    async def _parts(self, status: int, headers: list[Header], buffers: Sequence[Body]) -> None:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        await self.start(status, [*headers, length_header(sum(map(len, views)))])
        for view in () if self.bodiless else views:
            for start in range(0, len(view), _PART_BYTES):
                self.go_on(_SEND)
                await self.part(bytes(view[start : start + _PART_BYTES]))
        await self.end()

    # -- failures

    async def fail(self, exc: BaseException, *, debug: bool) -> None:
        """Tell an exception: as the whole answer, as a last record, or by a cut."""
        self.error = exc
        if isinstance(exc, ClientGone):
            return
        if not is_expected(exc):
            self.log("Request %s failed", exc)
        status, sentence, headers = describe(exc, debug=debug)
        self.flight.enter(_SEND)
        await self._tell(status, sentence, headers)

    def log(self, text: str, exc: BaseException) -> None:
        """Log a failure; the text has a place for the request's id."""
        number = self.request_id.decode()
        logger.error(text, number, exc_info=exc, extra={"request_id": number})

    async def farewell(self, reason: Stopped) -> None:
        """Tell at once why the request ends early, while user code is still cleaning up."""
        self.error = reason
        if self.sending:  # hosts differ in what they did with an interrupted event
            self.cut = not self.complete
            return
        with anyio.move_on_after(self.flight.deadlines.cleanup_timeout):
            try:
                await self._tell(reason.status, reason.reason, reason.headers)
            except ClientGone:
                return
        self.cut = not self.complete

    async def _tell(self, status: int, sentence: str, headers: Mapping[str, str]) -> None:
        if self.complete:
            return
        if not self.started:
            body = error_document(sentence)
            await self.whole(status, [JSON, *_error_headers(headers)], body)
        elif self.encoder is not None and self.encoder.failure is not None:
            await self.part(self.encoder.failure(sentence))
            await self.end()
        else:
            self.cut = True

    # -- messages

    def go_on(self, phase: int) -> None:
        """Enter a phase, unless the flight has a reason to end: then the farewell has the word."""
        flight = self.flight
        if flight.reason is not None:
            raise flight.reason
        flight.phase = phase
        flight.since = monotonic()

    async def whole(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send the start and all of the body in one go.

        The same as `start`, `part` and `end`, in one coroutine instead of six: 3 us of a small
        request.
        """
        headers = [*headers, length_header(len(body)), (_ID, self.request_id)]
        if self.closes_connection:
            headers.append(_CLOSE)
        if self.bodiless:
            body = b""
        self.started = self.sending = self.flight.answered = True
        self.status = status
        send = self.send
        try:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        except Exception as exc:
            raise ClientGone from exc
        self.sending = False
        self.complete = True
        self.flight.phase = _DONE

    def start(self, status: int, headers: list[Header]) -> Coroutine[Any, Any, None]:
        """Send the start alone."""
        self.started = True
        self.status = status
        headers.append((_ID, self.request_id))
        if self.closes_connection:
            headers.append(_CLOSE)
        return self.event({"type": "http.response.start", "status": status, "headers": headers})

    def part(self, body: bytes) -> Coroutine[Any, Any, None]:
        """Send a part of the body."""
        self.flight.answered = False
        return self.event({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """End the body."""
        self.flight.answered = True
        await self.event({"type": "http.response.body", "body": b"", "more_body": False})
        self.complete = True
        self.flight.phase = _DONE

    def event(self, message: MutableMapping[str, Any]) -> Coroutine[Any, Any, None]:
        """Send one event, one task after the other where a heartbeat sends as well."""
        return self._send_now(message) if self.lock is None else self._send_in_turn(message)

    async def _send_in_turn(self, message: MutableMapping[str, Any]) -> None:
        assert self.lock is not None
        async with self.lock:
            await self._send_now(message)

    async def _send_now(self, message: MutableMapping[str, Any]) -> None:
        """Send one event; any exception means that the client has left."""
        self.sending = True
        try:
            await self.send(message)
        except Exception as exc:
            raise ClientGone from exc
        self.sending = False


def model_headers(headers: MutableHeaders) -> list[Header]:
    """Return the response headers that a model has set, less those that only the host may set.

    Raises ValueError for a name or a value that cannot go over the wire.
    """
    for name, value in headers.raw:
        if not _TOKEN.fullmatch(name) or not _FIELD.fullmatch(value):
            raise ValueError(f"The model set a response header that cannot be sent: {name!r}")
    own = ((name, value.strip(b" \t")) for name, value in headers.raw)
    return [pair for pair in own if pair[0] not in _HOST_HEADERS]


def length_header(size: int) -> Header:
    """Return the header that tells the size of a body, in bytes."""
    return (b"content-length", b"%d" % size)


def _error_headers(headers: Mapping[str, str]) -> list[Header]:
    """Return the headers of an error, less those that cannot be sent."""
    pairs: list[Header] = []
    for name, value in headers.items():
        with suppress(ValueError):
            pairs += model_headers(MutableHeaders({str(name): str(value)}))
    return [pair for pair in pairs if pair[0] != b"content-type"]
