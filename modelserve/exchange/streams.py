"""Write a stream: its items as they come, one event an item, or all of them as one document.

A stream starts with its first item, so that what fails before it is an ordinary status. The loop
that every item goes through is `_send_each`; `_coalesced` is the same with many items an event, and
`_collect` with all of them in one.
"""

import asyncio
import types
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

import anyio
import anyio.lowlevel

from modelserve.concurrency.flight import Phase
from modelserve.errors import ClientGone, CollectedTooLarge, Stopped
from modelserve.exchange.exchange import Header, Reply
from modelserve.metrics.series import Tick
from modelserve.wire.encoders import Encoder, raw_item

__all__ = ["Coalesced", "Stream", "StreamForm", "Streaming"]

_FIRST: Final = Phase.FIRST  # as globals they are found six times as fast
_ITEM: Final = Phase.ITEM
_SEND: Final = Phase.SEND
# What a stream may run without giving way to other requests. A pause costs 3 us. It has to be more
# than the interpreter's switch interval, 5 ms: a pause lets go of its lock for too short a time to be
# taken by a thread that waits for it, and begins that thread's 5 ms anew.
_TURN_SECONDS: Final = 0.006
_COALESCED_BYTES: Final = 1 << 16
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

    begin: Callable[[float, float], Tick]
    collect_bytes: float
    coalesce: bool = False
    heartbeat: float | None = None
    heartbeat_before_first: bool = False


class Coalesced:
    """A stream whose items, as they are made without a pause, are sent in one event.

    For one request; `coalesce` of a model or an application is for all. A hook returns it.

    Args:
        items: An iterator or an async iterable of items.

    The items are closed as those of any stream are: at their end, or when the client leaves.
    """

    __slots__ = ("items",)

    def __init__(self, items: Iterator[Any] | AsyncIterable[Any]) -> None:
        self.items = items


