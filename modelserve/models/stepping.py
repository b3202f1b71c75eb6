"""Stepping: a model with `step(active)` serves many streams in one step (continuous batching)."""

import inspect
import math
from dataclasses import replace
from typing import Any

from modelserve.concurrency.flights import Flights
from modelserve.concurrency.steps import Stepper
from modelserve.concurrency.threads import Workers
from modelserve.limits import Deadlines, Limits
from modelserve.metrics.cells import Gauge
from modelserve.models.hooks import Plan, callee_of
from modelserve.models.model import defines
from modelserve.models.policies import Stepping
from modelserve.models.stepped import Stepped

__all__ = ["check_stepping", "is_stepped_on_loop", "stepped", "with_slots"]


def check_stepping(model: Any) -> None:
    """Raise TypeError, in one sentence, for a model that cannot be stepped."""
    if model.stepping is None:
        return
    label = f"model {model.name!r}"
    if not isinstance(model.stepping, Stepping):
        raise TypeError(f"stepping of {label} must be a Stepping")
    if model.batching is not None:
        raise TypeError(f"{label} has both batching and stepping, but it can have only one of them")
    if defines(model, "predict"):
        raise TypeError(f"{label} has stepping, and so takes no predict: its items come from step")
    if not callable(getattr(model, "step", None)):
        raise TypeError(f"{label} has stepping, and so must have a step(active)")
    for name in ("step", "join", "leave"):
        callee = callee_of(getattr(model, name, None))
        if inspect.isasyncgenfunction(callee) or inspect.isgeneratorfunction(callee):
            raise TypeError(f"{name} of {label} must not be a generator")
        if inspect.iscoroutinefunction(callee) and not is_stepped_on_loop(model):
            raise TypeError(f"{name} of {label} is async and its step is not")


def is_stepped_on_loop(model: Any) -> bool:
    """Return whether a model's steps are async, and so need no thread."""
    return inspect.iscoroutinefunction(callee_of(getattr(model, "step", None)))


def with_slots(limits: Limits, stepping: Stepping) -> Limits:
    """Return a model's limits that admit the next requests before a slot becomes free."""
    if limits.concurrency is not None and limits.concurrency < math.inf:
        return limits
    return replace(limits, concurrency=2 * stepping.max_active)


def stepped(
    plan: Plan,
    model: Any,
    label: str,
    *,
    workers: Workers,
    gauge: Gauge,
    flights: Flights,
    deadlines: Deadlines,
) -> Plan:
    """Return a plan whose main hook runs a request in a slot of a model's steps.

    From now on `model.predict` does the same.
    """
    stepper = Stepper(
        model.step,
        getattr(model, "join", None),
        getattr(model, "leave", None),
        is_stepped_on_loop(model),
        model.stepping.max_active,
        model.stepping.room,
        label,
        workers,
        flights,
        deadlines,
    )
    model._stepped = Stepped(stepper, gauge)
    return plan.with_main(plan.main.replaced_by(model._stepped.stream, streams=True))
