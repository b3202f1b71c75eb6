"""Admission: how many requests run, how many wait, who is refused.

A model's limit and the application's both hold. A request takes both slots at once or waits for
them in one line a model, so that it never holds one slot while it waits for the other; a slot that
becomes free goes to the request that has waited longest of those that can use it.
"""

import math
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Final

import anyio

from modelserve.errors import Overloaded, ServingError
from modelserve.limits import Limits
from modelserve.metrics.cells import Gauge

__all__ = ["Admission", "Gate"]


class Gate:
    """What one model, or the application, may run and have waiting at the same time."""

    def __init__(
        self, limits: Limits, in_flight: Gauge | None = None, queued: Gauge | None = None
    ) -> None:
        assert limits.concurrency is not None and limits.queue is not None
        self._in_flight = in_flight or Gauge()
        self._queued = queued or Gauge()
        self.concurrency = limits.concurrency
        self.queue = limits.queue
        self.running = 0
        self.waiting = 0
        self._line: deque[_Ticket] = deque()
        self._pace = _Pace()
        self._emptied: anyio.Event | None = None

    @property
    def has_room(self) -> bool:
        return self.running < self.concurrency

    async def emptied(self) -> None:
        """Wait until nothing runs and nothing waits."""
        while self.running or self.waiting:
            if self._emptied is None:
                self._emptied = anyio.Event()
            await self._emptied.wait()

    def _tell_if_empty(self) -> None:
        if self._emptied is not None and not (self.running or self.waiting):
            emptied, self._emptied = self._emptied, None
            emptied.set()


class Admission:
    """Who may run now, who waits, and who is refused, in one application."""

    def __init__(self, limits: Limits) -> None:
        self.gate = Gate(limits)
        self._numbers = count()
        self._lines: dict[Gate, None] = {}
        self._refusal: Callable[[], ServingError] | None = None

    def enter_nowait(self, gate: Gate) -> bool:
        """Take a slot of the model and one of the application, if both have one free.

        Every request comes here and to `leave`, so both call nothing: 0.5 us less.
        """
        outer = self.gate
        free = gate.running < gate.concurrency and outer.running < outer.concurrency
        if gate._line or not free:
            return False
        gate.running += 1
        outer.running += 1
        gate._in_flight.cells[0] += 1.0
        return True

    async def enter(self, gate: Gate) -> None:
        """Take both slots, after those who came before.

        Raises Overloaded if too many wait already, or what `refuse_waiting` says. A cancelled wait
        gives up its place.
        """
        if self.enter_nowait(gate):
            return
        if self._refusal is not None:
            raise self._refusal()
        for line in (gate, self.gate):
            if line.waiting >= line.queue:
                raise line._pace.refusal(line.waiting)
        ticket = _Ticket(next(self._numbers))
        self._join(gate, ticket)
        try:
            await ticket.called.wait()
        except BaseException:
            if ticket.admitted:
                self.leave(gate)
            elif ticket.refusal is None:
                self._quit(gate, ticket)
            raise
        if ticket.refusal is not None:
            raise ticket.refusal

    def leave(self, gate: Gate) -> None:
        """Give both slots back, and let in who has waited longest."""
        gate.running -= 1
        self.gate.running -= 1
        gate._in_flight.cells[0] -= 1.0
        if self._lines:
            self._call_waiting()
        if gate._emptied is not None:
            gate._tell_if_empty()

    def refuse_waiting(self, refusal: Callable[[], ServingError] | None) -> None:
        """Refuse all who wait, and whoever would have to from now on; None ends that."""
        self._refusal = refusal
        if refusal is not None:
            for gate in list(self._lines):
                self.refuse_waiting_for(gate, refusal)

    def refuse_waiting_for(self, gate: Gate, refusal: Callable[[], ServingError]) -> None:
        """Refuse those who wait for one model."""
        for ticket in list(gate._line):
            ticket.refusal = refusal()
            self._quit(gate, ticket)
            ticket.called.set()

    def _join(self, gate: Gate, ticket: "_Ticket") -> None:
        for line in (gate, self.gate):
            if not line.waiting:
                line._pace.begin()
        gate._line.append(ticket)
        self._lines[gate] = None
        gate.waiting += 1
        self.gate.waiting += 1
        gate._queued.add(1)

    def _quit(self, gate: Gate, ticket: "_Ticket") -> None:
        gate._line.remove(ticket)
        if not gate._line:
            del self._lines[gate]
        gate.waiting -= 1
        self.gate.waiting -= 1
        gate._queued.add(-1)
        gate._tell_if_empty()

    def _call_waiting(self) -> None:
        while self.gate.has_room:
            gates = [gate for gate in self._lines if gate.has_room]
            if not gates:
                return
            gate = min(gates, key=lambda g: g._line[0].number)
            ticket = gate._line[0]
            self._quit(gate, ticket)
            for line in (gate, self.gate):
                line.running += 1
                line._pace.admitted()
            gate._in_flight.add(1)
            ticket.admitted = True
            ticket.called.set()


class _Ticket:
    """A place in a line."""

    __slots__ = ("admitted", "called", "number", "refusal")

    def __init__(self, number: int) -> None:
        self.number = number
        self.called = anyio.Event()
        self.admitted = False
        self.refusal: ServingError | None = None


class _Pace:
    """How fast a line has been moving: a moving average of the seconds between two admissions."""

    _WEIGHT: Final = 0.2
    _LONGEST: Final = 120.0

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds: float | None = None

    def begin(self) -> None:
        """Note that a line has formed: until now nobody waited, which is no pace."""
        self._last = monotonic()

    def admitted(self) -> None:
        now = monotonic()
        if self._last is not None:
            gap = now - self._last
            mean = gap if self._seconds is None else self._seconds
            self._seconds = mean + self._WEIGHT * (gap - mean)
        self._last = now

    def refusal(self, waiting: int) -> Overloaded:
        """Refuse, with the time in which the line as it is now will have been served."""
        seconds = self._seconds if self._seconds is not None else 1.0
        wait = min(max(waiting, 1) * seconds, self._LONGEST)
        return Overloaded(
            "The server is busy and its queue is full.", retry_after=math.ceil(max(wait, 1.0))
        )
