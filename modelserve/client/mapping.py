"""Send rows in ordinary requests of some rows each, several at once; yield results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import anyio

from modelserve.client.lots import Lots
from modelserve.client.sources import Rows

__all__ = ["Ask", "Mapped"]

Ask: TypeAlias = Callable[[Sequence[bytes]], Awaitable[list[Any]]]


class _Pending:
    """One request: its results or its error, once it is done."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.results: list[Any] = []
        self.error: Exception | None = None


class Mapped(Lots):
    """The results of `ask` for each chunk of rows, in order.

    At most `at_once` chunks are under way or wait to be read; the source is read only for these.
    The first error, in order, ends it.
    """

    def __init__(self, rows: Rows, ask: Ask, *, chunk: int, at_once: int) -> None:
        super().__init__()
        if chunk < 1 or at_once < 1:
            raise ValueError(f"chunk and at_once must be at least 1, not {chunk} and {at_once}")
        self._rows = rows
        self._ask = ask
        self._chunk = chunk
        self._slots = anyio.Semaphore(at_once)
        self._pending: deque[_Pending] = deque()
        self._news = anyio.Event()
        self._all_sent = False

    async def _work(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._rows.run)
                while True:
                    await self._slots.acquire()
                    pending = _Pending()
                    try:
                        chunk = await self._rows.gather(self._chunk)
                    except Exception as exc:
                        pending.error, chunk = exc, []
                        pending.done.set()
                        self._add(pending)
                    if not chunk:
                        break
                    self._add(pending)
                    tasks.start_soon(self._fill, pending, chunk)
                self._end()
                await anyio.sleep_forever()  # until all has been taken
        finally:
            self._end()

    async def _fill(self, pending: _Pending, chunk: Sequence[bytes]) -> None:
        try:
            pending.results = await self._ask(chunk)
        except Exception as exc:
            pending.error = exc
        except BaseException:
            pending.error = RuntimeError("The client has been closed.")
            raise
        finally:
            pending.done.set()

    async def _next_lot(self) -> list[Any]:
        while not self._pending:
            if self._all_sent:
                return []
            self._news = anyio.Event()
            await self._news.wait()
        pending = self._pending[0]
        await pending.done.wait()
        if pending.error is not None:
            raise pending.error
        self._pending.popleft()
        self._slots.release()
        return pending.results

    def _add(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._news.set()

    def _end(self) -> None:
        self._all_sent = True
        self._news.set()
