"""Count and time model requests, for Prometheus and for one line in the log.

Every number is a cell, and adding to one costs 0.05 us at most. A series (a metric with its labels)
is resolved once and then holds its cells. They are in a list, the process' own, until
`Telemetry.open`, which, given a directory, moves them into a file there that all workers of a
server map and read, as doubles behind a `memoryview`: any of them then answers a scrape for all.
`prometheus_client` is imported by the first scrape and does the writing out; it can also collect a
`Telemetry` in a host's registry.

A worker's file is locked (flock) for as long as the worker lives, so a gauge whose file nobody
holds is not counted. Counters of dead workers are, and the next worker that starts takes a dead
one's file over and counts on, so there are never more files than workers at one time.

A file is a row of chunks, each mapped on its own, so that the file can grow while cells of it are
in use. In words of eight bytes, all written as doubles but the key:

    chunk    size of the chunk, words in use (written last, so that a reader sees whole records)
    record   words of the key, number of cells, the key (JSON, padded with blanks), the cells

One thread a process records, the event loop's: `+=` on a cell from two threads may lose one of two
increments. Reading (`expose`, `collect`) is safe in any thread once `open` has been called.
"""

import errno
import json
import logging
import mmap
import os
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from modelserve.errors import BodyTimeout, ClientGone, Stopped

if TYPE_CHECKING:
    from prometheus_client import Metric

    Shared: TypeAlias = memoryview[float]
else:
    Shared = memoryview

Cells: TypeAlias = list[float] | Shared

__all__ = [
    "DIRECTORY_VARIABLE",
    "Gauge",
    "ModelSeries",
    "Telemetry",
    "outcome_of",
    "shared_directory",
]

logger = logging.getLogger("modelserve")
access_logger = logging.getLogger("modelserve.access")

DIRECTORY_VARIABLE: Final = "MODELSERVE_METRICS_DIR"

Key: TypeAlias = tuple[str, ...]  # the metric's name, then the values of its labels

# The default buckets of Prometheus' clients; the last, +Inf, has the place after them.
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_SHORTEST: Final = BOUNDS[0]
_SUM: Final = len(BOUNDS) + 1

_LINE: Final = "%(protocol)s %(verb)s %(model)r: %(status)d %(outcome)s in %(seconds).4f s"


# --- how a request ended ------------------------------------------------------------------------


def outcome_of(status: int, error: BaseException | None, *, admitted: bool) -> str:
    """Name how a model request ended.

    Args:
        status: The status that was sent; 0 if none was.
        error: What ended the request; None where the answer is complete.
        admitted: Whether its hooks were let run. A 503 before that is `refused`, whoever said it:
            the queue, the drain, a model that is not ready. A hook's own 503 is an `error`.
    """
    if error is None:
        return "done" if status < 400 else "error"
    if status == 503 and not admitted:
        return "refused"
    if isinstance(error, Stopped):
        return error.outcome
    return "timeout" if isinstance(error, BodyTimeout) else "error"


# --- series -------------------------------------------------------------------------------------


def _private(size: int) -> Cells:
    return [0.0] * size  # adding to a list takes half the time of adding to a `memoryview`


class Series:
    """The cells of one metric under one set of labels; pickled without their values."""

    __slots__ = ("cells",)
    size: ClassVar[int] = 1

    def __init__(self, cells: Cells | None = None) -> None:
        self.cells = _private(self.size) if cells is None else cells

    def __getstate__(self) -> int:
        return self.size

    def __setstate__(self, size: int) -> None:
        self.cells = _private(size)

    def move(self, cells: Cells) -> None:
        """Go on in other cells, on top of what they hold."""
        for place, value in enumerate(self.cells):
            cells[place] += value
        self.cells = cells


class Counter(Series):
    """A number that only grows."""

    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        self.cells[0] += amount


