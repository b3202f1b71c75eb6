"""The time limits of a stream, which change with the model of each request."""

import math
from time import monotonic
from typing import Final

import anyio

from modelserve.concurrency.flight import Flight, Phase, timed_out
from modelserve.errors import Stopped
from modelserve.exchange.exchange import Exchange
from modelserve.limits import Deadlines

__all__ = ["Clock"]

_NO_LIMITS: Final = Deadlines()


class Clock:
    """Keeps the time of one stream. Its flight sets its own clock only once, by the limits then.

    A flight counts `timeout` from the arrival of the stream. Here it is counted from the beginning
    of each request. The client's time limit on the whole stream holds as well; the earlier one
    counts.

    Args:
        seconds: The client's limit on the stream, from its arrival; None for no limit.
    """

    def __init__(self, exchange: Exchange, *, seconds: float | None) -> None:
        self._exchange = exchange
        self._stream_seconds = math.inf if seconds is None else seconds
        self._stream_ends = exchange.arrived + self._stream_seconds
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
        exchange, timeout = self._exchange, deadlines.timeout
        exchange.enter(phase)
        now = exchange.since
        self._seconds, self._ends = self._stream_seconds, self._stream_ends
        if timeout is not None:
            deadlines = deadlines._replace(timeout=None)
            if now + timeout < self._ends:
                self._seconds, self._ends = timeout, now + timeout
        exchange.deadlines = deadlines
        if exchange.flight is not None and self._next_check(exchange.flight, now) < self._looks_at:
            self._changed.set()

    async def keep(self, flight: Flight) -> None:
        """Raise DeadlineExceeded once a limit has passed; runs as a companion of the flight."""
        while True:
            now = monotonic()
            if (stopped := self._expired(flight, now)) is not None:
                raise stopped
            self._looks_at = due = self._next_check(flight, now)
            self._changed = anyio.Event()
            with anyio.move_on_after(due - now if due < math.inf else None):
                await self._changed.wait()

    def _expired(self, flight: Flight, now: float) -> Stopped | None:
        phase = self._exchange.phase
        if now >= self._ends and phase != Phase.DONE:
            return timed_out(self._seconds, phase)
        return flight.expired(now)

    def _next_check(self, flight: Flight, now: float) -> float:
        due = flight.next_check(now)
        return due if self._exchange.phase == Phase.DONE else min(due, self._ends)
