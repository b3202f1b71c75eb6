"""Which models exist and in what state: registering, loading and stopping them.

Loading is done in the background by whoever owns a task for it (the lifespan, or, without one, a
task of the event loop's own); a failed load leaves the process up and that model not ready.
"""

import logging
import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import anyio

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.inference import call_hook
from modelserve.limits import Gate, Limits
from modelserve.model import HOOKS, Plan, as_model, defines, plan_of
from modelserve.responses import Streaming
from modelserve.telemetry import Telemetry
from modelserve.threads import Workers

__all__ = ["Entry", "Registry", "State"]

logger = logging.getLogger("modelserve")

_HEALTHY_SECONDS = 5.0


class State(StrEnum):
    """The states of Triton's repository index."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


class Entry:
    """One registered model, with all that registration settled."""

    def __init__(self, model: Any, limits: Limits, telemetry: Telemetry, *, coalesce: bool) -> None:
        self.model = model
        self.name: str = model.name
        own = model.limits or Limits()
        self.limits = own.within(limits)
        self.deadlines = self.limits.deadlines()
        self.max_body_bytes = _or_none_at_all(self.limits.max_body_bytes)
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
        self.checks_health = defines(model, "healthy")
        self.versions = [str(version) for version in getattr(model, "versions", None) or ()]
        self.lock = anyio.Lock()
        self.started = False
        self.loading = False
        self.attempted: anyio.Event | None = None
        self.failure: str | None = None
        if not any(defines(model, hook) for hook in ("load", "start")) and not model.engine:
            model.ready = True  # nothing to load

    @property
    def state(self) -> State:
        if self.loading:
            return State.LOADING
        return State.READY if self.model.ready else State.UNAVAILABLE

    async def is_ready(self) -> bool:
        """Ask the model's own `healthy` where it has one; one that fails or hangs is not."""
        if not self.checks_health:
            return bool(self.model.ready)
        healthy = False
        with anyio.move_on_after(_HEALTHY_SECONDS):
            try:
                healthy = bool(await self.model.healthy())
            except Exception as exc:
                logger.warning("healthy() of model %s failed", self.name, exc_info=exc)
        return healthy

    def not_ready(self, *, debug: bool) -> ModelNotReady:
        """Return the answer for a request; why loading failed is told when debugging only."""
        return ModelNotReady(self.name, self.failure if debug else None)


