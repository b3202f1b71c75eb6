"""Record the batches of one model."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Protocol

from modelserve.metrics.cells import SIZES, SUM, Counter, Histogram
from modelserve.metrics.store import Store

__all__ = ["BatchSeries", "Joined"]


class Joined(Protocol):
    """One of the requests in a batch.

    Attributes:
        error: The exception that it got instead of a result.
    """

    error: BaseException | None

    @property
    def context(self) -> Context:
        """The context in which it waits."""


class BatchSeries:
    """The series of one model's batches.

    Args:
        store: Where the series are made.
        model: The model's name, as a label can show it.
    """

    __slots__ = ("_model", "_outcomes", "_sizes", "_store", "_waits")

    def __init__(self, store: Store, model: str) -> None:
        self._store = store
        self._model = model
        self._sizes = store.series(Histogram, "modelserve_batch_size", model)
        self._waits = store.series(Histogram, "modelserve_batch_wait_seconds", model)
        self._outcomes: dict[str, Counter] = {}

    def start(
        self, size: int, waits: Sequence[float], callers: Sequence[Joined] = ()
    ) -> Callable[[str], None]:
        """Count a batch by its items, and the seconds that each request has waited for it.

        Return a function that counts its end: done, error or cancelled.
        """
        cells = self._sizes.cells
        cells[bisect_left(SIZES, size)] += 1.0
        cells[SUM] += size
        for seconds in waits:
            self._waits.observe(seconds)
        return self._end

    def _end(self, outcome: str) -> None:
        counter = self._outcomes.get(outcome)
        if counter is None:
            family = "modelserve_batches_total"
            counter = self._store.series(Counter, family, self._model, outcome)
            self._outcomes[outcome] = counter
        counter.cells[0] += 1.0
