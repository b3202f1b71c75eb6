"""Write one answer: a whole document, or a stream that starts with its first item.

One `Reply` is the answer to one request. It knows what has been sent, so it alone decides how a
failure is told: an ordinary status before the start, an error record or a cut after it. Two tasks
may use it, never at once: the walk, and, once the flight has a reason to end, the farewell.
Every `send` of the walk looks at the reason first.
"""

import asyncio
import logging
import re
import types
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

import anyio
import anyio.lowlevel
from starlette.datastructures import MutableHeaders

from modelserve.encoders import Encoder, error_document
from modelserve.errors import ClientGone, CollectedTooLarge, Stopped, describe, is_expected
from modelserve.lifetime import Flight, Phase

__all__ = ["JSON", "Body", "Header", "Reply", "Send", "StreamForm", "Streaming", "model_headers"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Body = bytes | bytearray | memoryview

logger = logging.getLogger("modelserve")

# What a stream may run without giving way to other requests. A pause costs 3 us.
_TURN_SECONDS: Final = 0.002
_PART_BYTES: Final = 1 << 20
_COALESCED_BYTES: Final = 1 << 16
JSON: Final[Header] = (b"content-type", b"application/json")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_FIELD: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST_HEADERS: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"x-request-id")
)
_UNBUFFERED: Final[tuple[Header, ...]] = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class StreamForm(Protocol):
    """What a codec decides about a stream once its first item is there."""

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        """Choose the encoder; raise NotAcceptable where none will do."""

    def named_encoder(self) -> Encoder | None:
        """Return the encoder that `Accept` asks for by name, if it frames its items."""

    def headers(self) -> list[Header]:
        """Return the headers that the model has set, its content type included if it did."""


class Streaming(NamedTuple):
    """What is settled about a model's streams when it is registered.

    `begin(arrived, now)` records the first item and returns what is called with the time of each
    later one.
    """

    begin: Callable[[float, float], Callable[[float], None]]
    collect_bytes: float
    coalesce: bool = False
    heartbeat: float | None = None
    heartbeat_before_first: bool = False


