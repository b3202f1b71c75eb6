"""The slots of a model, or of an application, and the requests that wait for them."""

import math
from collections import deque
from time import monotonic
from typing import Any, Final, Protocol

from modelserve.concurrency.loops import Event
from modelserve.errors import Overloaded, ServingError
from modelserve.limits import Limits
from modelserve.metrics.cells import Counter, Gauge

__all__ = ["Gate", "Ticket", "Waits"]


class Waits(Protocol):
    """A request, or a call inside of one, that waits for a slot.

    Attributes:
        admitted: It has its slot.
        waited: The start and the end of the wait, by `time.monotonic`; set at its end.
    """

    admitted: bool
    waited: tuple[float, float]


class Gate:
    """The slots and the queue of one model, or of the application.

    Attributes:
        concurrency, queue: The limits: how many requests may run, and how many may wait.
        running, waiting: How many run, and how many wait.
        in_flight, queued: The same, as metrics.
        tickets: The waiting requests, in order.
        nested: The waiting calls inside of requests, see `nesting`.
    """

    def __init__(
        self,
        limits: Limits,
        in_flight: Gauge | None = None,
        queued: Gauge | None = None,
        waited: Counter | None = None,
    ) -> None:
        assert limits.concurrency is not None and limits.queue is not None
        self.in_flight = in_flight or Gauge()
        self.queued = queued or Gauge()
        self._waited = waited or Counter()
        self.concurrency = limits.concurrency
        self.queue = limits.queue
        self.running = 0
        self.waiting = 0
        self.tickets: deque[Ticket] = deque()
        self.nested: deque[Any] = deque()
        self.rate = _DrainRate()
        self._emptied: list[Event] | None = None  # the waiting calls

    @property
    def has_room(self) -> bool:
        return self.running < self.concurrency

    def claim(self) -> bool:
        """Take a slot if one is free; return whether that was so.

        Event loops run in several threads. No other can come between the test and the taking, since
        the interpreter switches threads only at calls and at the end of loops.
        """
        if self.running < self.concurrency:
            self.running += 1
            return True
        return False

    @property
    def is_waited_for(self) -> bool:
        return bool(self.tickets or self.nested)

    def add_running(self, count: int) -> None:
        """Count calls inside of requests: `count` more run; negative for fewer."""
        self.running += count
        self.in_flight.add(count)

    def add_waiting(self, count: int) -> None:
        """Count calls inside of requests: `count` more wait; negative for fewer."""
        self.waiting += count
        self.queued.add(count)

    def note_wait(self, since: float, who: Waits | None) -> None:
        """Record the wait of a request, or of a call inside of one, which ends now."""
        now = monotonic()
        self._waited.cells[0] += now - since
        if who is not None:
            who.waited = since, now

    async def emptied(self) -> None:
        """Wait until no request runs or waits."""
        while self.running or self.waiting:
            emptied = Event()
            self._emptied = [*(self._emptied or ()), emptied]
            if self.running or self.waiting:  # the last may have ended meanwhile, in another thread
                await emptied.wait()

    def refusal(self) -> Overloaded:
        """Make the error; `retry_after` estimates when the current queue will have drained."""
        return Overloaded(
            "The server is busy and its queue is full.",
            retry_after=self.rate.seconds_to_drain(self.waiting),
        )

    def notify_if_empty(self) -> None:
        """Wake the code in `emptied` if no request is left."""
        if self._emptied is not None and not (self.running or self.waiting):
            emptied, self._emptied = self._emptied, None
            for event in emptied:
                event.set()


class _DrainRate:
    """How fast a queue drains: a moving average of the seconds between two admissions."""

    _WEIGHT: Final = 0.2
    _LONGEST: Final = 120.0

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds: float | None = None

    def restart(self) -> None:
        """Measure from now, as a queue has just formed: the time without one does not count."""
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


class Ticket:
    """A request's place in a queue; `settled` is set once it was admitted or refused."""

    __slots__ = ("admitted", "number", "refusal", "settled")

    def __init__(self, number: int) -> None:
        self.number = number
        self.settled = Event()
        self.admitted = False
        self.refusal: ServingError | None = None
