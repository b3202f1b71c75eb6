"""Write a stream: its items as they come, one event for each, or all of them as one document.

A stream starts with its first item, so that a failure before it is an ordinary status. The loop
over all items is `Stream._send_each`; `coalescing` does the same with many items in an event, and
`Stream._send_collected` with all of them in one document.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

import anyio

from modelserve.concurrency.asyncio_guard import OwnContext
from modelserve.concurrency.endings import Ending, is_ending
from modelserve.concurrency.flight import Phase
from modelserve.errors import CollectedTooLarge
from modelserve.exchange.coalescing import Coalescer
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.heartbeat import start_heartbeat
from modelserve.exchange.sending import send_failure
from modelserve.exchange.turns import TURN_SECONDS, Turn, give_way
from modelserve.metrics.series import Tick
from modelserve.protocols.codec import StreamFormat
from modelserve.wire.encoders import Encoder, raw_item
from modelserve.wire.headers import Header

__all__ = ["Stream", "Streaming", "send_sheltered", "stream_headers"]

# Module-level names, since the attributes of a class are looked up at every item.
_FIRST: Final = Phase.FIRST
_ITEM: Final = Phase.ITEM
_SEND: Final = Phase.SEND
_DONE: Final = Phase.DONE
_UNBUFFERED: Final[tuple[Header, ...]] = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Streaming(NamedTuple):
    """What is decided about a model's streams when it is registered.

    Attributes:
        record_first: Called with the times of arrival and of the first item; returns a function to
            call with the time of each later one.
        collect_bytes: The most bytes of a stream that is sent as one document.
        coalesce: Send items that are made without a pause in one event.
        heartbeat: Seconds without an item after which a heartbeat is sent; None for never.
        heartbeat_before_first: Send heartbeats before the first item, too.
    """

    record_first: Callable[[float, float], Tick]
    collect_bytes: float
    coalesce: bool = False
    heartbeat: float | None = None
    heartbeat_before_first: bool = False


class Stream:
    """The items of one answer on their way to the client."""

    __slots__ = (
        "_exchange", "_format", "_observer", "_streaming",
        "encoder", "endings", "first_item", "items", "lock",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, format: StreamFormat, streaming: Streaming) -> None:
        self._exchange = exchange
        self._format = format
        self._streaming = streaming
        self._observer: _Progress | Coalescer | None = None
        self.endings: Sequence[Ending] | None = None
        self.encoder: Encoder | None = None
        self.lock: anyio.Lock | None = None
        self.items = 0
        self.first_item: float | None = None
        exchange.stream = self

    def note_suspension(self) -> bool:
        """Note that the pipeline has suspended; return whether a generator is cleaning up."""
        if self._observer is not None:
            self._observer.note_suspension()
        return self.endings is not None and is_ending(self.endings)

    async def send(self, items: AsyncIterator[Any]) -> None:
        """Send all items, the first with the start of the answer.

        Raises what fails: before the first item is encoded, for an ordinary status; later, for a
        report in the stream. Raises ClientGone if the client has left. The caller closes the items.
        """
        exchange = self._exchange
        if self._streaming.heartbeat_before_first:
            await self._start_heartbeat()
        empty = False
        try:
            first = await anext(items)
        except StopAsyncIteration:
            first, empty = None, True
        encoder = self.encoder or self._format.encoder(first, empty=empty)
        if encoder.join is not None:
            await self._send_collected(items, [] if empty else [encoder.encode(first)], encoder)
            return
        chunk = b"" if empty else encoder.encode(first)
        await self._start(encoder)
        if not empty:
            await exchange.send_part(chunk)
            await self._send_later_items(items, encoder, self._record_first())
        exchange.check_reason()
        exchange.enter(_SEND)
        await exchange.finish(b"" if encoder.finish is None else encoder.finish())

    def _record_first(self) -> Tick:
        exchange = self._exchange
        now = monotonic()
        self.items = 1
        self.first_item = now - exchange.arrived
        return self._streaming.record_first(exchange.arrived, now)

    async def _start(self, encoder: Encoder) -> None:
        """Start the answer, unless a heartbeat has."""
        self.encoder = encoder
        if self._exchange.status:
            self._exchange.check_reason()
            self._exchange.enter(_SEND)
        else:
            await self._exchange.start(200, stream_headers(self._format, encoder))

    async def _send_later_items(
        self, items: AsyncIterator[Any], encoder: Encoder, tick: Tick
    ) -> None:
        """Send the items after the first, one event an item or coalesced."""
        exchange, streaming = self._exchange, self._streaming
        if streaming.heartbeat is not None and self.lock is None:
            await self._start_heartbeat()
        encode = encoder.encode
        if streaming.coalesce and (exchange.flight is None or exchange.flight.spawns_tasks):
            self._observer = coalescer = Coalescer(exchange, self, tick)
            try:
                await coalescer.send(items, encode)
            finally:
                self._observer = None  # else a reference cycle
            return
        self._observer = progress = _Progress(self, exchange, tick)
        try:
            await self._send_each(items, encode, progress)
        finally:
            self._observer = None
            progress.record()

    async def _send_each(
        self, items: AsyncIterator[Any], encode: Callable[[Any], bytes], progress: "_Progress"
    ) -> None:
        """Send each item as one event.

        The time in a phase and the counts are read only while the pipeline is suspended; so both
        are noted at each suspension, instead of at every item.
        """
        exchange, send = self._exchange, self._exchange.send
        sends_alone = self.lock is None
        is_raw = encode is raw_item
        exchange.phase = _ITEM
        async for item in items:
            chunk = item if is_raw and type(item) is bytes else encode(item)
            if exchange.reason is not None:
                raise exchange.reason  # another task sends the final message
            exchange.phase = _SEND
            if sends_alone:  # inlined `send_part`, without its coroutines
                exchange.sending = True
                try:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except Exception as exc:
                    raise send_failure(exchange, exc) from exc
                exchange.sending = False
            else:
                await exchange.send_part(chunk)
            exchange.phase = _ITEM
            self.items += 1
            now = monotonic()
            if now >= progress.look_at and progress.turn_is_over(now):
                await give_way()
                progress.begin_turn()

    async def _send_collected(
        self, items: AsyncIterator[Any], parts: list[bytes], encoder: Encoder
    ) -> None:
        """Send all items as one document; nothing is sent before the last has come."""
        assert encoder.join is not None
        exchange, limit = self._exchange, self._streaming.collect_bytes
        size = sum(map(len, parts))
        turn = Turn()
        exchange.enter(_ITEM)
        async for item in items:
            parts.append(encoder.encode(item))
            size += len(parts[-1])
            if size > limit:
                raise CollectedTooLarge(f"The collected items are larger than {limit:.0f} bytes.")
            exchange.check_reason()
            exchange.since = now = monotonic()
            if now >= turn.ends:
                await give_way()
                turn.begin()
        self.items = len(parts)
        exchange.check_reason()
        headers = stream_headers(self._format, encoder)
        await exchange.send_document(200, headers, [encoder.join(parts)])

    async def _start_heartbeat(self) -> None:
        """Keep a quiet stream alive, for a client that asked for a framed form by name."""
        exchange, seconds = self._exchange, self._streaming.heartbeat
        encoder = self._format.framed_encoder() if seconds is not None else None
        if encoder is None or seconds is None:
            return
        await self._start(encoder)
        exchange.enter(_ITEM if self.items else _FIRST)
        if exchange.flight is None:
            await asyncio.sleep(0)  # a pipeline has its flight once it has suspended
        start_heartbeat(exchange, encoder.idle or b"", seconds)


async def send_sheltered(
    stream: Stream, exchange: Exchange, items: AsyncIterator[Any], endings: Sequence[Ending]
) -> None:
    """Like `Stream.send`, for generators whose clean-up awaits something.

    That clean-up is not interrupted even if the generators end by themselves.
    """
    stream.endings = endings
    mark = OwnContext(exchange)
    try:
        await stream.send(items)
    finally:
        mark.leave()


class _Progress:
    """What is noted of a stream when it suspends: for the metrics, the clock and the next turn.

    An item that comes after `look_at` has to call `turn_is_over`: that is the end of the turn, or 0
    after a pause. A pause does not end the turn: other tasks may need the next one to see what
    happened during it (that the client left, for example).
    """

    __slots__ = ("_exchange", "_phase", "_recorded", "_stream", "_tick", "_turn_ends", "look_at")

    def __init__(self, stream: Stream, exchange: Exchange, tick: Tick) -> None:
        self._stream = stream
        self._exchange = exchange
        self._tick = tick
        self._recorded = stream.items
        self._phase = (0, 0)
        self.begin_turn()
        self.look_at = self._turn_ends

    def begin_turn(self) -> None:
        self._turn_ends = monotonic() + TURN_SECONDS

    def note_suspension(self) -> None:
        """Record the items so far, and when the present phase began."""
        self.record()
        self.look_at = 0.0
        exchange = self._exchange
        phase = (exchange.phase, self._stream.items)
        if phase != self._phase:
            self._phase = phase
            exchange.since = monotonic()

    def turn_is_over(self, now: float) -> bool:
        """Return whether to give way; record an item that came after a pause, at its own time."""
        if not self.look_at:
            self._tick(now)
            self._recorded += 1
            self.look_at = self._turn_ends
        return now >= self._turn_ends

    def record(self) -> None:
        """Record the items that came one right after the other."""
        count = self._stream.items - self._recorded
        if count:
            self._tick(monotonic(), count)
            self._recorded += count


def stream_headers(format: StreamFormat, encoder: Encoder) -> list[Header]:
    """Put the content type first, then the defaults that the model has not set.

    A stream that is collected into one document has no defaults.
    """
    headers = format.headers()
    defaults: Iterable[Header] = _UNBUFFERED if encoder.join is None else ()
    content_type = (b"content-type", encoder.media_type.encode("latin-1"))
    if not headers:
        return [content_type, *defaults]
    names = {name for name, _ in headers}
    kept = (pair for pair in headers if pair[0] != b"content-type")
    return [content_type, *(pair for pair in defaults if pair[0] not in names), *kept]
