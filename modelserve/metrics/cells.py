"""The numbers of a process, and the table of metrics they belong to.

A series is one metric with one set of label values. Its numbers are in cells: a list or, where
workers share their metrics, doubles in a mapped file (see `shared`). Code that counts often adds to
them itself, `cells[0] += 1.0`, and saves a call.

Only event loops write: `+=` on a cell of a mapped file from two threads can lose an increment. Any
thread may read.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple, TypeAlias

__all__ = [
    "BOUNDS",
    "FAMILIES",
    "FIRST_BOUND",
    "SIZES",
    "SUM",
    "Cells",
    "Counter",
    "Family",
    "Gauge",
    "Histogram",
    "Key",
    "Series",
    "local_cells",
]

Cells: TypeAlias = "list[float] | memoryview[float]"
Key: TypeAlias = tuple[str, ...]  # the metric's name, then the values of its labels

# The default buckets of Prometheus' clients. A histogram's cells are their counts, then the count
# of +Inf, then the sum.
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
FIRST_BOUND: Final = BOUNDS[0]
# The buckets for numbers of items; as many, so that all histograms have the same cells.
SIZES: Final = tuple(float(1 << power) for power in range(len(BOUNDS)))
SUM: Final = len(BOUNDS) + 1


def local_cells(size: int) -> Cells:
    """Return cells of this process alone, which are faster to write than shared ones."""
    return [0.0] * size


class Series:
    """One metric with one set of label values."""

    __slots__ = ("cells",)
    size: ClassVar[int] = 1

    def __init__(self, cells: "Cells | None" = None) -> None:
        self.cells = local_cells(self.size) if cells is None else cells

    def move(self, cells: Cells) -> None:
        """Continue in other cells, adding to what they hold."""
        for index, value in enumerate(self.cells):
            cells[index] += value
        self.cells = cells


class Counter(Series):
    """A number that only grows."""

    __slots__ = ()


class Gauge(Series):
    """A number that goes up and down; it is shown only while its process lives."""

    __slots__ = ()

    def add(self, amount: float) -> None:
        self.cells[0] += amount

    def move(self, cells: Cells) -> None:
        """Continue in other cells, replacing what they hold."""
        cells[0] = self.cells[0]
        self.cells = cells


class Histogram(Series):
    """The counts of durations, or numbers of items, in each bucket, and the sum of all."""

    __slots__ = ()
    size = SUM + 1

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        cells = self.cells
        cells[0 if seconds <= FIRST_BOUND else bisect_left(BOUNDS, seconds)] += 1.0
        cells[SUM] += seconds


class Family(NamedTuple):
    """The common properties of all series of one metric."""

    kind: type[Series]
    text: str
    labels: tuple[str, ...] = ("model_name",)
    bounds: tuple[float, ...] = BOUNDS  # of a histogram


# The first four have the names and texts of KServe's.
FAMILIES: Final[Mapping[str, Family]] = {
    "request_preprocess_seconds": Family(Histogram, "pre-process request latency"),
    "request_predict_seconds": Family(Histogram, "predict request latency"),
    "request_explain_seconds": Family(Histogram, "explain request latency"),
    "request_postprocess_seconds": Family(Histogram, "post-process request latency"),
    "modelserve_requests_total": Family(
        Counter,
        "Requests to models that have ended.",
        ("model_name", "protocol", "verb", "status", "outcome"),
    ),
    "modelserve_request_seconds": Family(Histogram, "Seconds from a request's arrival to its end."),
    "modelserve_failed_request_seconds_total": Family(
        Counter, "Seconds from arrival to end of requests whose outcome was not done."
    ),
    "modelserve_queue_seconds_total": Family(
        Counter, "Seconds for which requests have waited for a slot."
    ),
    "modelserve_time_to_first_item_seconds": Family(
        Histogram, "Seconds from a request's arrival to the first item of its stream."
    ),
    "modelserve_inter_item_seconds": Family(Histogram, "Seconds between two items of a stream."),
    "modelserve_stream_items_total": Family(Counter, "Items of streams."),
    "modelserve_in_flight": Family(Gauge, "Requests that run, those in the queue not counted."),
    "modelserve_queued": Family(Gauge, "Requests that wait for a slot."),
    "modelserve_batch_size": Family(Histogram, "Items in one batch.", bounds=SIZES),
    "modelserve_batch_wait_seconds": Family(
        Histogram, "Seconds for which a request has waited for its batch."
    ),
    "modelserve_active_slots": Family(Gauge, "Streams that are stepped together."),
    "modelserve_batches_total": Family(
        Counter, "Batches that have ended.", ("model_name", "outcome")
    ),
}