class Gauge(Series):
    """A number that goes up and down; it counts only while its process lives."""

    __slots__ = ()

    def add(self, amount: float) -> None:
        self.cells[0] += amount

    def set(self, value: float) -> None:
        self.cells[0] = value

    def move(self, cells: Cells) -> None:
        cells[0] = self.cells[0]
        self.cells = cells


class Histogram(Series):
    """How many observations fell into each bucket, and the sum of all, in seconds."""

    __slots__ = ()
    size = _SUM + 1

    def observe(self, seconds: float) -> None:
        cells = self.cells
        cells[0 if seconds <= _SHORTEST else bisect_left(BOUNDS, seconds)] += 1.0
        cells[_SUM] += seconds


class Tick:
    """What is told of each item after a stream's first: the time, and of how many.

    No closure, since each idle stream has one: 0.2 KiB less.
    """

    __slots__ = ("_gaps", "_items", "_last")

    def __init__(self, gaps: Histogram, items: Counter, last: float) -> None:
        self._gaps = gaps
        self._items = items
        self._last = last

    def __call__(self, now: float, count: int = 1) -> None:
        gap = (now - self._last) / count
        cells = self._gaps.cells
        cells[0 if gap <= _SHORTEST else bisect_left(BOUNDS, gap)] += count
        cells[_SUM] += now - self._last
        self._items.cells[0] += count
        self._last = now


class Family(NamedTuple):
    """One metric: what every series of it shares."""

    kind: type[Series]
    text: str
    labels: tuple[str, ...] = ("model_name",)


# The first four have the names and texts of KServe's.
FAMILIES: Final[Mapping[str, Family]] = {
    "request_preprocess_seconds": Family(Histogram, "pre-process request latency"),
    "request_predict_seconds": Family(Histogram, "predict request latency"),
    "request_explain_seconds": Family(Histogram, "explain request latency"),
    "request_postprocess_seconds": Family(Histogram, "post-process request latency"),
    "modelserve_requests_total": Family(
        Counter,
        "model requests that have ended",
        ("model_name", "protocol", "verb", "status", "outcome"),
    ),
    "modelserve_request_seconds": Family(Histogram, "from a request's arrival to its end"),
    "modelserve_time_to_first_item_seconds": Family(
        Histogram, "from a request's arrival to the first item of its stream"
    ),
    "modelserve_inter_item_seconds": Family(Histogram, "between two items of a stream"),
    "modelserve_stream_items_total": Family(Counter, "items of streams"),
    "modelserve_in_flight": Family(Gauge, "requests that run, those in the queue not counted"),
    "modelserve_queued": Family(Gauge, "requests that wait for a slot"),
}

S = TypeVar("S", Counter, Gauge, Histogram)


class Ending(Protocol):
    """How a request ended.

    Attributes:
        status, error, admitted: As for `outcome_of`; with no status sent, it is 499.
        seconds: What each hook took, a stream's to its end.
        stream: For the log alone: `items`, how many were streamed, and `first_item`, the seconds
            from arrival to the first; None where there was none.
    """

    status: int
    error: BaseException | None
    admitted: bool
    seconds: Mapping[str, float]

    @property
    def stream(self) -> "Streamed | None": ...


class Streamed(Protocol):
    """What is recorded of a stream."""

    items: int
    first_item: float | None


