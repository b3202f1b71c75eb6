"""Send the items of a stream that are made without a pause in one event."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any, Final

from modelserve.concurrency.flight import Phase
from modelserve.errors import Stopped
from modelserve.exchange.exchange import Exchange, StreamState
from modelserve.exchange.turns import Turn, give_way
from modelserve.metrics.series import Tick

__all__ = ["Coalesced", "Coalescer"]

_EVENT_BYTES: Final = 1 << 16


class Coalesced:
    """Return this from a hook to send the items of a stream that come without a pause in one event.

    This is for one request; `coalesce` of a model or an application is for all.

    Args:
        items: An iterator or an async iterable of items.

    The items are closed like those of any stream: at their end, or when the client leaves.
    """

    __slots__ = ("items",)

    def __init__(self, items: Iterator[Any] | AsyncIterable[Any]) -> None:
        self.items = items


class Coalescer:
    """The items of one stream that have been made and not sent yet, and the task that sends them.

    Whenever the iterator suspends, the gathered items are sent, so that no item ever waits for
    more. A separate task sends them: the iterator may be suspended inside a time limit of its own,
    whose cancellation must not find the pipeline in the middle of a `send`.

    After a pause `_unrecorded` is -1: the next item is recorded by itself, at its own time.
    """

    __slots__ = (
        "_exchange",
        "_gathering",
        "_parts",
        "_size",
        "_stream",
        "_task",
        "_tick",
        "_unrecorded",
    )

    def __init__(self, exchange: Exchange, stream: StreamState, tick: Tick) -> None:
        self._exchange = exchange
        self._stream = stream
        self._tick = tick
        self._gathering = False
        self._unrecorded = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    async def send(self, items: AsyncIterator[Any], encode: Callable[[Any], bytes]) -> None:
        """Send all items. Raises what they raise, after the items before it have been sent."""
        self._exchange.enter(Phase.ITEM)
        self._gathering = True
        try:
            await self._gather(items, encode)
        except BaseException as exc:
            self._gathering = False
            if not self._exchange.is_interrupted_by(exc):
                await self._send_parts()
            raise
        finally:
            self._gathering = False
            self._record()
            await self._stop_task()

    def note_suspension(self) -> None:
        """Send the gathered items, and those that come meanwhile, in a separate task."""
        if not self._gathering:
            return
        self._record()
        self._unrecorded = -1
        if self._parts and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._send_in_task())

    async def _gather(self, items: AsyncIterator[Any], encode: Callable[[Any], bytes]) -> None:
        """Gather items, and send them once they are many or the turn is over."""
        turn = Turn()
        async for item in items:
            self._add(encode(item))
            now = monotonic()
            if self._size >= _EVENT_BYTES or now >= turn.ends:
                await self._send_parts()
            if now >= turn.ends:
                await give_way()
                turn.begin()
        await self._send_parts()

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._unrecorded < 0:
            self._tick(monotonic())
        self._unrecorded += 1

    def _record(self) -> None:
        """Record the items that came one right after the other."""
        if self._unrecorded > 0:
            self._tick(monotonic(), self._unrecorded)
            self._unrecorded = 0

    async def _send_parts(self) -> None:
        """Send the gathered items, after those that are being sent."""
        self._record()
        # Waiting for a task suspends even if it is done, and another would be started then.
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))
        await self._send_all()

    async def _send_in_task(self) -> None:
        try:
            await self._send_all()
        except Stopped as gone:
            flight = self._exchange.flight
            assert flight is not None  # the pipeline has suspended
            flight.cancel(gone)

    async def _send_all(self) -> None:
        exchange = self._exchange
        while self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            exchange.check_reason()
            exchange.enter(Phase.SEND)
            await exchange.send_part(b"".join(parts))
            self._stream.items += len(parts)
        exchange.enter(Phase.ITEM)

    async def _stop_task(self) -> None:
        """End the task; an interrupted event is not sent again."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
