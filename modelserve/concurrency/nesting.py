"""Admission of calls inside of requests: one model calls another.

A request that calls a model has a slot of its own model and one of the application, and keeps them
while it waits. So such a call needs only a slot of the called model, takes precedence over requests
that have none, and may wait while the server drains. A call that would deadlock, directly or
through other calls, is refused: it would wait for ever. A thread of a model's own counts as one
slot more, which a hook in it keeps while it waits for a call, and which requests wait for too.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import RLock
from time import monotonic
from typing import Any, Protocol, TypeAlias

from modelserve.concurrency.gate import Gate, Slot, Waits
from modelserve.concurrency.loops import Event
from modelserve.errors import Overloaded, ServingError

__all__ = ["Holders", "Nesting", "Places", "deadlock"]


class Places(Protocol):
    """The slots of a model, or the one of its own thread.

    Attributes:
        concurrency: How many there are.
        running: How many are taken.
    """

    @property
    def concurrency(self) -> float: ...
    @property
    def running(self) -> int: ...


# The requests and calls above a call, and their threads, each with what it has one of.
Holders: TypeAlias = Mapping[object, Places]


def deadlock(why: str = "its model's only thread waits for it") -> Overloaded:
    """Make the error for a call that would wait for ever."""
    return Overloaded(f"The call would deadlock: {why}.", retry_after=1.0)


class Nesting:
    """The calls inside of requests of one application that wait for a slot of a model, or a thread.

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
        self._for_threads: dict[object, tuple[Places, Holders]] = {}  # the calls that wait for one
        # How many requests wait for a thread, each with a slot.
        self._requests: Counter[tuple[Places, Gate]] = Counter()

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

    @contextmanager
    def waiting_for_thread(self, thread: Places, held: Holders) -> Iterator[None]:
        """Let a call wait for a model's own thread in this block.

        Args:
            held: Those that cannot end before the call has ended, and the call itself.

        Raises Overloaded if the call would deadlock.
        """
        call = object()
        with self._lock:
            self._check(thread, held)
            self._for_threads[call] = thread, held
        try:
            yield
        finally:
            with self._lock:
                del self._for_threads[call]

    @contextmanager
    def request_waiting_for_thread(self, thread: Places, gate: Gate) -> Iterator[None]:
        """Let a request that has a slot wait for its model's own thread in this block.

        Raises Overloaded if the thread waits, through calls, for a slot that such requests have.
        """
        who = thread, gate
        with self._lock:
            if self._calls_wait():
                self._check(thread, {object(): gate})
            self._requests[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests[who] -= 1
                if not self._requests[who]:
                    del self._requests[who]

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
            self._check(gate, held)
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

    def _calls_wait(self) -> bool:
        return bool(self._for_threads) or any(gate.nested for gate in self._queues)

    def _check(self, wanted: Places, held: Holders) -> None:
        """Raise Overloaded if one that waits as well would wait for ever."""
        if self._would_never_end(wanted, held):
            is_slot = isinstance(wanted, Gate)
            raise deadlock("its callers hold all slots") if is_slot else deadlock()

    def _would_never_end(self, wanted: Places, held: Holders) -> bool:
        """Return whether all slots of the model are held by requests that cannot go on.

        A request needs all that it waits for. So those that wait for nothing but models with a slot
        that will be free are taken out, until there are no more of them.
        """
        waiting: list[tuple[Places, Holders]] = [*self._for_threads.values(), (wanted, held)]
        waiting += [(gate, call.held) for gate in self._queues for call in gate.nested]
        waiting += [(who[0], {who: who[1]}) for who in self._requests]
        wants: dict[object, set[Places]] = {}
        stuck: dict[object, Places] = {}  # requests that cannot end, each with its slot
        for places, holders in waiting:
            for who, slot in holders.items():
                stuck[who] = slot
                wants.setdefault(who, set()).add(places)
        counts: Mapping[Any, int] = self._requests
        while True:
            taken: Counter[Places] = Counter()
            for who, slot in stuck.items():
                taken[slot] += counts.get(who, 1)  # requests that wait for a thread are one `who`
            # another thread may release a slot at any moment
            closed = {
                full for full, count in taken.items() if count >= full.running >= full.concurrency
            }
            ending = [who for who in stuck if not wants[who] & closed]
            if not ending:
                return wanted in closed
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
