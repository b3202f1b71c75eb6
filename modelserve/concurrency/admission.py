"""Admission: how many requests run, how many wait, and which are refused.

The limits of a model and of the application both hold. A request acquires a slot of each at once,
or waits for both in the queue of its model, so that it never holds one slot while it waits for the
other. A slot that becomes free goes to the request that has waited longest among those that can
use it.
"""

import math
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any, Final

import anyio

from modelserve.concurrency.budget import Budget, Share
from modelserve.concurrency.nesting import Nesting
from modelserve.errors import Overloaded, ServingError
from modelserve.limits import Limits
from modelserve.metrics.cells import Counter, Gauge

__all__ = ["Admission", "Gate"]


class Gate:
    """The slots and the queue of one model, or of the application.

    Attributes:
        concurrency, queue: The limits: how many requests may run, and how many may wait.
        running, waiting: How many do.
    """

    def __init__(
        self,
        limits: Limits,
        in_flight: Gauge | None = None,
        queued: Gauge | None = None,
        waited: Counter | None = None,
    ) -> None:
        assert limits.concurrency is not None and limits.queue is not None
        self._in_flight = in_flight or Gauge()
        self._queued = queued or Gauge()
        self._waited = waited or Counter()
        self.concurrency = limits.concurrency
        self.queue = limits.queue
        self.running = 0
        self.waiting = 0
        self._tickets: deque[_Ticket] = deque()
        self.nested: deque[Any] = deque()  # calls inside of requests that wait, see `nesting`
        self._rate = _DrainRate()
        self._emptied: anyio.Event | None = None

    @property
    def has_room(self) -> bool:
        return self.running < self.concurrency

    @property
    def is_waited_for(self) -> bool:
        return bool(self._tickets or self.nested)

    def add_running(self, count: int) -> None:
        """Count calls inside of requests that run, or do no longer."""
        self.running += count
        self._in_flight.add(count)

    def add_waiting(self, count: int) -> None:
        """Count calls inside of requests that wait, or do no longer."""
        self.waiting += count
        self._queued.add(count)

    def note_wait(self, since: float) -> None:
        """Count for how long a request, or a call inside of one, has waited until now."""
        self._waited.cells[0] += monotonic() - since

    async def emptied(self) -> None:
        """Wait until no request runs or waits."""
        while self.running or self.waiting:
            if self._emptied is None:
                self._emptied = anyio.Event()
            await self._emptied.wait()

    def refusal(self) -> Overloaded:
        """Build the error; `retry_after` estimates when the current queue will have drained."""
        return Overloaded(
            "The server is busy and its queue is full.",
            retry_after=self._rate.seconds_to_drain(self.waiting),
        )

    def notify_if_empty(self) -> None:
        """Let those go on that wait for the last request, if there is none."""
        if self._emptied is not None and not (self.running or self.waiting):
            emptied, self._emptied = self._emptied, None
            emptied.set()