class ModelSeries:
    """The series of one model; hold it, or parts of it, for as long as the model is served.

    Attributes:
        stages: A histogram for each hook that the model defines.
        items, first_item, gap: Of streams; `stream` feeds all three.
        in_flight, queued: Shown from the first time that they are asked for.
    """

    __slots__ = ("_endings", "_owner", "_seconds", "_streams", "name", "stages")

    def __init__(self, owner: "Telemetry", name: str) -> None:
        self.name = name.encode("utf-8", "replace").decode()
        self.stages: dict[str, Histogram] = {}
        self._owner = owner
        self._seconds = self._get(Histogram, "modelserve_request_seconds")
        self._endings: dict[tuple[str, str, int, str], Counter] = {}
        self._streams: tuple[Histogram, Counter, Histogram] | None = None

    def record(
        self, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes = b""
    ) -> None:
        """Count a request that has ended, and write its line to `modelserve.access` if it is on.

        Args:
            ending: How it ended, and what its parts took.
            seconds: From arrival to end.
        """
        if not self._owner.opened:
            self._owner.open()
        status, outcome = ending.status, "done"
        if status != 200 or ending.error is not None:
            outcome = outcome_of(status, ending.error, admitted=ending.admitted)
            status = status or ClientGone.status
        self._requests(protocol, verb, status, outcome).cells[0] += 1.0
        self._seconds.observe(seconds)
        taken, stages = ending.seconds, self.stages
        for stage in taken:
            if stage in stages:
                stages[stage].observe(taken[stage])
        if access_logger.isEnabledFor(logging.INFO):
            labels = (self.name, protocol, verb, status, outcome)
            stream = ending.stream
            counts = (0, None) if stream is None else (stream.items, stream.first_item)
            _log(labels, seconds, taken, request_id, *counts)

    def done(self, protocol: str, verb: str) -> "Done":
        """Return what counts the requests that the hook `verb` alone has answered."""
        return Done(self, protocol, verb)

    def stream(self, arrived: float, now: float) -> Tick:
        """Record the first item of a stream; return what to call with the time of each later one.

        Times are `time.monotonic`'s. Such a call costs 0.2 us; one may speak for several items
        that have come one right after the other.
        """
        self._owner.open()
        if self._streams is None:
            self._streams = (self.first_item, self.items, self.gap)
        first_item, items, gap = self._streams
        first_item.observe(now - arrived)
        items.cells[0] += 1.0
        return Tick(gap, items, now)

    def add_stages(self, stages: Iterable[str]) -> None:
        """Show a histogram for each of these hooks."""
        for stage in stages:
            self.stages[stage] = self._get(Histogram, f"request_{stage}_seconds")

    @property
    def first_item(self) -> Histogram:
        return self._get(Histogram, "modelserve_time_to_first_item_seconds")

    @property
    def gap(self) -> Histogram:
        return self._get(Histogram, "modelserve_inter_item_seconds")

    @property
    def items(self) -> Counter:
        return self._get(Counter, "modelserve_stream_items_total")

    @property
    def in_flight(self) -> Gauge:
        return self._get(Gauge, "modelserve_in_flight")

    @property
    def queued(self) -> Gauge:
        return self._get(Gauge, "modelserve_queued")

    def _get(self, kind: type[S], family: str) -> S:
        return self._owner.series(kind, family, self.name)

    def _requests(self, protocol: str, verb: str, status: int, outcome: str) -> Counter:
        key = (protocol, verb, status, outcome)
        counter = self._endings.get(key)
        if counter is None:
            labels = (self.name, protocol, verb, str(status), outcome)
            counter = self._owner.series(Counter, "modelserve_requests_total", *labels)
            self._endings[key] = counter
        return counter


class Done:
    """The same as `ModelSeries.record`, for requests that one hook alone has answered with 200.

    What that adds to is looked up once: 1 us less.
    """

    __slots__ = ("_owner", "_protocol", "_requests", "_seconds", "_series", "_stage", "_verb")

    def __init__(self, series: ModelSeries, protocol: str, verb: str) -> None:
        self._owner = series._owner
        self._series = series
        self._protocol = protocol
        self._verb = verb
        self._requests: Counter | None = None  # there is no such series before the first
        self._seconds = series._seconds
        self._stage = series.stages[verb]

    def add(self, seconds: float, taken: float, request_id: bytes) -> None:
        """Count a request that took so long, its hook `taken` of that, and log it if that is on."""
        if not self._owner.opened:
            self._owner.open()
        requests = self._requests
        if requests is None:
            requests = self._series._requests(self._protocol, self._verb, 200, "done")
            self._requests = requests
        requests.cells[0] += 1.0
        # Twice `observe`, without its calls: 0.3 us.
        cells = self._seconds.cells
        cells[0 if seconds <= _SHORTEST else bisect_left(BOUNDS, seconds)] += 1.0
        cells[_SUM] += seconds
        cells = self._stage.cells
        cells[0 if taken <= _SHORTEST else bisect_left(BOUNDS, taken)] += 1.0
        cells[_SUM] += taken
        if access_logger.isEnabledFor(logging.INFO):
            labels = (self._series.name, self._protocol, self._verb, 200, "done")
            _log(labels, seconds, {self._verb: taken}, request_id)


