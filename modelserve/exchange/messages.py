"""Results as the messages of a WebSocket.

Whoever puts one sends it: each is an event of its own, so that nothing is gained by another task
that sends them.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
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
    """The results of one request as messages.

    Args:
        as_message: Makes one of an item.
    """

    def __init__(
        self,
        exchange: Exchange,
        format: StreamFormat,
        streaming: Streaming,
        as_message: Callable[[Item], str | bytes],
        **settings: Any,
    ) -> None:
        super().__init__(exchange, format, streaming, **settings)
        self.encoder = format.encoder(None, empty=True)
        self._as_message = as_message
        self._waiting: deque[str | bytes] = deque()
        self._is_sending = False
        self._sent = Waiters()

    async def send(self) -> None:
        pass

    def put(self, items: Sequence[Item]) -> None:
        self._waiting.extend(map(self._as_message, items))

    async def put_one(self, item: Item) -> None:
        message = self._as_message(item)
        if self._waiting or self._is_sending:
            self._waiting.append(message)
            await self.emptied()
        else:
            await self._send(message)
        if monotonic() >= self._turn.ends:
            await super().wait_for_room()

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
        exchange = self._exchange
        if exchange.reason is not None:
            raise exchange.reason
        exchange.phase = _SEND
        exchange.since = monotonic()
        self._is_sending = True
        try:
            self.record(exchange.since, 1)
            if not exchange.status:
                await self.start()
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
        exchange.since = monotonic()

    async def finish(self) -> None:
        await self.emptied()
        self._exchange.check_reason()
        await self.start()
        self._exchange.enter(_SEND)
        await self._exchange.finish()
