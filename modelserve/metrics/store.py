"""All series of one process, alone or together with those of other workers.

A series is made once and then kept. Its cells are in lists until `Store.open`, which moves them
into a file if there is a directory. All workers of a server map each other's files, so that any of
them answers a scrape for all: the counters of all past and present workers, and the gauges of those
that are alive.
"""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from modelserve.metrics.cells import (
    FAMILIES,
    Cells,
    Counter,
    Gauge,
    Histogram,
    Key,
    Series,
    local_cells,
)
from modelserve.metrics.shared import DIRECTORY_VARIABLE, WorkerFile, claim_file, read_file

__all__ = ["Store"]

logger = logging.getLogger("modelserve")

S = TypeVar("S", Counter, Gauge, Histogram)


class Store:
    """The series of one process.

    Args:
        directory: Where the workers of a server share their series. The default is the directory
            that MODELSERVE_METRICS_DIR names when `open` is called; without one nothing is shared.

    Attributes:
        opened: Whether `open` has been called since the last `close`.

    A forked child starts at zero, with a file of its own.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.opened = False
        self._directory = directory
        self._series: dict[Key, Series] = {}
        self._file: WorkerFile | None = None
        self._closes_after_fork = False
        self._is_full = False

    def series(self, kind: type[S], family: str, *labels: str) -> S:
        """Return the series of a metric with these label values, a new one if necessary."""
        key = (family, *labels)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = kind(self._new_cells(key, kind.size))
        assert isinstance(found, kind)
        return found

    def open(self) -> None:
        """Start sharing if a directory is configured. Idempotent; a failure is logged."""
        if self.opened:
            return
        self.opened = True
        directory = self._directory or os.environ.get(DIRECTORY_VARIABLE)
        if directory:
            try:
                self._share(Path(directory))
            except Exception as exc:  # not writable, a damaged file, no file locks
                logger.warning("The metrics cover this process alone: %s", exc)

    def close(self) -> None:
        """Stop sharing: the counters stay in the file, the series start again at zero."""
        file, self._file = self._file, None
        self.opened = False
        if file is not None:
            for series in self._series.values():
                series.cells = local_cells(series.size)
            file.close()

    def totals(self) -> dict[Key, list[float]]:
        """Return the sums over all workers. Callable from any thread once `open` has run."""
        totals: dict[Key, list[float]] = {}
        for key, values in self._readings():
            known = totals.get(key)
            if known is not None:
                values = [a + b for a, b in zip(known, values, strict=True)]
            totals[key] = values
        return totals

    def _readings(self) -> Iterator[tuple[Key, list[float]]]:
        """Yield the series of this process, then those of others, without gauges of dead ones."""
        for key, series in list(self._series.items()):
            yield key, list(series.cells)
        file = self._file
        for path in file.others() if file is not None else ():
            with suppress(Exception):  # removed meanwhile, or damaged
                alive, records = read_file(path)
                for key, values in records:
                    if key[0] in FAMILIES and (alive or FAMILIES[key[0]].kind is not Gauge):
                        yield key, values

    def _new_cells(self, key: Key, size: int) -> Cells:
        if self._file is not None:
            try:
                return self._file.append(key, size)
            except OSError as exc:
                if not self._is_full:
                    logger.warning("Other workers will not show all metrics of this one: %s", exc)
                self._is_full = True
        return local_cells(size)

    def _share(self, directory: Path) -> None:
        """Claim a file, continue the counters of a dead worker in it, and move all series there."""
        directory.mkdir(parents=True, exist_ok=True)
        file = claim_file(directory)
        inherited = dict(file.records())
        self._file = file
        for key in inherited:
            if key[0] in FAMILIES:  # else of another version
                self._series.setdefault(key, FAMILIES[key[0]].kind())
        for key, series in self._series.items():
            cells = inherited.get(key)
            series.move(self._new_cells(key, series.size) if cells is None else cells)
        if not self._closes_after_fork:
            self._closes_after_fork = True
            os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))


def _close_in_child(store: "weakref.ref[Store]") -> None:
    """Leave the file to the parent: the child must not keep its lock, or write to it."""
    inherited = store()
    if inherited is not None:
        inherited.close()
