"""Which models exist and in what state: registering, loading and stopping them.

Loading is done in the background by whoever owns a task for it (the lifespan, or, without one, a
task of the event loop's own); a failed load leaves the process up and that model not ready.
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from typing import Any, NamedTuple

import anyio

from modelserve.concurrency.admission import Gate
from modelserve.concurrency.threads import Workers
from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.exchange.streams import Streaming
from modelserve.limits import BINARY_BYTES, DEFAULTS, Limits
from modelserve.metrics.telemetry import Telemetry
from modelserve.models.inference import call_hook
from modelserve.models.model import (
    HOOKS,
    Hook,
    Model,
    Plan,
    as_model,
    check_lifecycle,
    defines,
    plan_of,
)
from modelserve.models.remote import disconnect
from modelserve.models.repository import ModelRepository

__all__ = ["Direct", "Entry", "Registry", "State"]

logger = logging.getLogger("modelserve")

_HEALTHY_SECONDS = 5.0


class State(StrEnum):
    """The states of Triton's repository index."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


class Direct(NamedTuple):
    """A hook that the quick walk may run, and what counts its requests."""

    hook: Hook
    done: Done
    function: Callable[[Any], Any] | None  # of the payload, if that is all that the hook takes


class Entry:
    """One registered model, with all that registration settled.

    `direct` has what the quick walk needs, for each verb that it may run. `is_awaited` says that the model is still to be made, by the repository. `is_retired` says that
    the name has another model by now, or none.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        limits: Limits,
        telemetry: Telemetry,
        workers: Workers,
        *,
        coalesce: bool,
    ) -> None:
        self.name = name
        self._workers = workers
        self.started = False
        self.loading = False
        self.unloading = False
        self.attempted: anyio.Event | None = None
        self.failure: str | None = None
        self.is_retired = False
        self._surroundings = (limits, telemetry, coalesce)
        self.take(Model(name) if model is None else model)
        self.is_awaited = model is None
        if self.is_awaited:
            self.model.ready = False

    def take(self, model: Any) -> None:
        """Settle all that can be known of the model."""
        limits, telemetry, coalesce = self._surroundings
        self.model = model
        self.is_awaited = False
        own = model.limits or Limits()
        both = own.within(limits)
        self.limits = both.with_defaults(DEFAULTS)
        self.deadlines = self.limits.deadlines()
        self.max_body_bytes = _or_none_at_all(self.limits.max_body_bytes)
        unset = both.max_body_bytes is None
        self.max_binary_bytes = BINARY_BYTES if unset else self.max_body_bytes
        self.series = telemetry.model(self.name, [h for h in HOOKS if defines(model, h)])
        self.gate = Gate(self.limits, self.series.in_flight, self.series.queued)
        self.streaming = Streaming(
            self.series.stream,
            _or_none_at_all(self.limits.max_collected_bytes),
            coalesce if model.coalesce is None else model.coalesce,
            model.heartbeat,
            model.heartbeat_before_first,
        )
        self.plans: dict[str, Plan] = {
            verb: plan_of(model, verb) for verb in ("predict", "explain")
        }
        check_lifecycle(model)
        self.checks_health = defines(model, "healthy")
        self.direct = {} if self.checks_health else self._direct()
        self.versions = [str(version) for version in getattr(model, "versions", None) or ()]
        self.needs_loading = model.engine or any(defines(model, h) for h in ("load", "start"))
        if not self.needs_loading:
            model.ready = True

    def _direct(self) -> dict[str, Direct]:
        hooks = [plan.main for plan in self.plans.values() if plan.is_direct]
        return {
            hook.name: Direct(
                hook,
                self.series.done("v1", hook.name),
                hook.function if hook.wants_payload_alone else None,
            )
            for hook in hooks
            if defines(self.model, hook.name)
        }

    @property
    def state(self) -> State:
        if self.unloading:
            return State.UNLOADING
        if self.model.ready:
            return State.READY
        return State.LOADING if self.loading else State.UNAVAILABLE

    async def is_ready(self) -> bool:
        """Ask the model's own `healthy` where it has one; one that fails or hangs is not."""
        if not self.checks_health:
            return bool(self.model.ready)
        healthy = False
        with anyio.move_on_after(_HEALTHY_SECONDS):
            try:
                healthy = bool(await self.call("healthy"))
            except Exception as exc:
                logger.warning("healthy() of model %s failed", self.name, exc_info=exc)
        return healthy

    async def call(self, hook: str) -> Any:
        """Call a hook that is not part of a request: on the event loop or in a thread."""
        label = f"{hook} of {self.name}"
        return await call_hook(label, self._workers, getattr(self.model, hook))

    def not_ready(self, *, debug: bool) -> ModelNotReady:
        """Return the answer for a request; why loading failed is told when debugging only."""
        return ModelNotReady(self.name, self.failure if debug else None)


