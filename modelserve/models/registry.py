"""Which models exist, and everything about each that is decided when it is registered."""

import inspect
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from time import time
from typing import Any

import anyio

from modelserve.concurrency.admission import Admission
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.gate import Gate
from modelserve.concurrency.loops import Event
from modelserve.concurrency.threads import OwnThread, OwnThreadForHooks, Workers
from modelserve.errors import ModelNotFound
from modelserve.exchange.streams import Streaming
from modelserve.limits import DEFAULTS, SMALL_BYTES, Limits
from modelserve.metrics.series import ModelSeries
from modelserve.metrics.telemetry import Telemetry
from modelserve.models.batching import batched, check_batching, with_room
from modelserve.models.connecting import connect, is_predictor_ready
from modelserve.models.followed import new_calls
from modelserve.models.health import Health
from modelserve.models.hooks import check_lifecycle, plans_of
from modelserve.models.inference import NewCall, call_hook
from modelserve.models.model import (
    HOOKS,
    Model,
    as_model,
    check_answers,
    configure,
    defines,
    misspelt_answer,
)
from modelserve.models.stepping import check_stepping, is_stepped_on_loop, stepped, with_slots
from modelserve.wire.cost import MOST_A_BYTE

__all__ = ["Entry", "Registry", "Shared", "State", "infinite_if_none"]


logger = logging.getLogger("modelserve")


class State(StrEnum):
    """The states of Triton's repository index."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


@dataclass(frozen=True, slots=True)
class Shared:
    """What the models of one application share; `limits` do not contain the defaults.

    `unattended` is the register of work for several requests.
    """

    limits: Limits
    workers: Workers
    telemetry: Telemetry
    admission: Admission
    coalesce: bool = False
    unattended: Flights = field(default_factory=Flights)


class Entry:
    """One registered model: everything decided at registration, and the state of its life.

    `created`: when it was registered, in seconds since 1970. `is_awaited`: the repository has not
    built the model yet; `model` is a placeholder. `is_joint`: it is called for several requests at
    once, by batching or stepping. `is_retired`: no name leads to it any more. `attempted` is set
    once the load under way has succeeded or failed, and `failure` says why it failed. `not_before`
    is when a load that had no thread may be tried again.
    """

    def __init__(self, name: str, model: Any, shared: Shared) -> None:
        self.name = name
        self.created = int(time())
        self._shared = shared
        self.started = False
        self.loading = False
        self.unloading = False
        self.attempted: Event | None = None
        self.failure: str | None = None
        self.not_before = 0.0
        self.is_retired = False
        self.settle(Model(name) if model is None else model)
        if model is None:
            self.is_awaited = True
            self.model.ready = False

    def settle(self, model: Any) -> None:
        """Work out, once, everything that requests need to know of the model.

        Raises TypeError for a hook that cannot be served; the entry is then as it was.
        """
        shared, plans = self._shared, plans_of(model)
        check_lifecycle(model)
        check_batching(model, plans["predict"])
        check_stepping(model)
        _check_ready_can_be_set(model)
        _check_answers(model)
        _check_settings(model)
        limits = (model.limits or Limits()).within(shared.limits)

        self.model = model
        self.is_awaited = False
        self.is_joint = model.batching is not None or model.stepping is not None
        self.plans = plans
        self.checks_health = defines(model, "healthy")
        self.health = Health(self.name, model.healthy)
        self.predictor_health = Health(self.name, partial(is_predictor_ready, model))
        self.needs_loading = bool(model.engine) or defines(model, "load") or defines(model, "start")
        self.versions = [str(version) for version in model.versions or ()]

        self.workers = shared.workers
        if _has_own_thread(model):
            self.workers = shared.workers.own_thread(self.name)
        self.limits = limits.with_defaults(DEFAULTS)
        self.deadlines = self.limits.deadlines()
        self.max_body_bytes = infinite_if_none(self.limits.max_body_bytes)
        self.max_binary_bytes = limits.binary_bytes
        self.max_json_values = infinite_if_none(self.limits.max_json_values)
        # A body up to this size cannot exceed any limit, and is decoded on the event loop.
        self.small_bytes = min(self.max_body_bytes, self.max_json_values / MOST_A_BYTE, SMALL_BYTES)

        self.series = shared.telemetry.model(self.name, [h for h in HOOKS if defines(model, h)])
        if model.batching is not None:
            self.limits = with_room(self.limits, model.batching, self.name)
            self.plans["predict"] = batched(
                plans["predict"],
                model.batching,
                self.name,
                workers=self.workers,
                deadlines=self.deadlines,
                series=self.series.batches(),
                flights=shared.unattended,
            )
        if model.stepping is not None:
            self.limits = with_slots(self.limits, model.stepping)
            self.plans["predict"] = stepped(
                plans["predict"],
                model,
                self.name,
                workers=self.workers,
                gauge=self.series.active_slots,
                flights=shared.unattended,
                deadlines=self.deadlines,
            )
        series = self.series
        self.gate = Gate(self.limits, series.in_flight, series.queued, series.waited)
        self.streaming = _streaming(model, self.limits, self.series, coalesce=shared.coalesce)

        make_call = new_calls(plans, shared.telemetry.followed)
        self.new_call: NewCall = partial(make_call, self.name, self._workers_for_hooks())

        connect(model)
        if not self.needs_loading:
            model.ready = True

    def _workers_for_hooks(self) -> Workers:
        """Return the threads for the hooks of requests that have a slot of the model."""
        own = self.workers
        if self.is_joint or not isinstance(own, OwnThread):
            return own
        waiting = self._shared.admission.nesting.request_waiting_for_thread
        return OwnThreadForHooks(own, partial(waiting, own.slots, self.gate))

    @property
    def state(self) -> State:
        if self.unloading:
            return State.UNLOADING
        if self.model.ready:
            return State.READY
        return State.LOADING if self.loading else State.UNAVAILABLE

    async def is_ready(self) -> bool:
        """Return what probes are told: whether the model takes requests, and its predictor too."""
        if not await self.is_usable():
            return False
        return not self.model.predictor_health_check or await self.predictor_health.ask()

    async def is_usable(self) -> bool:
        """Ask the model's `healthy` if it has one; False if that fails or hangs."""
        if not self.checks_health:
            return bool(self.model.ready)
        return await self.health.ask()

    async def call(self, hook: str, *, then: Callable[[], object] | None = None) -> Any:
        """Call a hook outside requests: on the event loop, or in a thread, which then calls `then`.

        Cancellation reaches only a hook on the event loop; it waits for one in a thread.
        """
        label, function = f"{hook} of {self.name}", getattr(self.model, hook)
        if then is not None and not inspect.iscoroutinefunction(function):
            function = _followed(function, then)
        return await call_hook(label, self.workers, function)

    def release_thread(self) -> None:
        """Let the model's own thread end, if it has one; the next hook starts another."""
        if self.workers is not self._shared.workers:
            self.workers.close()


