"""The encoded rows of a caller, read ahead by a bounded number of bytes.

An async source is read by a task. A sync one may block, so it is read in a thread of its own, which
ends only when the source does: a thread that waits for a row cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import anyio

from modelserve.wire.json import to_json

__all__ = ["RowSource", "Rows", "as_line", "as_piece", "as_row"]

RowSource: TypeAlias = Iterable[Any] | AsyncIterable[Any]

_AHEAD_BYTES: Final = 256 * 1024
# Rows that come faster than this are gathered for a moment, for one write.
_GATHER_SECONDS: Final = 0.001
_CLOSE_SECONDS: Final = 5.0


def as_row(row: Any) -> bytes:
    """Encode a row as JSON; bytes are JSON already."""
    return bytes(row) if isinstance(row, bytes | bytearray | memoryview) else to_json(row)


def as_line(row: Any) -> bytes:
    """Encode a row as a line of NDJSON; bytes are a line already, with its end or without."""
    if not isinstance(row, bytes | bytearray | memoryview):
        return to_json(row) + b"\n"
    line = bytes(row)
    return line if line.endswith(b"\n") else line + b"\n"


def as_piece(row: Any) -> bytes:
    """Return a piece of a binary body as it is."""
    if not isinstance(row, bytes | bytearray | memoryview):
        raise TypeError(f"A piece of a binary body must be bytes, not {type(row).__name__}")
    return bytes(row)


class Rows:
    """A source of rows, read ahead. `run` reads it, `take` returns available rows.

    An exception of the source, or of a row that cannot be encoded, is raised by `take` after the
    rows before it.
    """

    def __init__(self, source: RowSource, encode: Callable[[Any], bytes]) -> None:
        if isinstance(source, str | bytes | dict):
            raise TypeError(f"Rows must be an iterable of rows, not {type(source).__name__}")
        self._source = source
        self._encode = encode
        self._rows: list[bytes] = []
        self._size = 0
        self._ended = self._stopped = False
        self._failure: Exception | None = None
        self._lock = threading.Condition()
        self._news: anyio.Event | None = None  # set when rows arrive, if `take` waits
        self._room: anyio.Event | None = None  # set when there is room, if the task waits
        self._is_awaited = False
        self._awaited_until = 0.0
        self.count = 0

    async def run(self) -> None:
        """Read the source to its end, in this task or in a thread. Cancellation closes it."""
        if isinstance(self._source, AsyncIterable):
            await self._read_async(self._source)
            return
        thread = threading.Thread(
            target=self._read, args=(self._source, _call_soon()), name="rows", daemon=True
        )
        thread.start()
        try:
            await anyio.sleep_forever()
        finally:
            self._stop()

    async def take(self, most: int | None = None) -> list[bytes]:
        """Wait for rows and return all available ones, `most` at most; none at the end."""
        while True:
            with self._lock:
                if self._rows:
                    return self._pop(most)
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    return []
                self._news = news = anyio.Event()
            self._is_awaited = True
            try:
                await news.wait()
                if not self._ended:
                    await anyio.sleep(_GATHER_SECONDS)
            finally:
                self._is_awaited, self._awaited_until = False, anyio.current_time()

    def last_awaited(self) -> float:
        """Return when `take` last waited: this tells a slow source from a slow server."""
        return anyio.current_time() if self._is_awaited else self._awaited_until

    async def gather(self, count: int) -> list[bytes]:
        """Wait for so many rows; return fewer only at the end."""
        rows = await self.take(count)
        while rows and len(rows) < count and (more := await self.take(count - len(rows))):
            rows += more
        return rows

    def _pop(self, most: int | None) -> list[bytes]:
        rows = self._rows[:most]
        del self._rows[:most]
        self._size -= sum(map(len, rows))
        self.count += len(rows)
        self._lock.notify_all()
        if self._room is not None:
            self._room.set()
        return rows

    def _put(self, row: bytes) -> anyio.Event | None:
        """Keep a row; return the event that `take` waits for."""
        self._rows.append(row)
        self._size += len(row)
        news, self._news = self._news, None
        return news

    def _end(self, failure: Exception | None) -> anyio.Event | None:
        self._ended, self._failure = True, failure
        news, self._news = self._news, None
        return news

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()

    # in the task

    async def _read_async(self, source: AsyncIterable[Any]) -> None:
        iterator, failure = aiter(source), None
        try:
            async for row in iterator:
                _wake(self._put(self._encode(row)))
                while self._size >= _AHEAD_BYTES:
                    self._room = anyio.Event()
                    await self._room.wait()
        except Exception as exc:
            failure = exc
        finally:
            _wake(self._end(failure))
            close = getattr(iterator, "aclose", None)
            if close is not None:
                with anyio.move_on_after(_CLOSE_SECONDS, shield=True), suppress(Exception):
                    await close()

    # in the thread

    def _read(self, source: Iterable[Any], call_soon: Callable[..., Any]) -> None:
        failure, iterator = None, None
        try:
            iterator = iter(source)
            for row in iterator:
                encoded = self._encode(row)
                with self._lock:
                    while self._size >= _AHEAD_BYTES and not self._stopped:
                        self._lock.wait()
                    if self._stopped:
                        break
                    news = self._put(encoded)
                if news is not None:
                    call_soon(news.set)
        except Exception as exc:
            failure = exc
        finally:
            close = getattr(iterator, "close", None)
            # The caller closes a file or the like; a generator is closed here.
            if close is not None and hasattr(iterator, "gi_frame"):
                with suppress(Exception):
                    close()
            with self._lock:
                news = self._end(failure)
            if news is not None:
                with suppress(Exception):  # the loop may have ended
                    call_soon(news.set)


def _wake(news: anyio.Event | None) -> None:
    if news is not None:
        news.set()


def _call_soon() -> Callable[..., Any]:
    """Return a function that calls others on this event loop, from any thread."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
