"""The limits on time of a stream, which change with the model of each request."""

import math
from time import monotonic

import anyio

from modelserve.concurrency.flight import Flight, Phase
from modelserve.exchange.exchange import Exchange
from modelserve.limits import Deadlines

__all__ = ["Clock"]

_NO_LIMITS = Deadlines()


class Clock:
    """Keeps the time of one stream. Its flight sets its own clock once, by the limits of that time.

    Args:
        ends: When the client's deadline passes, by `time.monotonic`; None for never.
    """

    def __init__(self, exchange: Exchange, *, ends: float | None) -> None:
        self._exchange = exchange
        self._ends = ends
        self._looks_at = 0.0
        self._changed = anyio.Event()
        self.rest()

    def start(self, deadlines: Deadlines) -> None:
        """Let a model's limits hold from now on, for the request whose turn it is."""
        self._limit(deadlines, Phase.QUEUE)

    def rest(self) -> None:
        """Let no limits hold but the client's, until the next request."""
        self._limit(_NO_LIMITS, Phase.BODY)

    def _limit(self, deadlines: Deadlines, phase: int) -> None:
        exchange = self._exchange
        exchange.arrived = now = monotonic()
        if self._ends is not None:
            left = max(self._ends - now, 0.0)
            deadlines = deadlines._replace(timeout=min(left, deadlines.timeout or left))
        exchange.deadlines = deadlines
        exchange.enter(phase)
        if exchange.flight is not None and exchange.flight.next_check(now) < self._looks_at:
            self._changed.set()

    async def keep(self, flight: Flight) -> None:
        """Raise DeadlineExceeded once a limit has passed; to be a companion of the flight."""
        while True:
            now = monotonic()
            if (stopped := flight.expired(now)) is not None:
                raise stopped
            self._looks_at = due = flight.next_check(now)
            self._changed = anyio.Event()
            with anyio.move_on_after(due - now if due < math.inf else None):
                await self._changed.wait()
