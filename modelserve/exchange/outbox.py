"""An outbox: a task of its own, a companion of the request's flight, sends what is put into it.

Parts that are put without a pause are sent in one event. So no part waits for a later one, and
adding a part waits only if the client does not read.
"""

from typing import Final, Protocol

from modelserve.concurrency.flight import Phase
from modelserve.concurrency.loops import Waiters
from modelserve.exchange.exchange import Exchange

__all__ = ["EVENT_BYTES", "Outbox"]

EVENT_BYTES: Final = 1 << 16


class Sent(Protocol):
    """The stream that the outbox starts, and records sent items with."""

    items: int

    async def start(self) -> None:
        """Send the start of the answer, if it has not been sent."""

    def record(self, now: float, count: int) -> None:
        """Record that `count` items are sent at this moment."""


class Outbox:
    """The parts of a body that have been added and not sent yet.

    Attributes:
        size: Their size, in bytes.
    """

    def __init__(self, exchange: Exchange, stream: Sent) -> None:
        self._exchange = exchange
        self._stream = stream
        self._parts: list[bytes] = []
        self._items = 0  # in those parts
        self.size = 0
        self._is_sending = False
        self._news, self._emptied = Waiters(), Waiters()

    @property
    def is_full(self) -> bool:
        """Whether to wait until it is empty before adding more."""
        return self.size >= EVENT_BYTES

    def put(self, part: bytes, items: int = 1) -> None:
        """Add a part of the body with `count` items; an empty one only starts the answer."""
        self._parts.append(part)
        self._items += items
        self.size += len(part)
        self._news.wake()

    async def emptied(self) -> None:
        """Wait until all has been sent."""
        while self._parts or self._is_sending:
            await self._emptied.wait()

    async def send(self) -> None:
        """Send present and later parts, until cancelled. Raises ClientGone."""
        while True:
            if not self._parts:
                await self._news.wait()
            self._is_sending = True
            try:
                while self._parts:
                    await self._send_parts()
            finally:
                self._is_sending = False
                self._emptied.wake()

    async def _send_parts(self) -> None:
        exchange = self._exchange
        body, items = b"".join(self._parts), self._items
        self._parts.clear()
        self._items = self.size = 0
        exchange.check_reason()
        exchange.enter(Phase.SEND)
        if items:
            self._stream.record(exchange.since, items)
        await self._stream.start()
        if body:
            await exchange.send_part(body)
        self._stream.items += items
        exchange.enter(Phase.ITEM if self._stream.items else Phase.FIRST)