class Stream:
    """The items of one answer on their way to the client."""

    __slots__ = ("_flight", "_form", "_reply", "_streaming")

    def __init__(self, reply: Reply, form: StreamForm, streaming: Streaming) -> None:
        self._reply = reply
        self._flight = reply.flight
        self._form = form
        self._streaming = streaming

    async def send(self, items: AsyncIterator[Any]) -> None:
        """Send all items, the first with the start of the answer.

        What fails before the first item is encoded is raised, to become an ordinary status; what
        fails later is raised too, for `Reply.fail` to tell in band. The caller closes the items.
        """
        reply, form, streaming = self._reply, self._form, self._streaming
        if streaming.heartbeat_before_first:
            await self._begin_heartbeat()
        empty = False
        try:
            first = await anext(items)
        except StopAsyncIteration:
            first, empty = None, True
        encoder = reply.encoder or form.encoder(first, empty=empty)
        if encoder.join is not None:
            await self._collect(items, [] if empty else [encoder.encode(first)], encoder)
            return
        chunk = b"" if empty else encoder.encode(first)
        await self._start(encoder)
        if not empty:
            await reply.part(chunk)
            reply.items, now = 1, monotonic()
            reply.first_item = now - self._flight.arrived
            tick = streaming.begin(self._flight.arrived, now)
            if streaming.heartbeat is not None and reply.lock is None:
                await self._begin_heartbeat()
            if self._coalesces:
                await self._coalesced(items, encoder.encode, tick)
            else:
                tally = _Tally(reply, tick)
                await _driven(self._send_each(items, encoder.encode, tally), tally)
        reply.go_on(_SEND)
        await reply.end()

    @property
    def _coalesces(self) -> bool:
        return self._streaming.coalesce and self._flight.is_native

    async def _start(self, encoder: Encoder) -> None:
        """Start the answer, unless a heartbeat has."""
        reply = self._reply
        reply.go_on(_SEND)
        reply.encoder = encoder
        if not reply.started:
            await reply.start(200, _with_defaults(self._form.headers(), encoder, _UNBUFFERED))

    async def _send_each(
        self, items: AsyncIterator[Any], encode: Callable[[Any], bytes], tally: "_Tally"
    ) -> None:
        """Send each item as one event.

        It is driven by hand. Nobody looks at how long a phase has lasted, or at what has been
        counted, but while we are suspended; so both are noted there, instead of with every item:
        0.3 us an item.
        """
        reply, flight, send = self._reply, self._flight, self._reply.send
        sends_alone = reply.lock is None
        is_raw = encode is raw_item
        flight.phase = _ITEM
        async for item in items:
            # Bytes that go as they are need no call: 0.1 us an item.
            chunk = item if is_raw and type(item) is bytes else encode(item)
            if flight.reason is not None:
                raise flight.reason  # the farewell has the word
            flight.phase = _SEND
            message = {"type": "http.response.body", "body": chunk, "more_body": True}
            if sends_alone:  # the same as `event`, without two coroutines: 0.2 us an item
                reply.sending = True
                try:
                    await send(message)
                except Exception as exc:
                    raise ClientGone from exc
                reply.sending = False
            else:
                await reply.event(message)
            flight.phase = _ITEM
            reply.items += 1
            now = monotonic()
            if now >= tally.look_at and tally.turn_is_over(now):
                await anyio.lowlevel.checkpoint()
                tally.begin_turn()

    async def _coalesced(
        self, items: AsyncIterator[Any], encode: Callable[[Any], bytes], tick: Tick
    ) -> None:
        """Send what is made without a pause in one event.

        The gathering is driven by hand: only where the iterator suspends is what there is sent. So
        nothing ever waits for more. 8 times the items a second of one event an item.

        It is sent by a task beside us then: the iterator may be suspended inside a time limit of
        its own, whose cancellation must not find this task in the middle of a `send`.
        """
        parts = _Parts(self._reply, tick)
        self._flight.enter(_ITEM)
        try:
            await _driven(self._gather(items, encode, parts), parts)
        except BaseException as exc:
            if not self._flight.interrupted(exc):
                await parts.send()  # what was made before the failure goes before its record
            raise
        finally:
            await parts.close()

    async def _gather(
        self, items: AsyncIterator[Any], encode: Callable[[Any], bytes], parts: "_Parts"
    ) -> None:
        """Gather items, and send them where they are many or have taken long."""
        turn_ends = monotonic() + _TURN_SECONDS
        async for item in items:
            parts.add(encode(item))
            now = monotonic()
            if parts.size >= _COALESCED_BYTES or now >= turn_ends:
                await parts.send()
            if now >= turn_ends:
                await anyio.lowlevel.checkpoint()
                turn_ends = monotonic() + _TURN_SECONDS
        await parts.send()

    async def _collect(
        self, items: AsyncIterator[Any], parts: list[bytes], encoder: Encoder
    ) -> None:
        """Send all items as one document; nothing is sent before the last has come."""
        assert encoder.join is not None
        reply, flight, limit = self._reply, self._flight, self._streaming.collect_bytes
        size = sum(map(len, parts))
        turn_ends = monotonic() + _TURN_SECONDS
        flight.enter(_ITEM)
        async for item in items:
            parts.append(encoder.encode(item))
            size += len(parts[-1])
            if size > limit:
                raise CollectedTooLarge(f"The collected items are larger than {limit:.0f} bytes.")
            if flight.reason is not None:
                raise flight.reason
            flight.since = now = monotonic()
            if now >= turn_ends:
                await anyio.lowlevel.checkpoint()
                turn_ends = monotonic() + _TURN_SECONDS
        reply.items = len(parts)
        headers = _with_defaults(self._form.headers(), encoder)
        await reply.document(200, headers, [encoder.join(parts)])

    async def _begin_heartbeat(self) -> None:
        """Keep a quiet stream alive, for a client that asked for a framed form by name."""
        reply, seconds = self._reply, self._streaming.heartbeat
        encoder = self._form.named_encoder() if seconds is not None else None
        if encoder is None or seconds is None:
            return
        reply.lock = anyio.Lock()  # from now on two tasks send
        await self._start(encoder)
        self._flight.enter(_FIRST if not reply.items else _ITEM)
        self._flight.beside(self._beat(encoder.idle or b"", seconds))

    async def _beat(self, idle: bytes, seconds: float) -> None:
        reply, flight, sent = self._reply, self._flight, monotonic()
        while not reply.complete:
            quiet = monotonic() - max(sent, flight.since)
            if quiet < seconds:
                await anyio.sleep(seconds - quiet)
            elif flight.reason is not None or flight.phase == _SEND:
                await anyio.sleep(seconds)
            else:
                await reply.part(idle)
                sent = monotonic()


