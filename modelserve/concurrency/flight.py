"""One request in flight: what it waits for, its deadlines, and what ends it early.

Servers neither cancel an application nor raise from `send` when the client leaves, so each request
that has suspended is watched. Whatever ends one early (the client left, a deadline passed, the
drain is over, the host cancelled) goes through `Flight.cancel(reason)`. User code is cancelled only
once, however many causes there are: awaits in its clean-up complete, within `cleanup_timeout`;
after that it is cancelled again until it ends.

The base class has the state and the clock; it knows no event loop. How a pipeline is driven,
cancelled and shielded is in `asyncio_flight` and `trio_flight`.
"""

import math
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final, Protocol

from starlette.types import Receive

from modelserve.errors import BodyTimeout, ClientGone, DeadlineExceeded, ServerShuttingDown, Stopped
from modelserve.limits import Deadlines

__all__ = [
    "CANCELS",
    "BodyTimedOut",
    "Companion",
    "Flight",
    "HostCancelled",
    "Phase",
    "Pipeline",
    "Register",
    "Watched",
    "timed_out",
]

Pipeline = Coroutine[Any, Any, None]
Companion = Callable[[], Coroutine[Any, Any, None]]
# An extension of ASGI's scope: while it serves, the host cancels a request whose client has left.
CANCELS: Final = "modelserve.cancels"


class Phase:
    """What a request is waiting for; each phase has its own limit."""

    BODY: Final = 0
    QUEUE: Final = 1
    FIRST: Final = 2
    ITEM: Final = 3
    SEND: Final = 4
    DONE: Final = 5  # all has been sent; only the drain limits the closing of user code


class Suspending(Protocol):
    """An object that is notified when a pipeline suspends."""

    def note_suspension(self) -> bool:
        """Note that the pipeline has suspended; return whether its generator is cleaning up."""


class Watched(Protocol):
    """The attributes of a request that its flight uses.

    The pipeline writes these while it runs; the flight reads them only while the pipeline is
    suspended. The flight sets `reason` and `flight`.

    Attributes:
        arrived, since: When the request arrived and when `phase` began (`time.monotonic`).
        phase: One of `Phase`.
        deadlines: The limits that hold for it.
        receive: The host's.
        body_read: Its body has been read: the next message can only be a disconnect.
        answered: The last event of the answer is on its way.
        reason: The reason for its early end, if there is one.
        flight: The request's flight; None before its pipeline has suspended.
        stream: Notified whenever the pipeline suspends; None before anything is streamed.
    """

    arrived: float
    since: float
    phase: int
    deadlines: Deadlines
    receive: Receive
    body_read: bool
    answered: bool
    reason: Stopped | None
    flight: "Flight | None"

    @property
    def stream(self) -> "Suspending | None": ...

    def host_cancelled(self) -> Stopped:
        """Return the reason for a cancellation by the host."""

    def report_early_end(self, reason: Stopped) -> Coroutine[Any, Any, None]:
        """Report the early end to the client, while user code is still cleaning up."""


class Register(Protocol):
    """The part of the register of flights that a flight uses."""

    def add(self, flight: "Flight") -> None: ...

    def remove(self, flight: "Flight") -> None: ...

    def cleanup_bound(self, seconds: float) -> float: ...


