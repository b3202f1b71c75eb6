"""Receive a body while the request is being answered, and keep a little of it until it is taken.

One task owns the host's `receive`, from the first message until the client leaves: a companion of
the request's flight, which needs no watcher then. It keeps at most about 1 MiB that has not been
taken. Then it stops receiving, the host stops reading, and the client has to wait. If the client
leaves while it waits, that is noticed only after the records have been taken, or when a `send`
fails.

A host may wait for us inside of a `send`: hypercorn tells there that the client has left, by a
message, and waits until its queue has room. Nothing shows which of the two a `send` waits for, the
host or a client that does not read. So a full intake looks after 0.5 s, and if a `send` is on its
way, receives 128 KiB more, or one message; it waits twice as long before each next time, until
there is room. Memory grows with the logarithm of that time, by about 1 MiB in a minute, and a
client that has left is noticed however late it leaves.

Once the hook has ended, nothing is kept: what comes is thrown away, so that no host waits for us.
After the request `leftover` goes on with that.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias

import anyio

from modelserve.concurrency.budget import Share
from modelserve.concurrency.loops import Waiters
from modelserve.errors import BodyTimeout, ClientGone, DeadlineExceeded, ServingError, Stopped
from modelserve.exchange.turns import Turn, give_way
from modelserve.wire.lines import MOST_AT_ONCE, Cutter

__all__ = [
    "QUEUED_BYTES",
    "InputRefused",
    "InputTimedOut",
    "Intake",
    "Reader",
    "bodies",
    "messages",
]

QUEUED_BYTES: Final = 1 << 16  # read ahead for a request without a slot
_AHEAD_BYTES: Final = 1 << 20
_RECORD_BYTES: Final = 64  # the memory of a record beside its own bytes
_PAUSE_SECONDS: Final = 0.02
_SPARE_BYTES: Final = 1 << 17  # received beyond what is kept, each time that a `send` lasts
_PATIENCE_SECONDS = 0.5  # before the first time

Message: TypeAlias = MutableMapping[str, Any]
# One message: its bytes, or None if the client has left; and whether more follow.
Reader: TypeAlias = Callable[[Message], tuple[bytes | None, bool]]


class Receiving(Protocol):
    """The parts of a request that its intake uses.

    Attributes:
        sending: A `send` of the host's has begun and not returned.
    """

    @property
    def receive(self) -> Callable[[], Awaitable[Message]]: ...
    @property
    def sending(self) -> bool: ...


class InputTimedOut(BodyTimeout, DeadlineExceeded):
    """The client has sent nothing for `input_timeout`."""

    def __init__(self, noun: str, seconds: float) -> None:
        super().__init__(f"input_timeout: no {noun} was received for {seconds:g} s")


class InputRefused(Stopped):
    """There is no room for what the client has sent while it waits for a slot."""

    def __init__(self, refusal: ServingError) -> None:
        super().__init__(refusal.reason)
        self.status, self.retry_after = refusal.status, refusal.retry_after


def bodies(message: Message) -> tuple[bytes | None, bool]:
    """Return the content of a message of HTTP."""
    if message["type"] == "http.disconnect":
        return None, False
    return message.get("body", b""), message.get("more_body", False)


def messages(message: Message) -> tuple[Any, bool]:
    """Return the content of a WebSocket's message, text or bytes; an empty one is the last."""
    if message["type"] != "websocket.receive":
        return None, False
    data = message.get("text")
    if data is None:
        data = message.get("bytes") or b""
        if type(data) is not bytes:
            data = bytes(data)
    return data, bool(data)


