"""The register of one application's requests in flight, and the one sweeper of them."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator
from time import monotonic
from typing import Any, Final

import anyio

from modelserve.concurrency.asyncio_flight import OVER, AsyncioFlight, ShieldedFlight
from modelserve.concurrency.flight import Flight, Pipeline, Watched
from modelserve.concurrency.host_scope import KNOWN_TASKS, in_host_scope
from modelserve.errors import Stopped

__all__ = ["Flights"]

_SWEEP_SECONDS: Final = 0.02


class Flights:
    """The requests in flight of one application."""

    def __init__(self) -> None:
        self._young: dict[AsyncioFlight, None] = {}
        self._watched: dict[Flight, None] = {}
        self._sweeping: asyncio.AbstractEventLoop | None = None
        self._emptied: anyio.Event | None = None
        self._cleanup_cap = math.inf

    def __len__(self) -> int:
        return len(self._young) + len(self._watched)

    def __iter__(self) -> Iterator[Flight]:
        return iter((*self._young, *self._watched))

    def start(self, request: Watched, pipeline: Pipeline) -> Coroutine[Any, Any, None] | None:
        """Run the pipeline of a request until it suspends; return the rest of it, to be awaited.

        None is returned if nothing is left. The rest raises the reason if something ends the
        request early, and the host's cancellation once the pipeline has cleaned up. On trio, and
        inside a cancel scope of the host's, the rest is all of it.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            from modelserve.concurrency.trio_flight import TrioFlight

            request.flight = on_trio = TrioFlight(request, self)
            return on_trio.run_all(pipeline)
        if KNOWN_TASKS and in_host_scope():
            return ShieldedFlight(request, self).run_all(pipeline)
        trap = next(pipeline.__await__(), OVER)
        if trap is OVER:
            return None
        request.flight = flight = AsyncioFlight(request, self)
        return flight.run(pipeline, trap)

    def add(self, flight: Flight) -> None:
        """Register a request that has suspended, or may."""
        if flight.is_watched or not isinstance(flight, AsyncioFlight):
            self._watched[flight] = None
            return
        loop = asyncio.get_running_loop()
        if self._sweeping is not loop:
            self._young.clear()  # left over from a closed event loop, if any
            self._sweep_later(loop)
        self._young[flight] = None

    def remove(self, flight: Flight) -> None:
        """Forget a request that has ended."""
        self._young.pop(flight, None)  # type: ignore[call-overload]
        self._watched.pop(flight, None)
        if self._emptied is not None and not self:
            emptied, self._emptied = self._emptied, None
            emptied.set()

    def reset_cleanup_cap(self) -> None:
        """Lift the bound that `cancel_all` has set, after a restart."""
        self._cleanup_cap = math.inf

    def cleanup_bound(self, seconds: float) -> float:
        """Return how long clean-up may take: what is asked for, less once the drain is over."""
        return min(seconds, self._cleanup_cap)

    def cancel_all(self, reason: Callable[[], Stopped], *, cleanup_cap: float) -> None:
        """End every request in flight, with at most `cleanup_cap` seconds to clean up."""
        self._cleanup_cap = cleanup_cap
        for flight in self:
            flight.shorten_clean_up(cleanup_cap)
            flight.cancel(reason())

    async def emptied(self) -> None:
        """Wait until no request is in flight."""
        while self:
            if self._emptied is None:
                self._emptied = anyio.Event()
            await self._emptied.wait()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = loop
        loop.call_later(_SWEEP_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the requests that have run for a while; come again while there are younger ones."""
        born_before = monotonic() - _SWEEP_SECONDS
        for flight in list(self._young):
            if flight.request.arrived > born_before:
                break  # those after it are younger still
            del self._young[flight]
            self._watched[flight] = None
            flight.start_watching()
        self._sweeping = None
        if self._young:
            self._sweep_later(loop)
