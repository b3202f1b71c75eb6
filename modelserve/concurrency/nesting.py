"""Admission of calls inside of requests: one model calls another.

A request that calls a model has a slot of its own model and one of the application, and keeps them
while it waits. So such a call needs only a slot of the called model, takes precedence over requests
that have none, and may wait while the server drains. A call that would deadlock, directly or
through other calls, is refused: it would wait for ever. A thread of a model's own counts as one
slot more, which a hook in it keeps while it waits for a call.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import RLock
from time import monotonic
from typing import Protocol, TypeAlias

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
        self._for_threads: set[_Wait] = set()

    def slot(self, gate: Gate, held: Holders, who: Waits, *, thread: Places | None = None) -> Slot:
        """Return a slot of a model, as `acquire` acquires it."""
        acquiring = self.acquire(gate, held, who, thread=thread)
        return Slot(acquiring, partial(self.release, gate), who)

    async def acquire(
        self, gate: Gate, held: Holders, who: Waits | None = None, *, thread: Places | None = None
    ) -> None:
        """Acquire a slot of a model.

        Args:
            held: Those that cannot end before the call has ended.
            who: Its `waited` is set to the time that it waited, if it did.
            thread: The model's own thread, if the call's first hook runs there.

        Raises Overloaded if the queue is full, or if the call would deadlock, and the refusal of
        `refuse`. A cancelled wait gives up its place.
        """
        if not gate.nested and gate.claim():
            gate.in_flight.add(1)
            return
        wants: tuple[Places, ...] = (gate,) if thread is None else (gate, thread)
        call = self._enqueue(gate, _Wait(wants, held))
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
        wait = _Wait((thread,), held)
        with self._lock:
            self._check(wait)
            self._for_threads.add(wait)
        try:
            yield
        finally:
            with self._lock:
                self._for_threads.remove(wait)

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

    def _enqueue(self, gate: Gate, wait: "_Wait") -> "_Waiting":
        """Give a call its place. Raises Overloaded."""
        with self._lock:
            self._check(wait)
            if gate.waiting >= gate.queue:
                raise gate.refusal()
            call = _Waiting(wait)
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

    def _check(self, wait: "_Wait") -> None:
        """Raise Overloaded if a call would wait for what will never be free."""
        never_free = self._never_free(wait).intersection(wait.wants)
        if any(isinstance(places, Gate) for places in never_free):
            raise deadlock("its callers hold all slots")
        if never_free:
            raise deadlock()

    def _never_free(self, wait: "_Wait") -> set[Places]:
        """Return of what all is held by requests that cannot go on, once a call waits as well.

        A request needs all that it waits for. So those that wait for nothing but models with a slot
        that will be free are taken out, until there are no more of them.
        """
        waits = [call.wait for gate in self._queues for call in gate.nested]
        wants: dict[object, set[Places]] = {}
        stuck: dict[object, Places] = {}  # requests that cannot end, each with its slot
        for other in [*waits, *self._for_threads, wait]:
            for who, slot in other.held.items():
                stuck[who] = slot
                wants.setdefault(who, set()).update(other.wants)
        while True:
            # another thread may release a slot at any moment
            closed = {
                full
                for full, count in Counter(stuck.values()).items()
                if count >= full.running >= full.concurrency
            }
            ending = [who for who in stuck if not wants[who] & closed]
            if not ending:
                return closed
            for who in ending:
                del stuck[who]


class _Wait:
    """What a call needs before it can go on, and who cannot go on before that."""

    __slots__ = ("held", "wants")

    def __init__(self, wants: tuple[Places, ...], held: Holders) -> None:
        self.wants = wants
        self.held = held


class _Waiting:
    """A call's place in a queue; `settled` is set once it was admitted or refused."""

    __slots__ = ("admitted", "refusal", "settled", "wait")

    def __init__(self, wait: _Wait) -> None:
        self.wait = wait
        self.settled = Event()
        self.admitted = False
        self.refusal: ServingError | None = None
