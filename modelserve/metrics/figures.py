"""The figures of each model, added up from the series of all workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from modelserve.metrics.cells import SUM, Key

__all__ = ["Figures", "figures_of"]

_STAGES: Final = {
    f"request_{stage}_seconds": stage
    for stage in ("preprocess", "predict", "explain", "postprocess")
}


@dataclass(slots=True)
class Figures:
    """The figures of one model's requests.

    Attributes:
        done, failed: Ended requests, by whether their outcome was `done`.
        seconds: The sum of the times from arrival to end, of all of them.
        failed_seconds: The same of those that failed.
        queued_seconds: The sum of the times that requests have waited for a slot.
        batches: Batches that were done, if the model's requests are batched.
        stages: How often each hook ran, and for how many seconds, by its name.
    """

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    failed_seconds: float = 0.0
    queued_seconds: float = 0.0
    batches: int = 0
    stages: dict[str, tuple[int, float]] = field(default_factory=dict)


def figures_of(totals: Mapping[Key, list[float]]) -> dict[str, Figures]:
    """Return the figures by the model's name, as labels show it."""
    found: dict[str, Figures] = {}
    for (family, model, *labels), values in totals.items():
        figures = found.setdefault(model, Figures())
        if family == "modelserve_requests_total":
            if labels[-1] == "done":
                figures.done += int(values[0])
            else:
                figures.failed += int(values[0])
        elif family == "modelserve_request_seconds":
            figures.seconds = values[SUM]
        elif family == "modelserve_failed_request_seconds_total":
            figures.failed_seconds = values[0]
        elif family == "modelserve_queue_seconds_total":
            figures.queued_seconds = values[0]
        elif family == "modelserve_batches_total" and labels[-1] == "done":
            figures.batches += int(values[0])
        elif family in _STAGES:
            figures.stages[_STAGES[family]] = (int(sum(values[:SUM])), values[SUM])
    return found