class _Tally:
    """What is noted of a stream where it suspends: for the metrics, the clock and the next turn.

    `look_at` is when an item has to ask `turn_is_over`: at the end of the turn, and after a pause,
    when it is 0. A pause is not a turn's end: what others were told meanwhile (that the client has
    left, say) they may only hear at the next one.
    """

    __slots__ = ("_phase", "_reply", "_tick", "_told", "_turn_ends", "look_at")

    def __init__(self, reply: Reply, tick: Tick) -> None:
        self._reply = reply
        self._tick = tick
        self._told = reply.items
        self._phase = (0, 0)
        self.begin_turn()
        self.look_at = self._turn_ends

    def begin_turn(self) -> None:
        self._turn_ends = monotonic() + _TURN_SECONDS

    def pause(self) -> None:
        """Tell what there is, and since when the present phase lasts."""
        self.tell()
        self.look_at = 0.0
        flight = self._reply.flight
        phase = (flight.phase, self._reply.items)
        if phase != self._phase:
            self._phase = phase
            flight.since = monotonic()

    def turn_is_over(self, now: float) -> bool:
        """Say whether to give way; tell of an item that has come after a pause, at its own time."""
        if not self.look_at:
            self._tick(now)
            self._told += 1
            self.look_at = self._turn_ends
        return now >= self._turn_ends

    def tell(self) -> None:
        """Tell the metrics of the items that have come one right after the other."""
        untold = self._reply.items - self._told
        if untold:
            self._tick(monotonic(), untold)
            self._told += untold


class _Parts:
    """What a coalesced stream has made and not sent yet, and the one task that may be sending.

    After a pause `_untold` is -1: the next item is told by itself, with its own time.
    """

    __slots__ = ("_parts", "_reply", "_task", "_tick", "_untold", "size")

    def __init__(self, reply: Reply, tick: Tick) -> None:
        self._reply = reply
        self._tick = tick
        self._untold = 0
        self._parts: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.size = 0

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self.size += len(part)
        if self._untold < 0:
            self._tick(monotonic())
        self._untold += 1

    def pause(self) -> None:
        """Send what there is, and what comes meanwhile, in a task of its own."""
        self.tell()
        self._untold = -1
        if self._parts and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._send_beside())

    def tell(self) -> None:
        if self._untold > 0:
            self._tick(monotonic(), self._untold)
            self._untold = 0

    async def send(self) -> None:
        """Send what there is, after what is being sent."""
        self.tell()
        # Waiting for a task suspends even where it is done, and `pause` would begin another then.
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))
        await self._send_all()

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
            reply.go_on(_SEND)
            await reply.part(b"".join(parts))
            reply.items += len(parts)
        reply.flight.enter(_ITEM)


class _Teller(Protocol):
    """What is told that a walk suspends, and that it has ended."""

    def pause(self) -> None: ...

    def tell(self) -> None: ...


@types.coroutine
def _driven(walk: Coroutine[Any, Any, None], teller: _Teller) -> Generator[Any, Any, None]:
    """Run a coroutine to its end; tell wherever it suspends, and in the end."""
    advance: Callable[[Any], Any] = walk.send
    value = None
    try:
        while True:
            trap = advance(value)
            teller.pause()
            try:
                value = yield trap
            except BaseException as exc:
                advance, value = walk.throw, exc
            else:
                advance = walk.send
    except StopIteration:
        return
    finally:
        teller.tell()


def _with_defaults(
    own: list[Header], encoder: Encoder, defaults: Iterable[Header] = ()
) -> list[Header]:
    """Put the content type first, then the defaults that the model has not set itself."""
    content_type = (b"content-type", encoder.media_type.encode("latin-1"))
    if not own:
        return [content_type, *defaults]
    names = {name for name, _ in own}
    kept = (pair for pair in own if pair[0] != b"content-type")
    return [content_type, *(pair for pair in defaults if pair[0] not in names), *kept]
