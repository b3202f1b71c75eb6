"""Send what is put there by a task of its own, which is a companion of the request's flight.

What is put without a pause goes out in one event. So nothing waits for what comes after it, and
whoever puts something waits only where the client does not read.
"""

from time import monotonic
from typing import Final, Protocol

import anyio

from modelserve.concurrency.flight import Phase
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.sending import send_failure
from modelserve.exchange.streams import Streaming
from modelserve.metrics.series import Tick
from modelserve.wire.headers import Header

__all__ = ["EVENT_BYTES", "Outbox"]

EVENT_BYTES: Final = 1 << 16


class Sending(Protocol):
    """What is counted of a stream, and how its answer begins."""

    items: int
    first_item: float | None

    def start_headers(self) -> list[Header]:
        """Return the headers of the answer."""


class Outbox:
    """What has been put and not sent yet.

    Args:
        at_once: Whoever puts something sends it, by waiting until it is empty: nothing is gained by
            sending several records in one event.
    """

    def __init__(
        self, exchange: Exchange, stream: Sending, streaming: Streaming, *, at_once: bool = False
    ) -> None:
        self._event_bytes = 1 if at_once else EVENT_BYTES
        self._at_once = at_once
        self._exchange = exchange
        self._stream = stream
        self._record_first = streaming.record_first
        self._tick: Tick | None = None
        self._parts: list[bytes] = []
        self._items = 0  # in those parts
        self._size = 0
        self._is_sending = False
        self._news, self._empty = anyio.Event(), anyio.Event()

    @property
    def is_full(self) -> bool:
        """Whether whoever puts more should wait until it is empty."""
        return self._size >= self._event_bytes

    def put(self, part: bytes, items: int = 1) -> None:
        """Add a part of the body, which is so many items."""
        self._parts.append(part)
        self._items += items
        self._size += len(part)
        self._news.set()

    async def send_one(self, part: bytes) -> None:
        """Send one item, after all that was put; where that is done at once. Raises ClientGone."""
        exchange = self._exchange
        if self._tick is None or self._parts or self._is_sending:
            self.put(part)
            await self.emptied()
            return
        exchange.check_reason()
        exchange.phase = Phase.SEND
        exchange.since = now = monotonic()
        self._tick(now)
        self._is_sending = exchange.sending = True
        try:
            await exchange.send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as exc:
            raise send_failure(exchange, exc) from exc
        finally:
            self._is_sending = False
            self._empty.set()
        exchange.sending = False
        self._stream.items += 1
        exchange.phase = Phase.ITEM
        exchange.since = monotonic()

    async def emptied(self) -> None:
        """Wait until all has been sent."""
        if self._at_once and not self._is_sending:
            await self._send_all()
        while self._parts or self._is_sending:
            if self._empty.is_set():
                self._empty = anyio.Event()
            await self._empty.wait()

    async def send(self) -> None:
        """Send what there is, and then what comes, until cancelled. Raises ClientGone."""
        while not self._at_once:
            await self._news.wait()
            self._news = anyio.Event()
            await self._send_all()

    async def _send_all(self) -> None:
        self._is_sending = True
        try:
            while self._parts:
                await self._send_parts()
        finally:
            self._is_sending = False
            self._empty.set()

    async def _send_parts(self) -> None:
        exchange = self._exchange
        body, items = b"".join(self._parts), self._items
        self._parts.clear()
        self._items = self._size = 0
        exchange.check_reason()
        exchange.enter(Phase.SEND)
        self._record(items)
        if not exchange.status:
            await exchange.start(200, self._stream.start_headers())
        await exchange.send_part(body)
        self._stream.items += items
        exchange.enter(Phase.ITEM)

    def _record(self, count: int) -> None:
        now = monotonic()
        if self._tick is None:
            self._stream.first_item = now - self._exchange.arrived
            self._tick = self._record_first(self._exchange.arrived, now)
            count -= 1
        if count:
            self._tick(now, count)