def _log(
    labels: tuple[str, str, str, int, str],
    seconds: float,
    stages: Mapping[str, float],
    request_id: bytes,
    items: int = 0,
    first_item: float | None = None,
) -> None:
    """Write the line of a request; its labels are those of `modelserve_requests_total`."""
    model, protocol, verb, status, outcome = labels
    fields = {
        "request_id": request_id.decode("latin-1"),
        "model": model,
        "protocol": protocol,
        "verb": verb,
        "status": status,
        "outcome": outcome,
        "seconds": round(seconds, 6),
        "stages": {stage: round(taken, 6) for stage, taken in stages.items()},
        "items": items,
        "first_item_seconds": first_item and round(first_item, 6),
    }
    access_logger.info(_LINE, fields, extra=fields)


# --- the whole ----------------------------------------------------------------------------------


class Telemetry:
    """The metrics of one application.

    Args:
        directory: Where the workers of one server share theirs. None is what the environment's
            MODELSERVE_METRICS_DIR says when the first request or scrape comes; without one, the
            metrics are this process' own.

    Pickled without values. A forked child begins at zero, with a file of its own.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = directory
        self.opened = False
        self._series: dict[Key, Series] = {}
        self._models: dict[str, ModelSeries] = {}
        self._file: _WorkerFile | None = None
        self._heeds_forks = False
        self._out_of_room = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": False, "_file": None, "_heeds_forks": False}

    def model(self, name: str, stages: Iterable[str] = ()) -> ModelSeries:
        """Return the series of a registered model, with a histogram for each hook it defines."""
        if name not in self._models:
            self._models[name] = ModelSeries(self, name)
        self._models[name].add_stages(stages)
        return self._models[name]

    @property
    def unknown(self) -> ModelSeries:
        """The series of requests for models that are not registered."""
        return self.model("")

    def series(self, kind: type[S], family: str, *labels: str) -> S:
        """Return the one series of a metric with these labels' values."""
        key = (family, *labels)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = kind(self._cells(key, kind.size))
        assert isinstance(found, kind)
        return found

    def open(self) -> None:
        """Begin to share, if there is a directory; a failure is logged. Nothing a second time."""
        if self.opened:
            return
        self.opened = True
        directory = self.directory or os.environ.get(DIRECTORY_VARIABLE)
        if directory:
            try:
                self._share(Path(directory))
            except Exception as exc:  # no such place, a damaged file, no flock (Windows)
                logger.warning("The metrics cover this process alone: %r", exc)

    def close(self) -> None:
        """Stop sharing: what was counted stays in the file, the gauges go."""
        file, self._file = self._file, None
        self.opened = False
        if file is not None:
            for series in self._series.values():
                series.cells = _private(series.size)
            file.close()

    def expose(self, accept: str | None = None) -> tuple[bytes, bytes]:
        """Return a content type and a body: OpenMetrics if `Accept` asks for it, else Prometheus.

        Takes a millisecond a model, and 40 the first time: call it in a thread, after `open` on
        the event loop.
        """
        from prometheus_client.exposition import choose_encoder

        self.open()
        try:
            encoder, content_type = choose_encoder(accept or "")
        except (TypeError, ValueError):  # a version that is not made of numbers
            encoder, content_type = choose_encoder("")
        return content_type.encode("latin-1"), encoder(self)

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics of all workers, as a collector of `prometheus_client` does."""
        rows: dict[str, list[tuple[Key, list[float]]]] = {name: [] for name in FAMILIES}
        for (name, *labels), values in sorted(self._totals().items()):
            rows[name].append((tuple(labels), values))
        for name, family in FAMILIES.items():
            yield _metric(name, family, rows[name])

    def _totals(self) -> dict[Key, list[float]]:
        totals: dict[Key, list[float]] = {}
        for key, values in self._readings():
            known = totals.get(key)
            if known is not None:
                values = [a + b for a, b in zip(known, values, strict=True)]
            totals[key] = values
        return totals

    def _readings(self) -> Iterator[tuple[Key, list[float]]]:
        """Yield this process' series, then those of the others; of dead ones not the gauges."""
        for key, series in list(self._series.items()):
            yield key, list(series.cells)
        file = self._file
        for path in file.others() if file is not None else ():
            with suppress(Exception):  # removed meanwhile, or damaged
                alive, records = _read(path)
                for key, values in records:
                    if key[0] in FAMILIES and (alive or FAMILIES[key[0]].kind is not Gauge):
                        yield key, values

    def _cells(self, key: Key, size: int) -> Cells:
        if self._file is not None:
            try:
                return self._file.append(key, size)
            except OSError as exc:
                if not self._out_of_room:
                    logger.warning("Other workers will not show all metrics of this one: %s", exc)
                self._out_of_room = True
        return _private(size)

    def _share(self, directory: Path) -> None:
        """Claim a file, take over what its dead owner has counted, and move all series there."""
        directory.mkdir(parents=True, exist_ok=True)
        file = _claim(directory)
        inherited = dict(file.records())
        self._file = file
        for key in inherited:
            if key[0] in FAMILIES:  # else of another version of ours
                self._series.setdefault(key, FAMILIES[key[0]].kind())
        for key, series in self._series.items():
            cells = inherited.get(key)
            series.move(self._cells(key, series.size) if cells is None else cells)
        if not self._heeds_forks:
            self._heeds_forks = True
            os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))


