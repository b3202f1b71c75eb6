"""What a client sends while it is being answered: read ahead a little, and kept until it is taken.

One task owns the host's `receive`, from the first message until the client leaves: a companion of
the request's flight, which has no watcher of its own then. It keeps at most about 1 MiB that nobody
has taken, and then reads no more: the host stops reading, and so the client waits. While it waits,
its leaving is seen only once what it has sent has been taken, or where a `send` fails.
"""

from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias

import anyio

from modelserve.concurrency.loops import Waiters
from modelserve.errors import BodyTimeout, ClientGone, DeadlineExceeded, Stopped
from modelserve.exchange.turns import Turn, give_way
from modelserve.wire.lines import MOST_AT_ONCE, Cutter

__all__ = ["QUEUED_BYTES", "InputTimedOut", "Intake", "Reader", "bodies"]

QUEUED_BYTES: Final = 1 << 16  # that are read ahead of a request without a slot
_AHEAD_BYTES: Final = 1 << 20
_RECORD_BYTES: Final = 64  # what a record takes beside its own bytes
_PAUSE_SECONDS: Final = 0.02

Message: TypeAlias = MutableMapping[str, Any]
# What is in one message: the bytes of it, None for a client that has left; and whether more follow.
Reader: TypeAlias = Callable[[Message], tuple[bytes | None, bool]]


class Receiving(Protocol):
    """A request, as far as what it sends is concerned."""

    @property
    def receive(self) -> Callable[[], Awaitable[Message]]: ...


class InputTimedOut(BodyTimeout, DeadlineExceeded):
    """The client has sent nothing for `input_timeout`."""

    def __init__(self, noun: str, seconds: float) -> None:
        super().__init__(f"input_timeout: no {noun} was received for {seconds:g} s")


def bodies(message: Message) -> tuple[bytes | None, bool]:
    """Return what is in a message of HTTP."""
    if message["type"] == "http.disconnect":
        return None, False
    return message.get("body", b""), message.get("more_body", False)


class _Lot:
    """Records that are taken together, and what they take of memory."""

    __slots__ = ("records", "size")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.size = 0


class Intake:
    """The records of one request on their way in.

    Attributes:
        ended: The last record has been read.
        is_full: The client waits for what it has sent to be taken.
    """

    def __init__(
        self,
        request: Receiving,
        cutter: Cutter,
        *,
        timeout: float | None = None,
        reader: Reader = bodies,
    ) -> None:
        self.cutter = cutter
        self.ended = self.is_full = False
        self._request = request
        self._reader = reader
        self._timeout = timeout
        self._lots: deque[_Lot] = deque()
        self._number = 1  # of the first record in them
        self._held, self._ahead = 0, QUEUED_BYTES
        self._error: Stopped | None = None
        self._news, self._room = Waiters(), Waiters()
        self._turn = Turn()

    # -- the task that receives

    async def receive(self) -> None:
        """Receive to the end, then until the client leaves; to be a companion of the flight.

        Raises ClientGone, or InputTimedOut where no record has come for too long.
        """
        try:
            await self._receive_all()
            self.ended = True
            self._news.wake()
            while (await self._next())[0] is not None:  # noqa: ASYNC110 - the host's to wait for
                await anyio.sleep(_PAUSE_SECONDS)
            raise ClientGone
        except Stopped as reason:
            self._error = reason  # who waits for a record is cancelled, and reads no more
            raise

    async def _receive_all(self) -> None:
        feed, more, size = self.cutter.feed, True, 0
        since = monotonic()
        while more:
            piece, more = await (
                self._next() if self._timeout is None else self._next_within(since, self._timeout)
            )
            if piece is None:
                raise ClientGone
            size += len(piece)
            records = feed(piece)
            if not more:
                records += self.cutter.finish()
            if records:
                self._add(records, size)
                since, size = monotonic(), 0
            if self._held > self._ahead and more:
                await self._wait_for_room()
                since = monotonic()

    async def _next_within(self, since: float, seconds: float) -> tuple[bytes | None, bool]:
        with anyio.move_on_after(since + seconds - monotonic()):
            return await self._next()
        raise InputTimedOut(self.cutter.noun, seconds)

    async def _next(self) -> tuple[bytes | None, bool]:
        try:
            message = await self._request.receive()
        except Exception:  # whatever it is, the client has left
            return None, False
        return self._reader(message)

    def _add(self, records: list[bytes], size: int) -> None:
        """Add records that take so many bytes together, each about as many as any other.

        To count those of each one would take as long as to cut them.
        """
        count, lots = len(records), self._lots
        size += _RECORD_BYTES * count
        start = 0
        while start < count:
            if not lots or len(lots[-1].records) == MOST_AT_ONCE:
                lots.append(_Lot())
            lot = lots[-1]
            part = records[start : start + MOST_AT_ONCE - len(lot.records)]
            share = size * len(part) // count
            lot.records += part
            lot.size += share
            self._held += share
            start += len(part)
        self._news.wake()

    async def _wait_for_room(self) -> None:
        self.is_full = True
        await self._room.wait()
        self.is_full = False

    # -- whoever takes them

    def note_admitted(self) -> None:
        """Read further ahead from now on."""
        self._ahead = _AHEAD_BYTES
        self._room.wake()

    async def take(self) -> tuple[int, list[bytes]]:
        """Return the number of the next record, and the records that there are, 256 at most.

        Waits for one; there is none only at the end. Raises what has ended the input early.
        """
        if self._turn.is_over():
            await give_way()
            self._turn.begin()
        while not self._lots:
            if self._error is not None and not self.ended:
                raise self._error
            if self.ended:
                return self._number, []
            await self._news.wait()
            self._turn.note_pause()
        lot = self._lots.popleft()
        number = self._number
        self._number += len(lot.records)
        self._held -= lot.size
        if self.is_full and self._held < _AHEAD_BYTES // 2:
            self._room.wake()
        return number, lot.records
