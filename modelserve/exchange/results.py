"""The results of a request that is still being received, on their way to the client.

They are encoded here, go out by the `outbox` or in one document, and among them go the errors of
single records. `streams` is for an answer whose request has been read.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

import anyio

from modelserve.concurrency.asyncio_guard import OwnContext
from modelserve.concurrency.endings import Ending, is_ending
from modelserve.concurrency.flight import Phase
from modelserve.errors import CollectedTooLarge, ServingError, describe, is_expected
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.outbox import EVENT_BYTES, Outbox
from modelserve.exchange.sending import log_failure
from modelserve.exchange.streams import Streaming, stream_headers
from modelserve.exchange.turns import Turn, give_way
from modelserve.protocols.codec import StreamFormat
from modelserve.wire.encoders import Encoder, Item
from modelserve.wire.headers import Header

__all__ = ["RecordFailed", "Results"]

_MOST_LOGGED: Final = 5  # failures of single records in one request


class RecordFailed(ServingError):
    """One record of the request has failed, and with it the request; the status is that failure's.

    Args:
        failure: Why.
        place: The record, such as `line 17`.
    """

    def __init__(self, failure: BaseException, place: str, *, debug: bool = False) -> None:
        status, detail, _ = describe(failure, debug=debug)
        super().__init__(f"{place}: {detail}")
        self.status = status


class Results:
    """The results of one request.

    Args:
        stops: The first record that fails ends the request.
        noun: What a record of the request is called.
        debug: Show the text of unexpected exceptions.
    """

    def __init__(
        self,
        exchange: Exchange,
        format: StreamFormat,
        streaming: Streaming,
        *,
        stops: bool = False,
        noun: str = "line",
        debug: bool = False,
    ) -> None:
        self._exchange = exchange
        self._format = format
        self._streaming = streaming
        self._stops = stops
        self._noun = noun
        self._debug = debug
        self._logged = 0
        self._gathered = bytearray()  # a list of many parts would take far more memory
        self._count = 0  # the items in it
        self._collected: list[bytes] = []
        self._size = 0  # of what is collected
        self._turn = Turn()
        # what the exchange knows of a stream
        self.endings: Sequence[Ending] | None = None
        self.encoder = format.fixed
        self.lock: anyio.Lock | None = None
        self.items = 0
        self.first_item: float | None = None
        self._outbox = Outbox(exchange, self, streaming, at_once=format.fixed is not None)
        exchange.stream = self

    def note_suspension(self) -> bool:
        """Hand on what was gathered; return whether a generator is cleaning up."""
        self._turn.note_pause()
        if self._count:
            self._hand_on()
        return self.endings is not None and is_ending(self.endings)

    async def send(self) -> None:
        """Send what is put, until cancelled; to be a companion of the flight.

        Raises ClientGone if the client has left.
        """
        await self._outbox.send()

    @asynccontextmanager
    async def flushing(self) -> AsyncIterator[None]:
        """Send what was put before an exception first, unless that ends the request early."""
        try:
            yield
        except BaseException as exc:
            if not self._exchange.is_interrupted_by(exc):
                await self._outbox.emptied()
            raise

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been put."""
        return self.encoder is None

    async def put_all(self, items: AsyncIterator[Any], endings: Sequence[Ending] | None) -> None:
        """Put all items of a stream, as they come. What they raise is raised."""
        self.endings = endings
        mark = OwnContext(self._exchange)
        try:
            fixed = self._format.fixed
            await (self._gather(items) if fixed is None else _send_each(self, items, fixed.encode))
        finally:
            self._hand_on()
            mark.leave()

    async def _gather(self, items: AsyncIterator[Any]) -> None:
        """Encode items as they come; those that come without a pause are handed on together."""
        gathered, turn = self._gathered, self._turn
        encode: Callable[[Item], bytes] | None = None
        collects = False
        async for item in items:
            if encode is None:
                encoder = self.encoder or self._choose(item)
                encode, collects = encoder.encode, encoder.join is not None
            if collects:
                self._collect(encode(item))
            else:
                gathered += encode(item)
                self._count += 1
            if len(gathered) >= EVENT_BYTES or (monotonic() >= turn.ends and turn.is_over()):
                self._hand_on()
                await self.wait_for_room()

    def _hand_on(self) -> None:
        """Let what was gathered be sent."""
        if self._count:
            self._outbox.put(bytes(self._gathered), self._count)
            self._gathered.clear()
            self._count = 0

    def put(self, items: Sequence[Item]) -> None:
        """Add items. Raises as an encoder does; NotAcceptable, CollectedTooLarge."""
        if not items:
            return
        encoder = self.encoder or self._choose(items[0])
        if encoder.encode_all is not None:
            self._outbox.put(encoder.encode_all(items), len(items))
        elif encoder.join is not None:
            for item in items:
                self._collect(encoder.encode(item))
        else:
            self._outbox.put(b"".join(map(encoder.encode, items)), len(items))

    def fail_record(self, number: int, failure: BaseException) -> None:
        """Say in the place of a record's result why there is none.

        Raises RecordFailed where that cannot be said, or is to end the request.
        """
        if not is_expected(failure) and self._logged < _MOST_LOGGED:
            self._logged += 1
            text = f"{self._noun.capitalize()} {number} of request %s failed"
            log_failure(self._exchange, text, failure)
        self._hand_on()
        encoder = self.encoder or self._choose({})
        if self._stops or encoder.remark is None:
            place = f"{self._noun} {number}"
            raise RecordFailed(failure, place, debug=self._debug) from failure
        detail = describe(failure, debug=self._debug)[1]
        self._outbox.put(encoder.remark({"error": detail, self._noun: number}))

    async def wait_for_room(self) -> None:
        """Wait until what there is has been sent, if it is much, and give others their turn.

        Raises the reason if the request is being ended early.
        """
        if self._outbox.is_full:
            await self._outbox.emptied()
        if self._turn.is_over():
            await give_way()
            self._turn.begin()
        self._exchange.check_reason()

    def _collect(self, part: bytes) -> None:
        """Keep an encoded item for the one document of all. Raises CollectedTooLarge."""
        self._collected.append(part)
        self._size += len(part)
        self._exchange.since = monotonic()
        limit = self._streaming.collect_bytes
        if self._size > limit:
            raise CollectedTooLarge(f"The collected items are larger than {limit:.0f} bytes.")

    async def finish(self) -> None:
        """Send what is left, and the end."""
        exchange, encoder = self._exchange, self.encoder or self._choose(None, empty=True)
        if encoder.join is not None:
            exchange.check_reason()
            self.items = len(self._collected)
            document = encoder.join(self._collected)
            await exchange.send_document(200, self.start_headers(), [document])
            return
        await self._outbox.emptied()
        exchange.check_reason()
        if not exchange.status:
            await exchange.start(200, self.start_headers())
        exchange.enter(Phase.SEND)
        await exchange.finish(b"" if encoder.finish is None else encoder.finish())

    def start_headers(self) -> list[Header]:
        """Return the headers of the answer, once its form is known."""
        assert self.encoder is not None
        return stream_headers(self._format, self.encoder)

    def _choose(self, first: Item, *, empty: bool = False) -> Encoder:
        self.encoder = self._format.encoder(first, empty=empty)
        return self.encoder


async def _send_each(
    results: Results, items: AsyncIterator[Any], encode: Callable[[Item], bytes]
) -> None:
    """Send items as they come, where each is a message of its own."""
    send, turn = results._outbox.send_one, results._turn
    async for item in items:
        await send(encode(item))
        if monotonic() >= turn.ends and turn.is_over():
            await results.wait_for_room()