def _close_in_child(telemetry: "weakref.ref[Telemetry]") -> None:
    """Leave the file to the parent: the child does not keep its lock, or write to it."""
    inherited = telemetry()
    if inherited is not None:
        inherited.close()


def _metric(name: str, family: Family, rows: list[tuple[Key, list[float]]]) -> "Metric":
    from prometheus_client import core

    if family.kind is Histogram:
        histogram = core.HistogramMetricFamily(name, family.text, labels=family.labels)
        for labels, values in rows:
            histogram.add_metric(labels, _cumulative(values), values[_SUM])
        return histogram
    make = core.CounterMetricFamily if family.kind is Counter else core.GaugeMetricFamily
    metric = make(name, family.text, labels=family.labels)
    for labels, values in rows:
        metric.add_metric(labels, values[0])
    return metric


def _cumulative(values: list[float]) -> list[tuple[str, float]]:
    names = (*map(str, BOUNDS), "+Inf")
    return list(zip(names, accumulate(values[:_SUM]), strict=True))


# --- the files of several workers ---------------------------------------------------------------

_SUFFIX: Final = ".metrics1"  # the number changes with the layout of files or of cells
_CHUNK_BYTES: Final = 1 << 16  # a multiple of every page size
_CHUNK_HEADER: Final = 2
_RECORD_HEADER: Final = 2


@contextmanager
def shared_directory() -> Iterator[str]:
    """Make a directory for the metrics of a server's workers, in memory if it can be; remove it.

    Its path goes into MODELSERVE_METRICS_DIR before the workers start. Raises OSError where
    nothing is writable.
    """
    memory = "/dev/shm"
    base = memory if os.access(memory, os.W_OK | os.X_OK) else None
    with TemporaryDirectory(prefix="modelserve-", dir=base, ignore_cleanup_errors=True) as path:
        yield path


