"""The metrics in the formats that Prometheus reads, written by `prometheus_client`.

That package is imported by the first scrape: it is slow to import, and many processes are never
scraped.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from modelserve.metrics.cells import FAMILIES, SUM, Counter, Family, Histogram, Key

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

__all__ = ["encode", "metrics_of"]


def encode(collector: "Collector", accept: str | None) -> tuple[bytes, bytes]:
    """Return a content type and a body: OpenMetrics if `Accept` asks for it, else Prometheus."""
    from prometheus_client.exposition import choose_encoder

    try:
        encoder, content_type = choose_encoder(accept or "")
    except (TypeError, ValueError):  # a version that is not made of numbers
        encoder, content_type = choose_encoder("")
    return content_type.encode("latin-1"), encoder(collector)


def metrics_of(totals: Mapping[Key, list[float]]) -> Iterator["Metric"]:
    """Yield each metric with its samples, including metrics without any."""
    rows: dict[str, list[tuple[Key, list[float]]]] = {name: [] for name in FAMILIES}
    for (name, *labels), values in sorted(totals.items()):
        rows[name].append((tuple(labels), values))
    for name, family in FAMILIES.items():
        yield _metric(name, family, rows[name])


def _metric(name: str, family: Family, rows: list[tuple[Key, list[float]]]) -> "Metric":
    from prometheus_client import core

    if family.kind is Histogram:
        histogram = core.HistogramMetricFamily(name, family.text, labels=family.labels)
        for labels, values in rows:
            histogram.add_metric(labels, _buckets(values, family.bounds), values[SUM])
        return histogram
    make = core.CounterMetricFamily if family.kind is Counter else core.GaugeMetricFamily
    metric = make(name, family.text, labels=family.labels)
    for labels, values in rows:
        metric.add_metric(labels, values[0])
    return metric


def _buckets(values: list[float], bounds: Iterable[float]) -> list[tuple[str, float]]:
    """Return the cumulative count up to each bound."""
    names = (*map(str, bounds), "+Inf")
    return list(zip(names, accumulate(values[:SUM]), strict=True))