class Reply:
    """The answer to one request, and what has been sent of it."""

    __slots__ = (
        "_bodiless",
        "_encoder",
        "_extra",
        "_lock",
        "_send",
        "_sending",
        "complete",
        "cut",
        "error",
        "first_item_at",
        "flight",
        "items",
        "request_id",
        "started",
        "status",
    )

    def __init__(
        self, send: Send, flight: Flight, request_id: bytes, *, bodiless: bool = False
    ) -> None:
        self._send = send
        self._sending = False
        self._bodiless = bodiless  # to HEAD
        self._encoder: Encoder | None = None
        self._extra = [(b"x-request-id", request_id)]
        self._lock: anyio.Lock | None = None
        self.flight = flight
        self.request_id = request_id
        self.status = 0
        self.started = False
        self.complete = False
        self.cut = False
        self.error: BaseException | None = None
        self.items = 0
        self.first_item_at = 0.0

    # -- a whole document

    async def document(self, status: int, headers: list[Header], buffers: Sequence[Body]) -> None:
        """Send a whole answer, in order; large buffers in parts, so that none is copied whole.

        Raises ClientGone if the client has left.
        """
        self.go_on(Phase.SEND)
        if len(buffers) == 1 and type(buffers[0]) is bytes:
            await self._whole(status, headers, buffers[0])
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        await self._start(status, [*headers, _length(sum(map(len, views)))])
        for view in () if self._bodiless else views:
            for start in range(0, len(view), _PART_BYTES):
                self.go_on(Phase.SEND)
                await self.body(bytes(view[start : start + _PART_BYTES]), more=True)
        await self.body(b"", more=False)

    # -- a stream

    async def stream(
        self, items: AsyncIterator[Any], form: StreamForm, streaming: Streaming
    ) -> None:
        """Send items as they come, one event an item, the first with the start of the answer.

        What fails before the first item is encoded is raised, to become an ordinary status; what
        fails later is raised too, and `fail` then tells it in band. The caller closes the items.
        """
        if streaming.heartbeat_before_first:
            await self._begin_heartbeat(form.named_encoder(), form, streaming.heartbeat)
        empty = False
        try:
            first = await anext(items)
        except StopAsyncIteration:
            first, empty = None, True
        encoder = self._encoder or form.encoder(first, empty=empty)
        if encoder.join is not None:
            await self._collect(items, first, empty, encoder, form, streaming.collect_bytes)
            return
        chunk = b"" if empty else encoder.encode(first)
        await self._start_stream(encoder, form)
        if not empty:
            tick = await self._first_item(chunk, streaming)
            if self._lock is None:
                await self._begin_heartbeat(form.named_encoder(), form, streaming.heartbeat)
            coalesces = streaming.coalesce and self.flight.is_native
            send_rest = self._coalesced if coalesces else self._events
            await send_rest(items, encoder.encode, tick)
        self.go_on(Phase.SEND)
        await self.body(b"", more=False)

    async def _start_stream(self, encoder: Encoder, form: StreamForm) -> None:
        """Start the answer, unless a heartbeat has."""
        self.go_on(Phase.SEND)
        self._encoder = encoder
        if not self.started:
            await self._start(200, _with_defaults(form.headers(), encoder, _UNBUFFERED))

    async def _first_item(self, chunk: bytes, streaming: Streaming) -> Callable[[float], None]:
        await self.body(chunk, more=True)
        self.items = 1
        self.first_item_at = monotonic()
        return streaming.begin(self.flight.arrived, self.first_item_at)

    async def _events(
        self,
        items: AsyncIterator[Any],
        encode: Callable[[Any], bytes],
        tick: Callable[[float], None],
    ) -> None:
        """Send the rest of a stream: the loop that every item goes through."""
        flight = self.flight
        send = self._send if self._lock is None else self._event
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
            tick(now)
            if now >= turn_ends:
                await anyio.lowlevel.checkpoint()
                turn_ends = monotonic() + _TURN_SECONDS

    async def _coalesced(
        self,
        items: AsyncIterator[Any],
        encode: Callable[[Any], bytes],
        tick: Callable[[float], None],
    ) -> None:
        """Send the rest of a stream, what is made without a pause in one event.

        Each step of the iterator is begun by hand: one that ends without suspending has made its
        item at once, and only where one suspends is what there is sent. So nothing ever waits for
        more. 6 times the items a second of one event an item.

        It is sent by a task beside us then: the iterator may be suspended inside a time limit of
        its own, whose cancellation must not find this task in the middle of a `send`.
        """
        flight, parts = self.flight, _Parts(self)
        turn_ends = monotonic() + _TURN_SECONDS
        flight.enter(Phase.ITEM)
        try:
            while True:
                step = items.__anext__().__await__()
                try:
                    trap = next(step)
                except StopIteration as made:
                    item = made.value
                else:
                    parts.send_beside()
                    item = await _resume(step, trap)
                parts.add(encode(item))
                now = monotonic()
                tick(now)
                if parts.size >= _COALESCED_BYTES or now >= turn_ends:
                    await parts.send()
                if now >= turn_ends:
                    await anyio.lowlevel.checkpoint()
                    turn_ends = monotonic() + _TURN_SECONDS
        except StopAsyncIteration:
            await parts.send()
        finally:
            await parts.close()

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
        self.flight.enter(Phase.ITEM)
        async for item in items:
            parts.append(encoder.encode(item))
            size += len(parts[-1])
            if size > limit:
                raise CollectedTooLarge(f"The collected items are larger than {limit:.0f} bytes.")
            if self.flight.reason is not None:
                raise self.flight.reason
            self.flight.since = now = monotonic()
            if now >= turn_ends:
                await anyio.lowlevel.checkpoint()
                turn_ends = monotonic() + _TURN_SECONDS
        self.items = len(parts)
        await self.document(200, _with_defaults(form.headers(), encoder), [encoder.join(parts)])

    # -- heartbeats

    async def _begin_heartbeat(
        self, encoder: Encoder | None, form: StreamForm, seconds: float | None
    ) -> None:
        """Keep a quiet stream alive, for a client that asked for a framed form by name."""
        if encoder is None or seconds is None:
            return
        self._lock = anyio.Lock()  # from now on two tasks send
        await self._start_stream(encoder, form)
        self.flight.enter(Phase.FIRST if not self.items else Phase.ITEM)
        self.flight.beside(self._beat(encoder.idle or b"", seconds))

    async def _beat(self, idle: bytes, seconds: float) -> None:
        sent = monotonic()
        while not self.complete:
            quiet = monotonic() - max(sent, self.flight.since)
            if quiet < seconds:
                await anyio.sleep(seconds - quiet)
            elif self.flight.reason is not None or self.flight.phase == Phase.SEND:
                await anyio.sleep(seconds)
            else:
                await self.body(idle, more=True)
                sent = monotonic()

    # -- failures

    async def fail(self, exc: BaseException, *, debug: bool) -> None:
        """Tell an exception: as the whole answer, as a last record, or by a cut."""
        self.error = exc
        if isinstance(exc, ClientGone):
            return
        if not is_expected(exc):
            logger.error("Request %s failed", self.request_id.decode(), exc_info=exc)
        status, sentence, headers = describe(exc, debug=debug)
        self.flight.enter(Phase.SEND)
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

    def close_connection(self, scope: Mapping[str, Any]) -> None:
        """Ask the client to come back over another connection, where the protocol has that."""
        if str(scope.get("http_version", "")).startswith("1"):
            self._extra.append((b"connection", b"close"))

    async def _tell(self, status: int, sentence: str, headers: Mapping[str, str]) -> None:
        if self.complete:
            return
        if not self.started:
            body = error_document(sentence)
            await self._whole(status, [JSON, *_error_headers(headers)], body)
        elif self._encoder is not None and self._encoder.failure is not None:
            await self.body(self._encoder.failure(sentence), more=True)
            await self.body(b"", more=False)
        else:
            self.cut = True

    # -- messages

    def go_on(self, phase: int) -> None:
        """Enter a phase, unless the flight has a reason to end: then the farewell has the word."""
        if self.flight.reason is not None:
            raise self.flight.reason
        self.flight.enter(phase)

    async def _whole(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send the start and all of the body in one go.

        The same as `_start` and `body`, in one coroutine instead of five: 3 us of a small request.
        """
        headers = [*headers, _length(len(body)), *self._extra]
        body = b"" if self._bodiless else body
        self.started = self._sending = self.flight.answered = True
        self.status = status
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        except Exception as exc:
            raise ClientGone from exc
        self._sending = False
        self.complete = True
        self.flight.phase = Phase.DONE

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.started = True
        self.status = status
        headers += self._extra
        await self._event({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, body: bytes, *, more: bool) -> None:
        self.flight.answered = not more
        await self._event({"type": "http.response.body", "body": body, "more_body": more})
        if not more:
            self.complete = True
            self.flight.phase = Phase.DONE

    async def _event(self, message: MutableMapping[str, Any]) -> None:
        """Send one event, one task after the other where a heartbeat sends as well."""
        if self._lock is None:
            await self._send_now(message)
        else:
            async with self._lock:
                await self._send_now(message)

    async def _send_now(self, message: MutableMapping[str, Any]) -> None:
        """Send one event; any exception means that the client has left."""
        self._sending = True
        try:
            await self._send(message)
        except Exception as exc:
            raise ClientGone from exc
        self._sending = False


class _Parts:
    """What a coalesced stream has made and not sent yet, and the one task that may be sending."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._parts: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.size = 0

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self.size += len(part)

    def send_beside(self) -> None:
        """Send what there is, and what comes meanwhile, in a task of its own."""
        if self._parts and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._send_beside())

    async def send(self) -> None:
        """Send what there is, after what is being sent."""
        if self._task is not None:
            await asyncio.wait((self._task,))
        await self._send_all()
        self._reply.flight.enter(Phase.ITEM)

    async def close(self) -> None:
        """End the sending; what was interrupted is not sent again."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _send_beside(self) -> None:
        try:
            await self._send_all()
        except Stopped as gone:
            self._reply.flight.cancel(gone)

    async def _send_all(self) -> None:
        reply = self._reply
        while self._parts:
            parts, self._parts, self.size = self._parts, [], 0
            reply.go_on(Phase.SEND)
            await reply.body(b"".join(parts), more=True)
            reply.items += len(parts)
        reply.flight.enter(Phase.ITEM)


@types.coroutine
def _resume(step: Generator[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
    """Go on with a step that has suspended; return what it made."""
    advance: Callable[[Any], Any]
    while True:
        try:
            value = yield trap
        except BaseException as exc:
            advance, value = step.throw, exc
        else:
            advance = step.send
        try:
            trap = advance(value)
        except StopIteration as made:
            return made.value


def model_headers(headers: MutableHeaders) -> list[Header]:
    """Return the response headers that a model has set, less those that only the host may set.

    Raises ValueError for a name or a value that cannot go over the wire.
    """
    for name, value in headers.raw:
        if not _TOKEN.fullmatch(name) or not _FIELD.fullmatch(value):
            raise ValueError(f"The model set a response header that cannot be sent: {name!r}")
    own = ((name, value.strip(b" \t")) for name, value in headers.raw)
    return [pair for pair in own if pair[0] not in _HOST_HEADERS]


def _length(size: int) -> Header:
    return (b"content-length", b"%d" % size)


def _with_defaults(
    own: list[Header], encoder: Encoder, defaults: Iterable[Header] = ()
) -> list[Header]:
    """Put the content type first, then the defaults that the model has not set itself."""
    names = {name for name, _ in own}
    content_type = (b"content-type", encoder.media_type.encode("latin-1"))
    kept = (pair for pair in own if pair[0] != b"content-type")
    return [content_type, *(pair for pair in defaults if pair[0] not in names), *kept]


def _error_headers(headers: Mapping[str, str]) -> list[Header]:
    """Return the headers of an error, less those that cannot be sent."""
    pairs: list[Header] = []
    for name, value in headers.items():
        with suppress(ValueError):
            pairs += model_headers(MutableHeaders({str(name): str(value)}))
    return [pair for pair in pairs if pair[0] != b"content-type"]
