"""The register of one application's requests in flight.

An application may serve several event loops, one after another or in several threads at once. Each
has a register and a sweeper of its own. Code of another loop reaches its requests only by calls in
its own thread.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator
from time import monotonic
from typing import Any, Final

from modelserve.concurrency.asyncio_flight import AsyncioFlight, ShieldedFlight
from modelserve.concurrency.asyncio_guard import OVER
from modelserve.concurrency.flight import Flight, Pipeline, Watched
from modelserve.concurrency.host_scope import KNOWN_TASKS, in_host_scope
from modelserve.concurrency.loops import Event, current_loop, forget_ended_loops, interface_to
from modelserve.errors import Stopped

__all__ = ["Flights"]

_SWEEP_SECONDS: Final = 0.02


class Flights:
    """The requests in flight of one application."""

    def __init__(self) -> None:
        self._registers: dict[Any, _LoopFlights] = {}
        self._latest = _LoopFlights(None)  # the register of the latest request's loop
        self._waiting: list[Event] = []
        self._cleanup_cap = math.inf

    def __len__(self) -> int:
        return sum(map(len, [*self._registers.values()]))

    def __iter__(self) -> Iterator[Flight]:
        return iter([flight for register in [*self._registers.values()] for flight in register])

    def start(self, request: Watched, pipeline: Pipeline) -> Coroutine[Any, Any, None] | None:
        """Run the pipeline of a request until it suspends; return the rest of it, to be awaited.

        Returns None if nothing is left. The rest raises the reason if something ends the request
        early, and a cancellation by the host once the pipeline has cleaned up. On trio, and inside
        a cancel scope of the host, nothing runs here: the rest is the whole pipeline.
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
        """Register a request that has suspended or may suspend."""
        loop = asyncio.get_running_loop() if flight.spawns_tasks else current_loop()
        register = self._latest
        if register.loop is not loop:
            register = self._latest = self._register_of(loop)
        if flight.is_watched or not isinstance(flight, AsyncioFlight):
            register.watched[flight] = None
            return
        register.young[flight] = flight.request.arrived
        if not register.is_sweeping:
            register.sweep_later()

    def remove(self, flight: Flight) -> None:
        """Forget a request that has ended."""
        if not self._latest.remove(flight):
            for register in [*self._registers.values()]:
                register.remove(flight)
        if self._waiting and not self:
            waiting, self._waiting = self._waiting, []
            for event in waiting:
                event.set()

    def reset_cleanup_cap(self) -> None:
        """Remove the bound that `cancel_all` has set, after a restart."""
        self._cleanup_cap = math.inf

    def cleanup_bound(self, seconds: float) -> float:
        """Return how long clean-up may take: the time asked for, or less once the drain is over."""
        return min(seconds, self._cleanup_cap)

    def cancel_all(self, reason: Callable[[], Stopped], *, cleanup_cap: float) -> None:
        """End every request in flight, with at most `cleanup_cap` seconds to clean up."""
        self._cleanup_cap = cleanup_cap

        def end(register: _LoopFlights) -> None:
            for flight in [*register]:
                flight.shorten_clean_up(cleanup_cap)
                flight.cancel(reason())

        for register in [*self._registers.values()]:
            interface_to(register.loop).run(end, register)

    async def emptied(self) -> None:
        """Wait until no request is in flight, in any event loop."""
        self._forget_ended_loops()
        while self:
            event = Event()
            self._waiting.append(event)
            if self:  # the last may have ended meanwhile, in another thread
                await event.wait()

    def _register_of(self, loop: Any) -> "_LoopFlights":
        self._forget_ended_loops()
        return self._registers.setdefault(loop, _LoopFlights(loop))

    def _forget_ended_loops(self) -> None:
        forget_ended_loops()
        for loop in [*self._registers]:
            if interface_to(loop).has_ended:
                self._registers.pop(loop, None)


class _LoopFlights:
    """The requests in flight of one event loop, and their sweeper.

    Attributes:
        loop: asyncio's loop, or trio's token.
        young: Requests that are not watched yet, the oldest first, with the time of their arrival:
            as it was when they came, since the sweep relies on their order.
        watched: Those that are.
        is_sweeping: A sweep is due.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.young: dict[AsyncioFlight, float] = {}
        self.watched: dict[Flight, None] = {}
        self.is_sweeping = False

    def __len__(self) -> int:
        return len(self.young) + len(self.watched)

    def __iter__(self) -> Iterator[Flight]:
        return iter((*self.young, *self.watched))

    def remove(self, flight: Flight) -> bool:
        """Forget a request; return whether it was registered."""
        if flight in self.young:
            del self.young[flight]
            return True
        return self.watched.pop(flight, self) is None

    def sweep_later(self) -> None:
        self.is_sweeping = True
        self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Watch requests that have run for a while; sweep again while there are younger ones."""
        born_before = monotonic() - _SWEEP_SECONDS
        for flight, arrived in list(self.young.items()):
            if arrived > born_before:
                break  # those after it are younger still
            del self.young[flight]
            self.watched[flight] = None
            flight.start_watching()
        self.is_sweeping = False
        if self.young:
            self.sweep_later()
