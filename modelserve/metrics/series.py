"""The series of one model, in which its requests and streams are recorded."""

import logging
from bisect import bisect_left
from collections.abc import Iterable

from modelserve.metrics.access import log_request
from modelserve.metrics.access import logger as access_logger
from modelserve.metrics.batches import BatchSeries
from modelserve.metrics.cells import BOUNDS, FIRST_BOUND, SUM, Counter, Gauge, Histogram
from modelserve.metrics.ending import Ending, result_of
from modelserve.metrics.store import Store

__all__ = ["ModelSeries", "Tick"]

# Code that runs for each request or item repeats the two lines of `Histogram.observe`: a call would
# take longer than they do.


class ModelSeries:
    """The series of one model; hold it, or parts of it, for as long as the model is served.

    Attributes:
        name: The model's name, as a label can show it.
        stages: A histogram for each hook that the model defines.
    """

    __slots__ = (
        "_done",
        "_failed",
        "_requests",
        "_seconds",
        "_store",
        "_streams",
        "name",
        "stages",
    )

    def __init__(self, store: Store, name: str) -> None:
        self.name = name.encode("utf-8", "replace").decode()
        self.stages: dict[str, Histogram] = {}
        self._store = store
        self._seconds = store.series(Histogram, "modelserve_request_seconds", self.name)
        self._requests: dict[tuple[str, str, int, str], Counter] = {}
        self._failed: Counter | None = None
        # The counters of requests with 200 and no error, as most have, by protocol and verb.
        self._done: dict[str, dict[str, Counter]] = {}
        self._streams: tuple[Histogram, Histogram, Counter] | None = None

    def record(
        self, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes = b""
    ) -> None:
        """Count a request that has ended, and write its line to the access log if that is on.

        Args:
            protocol, verb: What was asked for.
            ending: How it ended, and how long its hooks took.
            seconds: From arrival to end.
            request_id: For the log.
        """
        if not self._store.opened:
            self._store.open()
        if ending.status == 200 and ending.error is None:
            try:
                requests = self._done[protocol][verb]
            except KeyError:
                requests = self._counter(protocol, verb, ending)
                self._done.setdefault(protocol, {})[verb] = requests
        else:
            requests = self._counter(protocol, verb, ending)
            if ending.error is not None or ending.status >= 400:
                self._count_failed(seconds)
        requests.cells[0] += 1.0
        cells = self._seconds.cells
        cells[0 if seconds <= FIRST_BOUND else bisect_left(BOUNDS, seconds)] += 1.0
        cells[SUM] += seconds
        stages, seconds_by_stage = self.stages, ending.seconds
        for stage in seconds_by_stage:
            if stage in stages:
                taken = seconds_by_stage[stage]
                cells = stages[stage].cells
                cells[0 if taken <= FIRST_BOUND else bisect_left(BOUNDS, taken)] += 1.0
                cells[SUM] += taken
        if access_logger.isEnabledFor(logging.INFO):
            log_request(self.name, protocol, verb, ending, seconds, request_id)

    def stream(self, arrived: float, now: float) -> "Tick":
        """Record the first item of a stream; return a function that records the later ones.

        Args:
            arrived: When the request arrived, by `time.monotonic`.
            now: When the item came, by the same clock.
        """
        if not self._store.opened:
            self._store.open()
        if self._streams is None:
            self._streams = (
                self._store.series(Histogram, "modelserve_time_to_first_item_seconds", self.name),
                self._store.series(Histogram, "modelserve_inter_item_seconds", self.name),
                self._store.series(Counter, "modelserve_stream_items_total", self.name),
            )
        first_item, gaps, items = self._streams
        seconds, cells = now - arrived, first_item.cells
        cells[0 if seconds <= FIRST_BOUND else bisect_left(BOUNDS, seconds)] += 1.0
        cells[SUM] += seconds
        items.cells[0] += 1.0
        return Tick(gaps, items, now)

    def add_stages(self, stages: Iterable[str]) -> None:
        """Show a histogram for each of these hooks."""
        for stage in stages:
            family = f"request_{stage}_seconds"
            self.stages[stage] = self._store.series(Histogram, family, self.name)

    @property
    def in_flight(self) -> Gauge:
        """How many requests run; shown from the first use on."""
        return self._store.series(Gauge, "modelserve_in_flight", self.name)

    @property
    def waited(self) -> Counter:
        """The seconds that requests have waited; shown from the first use on."""
        return self._store.series(Counter, "modelserve_queue_seconds_total", self.name)

    @property
    def queued(self) -> Gauge:
        """How many requests wait; shown from the first use on."""
        return self._store.series(Gauge, "modelserve_queued", self.name)

    @property
    def active_slots(self) -> Gauge:
        """How many streams are stepped together; shown from the first use on."""
        return self._store.series(Gauge, "modelserve_active_slots", self.name)

    def batches(self) -> BatchSeries:
        """Return the series of this model's batches; shown from the first call on."""
        return BatchSeries(self._store, self.name)

    def _count_failed(self, seconds: float) -> None:
        if self._failed is None:
            family = "modelserve_failed_request_seconds_total"
            self._failed = self._store.series(Counter, family, self.name)
        self._failed.cells[0] += seconds

    def _counter(self, protocol: str, verb: str, ending: Ending) -> Counter:
        status, outcome = result_of(ending)
        key = (protocol, verb, status, outcome)
        counter = self._requests.get(key)
        if counter is None:
            labels = (self.name, protocol, verb, str(status), outcome)
            counter = self._store.series(Counter, "modelserve_requests_total", *labels)
            self._requests[key] = counter
        return counter


class Tick:
    """Records the items of one stream after its first.

    Call it with the time of an item; or, if several came without a pause, with the time of the last
    and their number. Not a closure, which would take more memory for each idle stream.
    """

    __slots__ = ("_gaps", "_items", "_last")

    def __init__(self, gaps: Histogram, items: Counter, last: float) -> None:
        self._gaps = gaps
        self._items = items
        self._last = last

    def __call__(self, now: float, count: int = 1) -> None:
        seconds = now - self._last
        gap = seconds / count
        cells = self._gaps.cells
        cells[0 if gap <= FIRST_BOUND else bisect_left(BOUNDS, gap)] += count
        cells[SUM] += seconds
        self._items.cells[0] += count
        self._last = now