class Registry:
    """The models of one application, in the order in which they were registered."""

    def __init__(
        self, limits: Limits, workers: Workers, telemetry: Telemetry, *, coalesce: bool = False
    ) -> None:
        self.coalesce = coalesce
        self._limits = limits
        self._telemetry = telemetry
        self._workers = workers
        self._entries: dict[str, Entry] = {}
        self.pending: list[Entry] = []
        self.unloaded: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, target: Any, name: str | None = None) -> Entry:
        """Register a model; one of the same name is replaced.

        Raises TypeError or ValueError, in one sentence, for what cannot be served.
        """
        model = as_model(target, name)
        label = getattr(model, "name", None)
        if name is not None and label != name:
            raise ValueError(f"The model's name is {label!r}, and cannot be {name!r} as well")
        if not isinstance(label, str) or not label:
            raise ValueError(f"A model needs a name: {target!r} has {label!r}")
        if ":" in label or any(ord(c) < 32 or ord(c) == 127 for c in label):
            raise ValueError(f"The name of a model may not contain ':' or a control: {label!r}")
        entry = Entry(model, self._limits, self._telemetry, coalesce=self.coalesce)
        self._entries[label] = entry
        self.pending.append(entry)
        return entry

    def remove(self, name: str) -> Entry:
        """Forget a model. Raises ModelNotFound."""
        entry = self.get(name)
        del self._entries[name]
        return entry

    def get(self, name: str, version: str | None = None) -> Entry:
        """Return a model's entry. Raises ModelNotFound, for an unknown version too."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelNotFound(name)
        if version is not None and version not in entry.versions:
            raise ModelNotFound(f"{name} and version {version}")
        return entry

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    async def all_ready(self) -> bool:
        return all([await entry.is_ready() for entry in self])

    def index(self) -> list[dict[str, str]]:
        """Return Triton's repository index: what is registered, then what was unloaded."""
        rows = [_row(entry, version) for entry in self for version in entry.versions or [""]]
        return rows + [_row(entry, "") for entry in self.unloaded.values()]

    async def metadata(self, entry: Entry) -> dict[str, Any]:
        """Return V2's metadata of a model, from its own hooks."""
        return {
            "name": entry.name,
            "versions": entry.versions or None,
            "platform": getattr(entry.model, "platform", ""),
            "inputs": await self._call(entry, "get_input_types"),
            "outputs": await self._call(entry, "get_output_types"),
        }

    async def load_pending(self) -> None:
        """Start and load the models registered since the last time, all at the same time."""
        entries, self.pending = self.pending, []
        for entry in entries:
            entry.loading = True
            entry.attempted = anyio.Event()
        async with anyio.create_task_group() as group:
            for entry in entries:
                group.start_soon(self.load, entry)

    async def load(self, entry: Entry) -> None:
        """Start a model and load it if it is not ready; what it raises is kept as its failure."""
        entry.loading = True
        entry.failure = None
        try:
            await self._start(entry)
            if not entry.model.ready:
                await self._load(entry)
        except Exception as exc:
            logger.error("Loading model %s failed", entry.name, exc_info=exc)
            entry.model.ready = False
            entry.failure = f"Error type: {type(exc)} error msg: {exc}"
        finally:
            entry.loading = False
            if entry.attempted is not None:
                entry.attempted.set()

    async def reload(self, name: str) -> None:
        """Load a model again, or one that was unloaded; one load at a time for each model.

        A load that fails leaves what was serving before. Raises ModelNotFound, ModelNotReady.
        """
        entry = self._entries.get(name) or self.unloaded.get(name) or self.get(name)
        async with entry.lock:
            was_ready = entry.model.ready
            try:
                await self._start(entry)
                await self._load(entry)
            except Exception as exc:
                logger.error("Loading model %s failed", entry.name, exc_info=exc)
                entry.model.ready = False
                entry.failure = f"Error type: {type(exc)} error msg: {exc}"
            if not entry.model.ready:
                entry.model.ready = was_ready
                raise ModelNotReady(name, entry.failure)
            entry.failure = None
            self._entries[name] = entry
            self.unloaded.pop(name, None)

    async def unload(self, name: str, *, within: float) -> None:
        """Take a model out: it is unknown at once, and stopped after its last request.

        Waits for its running requests for at most this many seconds. Raises ModelNotFound.
        """
        entry = self.remove(name)
        with anyio.move_on_after(within):
            await entry.gate.emptied()
        await self.stop(entry)
        entry.model.ready = False
        self.unloaded[name] = entry

    async def stop_all(self) -> None:
        """Stop the models that were started; log what that raises."""
        for entry in list(self):
            await self.stop(entry)

    async def stop(self, entry: Entry) -> None:
        """Stop one model, if it was started."""
        if not entry.started:
            return
        entry.started = False
        try:
            if entry.model.engine:
                await self._call(entry, "stop_engine")
            if defines(entry.model, "stop"):
                await self._call(entry, "stop")
        except Exception as exc:
            logger.error("Stopping model %s failed", entry.name, exc_info=exc)

    async def _start(self, entry: Entry) -> None:
        if entry.started:
            return
        entry.started = True
        if defines(entry.model, "start"):
            await self._call(entry, "start")
        if entry.model.engine:
            await self._call(entry, "start_engine")

    async def _load(self, entry: Entry) -> None:
        loaded = await self._call(entry, "load")
        entry.model.ready = loaded is None or bool(loaded)

    async def _call(self, entry: Entry, hook: str) -> Any:
        label = f"{hook} of {entry.name}"
        return await call_hook(label, self._workers, getattr(entry.model, hook))


def _or_none_at_all(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _row(entry: Entry, version: str) -> dict[str, str]:
    reason = entry.failure and "loading failed"
    return {
        "name": entry.name,
        "version": version,
        "state": str(entry.state),
        "reason": reason or "",
    }
