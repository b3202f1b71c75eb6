"""Results as the messages of a WebSocket.

The task that adds a result sends it: each is an event of its own, so a second task would gain
nothing.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from time import monotonic
from typing import Any, Final

from modelserve.concurrency.flight import Phase
from modelserve.concurrency.loops import Waiters
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.results import Results
from modelserve.exchange.sending import send_failure
from modelserve.exchange.streams import Streaming
from modelserve.protocols.codec import StreamFormat
from modelserve.wire.encoders import Item

__all__ = ["MessageResults"]

# Module-level names, since the attributes of a class are looked up at every message.
_SEND: Final = Phase.SEND
_ITEM: Final = Phase.ITEM


class MessageResults(Results):
    """The results of one request as messages."""

    def __init__(
        self, exchange: Exchange, format: StreamFormat, streaming: Streaming, **settings: Any
    ) -> None:
        super().__init__(exchange, format, streaming, **settings)
        assert format.as_message is not None
        self._as_message = format.as_message
        self.choose(format.encoder(None, empty=True))
        self._waiting: deque[str | bytes] = deque()
        self._is_sending = False
        self._sent = Waiters()
        self._recorded = 0  # how many of the sent items

    def hand_on(self) -> None:
        """Record the items that were sent one right after the other."""
        count = self.items - self._recorded
        if count:
            self.record(monotonic(), count)
            self._recorded += count

    def put(self, items: Sequence[Item]) -> None:
        self._waiting.extend(map(self._as_message, items))

    def put_one(self, item: Item) -> Awaitable[None]:
        message = self._as_message(item)
        if not (self._waiting or self._is_sending):
            return self._send(message)
        self._waiting.append(message)
        return self.wait_for_room()

    async def put_each(self, items: AsyncIterator[Item]) -> None:
        put_one = self.put_one
        async for item in items:
            await put_one(item)

    def remark(self, document: dict[str, Any]) -> bool:
        self.put((document,))
        return True

    async def wait_for_room(self) -> None:
        await self.emptied()
        await super().wait_for_room()

    async def emptied(self) -> None:
        while self._waiting or self._is_sending:
            if self._is_sending:
                await self._sent.wait()
            else:
                await self._send(self._waiting.popleft())

    async def _send(self, message: str | bytes) -> None:
        """Send a message; no other task is sending one."""
        exchange = self._exchange
        if exchange.reason is not None:
            raise exchange.reason
        self._is_sending = True
        try:
            if not exchange.status:
                await self.start()
            exchange.phase = _SEND
            exchange.since = monotonic()
            exchange.sending = True
            key = "text" if type(message) is str else "bytes"
            try:
                await exchange.send({"type": "websocket.send", key: message})
            except Exception as exc:
                raise send_failure(exchange, exc) from exc
            exchange.sending = False
        finally:
            self._is_sending = False
            self._sent.wake()
        self.items += 1
        exchange.phase = _ITEM
        exchange.since = now = monotonic()
        if self._tick is None:
            self.hand_on()
        if now >= self._turn.ends:
            await super().wait_for_room()

    async def finish(self) -> None:
        await self.emptied()
        self.hand_on()
        self._exchange.check_reason()
        await self.start()
        self._exchange.enter(_SEND)
        await self._exchange.finish()
