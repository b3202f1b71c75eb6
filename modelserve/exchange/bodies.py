"""Results as a body: gathered and sent by the `outbox`, or collected into one document."""

from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any, Final

import orjson

from modelserve.concurrency.flight import Phase
from modelserve.errors import CollectedTooLarge
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.heartbeat import start_heartbeat
from modelserve.exchange.outbox import EVENT_BYTES, Outbox
from modelserve.exchange.results import Results
from modelserve.exchange.streams import Streaming
from modelserve.protocols.codec import StreamFormat
from modelserve.wire.encoders import Encoder, Item
from modelserve.wire.values import to_builtin

__all__ = ["BodyResults"]

_MOST_GATHERED: Final = 64
_SHORT_SECONDS: Final = 0.0005


class BodyResults(Results):
    """The results of one request as a body."""

    def __init__(
        self, exchange: Exchange, format: StreamFormat, streaming: Streaming, **settings: Any
    ) -> None:
        super().__init__(exchange, format, streaming, **settings)
        self._outbox = Outbox(exchange, self)
        self._gathered: list[bytes] = []  # encoded items that are not in the outbox yet
        self._stride = 1  # how many are gathered between two checks of the clock
        self._looked_at = 0.0
        self._collected: list[bytes] = []
        self._collected_bytes = 0
        if streaming.heartbeat_before_first and (framed := format.framed_encoder()) is not None:
            self.choose(framed)
            self._outbox.put(b"", 0)  # which starts the answer

    def begin(self) -> None:
        assert self._exchange.flight is not None
        self._exchange.flight.start_companion(self._outbox.send)

    async def start(self) -> None:
        if self._exchange.status:
            return
        await super().start()
        seconds = self._streaming.heartbeat
        if seconds is not None and self._format.framed_encoder() is not None:
            assert self.encoder is not None
            start_heartbeat(self._exchange, self.encoder.idle or b"", seconds)

    async def emptied(self) -> None:
        await self._outbox.emptied()

    def put(self, items: Sequence[Item]) -> None:
        if not items:
            return
        encoder = self._form(items[0])
        if encoder.join is not None:
            for item in items:
                self._collect(encoder.encode(item))
        elif encoder.encode_all is not None:
            self._outbox.put(encoder.encode_all(items), len(items))
        else:
            self._outbox.put(b"".join(map(encoder.encode, items)), len(items))

    async def put_each(self, items: AsyncIterator[Item]) -> None:
        try:
            await self.put_one(await anext(items))  # it may decide the form of the others
        except StopAsyncIteration:
            return
        encoder = self.encoder
        assert encoder is not None
        await (self._gather if encoder.join is None else self._collect_each)(items, encoder)

    async def _gather(self, items: AsyncIterator[Item], encoder: Encoder) -> None:
        """Encode items as they come; those that come without a pause go into the outbox together.

        A dict is encoded here if possible: most items are dicts, and the encoder's call is slow.
        """
        gathered, encode, options = self._gathered, encoder.encode, encoder.options
        usual = None if options is None else dict
        async for item in items:
            if type(item) is usual:
                try:
                    gathered.append(orjson.dumps(item, to_builtin, options))
                except orjson.JSONEncodeError:
                    gathered.append(encode(item))
            else:
                gathered.append(encode(item))
            if len(gathered) >= self._stride:
                self._hand_on_and_look()
                if self._outbox.is_full or self._looked_at >= self._turn.ends:
                    await self.wait_for_room()

    def _hand_on_and_look(self) -> None:
        """Put gathered items into the outbox; check the clock less often while items come fast."""
        now, before = monotonic(), self._outbox.size
        self.hand_on()
        size = self._outbox.size - before
        if now - self._looked_at > _SHORT_SECONDS or size > EVENT_BYTES // 4:
            self._stride = 1
        elif self._stride < _MOST_GATHERED:
            self._stride *= 2
        self._looked_at = now

    def hand_on(self) -> None:
        if self._gathered:
            self._outbox.put(b"".join(self._gathered), len(self._gathered))
            self._gathered.clear()

    async def wait_for_room(self) -> None:
        if self._outbox.is_full:
            await self._outbox.emptied()
        await super().wait_for_room()

    def remark(self, document: dict[str, Any]) -> bool:
        encoder = self._form(document)
        if encoder.remark is None:
            return False
        self._outbox.put(encoder.remark(document))
        return True

    # -- one document of all

    async def _collect_each(self, items: AsyncIterator[Item], encoder: Encoder) -> None:
        async for item in items:
            self._collect(encoder.encode(item))
            if self._exchange.since >= self._turn.ends:
                await self.wait_for_room()

    def _collect(self, part: bytes) -> None:
        """Keep an encoded item. Raises CollectedTooLarge."""
        self._collected.append(part)
        self._collected_bytes += len(part)
        self._exchange.since = monotonic()
        limit = self._streaming.collect_bytes
        if self._collected_bytes > limit:
            raise CollectedTooLarge(f"The collected items are larger than {limit:.0f} bytes.")

    # -- the end

    async def finish(self) -> None:
        exchange, encoder = self._exchange, self._form(None, empty=True)
        if encoder.join is not None:
            exchange.check_reason()
            self.items = len(self._collected)
            document = encoder.join(self._collected)
            await exchange.send_document(200, self._headers, [document])
            return
        await self._outbox.emptied()
        exchange.check_reason()
        await self.start()
        exchange.enter(Phase.SEND)
        await exchange.finish(b"" if encoder.finish is None else encoder.finish())

    def _form(self, first: Item, *, empty: bool = False) -> Encoder:
        """Return the encoder of the answer, chosen by its first item. Raises NotAcceptable."""
        return self.encoder or self.choose(self._format.encoder(first, empty=empty))