class Flight:
    """One request in flight, in the task that the host runs it in.

    Attributes:
        request: The request in flight.
        is_watched: Its deadlines and its client are being watched.
        over: Its user code has ended.
    """

    __slots__ = ("_register", "is_watched", "over", "request")

    # Whether a task that sends can be started at any moment, even while the pipeline is suspended.
    spawns_tasks: ClassVar[bool] = True

    request: Watched
    is_watched: bool
    over: bool
    _register: Register

    def cancel(self, reason: Stopped) -> None:
        """End the request early, once; the first reason counts. Safe to call at any time."""
        request = self.request
        if request.reason is not None or self.over:
            return
        if request.answered and isinstance(reason, ClientGone):
            return  # after the last event every host reports a disconnect
        if self._defer(reason):
            return
        request.reason = reason
        self._interrupt()
        if not isinstance(reason, ClientGone):
            self._report(request.report_early_end(reason))

    def is_interrupted_by(self, exc: BaseException) -> bool:
        """Return whether an exception comes from the request's early end, not from a hook."""
        return self.request.reason is not None

    def note_body_read(self) -> None:
        """Watch the client from now on, if the request is being watched already."""
        if self.is_watched:
            self._start_watcher()

    def start_companion(self, companion: Companion) -> Callable[[], object]:
        """Run an async function beside the pipeline; Stopped raised by it ends the request.

        It is cancelled when the pipeline ends, or by calling what is returned.
        """
        raise NotImplementedError

    async def accompany(self, companion: Companion) -> None:
        """Run a companion; Stopped raised by it ends the request."""
        try:
            await companion()
        except Stopped as reason:
            self.cancel(reason)

    async def close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Await the closing of user code: a cancellation only bounds its time."""
        raise NotImplementedError

    def shorten_clean_up(self, seconds: float) -> None:
        """Bound the remaining time of a request that is cleaning up."""
        raise NotImplementedError

    async def deliver_absorbed(self) -> None:
        """Raise a cancellation by the host that only the flight has seen."""

    def _defer(self, reason: Stopped) -> bool:
        """Return whether the cancellation has been put off, to be tried again later."""
        return False

    def _interrupt(self) -> None:
        raise NotImplementedError

    def _report(self, report: Coroutine[Any, Any, None]) -> None:
        raise NotImplementedError

    def _start_watcher(self) -> None:
        raise NotImplementedError

    # -- the clock

    def expired(self, now: float) -> Stopped | None:
        """Return the error of the limit that has passed, if any."""
        request = self.request
        limits, phase = request.deadlines, request.phase
        if phase == Phase.DONE:
            return None
        if limits.timeout is not None and now - request.arrived >= limits.timeout:
            return timed_out(limits.timeout, phase)
        limit = _phase_limit(limits, phase)
        if limit is None or now - request.since < limit:
            return None
        return DeadlineExceeded(_PHASE_TEXT[phase].format(limit))

    def next_check(self, now: float) -> float:
        """Return when to check again: no limit, of this phase or a later one, can pass before."""
        request = self.request
        limits = request.deadlines
        if request.phase == Phase.DONE:
            return math.inf
        due = math.inf if limits.timeout is None else request.arrived + limits.timeout
        for phase in _PHASE_TEXT:
            limit = _phase_limit(limits, phase)
            if limit is not None:
                due = min(due, (request.since if phase == request.phase else now) + limit)
        return due


class HostCancelled(ServerShuttingDown):
    """The host has cancelled the request, as servers do when they stop."""


class BodyTimedOut(BodyTimeout, DeadlineExceeded):
    """The limit on the whole request passed before its body had arrived."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"request body not received within {seconds:g} s")


def timed_out(seconds: float, phase: int) -> Stopped:
    """Return what ends a request in this phase once the time for the whole of it has passed."""
    if phase == Phase.BODY:
        return BodyTimedOut(seconds)
    return DeadlineExceeded(f"timeout: the request took longer than {seconds:g} s")


_PHASE_TEXT: Final = {
    Phase.FIRST: "first_item_timeout: nothing was produced within {:g} s",
    Phase.ITEM: "idle_timeout: no item was produced for {:g} s",
    Phase.SEND: "send_timeout: the client has read nothing for {:g} s",
}


def _phase_limit(limits: Deadlines, phase: int) -> float | None:
    if phase == Phase.FIRST:
        return limits.first_item_timeout
    if phase == Phase.ITEM:
        return limits.idle_timeout
    return limits.send_timeout if phase == Phase.SEND else None
