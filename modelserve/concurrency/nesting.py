"""Admission of calls inside of requests: one model calls another.

A request that calls a model has a slot of its own model and one of the application, and keeps them
while it waits. So such a call needs only a slot of the called model, takes precedence over requests
that have none, and may wait while the server drains. A call that would deadlock, directly or
through other calls, is refused: it would wait for ever.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from threading import RLock
from time import monotonic
from typing import TypeAlias

from modelserve.concurrency.gate import Gate, Slot, Waits
from modelserve.concurrency.loops import Event
from modelserve.errors import Overloaded, ServingError

__all__ = ["Holders", "Nesting"]

# The requests and calls above a call, each with the model that it has a slot of.
Holders: TypeAlias = Mapping[object, Gate]


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

    def slot(self, gate: Gate, held: Holders, who: Waits) -> Slot:
        """Return a slot of a model, as `acquire` acquires it."""
        return Slot(self.acquire(gate, held, who), partial(self.release, gate), who)

    async def acquire(self, gate: Gate, held: Holders, who: Waits | None = None) -> None:
        """Acquire a slot of a model.

        Args:
            held: Those that cannot end before the call has ended.
            who: Its `waited` is set to the time that it waited, if it did.

        Raises Overloaded if the queue is full, or if the call would deadlock, and the refusal of
        `refuse`. A cancelled wait gives up its place.
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

    def _enqueue(self, gate: Gate, held: Holders) -> "_Waiting":
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

    def _would_never_end(self, gate: Gate, held: Holders) -> bool:
        """Return whether all slots of the model are held by requests that cannot go on.

        A request needs all that it waits for. So those that wait for nothing but models with a slot
        that will be free are taken out, until there are no more of them.
        """
        waiting = [(wanted, call.held) for wanted in self._queues for call in wanted.nested]
        wants: dict[object, set[Gate]] = {}
        stuck: dict[object, Gate] = {}  # requests that cannot end, each with its slot
        for wanted, holders in [*waiting, (gate, held)]:
            for who, slot in holders.items():
                stuck[who] = slot
                wants.setdefault(who, set()).add(wanted)
        while True:
            # another thread may release a slot at any moment
            closed = {
                full
                for full, count in Counter(stuck.values()).items()
                if count >= full.running >= full.concurrency
            }
            ending = [who for who in stuck if not wants[who] & closed]
            if not ending:
                return gate in closed
            for who in ending:
                del stuck[who]


class _Waiting:
    """A call's place in a queue; `settled` is set once it was admitted or refused."""

    __slots__ = ("admitted", "held", "refusal", "settled")

    def __init__(self, held: Holders) -> None:
        self.held = held
        self.settled = Event()
        self.admitted = False
        self.refusal: ServingError | None = None