def _followed(function: Callable[[], Any], then: Callable[[], object]) -> Callable[[], Any]:
    def call() -> Any:
        result = function()
        then()
        return result

    return call


def _has_own_thread(model: Any) -> bool:
    if model.own_thread is not None:
        return bool(model.own_thread)
    if model.stepping is not None and not is_stepped_on_loop(model):
        return True
    return model.limits is not None and model.limits.concurrency == 1


def _check_answers(model: Any) -> None:
    """Raise TypeError for a model that answers nothing, unless it may still get a predictor.

    A model that prepares payloads may get one from its `load`, or from `--predictor-host`.
    """
    prepares = defines(model, "preprocess") or defines(model, "postprocess")
    if not model.engine and not (prepares and misspelt_answer(model) is None):
        check_answers(model)


def _check_ready_can_be_set(model: Any) -> None:
    try:
        model.ready = model.ready
    except AttributeError:  # a frozen dataclass, or a property
        sentence = f"The attribute 'ready' of model {model.name!r} cannot be set"
        raise TypeError(sentence) from None


def _check_settings(model: Any) -> None:
    if not isinstance(model.limits, Limits | None):
        raise TypeError(f"The limits of model {model.name!r} must be Limits: {model.limits!r}")
    versions = model.versions
    if versions is not None and (isinstance(versions, str) or not isinstance(versions, Iterable)):
        raise TypeError(f"The versions of model {model.name!r} must be a list: {versions!r}")
    beat = model.heartbeat
    if beat is not None and not (isinstance(beat, int | float) and beat > 0):
        raise TypeError(f"The heartbeat of model {model.name!r} must be seconds above 0: {beat!r}")


def _streaming(model: Any, limits: Limits, series: ModelSeries, *, coalesce: bool) -> Streaming:
    return Streaming(
        series.stream,
        infinite_if_none(limits.max_collected_bytes),
        coalesce if model.coalesce is None else model.coalesce,
        model.heartbeat,
        model.heartbeat_before_first,
    )


def infinite_if_none(limit: float | None) -> float:
    """Return a limit as a number."""
    return math.inf if limit is None else limit


