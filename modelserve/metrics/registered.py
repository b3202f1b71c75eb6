"""The program's own metrics: the default registry of `prometheus_client`.

It holds a model's own metrics, and the package's `process_*` and `python_*`. All of them are of
this process alone, unless the program has set up the package's multiprocess mode. This module, like
the package, is imported by the first scrape.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

__all__ = ["Combined"]

logger = logging.getLogger("modelserve")

_MULTIPROCESS: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
# The further names that a metric of a type occupies.
_SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}


class Combined(Collector):
    """Collects the server's metrics, and those of the default registry whose names are free.

    Args:
        ours: Collects the server's metrics.
        reported: The problems that have been logged, kept for the next scrape.
    """

    def __init__(self, ours: Collector, reported: set[str]) -> None:
        self._ours = ours
        self._reported = reported

    def collect(self) -> Iterator[Metric]:
        """Yield the server's metrics first: they are shown even if another collector fails."""
        taken: dict[str, str] = {}
        for metric in self._ours.collect():
            taken |= dict.fromkeys(_names(metric), metric.documentation)
            yield metric
        try:
            yield from self._others(taken)
        except Exception as exc:
            self._report("", "The metrics of prometheus_client's registry are incomplete", exc)

    def _others(self, taken: Mapping[str, str]) -> Iterator[Metric]:
        is_shared = any(name in os.environ for name in _MULTIPROCESS)
        shared = list(_of_all_processes()) if is_shared else []
        shared_names = {name for metric in shared for name in _names(metric)}
        yield from self._free(shared, taken)
        # In that mode the registry also has each metric as counted by this process alone.
        yield from self._free(
            (metric for metric in REGISTRY.collect() if not _names(metric) & shared_names), taken
        )

    def _free(self, metrics: Iterable[Metric], taken: Mapping[str, str]) -> Iterator[Metric]:
        for metric in metrics:
            texts = {taken[name] for name in _names(metric) & taken.keys()}
            if texts == {metric.documentation}:
                continue  # the server's own metric, which the program has registered there too
            if texts:
                text = "The metric %s of prometheus_client's registry is not shown: "
                self._report(metric.name, text + "the server has one of that name", metric.name)
            else:
                yield metric

    def _report(self, key: str, text: str, argument: object) -> None:
        if key not in self._reported:
            self._reported.add(key)
            if isinstance(argument, Exception):
                logger.error(text, exc_info=argument)
            else:
                logger.warning(text, argument)


def _of_all_processes() -> Iterable[Metric]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry.collect()


def _names(metric: Metric) -> set[str]:
    suffixes = _SUFFIXES.get(metric.type, ())
    return {metric.name, *(metric.name + suffix for suffix in suffixes)}
