"""The `predict` of a stepped model that has been registered."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from modelserve.concurrency.loops import PerLoop
from modelserve.concurrency.steps import Stepper, Steps
from modelserve.metrics.cells import Gauge

__all__ = ["Stepped"]


class Stepped:
    """Yields the items of a stepped model, in each event loop that serves it."""

    def __init__(self, stepper: Stepper, gauge: Gauge) -> None:
        self._steps = PerLoop(partial(Steps, stepper, gauge))

    def __reduce__(self) -> Any:
        return type(None), ()  # a model gets a new one when it is registered

    def stream(self, payload: Any) -> AsyncIterator[Any]:
        """Yield the items of one request."""
        return self._steps.get().stream(payload)