class _WorkerFile:
    """The file of this worker, locked by it: label sets and their cells."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._unlock = weakref.finalize(self, os.close, lock)
        self._chunks = list(_chunks(_map(path, os.fstat(lock).st_size)))

    def close(self) -> None:
        """Let go of the lock. Cells that are still held stay valid."""
        self._unlock()

    def others(self) -> list[Path]:
        """Return the files of the other workers."""
        return [path for path in self.path.parent.glob(f"*{_SUFFIX}") if path != self.path]

    def records(self) -> Iterator[tuple[Key, Shared]]:
        for chunk in self._chunks:
            yield from _records(chunk)

    def append(self, key: Key, size: int) -> Cells:
        """Return new cells, published under their key. Raises OSError where there is no room."""
        text = json.dumps(key).encode()
        words = memoryview(text + b" " * (-len(text) % 8)).cast("d")
        chunk = self._chunk_for(_RECORD_HEADER + len(words) + size)
        begin = int(chunk[1])
        cells = begin + _RECORD_HEADER + len(words)
        chunk[begin], chunk[begin + 1] = len(words), size
        chunk[begin + _RECORD_HEADER : cells] = words
        chunk[cells : cells + size] = _zeros(size)  # a writer may have been killed just here
        chunk[1] = cells + size
        return chunk[cells : cells + size]

    def _chunk_for(self, length: int) -> Shared:
        """Return the last chunk if it has room for so many words, else a new one."""
        last = self._chunks[-1] if self._chunks else None
        if last is None or int(last[1]) + length > len(last):
            self._chunks.append(self._grow(8 * (_CHUNK_HEADER + length)))
        return self._chunks[-1]

    def _grow(self, least: int) -> Shared:
        """Return a new chunk. Its bytes are written, so that a full disk is an OSError, no SIGBUS."""
        end = 8 * sum(map(len, self._chunks))
        size = -(-least // _CHUNK_BYTES) * _CHUNK_BYTES
        if os.pwrite(self._lock, bytes(size), end) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        chunk = _map(self.path, size, end)
        chunk[1] = _CHUNK_HEADER
        chunk[0] = len(chunk)
        return chunk


def _claim(directory: Path) -> _WorkerFile:
    """Lock the first file that no process holds; a new one where all are held."""
    import fcntl

    numbers = count()
    while True:
        path = directory / f"{next(numbers)}{_SUFFIX}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            if not isinstance(exc, BlockingIOError):
                raise
        else:
            return _WorkerFile(path, lock)


def _is_held(file: int) -> bool:
    """Say whether a process has a file locked."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _read(path: Path) -> tuple[bool, list[tuple[Key, list[float]]]]:
    """Return whether the worker that writes to a file lives, and what it has written."""
    with path.open("rb") as file:
        alive = _is_held(file.fileno())
    words = _map(path, path.stat().st_size)
    records = (record for chunk in _chunks(words) for record in _records(chunk))
    return alive, [(key, list(cells)) for key, cells in records]


def _zeros(size: int) -> Shared:
    return memoryview(bytearray(8 * size)).cast("d")


def _map(path: Path, size: int, offset: int = 0) -> Shared:
    """Map a part of a file, through a description of its own: the lock's must not be kept open."""
    if not size:
        return _zeros(0)
    with path.open("r+b") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), size, offset=offset))
    return mapped[: size - size % 8].cast("d")


def _chunks(words: Shared) -> Iterator[Shared]:
    begin = 0
    while begin < len(words) and (size := int(words[begin])) > 0:
        yield words[begin : begin + size]
        begin += size


def _records(chunk: Shared) -> Iterator[tuple[Key, Shared]]:
    begin, end = _CHUNK_HEADER, int(chunk[1])
    while begin < end:
        text = begin + _RECORD_HEADER
        cells = text + int(chunk[begin])
        begin, size = cells + int(chunk[begin + 1]), int(chunk[begin + 1])
        yield tuple(json.loads(chunk[text:cells].tobytes())), chunk[cells : cells + size]