class Registry:
    """The models of one application by name, in the order in which they were registered.

    Attributes:
        entries: The models by name; a model may have several names.
        pending: Entries whose loading has not been tried yet.
        leaving: Entries without a name, whose models are to be stopped after their last request.
        unloaded: Entries that were removed by name and can be loaded again.
        locks: For each name that is being loaded or unloaded, whose turn that is, in order.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.entries: dict[str, Entry] = {}
        self.pending: list[Entry] = []
        self.leaving: set[Entry] = set()
        self.unloaded: dict[str, Entry] = {}
        self.locks: dict[str, deque[Event]] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    @property
    def models(self) -> list[tuple[str, Any]]:
        """Each name with its model, except models that the repository has not built yet."""
        return [(name, e.model) for name, e in self.entries.items() if not e.is_awaited]

    def get(self, name: str, version: str | None = None) -> Entry:
        """Return a model's entry. Raises ModelNotFound, for an unknown version too."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelNotFound(name)
        if version is not None and version not in entry.versions:
            raise ModelNotFound(f"{name} and version {version}")
        return entry

    # -- registering

    def add(
        self, target: Any, name: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Entry:
        """Register a model, with these attributes set; one of the same name is replaced.

        Raises TypeError or ValueError, in one sentence, for what cannot be served.
        """
        model = as_model(target, name)
        model_name = getattr(model, "name", None)
        if name is not None and model_name != name:
            raise ValueError(f"The model's name is {model_name!r}, and cannot be {name!r} as well")
        checked_name = _checked_name(model_name, target)
        configure(model, settings or {})
        return self._register(checked_name, model)

    def adopt(self, name: str, model: Any) -> None:
        """Register a repository's model, under its own name or another one.

        While the name is being loaded this does nothing: the load will register the model.
        """
        known = self.entries.get(name)
        if name not in self.locks and (known is None or known.model is not model):
            same = next((entry for entry in self if entry.model is model), None)
            if same is not None:
                self.put(name, same)
            else:
                self._register(_checked_name(name, model), as_model(model, name))

    def forget(self, name: str) -> None:
        """Remove a model that its repository no longer has, if it is registered."""
        if name in self.entries:
            self.remove(name)

    def expect(self, name: str) -> None:
        """Register a name whose model the repository builds when it is loaded."""
        if name not in self.entries:
            self._register(name, None)

    def remove(self, name: str) -> Entry:
        """Remove a name; its model leaves unless it has another name. Raises ModelNotFound."""
        entry = self.get(name)
        del self.entries[name]
        self._retire_if_unnamed(entry)
        return entry

    def put(self, name: str, entry: Entry) -> None:
        """Give an entry a name; the entry that had it leaves unless it has another name."""
        old = self.entries.get(name)
        self.entries[name] = entry
        self.unloaded.pop(name, None)
        entry.is_retired = False
        self.leaving.discard(entry)
        if old is not None:
            self._retire_if_unnamed(old)

    def rename_only(self, name: str) -> None:
        """Give the only model another name; it keeps its own as a second one.

        With several models this does nothing. Call it before `reconfigure`. Raises ValueError for
        an invalid name.
        """
        if len(self.entries) == 1 and name not in self.entries:
            ((own, entry),) = self.entries.items()
            entry.name = entry.model.name = _checked_name(name, entry.model)
            self.entries = {name: entry, own: entry}

    def reconfigure(self, shared: Shared) -> None:
        """Register all models again, before any is loaded."""
        self.shared = shared
        renewed = {e: Entry(e.name, None if e.is_awaited else e.model, shared) for e in self}
        self.entries = {name: renewed[entry] for name, entry in self.entries.items()}
        self.pending = list(renewed.values())

    def _register(self, name: str, model: Any) -> Entry:
        entry = Entry(name, model, self.shared)
        if entry.plans.has_openai:  # chosen by the names of its methods alone, perhaps unintended
            hooks = ", ".join(entry.plans.openai)
            logger.info("Model %s has endpoints of OpenAI's: %s", name, hooks)
        self.put(name, entry)
        self.pending.append(entry)
        return entry

    def _retire_if_unnamed(self, entry: Entry) -> None:
        if entry not in self.entries.values():
            entry.is_retired = True
            self.leaving.add(entry)
            if entry in self.pending:
                self.pending.remove(entry)

    # -- documents

    async def all_ready(self) -> bool:
        """Ask every model at the same time whether it is ready."""
        answers: list[bool] = []

        async def ask(entry: Entry) -> None:
            answers.append(await entry.is_ready())

        async with anyio.create_task_group() as group:
            for entry in self:
                group.start_soon(ask, entry)
        return all(answers)

    async def metadata(self, entry: Entry) -> dict[str, Any]:
        """Return V2's metadata of a model, from the model's hooks."""
        return {
            "name": entry.name,
            "versions": entry.versions or None,
            "platform": entry.model.platform,
            "inputs": await entry.call("get_input_types"),
            "outputs": await entry.call("get_output_types"),
        }

    def index(self, found: Collection[str] = ()) -> list[dict[str, str]]:
        """Return Triton's repository index: registered, unloaded, then other models in `found`.

        Args:
            found: The names of all models that the repository has, registered or not.
        """
        rows = [
            self._row(name, entry, version)
            for name, entry in self.entries.items()
            for version in entry.versions or [""]
        ]
        rows += [self._row(name, entry, "") for name, entry in self.unloaded.items()]
        others = [name for name in found if name not in {*self.entries, *self.unloaded}]
        return rows + [self._row(name, None, "") for name in others]

    def _row(self, name: str, entry: Entry | None, version: str) -> dict[str, str]:
        state = State.UNAVAILABLE if entry is None else entry.state
        if state is State.UNAVAILABLE and name in self.locks:
            state = State.LOADING
        reason = "" if entry is None or entry.failure is None else "loading failed"
        return {"name": name, "version": version, "state": str(state), "reason": reason}


def _checked_name(name: Any, target: Any) -> str:
    if not isinstance(name, str) or not name:
        hint = " (pass an object, not the class)" if isinstance(target, type) else ""
        raise ValueError(f"A model needs a name: {target!r} has {name!r}{hint}")
    if ":" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise ValueError(f"A model's name may not contain ':' or a control character: {name!r}")
    return name
