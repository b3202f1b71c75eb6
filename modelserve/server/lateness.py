"""Tell of an event loop that has stood still, while nobody was answered."""

import logging

__all__ = ["Lateness"]

logger = logging.getLogger("modelserve")

_TEXT = (
    "The event loop stood still for %.1f s: an async hook that computes or blocks keeps all others "
    "waiting; make it a def"
)


class Lateness:
    """Log how late the ticks of a server's clock are, from some seconds on.

    Args:
        seconds: Of this length, and longer, a pause between two ticks is told.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: float | None = None

    def note(self, now: float) -> None:
        """Note a tick, at a time in seconds."""
        last, self._last = self._last, now
        if last is not None and now - last >= self._seconds:
            logger.warning(_TEXT, now - last)
