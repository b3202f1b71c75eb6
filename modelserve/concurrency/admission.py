"""Admission: how many requests run, how many wait, and which are refused.

The limits of a model and of the application both hold. A request acquires a slot of each at once,
or waits for both in the queue of its model, so that it never holds one slot while it waits for the
other. A slot that becomes free goes to the request that has waited longest among those that can
use it.

An application may serve several event loops, each in a thread of its own. Whoever reads or
changes the queues holds a lock; a request that finds room while none waits needs no lock (see
`Gate.claim`).
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from threading import RLock
from time import monotonic

from modelserve.concurrency.budget import Budget, Share
from modelserve.concurrency.gate import Gate, Slot, Ticket, Waits
from modelserve.concurrency.nesting import Nesting
from modelserve.errors import ServingError
from modelserve.limits import Limits

__all__ = ["Admission"]


def _nothing() -> None:
    """Do nothing."""


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
        self._queues: dict[Gate, None] = {}  # the models with waiting requests
        self._lock = RLock()  # reentrant: a collected request gives up its place
        self.nesting = Nesting(self._queues, self._lock, self._admit_waiting)
        self._refusal: Callable[[], ServingError] | None = None

    def acquire_nowait(self, gate: Gate, share: Share | None = None) -> bool:
        """Acquire both slots if they are free and no request waits; return whether that was so.

        The share, if there is one, is closed then. Every request runs this and `release`, so
        neither calls anything else unless a request waits.
        """
        outer = self.gate
        free = gate.running < gate.concurrency and outer.running < outer.concurrency
        if gate.tickets or not free:
            return False
        gate.running += 1
        outer.running += 1
        gate.in_flight.cells[0] += 1.0
        if share is not None:
            share.close()
        return True

    def slot(
        self,
        gate: Gate,
        size: int,
        who: Waits,
        share: Share | None = None,
        on_accepted: Callable[[], object] = _nothing,
    ) -> Slot:
        """Return a slot of the model and one of the application, as `acquire` acquires them."""
        acquiring = self.acquire(gate, size, share, who=who, on_accepted=on_accepted)
        return Slot(acquiring, partial(self.release, gate), who)

    async def acquire(
        self,
        gate: Gate,
        size: int = 0,
        share: Share | None = None,
        *,
        who: Waits | None = None,
        on_accepted: Callable[[], object] = _nothing,
    ) -> None:
        """Acquire a slot of the model and one of the application, waiting in turn.

        Args:
            size: The bytes that the request holds while it waits.
            share: The share that counts them, if there is one already; closed at admission.
            who: Its `waited` is set to the time that it waited, if it did.
            on_accepted: Called once the request has the slots, or its place in the queue; must not
                raise.

        Raises Overloaded if a queue or the budget is full, or the refusal of `refuse_waiting`. A
        cancelled wait gives up its place.
        """
        if self.acquire_nowait(gate, share):
            on_accepted()
            return
        ticket, share = self._enqueue(gate, size, share)
        since = monotonic()
        try:
            on_accepted()
            await ticket.settled.wait()
        except BaseException:
            if self._give_up(gate, ticket):
                self.release(gate)
            raise
        finally:
            share.close()
            gate.note_wait(since, who)
        if ticket.refusal is not None:
            raise ticket.refusal

    def release(self, gate: Gate) -> None:
        """Release both slots, and admit the request that has waited longest."""
        gate.running -= 1
        self.gate.running -= 1
        gate.in_flight.cells[0] -= 1.0
        if self._queues:
            self._admit_waiting()
        if gate._emptied is not None:
            gate.notify_if_empty()

    def refuse_waiting(self, refusal: Callable[[], ServingError] | None) -> None:
        """Refuse waiting requests, and from now on requests that would have to wait.

        None lets requests wait again.
        """
        with self._lock:
            self._refusal = refusal
            if refusal is not None:
                for gate in list(self._queues):
                    self._refuse_queued(gate, refusal)

    def refuse_waiting_for(self, gate: Gate, refusal: Callable[[], ServingError]) -> None:
        """Refuse the requests, and the calls inside of requests, that wait for one model now."""
        self._refuse_queued(gate, refusal)
        self.nesting.refuse(gate, refusal)

    def _refuse_queued(self, gate: Gate, refusal: Callable[[], ServingError]) -> None:
        with self._lock:
            for ticket in list(gate.tickets):
                ticket.refusal = refusal()
                self._dequeue(gate, ticket)
                ticket.settled.set()

    def _enqueue(self, gate: Gate, size: int, share: Share | None) -> tuple[Ticket, Share]:
        """Give a request its place, and hold its bytes. Raises as `acquire`."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            for level in (gate, self.gate):
                if level.waiting >= level.queue:
                    raise level.refusal()
            share = self.budget.hold(size, share)
            ticket = Ticket(next(self._numbers))
            for level in (gate, self.gate):
                if not level.waiting:
                    level.rate.restart()
                level.waiting += 1
            gate.tickets.append(ticket)
            self._queues[gate] = None
            gate.queued.add(1)
            self._admit_waiting()  # a slot may have become free meanwhile, in another thread
            return ticket, share

    def _give_up(self, gate: Gate, ticket: Ticket) -> bool:
        """Take out a request whose wait was cancelled; return whether it has slots already."""
        with self._lock:
            if ticket in gate.tickets:
                self._dequeue(gate, ticket)
            return ticket.admitted

    def _dequeue(self, gate: Gate, ticket: Ticket) -> None:
        gate.tickets.remove(ticket)
        if not gate.is_waited_for:
            del self._queues[gate]
        gate.waiting -= 1
        self.gate.waiting -= 1
        gate.queued.add(-1)
        gate.notify_if_empty()

    def _admit_waiting(self) -> None:
        with self._lock:
            self.nesting.admit()
            while self.gate.has_room:
                gates = [gate for gate in self._queues if gate.tickets and gate.has_room]
                if not gates:
                    return
                gate = min(gates, key=lambda g: g.tickets[0].number)
                if gate.claim():
                    if self.gate.claim():
                        self._admit(gate, gate.tickets[0])
                    else:  # another thread has taken it
                        gate.running -= 1

    def _admit(self, gate: Gate, ticket: Ticket) -> None:
        """Give a request the slots that were claimed for it."""
        self._dequeue(gate, ticket)
        for level in (gate, self.gate):
            level.rate.count_admission()
        gate.in_flight.add(1)
        ticket.admitted = ticket.settled.set()
        if not ticket.admitted:  # its event loop has ended
            gate.add_running(-1)
            self.gate.running -= 1
