"""All metrics of one application: created for models, shared by workers, shown to a scrape."""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from modelserve.metrics import exposition
from modelserve.metrics.figures import Figures, figures_of
from modelserve.metrics.observed import ObservedSeries
from modelserve.metrics.series import ModelSeries
from modelserve.metrics.store import Store
from modelserve.observers import Observers

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Telemetry"]


class Telemetry:
    """The metrics of one application, which `prometheus_client` can collect as well.

    Args:
        directory: Where the workers of one server share their metrics. The default is the directory
            that MODELSERVE_METRICS_DIR names at the first request or scrape; without one the
            metrics cover this process alone.
        observers: Called with the record of each request.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        observers: Observers | None = None,
    ) -> None:
        self.observers = observers
        self._store = Store(directory)
        self._models: dict[str, ModelSeries] = {}
        self._reported: set[str] = set()

    def model(self, name: str, stages: Iterable[str] = ()) -> ModelSeries:
        """Return the series of a registered model, with a histogram for each hook it defines."""
        if name not in self._models:
            self._models[name] = self._new_series(name)
        self._models[name].add_stages(stages)
        return self._models[name]

    def _new_series(self, name: str) -> ModelSeries:
        if self.observers is None:
            return ModelSeries(self._store, name)
        return ObservedSeries(self._store, name, observers=self.observers)

    @property
    def followed(self) -> Observers | None:
        """The observers, if one of them follows the steps of requests."""
        observers = self.observers
        return observers if observers is not None and observers.follow_steps else None

    @property
    def unknown(self) -> ModelSeries:
        """The series of requests for models that are not registered."""
        return self.model("")

    @property
    def opened(self) -> bool:
        """Whether `open` has been called since the last `close`."""
        return self._store.opened

    def open(self) -> None:
        """Start sharing if a directory is configured. Idempotent; a failure is logged."""
        self._store.open()

    def close(self) -> None:
        """Stop sharing: the counters stay in the file, the series start again at zero."""
        self._store.close()

    def expose(self, accept: str | None = None) -> tuple[bytes, bytes]:
        """Return a content type and a body: OpenMetrics if `Accept` asks for it, else Prometheus.

        It includes the default registry of `prometheus_client`, with a model's own metrics. It is
        slow for many models: call it in a thread, after `open` on the event loop.
        """
        from modelserve.metrics.registered import Combined  # it imports prometheus_client

        self.open()
        return exposition.encode(Combined(self, self._reported), accept)

    def figures(self) -> dict[str, Figures]:
        """Return the figures of each model over all workers, by `ModelSeries.name`.

        Slow if there are many models, as `expose` is.
        """
        return figures_of(self._store.totals())

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics of all workers, as a collector of `prometheus_client` does."""
        return exposition.metrics_of(self._store.totals())
