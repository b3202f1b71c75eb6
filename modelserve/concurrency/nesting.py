"""Admission of calls inside of requests: one model calls another.

A request that calls a model has a slot of its own model and one of the application, and keeps them
while it waits. So such a call needs only a slot of the called model, takes precedence over requests
that have none, and may wait while the server drains. A call that would deadlock, directly or
through other calls, is refused: it would wait for ever.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import RLock
from time import monotonic

from modelserve.concurrency.gate import Gate, Waits
from modelserve.concurrency.loops import Event
from modelserve.errors import Overloaded, ServingError

__all__ = ["Nesting"]


class Nesting:
    """The calls inside of requests of one application that wait for a slot of a model.

    Args:
        queues: The models with waiting requests or calls.
        lock: Held by whoever looks at or changes them.
        admit_waiting: Called when there may be room for a waiting one.
    """

    def __init__(
        self, queues: dict[Gate, None], lock: RLock, admit_waiting: Callable[[], None]
    ) -> None:
        self._queues = queues
        self._lock = lock
        self._admit_waiting = admit_waiting

    @asynccontextmanager
    async def slot(self, gate: Gate, held: Sequence[Gate], who: Waits) -> AsyncIterator[None]:
        """Hold a slot of a model. Raises as `acquire` does."""
        await self.acquire(gate, held, who)
        who.admitted = True
        try:
            yield
        finally:
            self.release(gate)

    async def acquire(self, gate: Gate, held: Sequence[Gate], who: Waits | None = None) -> None:
        """Acquire a slot of a model.

        Args:
            held: The models that the request has slots of, once for each slot held.
            who: Its `waited` is set to the time that it waited, if it did.

            Raises Overloaded if the queue is full, or if the call would deadlock, and the refusal
            of `refuse`. A cancelled wait gives up its place.
        """
        if not gate.nested and gate.claim():
            gate.in_flight.add(1)
            return
        call = self._enqueue(gate, held)
        since = monotonic()
        try:
            await call.settled.wait()
        except BaseException:
            if self._give_up(gate, call):
                self.release(gate)
            raise
        finally:
            gate.note_wait(since, who)
        if call.refusal is not None:
            raise call.refusal

    def release(self, gate: Gate) -> None:
        """Release a slot, and admit the call that has waited longest."""
        gate.add_running(-1)
        if self._queues:
            self._admit_waiting()
        gate.notify_if_empty()

    def admit(self) -> None:
        """Admit the calls that there is room for; to be called with the lock."""
        for gate in list(self._queues):
            while gate.nested and gate.claim():
                gate.in_flight.add(1)
                call: _Waiting = gate.nested[0]
                self._dequeue(gate, call)
                call.admitted = call.settled.set()
                if not call.admitted:  # its event loop has ended
                    gate.add_running(-1)

    def refuse(self, gate: Gate, refusal: Callable[[], ServingError]) -> None:
        """Refuse the calls that wait for one model now."""
        with self._lock:
            for call in list(gate.nested):
                call.refusal = refusal()
                self._dequeue(gate, call)
                call.settled.set()

    def _enqueue(self, gate: Gate, held: Sequence[Gate]) -> "_Waiting":
        """Give a call its place. Raises Overloaded."""
        with self._lock:
            if self._would_never_end(gate, held):
                raise Overloaded(
                    "The call would deadlock: its callers hold all slots.", retry_after=1.0
                )
            if gate.waiting >= gate.queue:
                raise gate.refusal()
            call = _Waiting(held)
            gate.nested.append(call)
            self._queues[gate] = None
            gate.add_waiting(1)
            self._admit_waiting()  # a slot may have become free meanwhile, in another thread
            return call

    def _give_up(self, gate: Gate, call: "_Waiting") -> bool:
        """Take out a call whose wait was cancelled; return whether it has a slot already."""
        with self._lock:
            if call in gate.nested:
                self._dequeue(gate, call)
            return call.admitted

    def _dequeue(self, gate: Gate, call: "_Waiting") -> None:
        gate.nested.remove(call)
        if not gate.is_waited_for:
            del self._queues[gate]
        gate.add_waiting(-1)
        gate.notify_if_empty()

    def _would_never_end(self, gate: Gate, held: Sequence[Gate]) -> bool:
        """Return whether all slots of the model are held by requests that wait for this one."""
        waiting = [(wanted, call.held) for wanted in self._queues for call in wanted.nested]
        seen: set[Gate] = set()
        unseen = [gate]
        while unseen:
            full = unseen.pop()
            if full not in seen:
                seen.add(full)
                stuck = [(wanted, others.count(full)) for wanted, others in waiting]
                running = full.running  # another thread may release a slot at any moment
                waits = sum(slots for _, slots in stuck) + held.count(full)
                if running < full.concurrency or waits < running:
                    return False  # a request with a slot can go on
                unseen += [wanted for wanted, slots in stuck if slots]
        return True


class _Waiting:
    """A call's place in a queue; `settled` is set once it was admitted or refused."""

    __slots__ = ("admitted", "held", "refusal", "settled")

    def __init__(self, held: Sequence[Gate]) -> None:
        self.held = held
        self.settled = Event()
        self.admitted = False
        self.refusal: ServingError | None = None
