"""Write one answer: a whole document, or a stream that starts with its first item.

One `Reply` is the answer to one request. It knows what has been sent, so it alone decides how a
failure is told: an ordinary status before the start, an error record or a cut after it. Two tasks
may use it, never at once: the walk, and, once the flight has a reason to end, the farewell.
Every `send` of the walk looks at the reason first.
"""

import logging
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from time import monotonic
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel
from starlette.datastructures import MutableHeaders

from modelserve.encoders import Encoder, to_json
from modelserve.errors import ClientGone, CollectedTooLarge, Stopped, describe, is_expected
from modelserve.lifetime import Flight, Phase

__all__ = ["JSON", "Body", "Header", "Reply", "Send", "StreamForm", "model_headers"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Body = bytes | bytearray | memoryview

logger = logging.getLogger("modelserve")

# What a stream may run without giving way to other requests. A pause costs 3 us.
_TURN_SECONDS: Final = 0.002
_PART_BYTES: Final = 1 << 20
JSON: Final[Header] = (b"content-type", b"application/json")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_HOST_HEADERS: Final = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_UNBUFFERED: Final[tuple[Header, ...]] = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class StreamForm(Protocol):
    """What a codec decides about a stream once its first item is there."""

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        """Choose the encoder; raise NotAcceptable where none will do."""

    def headers(self) -> list[Header]:
        """Return the headers that the model has set, its content type included if it did."""


class Reply:
    """The answer to one request, and what has been sent of it."""

    __slots__ = (
        "_bodiless",
        "_encoder",
        "_send",
        "_sending",
        "complete",
        "cut",
        "error",
        "extra",
        "first_item_at",
        "flight",
        "items",
        "started",
        "status",
    )

    def __init__(
        self, send: Send, flight: Flight, extra: list[Header], *, bodiless: bool = False
    ) -> None:
        self._send = send
        self._bodiless = bodiless  # to HEAD
        self._sending = False
        self._encoder: Encoder | None = None
        self.flight = flight
        self.extra = extra
        self.status = 0
        self.started = False
        self.complete = False
        self.cut = False
        self.error: BaseException | None = None
        self.items = 0
        self.first_item_at = 0.0

    async def document(self, status: int, headers: list[Header], buffers: Sequence[Body]) -> None:
        """Send a whole answer, in order; large buffers in parts, so that none is copied whole.

        Raises ClientGone if the client has left.
        """
        self._go_on(Phase.SEND)
        if len(buffers) == 1 and type(buffers[0]) is bytes:
            body = buffers[0]
            await self._whole(status, [*headers, (b"content-length", b"%d" % len(body))], body)
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        size = sum(map(len, views))
        await self._start(status, [*headers, (b"content-length", b"%d" % size)])
        for view in () if self._bodiless else views:
            for start in range(0, len(view), _PART_BYTES):
                self._go_on(Phase.SEND)
                await self._body(bytes(view[start : start + _PART_BYTES]), more=True)
        await self._body(b"", more=False)

    async def stream(
        self, items: AsyncIterator[Any], form: StreamForm, *, collect_bytes: float
    ) -> None:
        """Send items as they come, one event an item, the first with the start of the answer.

        What fails before the first item is encoded is raised, to become an ordinary status; what
        fails later is raised too, and `fail` then tells it in band. The caller closes the items.
        """
        empty = False
        try:
            first = await anext(items)
        except StopAsyncIteration:
            first, empty = None, True
        encoder = form.encoder(first, empty=empty)
        if encoder.join is not None:
            await self._collect(items, first, empty, encoder, form, collect_bytes)
            return
        chunk = b"" if empty else encoder.encode(first)
        self._go_on(Phase.SEND)
        self._encoder = encoder
        await self._start(200, _with_defaults(form.headers(), encoder, _UNBUFFERED))
        if not empty:
            await self._first_item(chunk)
            await self._events(items, encoder.encode)
        self._go_on(Phase.SEND)
        await self._body(b"", more=False)

    async def fail(self, exc: BaseException, *, debug: bool, request_id: str) -> None:
        """Tell an exception: as the whole answer, as a last record, or by a cut."""
        self.error = exc
        if isinstance(exc, ClientGone):
            return
        if not is_expected(exc):
            logger.error("Request %s failed", request_id, exc_info=exc)
        status, sentence, headers = describe(exc, debug=debug)
        await self._tell(status, sentence, headers)

    async def farewell(self, reason: Stopped) -> None:
        """Tell at once why the request ends early, while user code is still cleaning up."""
        self.error = reason
        if self._sending:  # hosts differ in what they did with an interrupted event
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
            body = to_json({"error": sentence})
            length = (b"content-length", b"%d" % len(body))
            await self._whole(status, [JSON, *_error_headers(headers), length], body)
        elif self._encoder is not None and self._encoder.failure is not None:
            await self._body(self._encoder.failure(sentence), more=True)
            await self._body(b"", more=False)
        else:
            self.cut = True

    async def _collect(
        self,
        items: AsyncIterator[Any],
        first: Any,
        empty: bool,
        encoder: Encoder,
        form: StreamForm,
        limit: float,
    ) -> None:
        """Send all items as one document; nothing is sent before the last has come."""
        assert encoder.join is not None
        parts = [] if empty else [encoder.encode(first)]
        size = sum(map(len, parts))
        turn_ends = monotonic() + _TURN_SECONDS
        async for item in items:
            parts.append(encoder.encode(item))
            size += len(parts[-1])
            if size > limit:
                raise CollectedTooLarge(f"The collected items are larger than {limit:.0f} bytes.")
            turn_ends = await self._give_way(turn_ends)
        self.items = len(parts)
        await self.document(200, _with_defaults(form.headers(), encoder), [encoder.join(parts)])

    async def _events(self, items: AsyncIterator[Any], encode: Callable[[Any], bytes]) -> None:
        """Send the rest of a stream: the loop that every item goes through."""
        flight, send = self.flight, self._send
        turn_ends = monotonic() + _TURN_SECONDS
        flight.enter(Phase.ITEM)
        async for item in items:
            chunk = encode(item)
            if flight.reason is not None:
                raise flight.reason  # the farewell has the word
            flight.phase = Phase.SEND
            flight.since = monotonic()
            self._sending = True
            try:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except Exception as exc:
                raise ClientGone from exc
            self._sending = False
            self.items += 1
            flight.phase = Phase.ITEM
            flight.since = now = monotonic()
            if now >= turn_ends:
                turn_ends = await self._give_way(turn_ends)

    async def _give_way(self, turn_ends: float) -> float:
        """Let others run if this turn is over; return when the next one is."""
        now = monotonic()
        if now < turn_ends:
            return turn_ends
        await anyio.lowlevel.checkpoint()
        return monotonic() + _TURN_SECONDS

    async def _first_item(self, chunk: bytes) -> None:
        self.first_item_at = monotonic()
        await self._body(chunk, more=True)
        self.items = 1

    def _go_on(self, phase: int) -> None:
        """Enter a phase, unless the flight has a reason to end: then the farewell has the word."""
        if self.flight.reason is not None:
            raise self.flight.reason
        self.flight.enter(phase)

    async def _whole(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send the start and all of the body in one go."""
        await self._start(status, headers)
        await self._body(b"" if self._bodiless else body, more=False)

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.started = True
        self.status = status
        headers += self.extra
        await self._event({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._event({"type": "http.response.body", "body": body, "more_body": more})
        self.complete = not more

    async def _event(self, message: MutableMapping[str, Any]) -> None:
        """Send as the walk or as the farewell; any exception means that the client has left."""
        self._sending = True
        try:
            await self._send(message)
        except Exception as exc:
            raise ClientGone from exc
        self._sending = False


def model_headers(headers: MutableHeaders) -> list[Header]:
    """Return the response headers that a model has set, less those that only the host may set.

    Raises ValueError for a name or a value that cannot go over the wire.
    """
    for name, value in headers.raw:
        if not _TOKEN.fullmatch(name) or any(c in value for c in b"\r\n\0"):
            raise ValueError(f"The model set a response header that cannot be sent: {name!r}")
    return [pair for pair in headers.raw if pair[0] not in _HOST_HEADERS]


def _with_defaults(
    own: list[Header], encoder: Encoder, defaults: Iterable[Header] = ()
) -> list[Header]:
    """Put the content type first, then the defaults that the model has not set itself."""
    names = {name for name, _ in own}
    content_type = (b"content-type", encoder.media_type.encode("latin-1"))
    kept = (pair for pair in own if pair[0] != b"content-type")
    return [content_type, *(pair for pair in defaults if pair[0] not in names), *kept]


def _error_headers(headers: Mapping[str, str]) -> list[Header]:
    """Return the headers of an error, or none where one of them cannot be sent."""
    try:
        pairs = model_headers(MutableHeaders(dict(headers)))
    except ValueError:
        return []
    return [pair for pair in pairs if pair[0] != b"content-type"]
