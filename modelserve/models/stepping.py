"""Stepping: a model with `step(active)` serves many streams in one step (continuous batching)."""

import inspect
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from modelserve.concurrency.flights import Flights
from modelserve.concurrency.loops import PerLoop
from modelserve.concurrency.steps import Stepper, Steps
from modelserve.concurrency.threads import Workers
from modelserve.limits import Deadlines, Limits
from modelserve.metrics.cells import Gauge
from modelserve.models.hooks import Plan, callee_of
from modelserve.models.model import defines

__all__ = ["Stepping", "check_stepping", "is_stepped_on_loop", "stepped", "with_slots"]


@dataclass(frozen=True, slots=True)
class Stepping:
    """How the requests of a model with `step(active)` are stepped together.

    Each request has a slot (see `Slot`). `step(active)` is called again and again with the slots
    that are active; for each it calls `put(item)` and, at the end, `end()`, or `fail(error)`.
    Requests join and leave between two steps: `join(slot)` is called before the first step of a
    slot, and may raise what that request is answered with; `leave(slot)` is called once for every
    slot that has joined, whatever ended it. Both may be left out.

    Sync methods run in the model's own thread, async ones on the event loop.

    Args:
        max_active: Slots in one step; more requests wait.
        room: Items that may wait for a slow client. Its slot is not in a step while so many do.

    Raises ValueError for a meaningless number.
    """

    max_active: int = 8
    room: int = 16

    def __post_init__(self) -> None:
        for name in ("max_active", "room"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of Stepping must be an integer above 0, not {value!r}")


def check_stepping(model: Any) -> None:
    """Raise TypeError, in one sentence, for a model that cannot be stepped."""
    if model.stepping is None:
        return
    label = f"model {model.name!r}"
    if not isinstance(model.stepping, Stepping):
        raise TypeError(f"stepping of {label} must be a Stepping")
    if model.batching is not None:
        raise TypeError(f"{label} has both batching and stepping, of which it can have one")
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
    """Return whether a model's steps are async, and need no thread."""
    return inspect.iscoroutinefunction(callee_of(getattr(model, "step", None)))


def with_slots(limits: Limits, stepping: Stepping) -> Limits:
    """Return a model's limits such that the next requests wait where a slot becomes free."""
    if limits.concurrency is not None and limits.concurrency < math.inf:
        return limits
    return replace(limits, concurrency=2 * stepping.max_active)


class Stepped:
    """What yields the items of a stepped model, in whatever event loop its requests come."""

    def __init__(self, stepper: Stepper, gauge: Gauge) -> None:
        self._steps = PerLoop(partial(Steps, stepper, gauge))

    def __reduce__(self) -> Any:
        return type(None), ()  # a model is given another one when it is registered

    def stream(self, payload: Any) -> AsyncIterator[Any]:
        """Yield the items of one request."""
        return self._steps.get().stream(payload)


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
    """Return a plan whose main hook is a slot in a model's steps; `model.predict` is one too."""
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
