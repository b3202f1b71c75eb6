"""Results that a background task makes in batches: the base of `map` and `pipe`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import anyio

__all__ = ["Lots"]


class Lots(ABC):
    """An async iterator whose work runs in a task of the client; `aclose` ends that.

    Also an async context manager that closes it. An error, or a cancellation while it waits, closes
    it as well.
    """

    def __init__(self) -> None:
        self._lot: Iterator[Any] = iter(())
        self._scope = anyio.CancelScope()
        self._begun = self._ended = False
        self._gone = anyio.Event()

    @abstractmethod
    async def _work(self) -> None:
        """Do all the work. Raises only a cancellation."""

    @abstractmethod
    async def _next_lot(self) -> list[Any]:
        """Wait for results; return an empty list at the end."""

    async def run(self) -> None:
        """Do the work; the client runs this as a task."""
        self._begun = True
        try:
            with self._scope:
                await self._work()
        finally:
            self._gone.set()

    async def lot(self) -> list[Any]:
        """Wait for results and return all available ones; an empty list at the end."""
        if self._ended:
            return []
        try:
            results = await self._next_lot()
        except BaseException:
            self._ended = True
            self._scope.cancel()
            raise
        if not results:
            await self.aclose()
        return results

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for result in self._lot:
            return result
        self._lot = iter(await self.lot())
        for result in self._lot:
            return result
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the work and close its connections; wait until that is done."""
        self._lot, self._ended = iter(()), True
        self._scope.cancel()
        if self._begun:
            with anyio.CancelScope(shield=True):
                await self._gone.wait()