class Registry:
    """The models of one application, in the order in which they were registered.

    `repository`, if there is one, is told of what is loaded and unloaded; with `asks_repository`
    it is where models that are loaded by name come from. `leaving` are the entries whose models
    are to be stopped after their last request.
    """

    def __init__(
        self, limits: Limits, workers: Workers, telemetry: Telemetry, *, coalesce: bool = False
    ) -> None:
        self.coalesce = coalesce
        self._limits = limits
        self._telemetry = telemetry
        self._workers = workers
        self.entries: dict[str, Entry] = {}
        self._busy: dict[str, anyio.Lock] = {}
        self.pending: list[Entry] = []
        self.leaving: set[Entry] = set()
        self.unloaded: dict[str, Entry] = {}
        self.repository: ModelRepository | None = None
        self.asks_repository = False

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def add(self, target: Any, name: str | None = None) -> Entry:
        """Register a model; one of the same name is replaced.

        Raises TypeError or ValueError, in one sentence, for what cannot be served.
        """
        model = as_model(target, name)
        label = getattr(model, "name", None)
        if name is not None and label != name:
            raise ValueError(f"The model's name is {label!r}, and cannot be {name!r} as well")
        return self._register(_checked_name(label, target), model)

    def adopt(self, name: str, model: Any) -> None:
        """Register a repository's model, under its own name or another one.

        What is put in under a name that is being loaded is left to whoever loads it.
        """
        known = self.entries.get(name)
        if name not in self._busy and (known is None or known.model is not model):
            same = next((entry for entry in self if entry.model is model), None)
            if same is not None:
                self._put(name, same)
            else:
                self._register(_checked_name(name, model), as_model(model, name))

    def forget(self, name: str) -> None:
        """Take out a model that its repository has no more; nothing where there is none."""
        if name in self.entries:
            self._leave(self.remove(name))

    def expect(self, name: str) -> None:
        """Register a model that is made, by the repository, when it is loaded."""
        if name not in self.entries:
            self._register(name, None)

    def reconfigure(self, limits: Limits, workers: Workers) -> None:
        """Register all models anew, under other limits, before any is loaded."""
        self._limits, self._workers = limits, workers
        anew = {e: self._entry(e.name, None if e.is_awaited else e.model) for e in self}
        self.entries = {name: anew[entry] for name, entry in self.entries.items()}
        self.pending = list(anew.values())

    def remove(self, name: str) -> Entry:
        """Forget a model. Raises ModelNotFound."""
        entry = self.get(name)
        del self.entries[name]
        return entry

    def _register(self, name: str, model: Any) -> Entry:
        entry = self._entry(name, model)
        self._put(name, entry)
        self.pending.append(entry)
        return entry

    def _entry(self, name: str, model: Any) -> Entry:
        return Entry(
            name, model, self._limits, self._telemetry, self._workers, coalesce=self.coalesce
        )

    def _put(self, name: str, entry: Entry) -> None:
        old = self.entries.get(name)
        self.entries[name] = entry
        self.unloaded.pop(name, None)
        entry.is_retired = False
        if old is not None:
            self._leave(old)

    def _leave(self, entry: Entry) -> None:
        """Have an entry stopped that no name leads to any more."""
        if entry not in self.entries.values():
            entry.is_retired = True
            self.leaving.add(entry)
            if entry in self.pending:
                self.pending.remove(entry)

    def get(self, name: str, version: str | None = None) -> Entry:
        """Return a model's entry. Raises ModelNotFound, for an unknown version too."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelNotFound(name)
        if version is not None and version not in entry.versions:
            raise ModelNotFound(f"{name} and version {version}")
        return entry

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    async def all_ready(self) -> bool:
        answers: list[bool] = []

        async def ask(entry: Entry) -> None:
            answers.append(await entry.is_ready())

        async with anyio.create_task_group() as group:
            for entry in self:
                group.start_soon(ask, entry)
        return all(answers)

    def index(self, found: Collection[str] = ()) -> list[dict[str, str]]:
        """Return Triton's repository index: what is registered, what was unloaded, what is found.

        Args:
            found: The names of models that the repository has, registered or not.
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
        if state is State.UNAVAILABLE and name in self._busy:
            state = State.LOADING
        reason = "" if entry is None or entry.failure is None else "loading failed"
        return {"name": name, "version": version, "state": str(state), "reason": reason}

    async def metadata(self, entry: Entry) -> dict[str, Any]:
        """Return V2's metadata of a model, from its own hooks."""
        return {
            "name": entry.name,
            "versions": entry.versions or None,
            "platform": getattr(entry.model, "platform", ""),
            "inputs": await entry.call("get_input_types"),
            "outputs": await entry.call("get_output_types"),
        }

    async def load_pending(self) -> None:
        """Start and load the models registered since the last time, all at the same time."""
        await self.load_all(self.take_pending())

    def take_pending(self) -> list[Entry]:
        """Return the models registered since the last time, as being loaded from now on."""
        entries, self.pending = self.pending, []
        for entry in entries:
            entry.loading = True
            entry.attempted = anyio.Event()
        return entries

    async def load_all(self, entries: list[Entry]) -> None:
        """Start and load models at the same time."""
        async with anyio.create_task_group() as group:
            for entry in entries:
                group.start_soon(self.load, entry)

    async def load(self, entry: Entry) -> None:
        """Start a model and load it if it is not ready; what it raises is kept as its failure."""
        entry.loading = True
        try:
            async with self._alone(entry.name):
                with self._noting(entry):
                    if entry.is_awaited:
                        entry.take(await self._provided(entry.name))
                    await self._start(entry)
                    if not entry.model.ready:
                        await self._load(entry)
        except BaseException:
            self.pending.append(entry)  # whoever needs it next tries again
            raise
        finally:
            entry.loading = False
            if entry.attempted is not None:
                entry.attempted.set()
        if entry.model.ready and not entry.is_retired:
            self._record(entry.name, entry)

    async def reload(self, name: str) -> None:
        """Load a model again, one that was unloaded, or one that the repository has by now.

        One load at a time for each name. A load that fails leaves what was serving before. Raises
        ModelNotFound, ModelNotReady.
        """
        async with self._alone(name):
            known = self.entries.get(name) or self.unloaded.get(name)
            if await self._is_provided(name):
                await self._renew(name, known)
            elif known is not None:
                await self._load_again(name, known)
            else:
                raise ModelNotFound(name)

    async def _renew(self, name: str, known: Entry | None) -> None:
        """Put a new model, of the repository, in the place of the one known."""
        entry = self._entry(name, None)
        with self._noting(entry):
            model = await self._provided(name)
            if known is not None and model is known.model:
                entry = known  # the repository has loaded it where it is
            else:
                entry.take(model)
            await self._start(entry)
            if not entry.model.ready:
                await self._load(entry)
        if entry.model.ready:
            self._put(name, entry)
            self._record(name, entry)
            return
        if entry is not known:
            await self.stop(entry)
        if known is not None:
            known.failure = entry.failure
            self._record(name, known)
        raise ModelNotReady(name, entry.failure)

    async def _load_again(self, name: str, entry: Entry) -> None:
        was_ready = entry.model.ready
        with self._noting(entry):
            await self._start(entry)
            await self._load(entry)
        if not entry.model.ready:
            entry.model.ready = was_ready
            raise ModelNotReady(name, entry.failure)
        self._put(name, entry)
        self._record(name, entry)

    async def unload(self, name: str, retire: Callable[[Entry], Awaitable[None]]) -> None:
        """Take a model out: it is unknown at once, and stopped after its last request.

        Args:
            retire: Waits for that request and stops the model.

        Raises ModelNotFound.
        """
        self.get(name)
        async with self._alone(name):
            entry = self.remove(name)
            self._leave(entry)
            if self.repository is not None:
                self.repository.models.pop(name, None)
            if not entry.is_retired:
                return  # it has another name
            self.unloaded[name] = entry
            entry.unloading = True
            await retire(entry)
            entry.unloading = False
            entry.model.ready = False

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """Be the only one that loads or unloads models of a name."""
        lock = self._busy.setdefault(name, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._busy.pop(name, None)

    @contextmanager
    def _noting(self, entry: Entry) -> Iterator[None]:
        """Keep what a load raises as the entry's failure."""
        entry.failure = None
        try:
            yield
        except (Exception, SystemExit, KeyboardInterrupt) as exc:
            logger.error("Loading model %s failed", entry.name, exc_info=exc)
            entry.model.ready = False
            entry.failure = f"Error type: {type(exc)} error msg: {exc}"

    async def _is_provided(self, name: str) -> bool:
        if self.repository is None or not self.asks_repository:
            return False
        return bool(await self._workers.call(f"look for {name}", self.repository.has, name))

    async def _provided(self, name: str) -> Any:
        assert self.repository is not None
        model = await call_hook(f"load of {name}", self._workers, self.repository.provide, name)
        return as_model(model, name)

    def _record(self, name: str, entry: Entry) -> None:
        if self.repository is not None:
            self.repository.models[name] = entry.model

    async def stop(self, entry: Entry) -> None:
        """Stop one model, if it was started, and close what it has open to its predictor."""
        hooks = [h for h in ("stop_engine", "stop") if defines(entry.model, h)]
        if not entry.model.engine and "stop_engine" in hooks:
            hooks.remove("stop_engine")
        for hook in hooks if entry.started else ():
            try:
                await entry.call(hook)
            except Exception as exc:
                logger.error("Stopping model %s failed (%s)", entry.name, hook, exc_info=exc)
        entry.started = False
        await disconnect(entry.model)

    def rest(self, entry: Entry) -> None:
        """Have a model that was stopped started and loaded again, should there be another life."""
        if not entry.started and entry.needs_loading and entry not in self.pending:
            entry.model.ready = False
            self.pending.append(entry)

    async def _start(self, entry: Entry) -> None:
        if entry.started:
            return
        if defines(entry.model, "start"):
            await entry.call("start")
        if entry.model.engine:
            await entry.call("start_engine")
        entry.started = True

    async def _load(self, entry: Entry) -> None:
        """Call `load`. One that returns nothing is believed, unless it has set `ready` to False."""
        model = entry.model
        if not model.ready:
            model.ready = None
        loaded = await entry.call("load")
        if loaded is None:
            model.ready = model.ready is None or bool(model.ready)
        else:
            model.ready = bool(loaded)


def _or_none_at_all(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _checked_name(name: Any, target: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"A model needs a name: {target!r} has {name!r}")
    if ":" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise ValueError(f"The name of a model may not contain ':' or a control: {name!r}")
    return name
