"""Watch the client of a request that has to wait before its body is read.

The disconnect of a client comes only after its body. So one task reads the body ahead, and keeps it
until it is read.
"""

from collections import deque
from typing import Final

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive

from modelserve.concurrency.budget import Share
from modelserve.errors import ClientGone, Overloaded
from modelserve.exchange.exchange import Exchange

__all__ = ["read_ahead"]

_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_PAUSE_SECONDS: Final = 0.02


async def read_ahead(exchange: Exchange, share: Share, limit: float) -> None:
    """Begin to read the body of a request ahead; from now on it ends if its client leaves.

    Args:
        share: Counts the bytes that were read; closed with the request.
        limit: The most bytes that are read ahead.
    """
    if exchange.flight is None:
        await anyio.lowlevel.checkpoint()  # a pipeline has its flight once it has suspended
    assert exchange.flight is not None
    early = _EarlyBody(exchange.receive, share, limit)
    exchange.receive = early.receive
    exchange.flight.start_companion(early.read)


class _EarlyBody:
    """The messages of a request that have been read ahead."""

    def __init__(self, receive: Receive, share: Share, limit: float) -> None:
        self._receive = receive
        self._share = share
        self._limit = limit
        self._messages: deque[tuple[Message, int]] = deque()  # each with its bytes in the share
        self._changed = anyio.Event()

    async def receive(self) -> Message:
        """Return the next message; replaces the host's `receive`."""
        while not self._messages:
            await self._changed.wait()
        message, held = self._messages[0]
        if message is not _DISCONNECT:
            self._messages.popleft()
            self._share.resize(self._share.size - held)
            self._notify()
        return message

    async def read(self) -> None:
        """Receive until the client leaves. Raises ClientGone."""
        try:
            more = True
            while (message := await self._next()) is not _DISCONNECT:
                if more:
                    held = await self._room_for(len(message.get("body", b"")))
                    self._messages.append((message, held))
                    self._notify()
                    more = message.get("more_body", False)
                else:  # not a message of a request, as in `watcher`
                    await anyio.sleep(_PAUSE_SECONDS)
            raise ClientGone
        finally:  # the request is ending; what is no longer held must not be read
            self._messages.clear()
            self._messages.append((_DISCONNECT, 0))
            self._share.close()
            self._notify()

    async def _next(self) -> Message:
        try:
            message = await self._receive()
        except Exception:  # whatever it is, the client has left
            return _DISCONNECT
        return _DISCONNECT if message["type"] == "http.disconnect" else message

    async def _room_for(self, size: int) -> int:
        """Wait until so many bytes may be held, or none are held; return how many are held."""
        while self._messages:
            if self._share.size + size <= self._limit and self._hold(size):
                return size
            await self._changed.wait()
        return size if self._hold(size) else 0

    def _hold(self, size: int) -> bool:
        try:
            self._share.grow(size)
        except Overloaded:
            return False
        return True

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