class Admission:
    """Which requests of one application run, wait or are refused.

    Attributes:
        gate: The application's; a request passes it together with its model's.
        budget: The bytes that requests hold before they are admitted.
    """

    def __init__(self, limits: Limits) -> None:
        self.gate = Gate(limits)
        assert limits.max_queued_bytes is not None
        self.budget = Budget(limits.max_queued_bytes, self.gate.refusal)
        self._numbers = count()
        self._queues: dict[Gate, None] = {}  # the models with requests that wait
        self.nesting = Nesting(self._queues, self._admit_waiting)
        self._refusal: Callable[[], ServingError] | None = None

    def acquire_nowait(self, gate: Gate) -> bool:
        """Acquire both slots if they are free and nobody waits for them; return whether.

        Every request runs this and `release`, so neither calls anything where nobody waits.
        """
        outer = self.gate
        free = gate.running < gate.concurrency and outer.running < outer.concurrency
        if gate._tickets or not free:
            return False
        gate.running += 1
        outer.running += 1
        gate._in_flight.cells[0] += 1.0
        return True

    async def acquire(
        self,
        gate: Gate,
        size: int = 0,
        share: Share | None = None,
        *,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Acquire a slot of the model and one of the application, waiting in turn.

        Args:
            size: The bytes that the request holds while it waits.
            share: What counts them, if it has one already; closed once it is admitted.
            on_wait: Called if it has to wait, once it has its place.

        Raises Overloaded if a queue or the budget is full, or what `refuse_waiting` was given. A
        cancelled wait gives up its place.
        """
        if self.acquire_nowait(gate):
            if share is not None:
                share.close()
            return
        if self._refusal is not None:
            raise self._refusal()
        for level in (gate, self.gate):
            if level.waiting >= level.queue:
                raise level.refusal()
        share = self.budget.hold(size, share)
        ticket = _Ticket(next(self._numbers))
        self._enqueue(gate, ticket)
        since = monotonic()
        try:
            if on_wait is not None:
                on_wait()
            await ticket.settled.wait()
        except BaseException:
            if ticket.admitted:
                self.release(gate)
            elif ticket.refusal is None:
                self._dequeue(gate, ticket)
            raise
        finally:
            share.close()
            gate.note_wait(since)
        if ticket.refusal is not None:
            raise ticket.refusal

    def release(self, gate: Gate) -> None:
        """Release both slots, and admit the request that has waited longest."""
        gate.running -= 1
        self.gate.running -= 1
        gate._in_flight.cells[0] -= 1.0
        if self._queues:
            self._admit_waiting()
        if gate._emptied is not None:
            gate.notify_if_empty()

    def refuse_waiting(self, refusal: Callable[[], ServingError] | None) -> None:
        """Refuse the requests that wait, and from now on those that would have to.

        None lets requests wait again.
        """
        self._refusal = refusal
        if refusal is not None:
            for gate in list(self._queues):
                self._refuse_queued(gate, refusal)

    def refuse_waiting_for(self, gate: Gate, refusal: Callable[[], ServingError]) -> None:
        """Refuse the requests that wait for one model now, and the calls inside of others."""
        self._refuse_queued(gate, refusal)
        self.nesting.refuse(gate, refusal)

    def _refuse_queued(self, gate: Gate, refusal: Callable[[], ServingError]) -> None:
        for ticket in list(gate._tickets):
            ticket.refusal = refusal()
            self._dequeue(gate, ticket)
            ticket.settled.set()

    def _enqueue(self, gate: Gate, ticket: "_Ticket") -> None:
        for level in (gate, self.gate):
            if not level.waiting:
                level._rate.restart()
        gate._tickets.append(ticket)
        self._queues[gate] = None
        gate.waiting += 1
        self.gate.waiting += 1
        gate._queued.add(1)

    def _dequeue(self, gate: Gate, ticket: "_Ticket") -> None:
        gate._tickets.remove(ticket)
        if not gate.is_waited_for:
            del self._queues[gate]
        gate.waiting -= 1
        self.gate.waiting -= 1
        gate._queued.add(-1)
        gate.notify_if_empty()

    def _admit_waiting(self) -> None:
        self.nesting.admit()
        while self.gate.has_room:
            gates = [gate for gate in self._queues if gate._tickets and gate.has_room]
            if not gates:
                return
            gate = min(gates, key=lambda g: g._tickets[0].number)
            ticket = gate._tickets[0]
            self._dequeue(gate, ticket)
            for level in (gate, self.gate):
                level.running += 1
                level._rate.count_admission()
            gate._in_flight.add(1)
            ticket.admitted = True
            ticket.settled.set()


class _Ticket:
    """A request's place in a queue; `settled` is set once it was admitted or refused."""

    __slots__ = ("admitted", "number", "refusal", "settled")

    def __init__(self, number: int) -> None:
        self.number = number
        self.settled = anyio.Event()
        self.admitted = False
        self.refusal: ServingError | None = None


class _DrainRate:
    """How fast a queue drains: a moving average of the seconds between two admissions."""

    _WEIGHT: Final = 0.2
    _LONGEST: Final = 120.0

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds: float | None = None

    def restart(self) -> None:
        """Count from now, as a queue has just formed: the time without one says nothing."""
        self._last = monotonic()

    def count_admission(self) -> None:
        now = monotonic()
        if self._last is not None:
            gap = now - self._last
            mean = gap if self._seconds is None else self._seconds
            self._seconds = mean + self._WEIGHT * (gap - mean)
        self._last = now

    def seconds_to_drain(self, waiting: int) -> int:
        seconds = self._seconds if self._seconds is not None else 1.0
        wait = min(max(waiting, 1) * seconds, self._LONGEST)
        return math.ceil(max(wait, 1.0))