class Intake:
    """The records of one request on their way in.

    Attributes:
        ended: The last record has been read.
        is_full: As much is kept as may be; the client has to wait until records have been taken.
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
        self._since = 0.0  # when the client's last record came
        self._records: list[bytes] = []
        self._number = 1  # the number of the first of them
        self._held, self._ahead = 0, QUEUED_BYTES
        self._limit = self._ahead  # more than that while a `send` lasts
        self._patience = _PATIENCE_SECONDS
        self._share: Share | None = None  # while it waits for a slot
        self._error: Stopped | None = None
        self._is_unwanted = False
        self._news, self._room = Waiters(), Waiters()
        self._turn = Turn()

    # -- the task that receives

    async def receive(self) -> None:
        """Receive to the end, then until the client leaves; runs as a companion of the flight.

        Raises ClientGone, InputTimedOut if no record has come for too long, or InputRefused.
        """
        try:
            await self._receive_all()
            await self._wait_for_leaving()
        except Stopped as reason:
            self._error = reason  # the code that waits for a record is cancelled
            raise

    async def _receive_all(self) -> None:
        read, feed = self._reader, self.cutter.feed
        receive = self._request.receive if self._timeout is None else self._receive_in_time
        more, size = True, 0
        self._since = monotonic()
        while more:
            try:
                message = await receive()
            except InputTimedOut:
                if self._is_unwanted:
                    break
                raise
            except Exception as exc:  # whatever it is, the client has left
                raise ClientGone from exc
            piece, more = read(message)
            if piece is None:
                raise ClientGone
            if self._is_unwanted:
                break
            size += len(piece)
            records = feed(piece)
            if not more:
                records += self.cutter.finish()
            if records:
                self._records += records
                self._held += size + _RECORD_BYTES * len(records)
                size = 0
                self._since = monotonic()
                self._news.wake()
            waiting = self._held
            if self._share is not None:  # nobody takes records, and a part of one counts as well
                waiting += size
                self._count(self._share, waiting)
            if waiting > self._limit and more:
                await self._wait_for_room(waiting)
        self.ended, self.is_full = not more, False
        self._news.wake()

    def _count(self, share: Share, size: int) -> None:
        try:
            share.resize(max(size, QUEUED_BYTES))
        except ServingError as refusal:
            raise InputRefused(refusal) from None

    async def _wait_for_leaving(self) -> None:
        with suppress(Exception):  # whatever it is, the client has left
            while self._reader(await self._request.receive())[0] is not None:  # noqa: ASYNC110
                await anyio.sleep(_PAUSE_SECONDS)  # nothing that belongs to a request
        raise ClientGone

    async def _receive_in_time(self) -> Message:
        assert self._timeout is not None
        with anyio.move_on_after(self._since + self._timeout - monotonic()):
            return await self._request.receive()
        raise InputTimedOut(self.cutter.noun, self._timeout)

    async def _wait_for_room(self, held: int) -> None:
        self.is_full = True
        while self.is_full:
            with anyio.move_on_after(self._patience):
                await self._room.wait()
            if self.is_full and self._request.sending:
                self._patience *= 2
                self._limit = held + _SPARE_BYTES
                break  # to receive more; it is as full as before
        self._since = monotonic()

    def _make_room(self) -> None:
        self.is_full = False
        self._limit, self._patience = self._ahead, _PATIENCE_SECONDS
        self._room.wake()

    # -- for the code that takes records

    def note_queued(self, share: Share) -> None:
        """Count what comes by a share from now on: the request waits for a slot."""
        self._share = share

    def note_admitted(self) -> None:
        """Read further ahead from now on, and count nothing."""
        self._ahead, self._share = _AHEAD_BYTES, None
        self._make_room()

    def throw_away(self) -> None:
        """Throw away what has come and what comes from now on: no records are taken any more."""
        self._is_unwanted, self._share = True, None
        self._records, self._held = [], 0
        self._make_room()

    async def take(self) -> tuple[int, list[bytes]]:
        """Return the number of the next record, and all available records, 256 at most.

        Waits for a record; returns none only at the end. Raises what ended the input early.
        """
        if self._turn.is_over():
            await give_way()
            self._turn.begin()
        while not self._records:
            if self._error is not None and not self.ended:
                raise self._error
            if self.ended:
                return self._number, []
            await self._news.wait()
            self._turn.note_pause()
        number, records = self._number, self._take_some()
        self._number += len(records)
        if self.is_full and self._held < _AHEAD_BYTES // 2:
            self._make_room()
        return number, records

    def _take_some(self) -> list[bytes]:
        """Take all records, or the first 256, and assume that all have the same size.

        To count the bytes of each would take as long as to cut them.
        """
        records = self._records
        count = len(records)
        if count <= MOST_AT_ONCE:
            self._records, self._held = [], 0
            return records
        self._held -= self._held * MOST_AT_ONCE // count
        self._records = records[MOST_AT_ONCE:]
        return records[:MOST_AT_ONCE]
