"""Send the results of a request that is still being received, and the errors of single records.

This is the common part of a body and of the messages of a WebSocket; `bodies` and `messages` write
and send them. `streams` is for an answer whose request has been read.
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from modelserve.concurrency.asyncio_guard import OwnContext
from modelserve.concurrency.endings import Ending, is_ending
from modelserve.errors import ServingError, describe, is_expected
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.sending import log_failure
from modelserve.exchange.streams import Streaming, stream_headers
from modelserve.exchange.turns import Turn, give_way
from modelserve.metrics.series import Tick
from modelserve.protocols.codec import StreamFormat
from modelserve.wire.encoders import Encoder, Item
from modelserve.wire.headers import Header
from modelserve.wire.json import detail_text, plain_detail

__all__ = ["RecordFailed", "Results"]

_MOST_LOGGED: Final = 5  # failures of single records in one request


class RecordFailed(ServingError):
    """One record of the request failed, and so the request; the status is that of the failure.

    Args:
        failure: The exception of the record.
        place: The record, such as `line 17`.
    """

    def __init__(self, failure: BaseException, place: str, *, debug: bool = False) -> None:
        status, detail, _ = describe(failure, debug=debug)
        super().__init__(f"{place}: {detail_text(detail)}")
        self.status = status


class Results:
    """The results of one request, with their counts and their errors for the log.

    Attributes:
        encoder, endings, lock, items, first_item: As in `exchange.StreamState`.

    Args:
        stops: The first record that fails ends the request.
        noun: The word for a record of the request.
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
        self.encoder: Encoder | None = None
        self.endings: Sequence[Ending] | None = None
        self.lock: anyio.Lock | None = None
        self.items = 0
        self.first_item: float | None = None
        self._exchange = exchange
        self._format = format
        self._streaming = streaming
        self._stops = stops
        self._noun = noun
        self._debug = debug
        self._logged = 0
        self._turn = Turn()
        self._tick: Tick | None = None
        self._headers: list[Header] = []
        exchange.stream = self

    @property
    def is_empty(self) -> bool:
        """Whether no result has been added, so that the form of the answer is still open."""
        return self.encoder is None

    # -- for the subclasses that send them

    def begin(self) -> None:
        """Begin to send results."""

    def put(self, items: Sequence[Item]) -> None:
        """Add items. Raises as an encoder does; NotAcceptable, CollectedTooLarge."""
        raise NotImplementedError

    def put_one(self, item: Item) -> Awaitable[None]:
        """Add an item; return `wait_for_room`, to be awaited. Raises as `put` and as that."""
        self.put((item,))
        return self.wait_for_room()

    async def put_each(self, items: AsyncIterator[Item]) -> None:
        """Add items as they come."""
        raise NotImplementedError

    def remark(self, document: dict[str, Any]) -> bool:
        """Add a remark between the items; return whether that is possible."""
        raise NotImplementedError

    def hand_on(self) -> None:
        """Let the gathered items be sent."""

    async def emptied(self) -> None:
        """Wait until all has been sent. Raises ClientGone."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Send the remaining results, and the end."""
        raise NotImplementedError

    # -- the same for all

    def note_suspension(self) -> bool:
        """Let the gathered items be sent; return whether a generator is cleaning up."""
        self._turn.note_pause()
        self.hand_on()
        return self.endings is not None and is_ending(self.endings)

    @asynccontextmanager
    async def flushing(self) -> AsyncIterator[None]:
        """Send the results before an exception first, unless that ends the request early."""
        try:
            yield
        except BaseException as exc:
            if not self._exchange.is_interrupted_by(exc):
                await self.emptied()
            raise
        finally:
            self.hand_on()

    async def put_all(self, items: AsyncIterator[Any], endings: Sequence[Ending] | None) -> None:
        """Add all items of a stream, as they come. Raises what they raise."""
        self.endings = endings
        mark = OwnContext(self._exchange)
        try:
            await self.put_each(items)
        finally:
            self.hand_on()
            mark.leave()

    def fail_record(self, number: int, failure: BaseException) -> None:
        """Add an error in the place of a record's result.

        Raises RecordFailed if the form has no place for it, or if it ends the request.
        """
        if not is_expected(failure) and self._logged < _MOST_LOGGED:
            self._logged += 1
            text = f"{self._noun.capitalize()} {number} of request %s failed"
            log_failure(self._exchange, text, failure)
        self.hand_on()
        detail = plain_detail(describe(failure, debug=self._debug)[1])
        if self._stops or not self.remark({"error": detail, self._noun: number}):
            place = f"{self._noun} {number}"
            raise RecordFailed(failure, place, debug=self._debug) from failure

    async def wait_for_room(self) -> None:
        """Wait until the results have been sent, if there are many, and let other tasks run.

        Raises the reason if the request is being ended early.
        """
        if self._turn.is_over():
            await give_way()
            self._turn.begin()
        self._exchange.check_reason()

    def choose(self, encoder: Encoder) -> Encoder:
        """Choose the encoder and make the headers now: sending must not fail because of them."""
        self._headers = stream_headers(self._format, encoder)
        self.encoder = encoder
        return encoder

    async def start(self) -> None:
        """Send the start of the answer, if it has not been sent."""
        if not self._exchange.status:
            await self._exchange.start(200, self._headers)

    def record(self, now: float, count: int) -> None:
        """Record that `count` items are sent at this moment."""
        if self._tick is None:
            arrived = self._exchange.arrived
            self.first_item = now - arrived
            self._tick = self._streaming.record_first(arrived, now)
            count -= 1
        if count:
            self._tick(now, count)
