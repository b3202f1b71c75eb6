"""Work for several requests: it is in flight like a request, but has no client.

It has a task of its own. It ends early when all of its requests have left, and at the end of a
drain. It is cancelled once, and its clean-up is bounded.
"""

from time import monotonic
from typing import Any

from starlette.types import Receive

from modelserve.concurrency.flight import Flight, HostCancelled, Phase, Pipeline
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.threads import let_threads_run
from modelserve.errors import ClientGone, Stopped
from modelserve.limits import Deadlines

__all__ = ["Unattended"]


class Unattended:
    """One piece of such work: see `flight.Watched`."""

    stream = None
    body_read = answered = False
    phase = Phase.DONE

    def __init__(self, deadlines: Deadlines) -> None:
        self.arrived = self.since = monotonic()
        self.deadlines = deadlines
        self.receive: Receive = _no_client
        self.reason: Stopped | None = None
        self.flight: Flight | None = None

    async def run(self, flights: Flights, work: Pipeline) -> None:
        """Run the work; raises Stopped if something has ended it early."""
        try:
            rest = flights.start(self, work)
            if rest is not None:
                let_threads_run()
                await rest
        finally:
            self.flight = None  # a reference cycle

    def cancel(self) -> None:
        """Cancel the work if it has begun: no request wants it any more."""
        if self.flight is not None:
            self.flight.cancel(ClientGone())

    def is_interrupted_by(self, exc: BaseException) -> bool:
        """Return whether an exception comes from the early end, not from the work itself."""
        return self.flight is not None and self.flight.is_interrupted_by(exc)

    def host_cancelled(self) -> Stopped:
        """Return the reason for a cancellation of its task: the event loop is ending."""
        return HostCancelled()

    async def report_early_end(self, reason: Stopped) -> None:
        """Do nothing: its requests know, or learn it from the code that awaits `run`."""


async def _no_client() -> Any:
    """Stand in for `receive`, which is not called while `body_read` is false."""
    raise RuntimeError("There is no client.")
