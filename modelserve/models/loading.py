"""Start, load, replace, unload and stop the models of a registry.

Models are loaded in tasks of the event loop itself, so that neither a client that leaves nor a
request that is cancelled stops a load. A name has one load or unload at a time. After a load that
fails, the process goes on, and the model that was serving before stays in its place.
"""

import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, Final

import anyio

from modelserve.concurrency.background import Background
from modelserve.concurrency.cancelling import ends_task
from modelserve.concurrency.loops import Event
from modelserve.concurrency.threads import Workers
from modelserve.errors import ModelNotFound, ModelNotReady, NoThread
from modelserve.models.inference import call_hook
from modelserve.models.lifecycle import (
    Retirement,
    keep_failure,
    load,
    start,
    start_and_load,
    stop,
)
from modelserve.models.load_reports import log_load
from modelserve.models.model import Model, ModelSettings, as_model, configure, defines
from modelserve.models.registry import Entry, Registry
from modelserve.models.repository import ModelRepository

__all__ = ["Loading", "Source"]

logger = logging.getLogger("modelserve")

_MOMENT: Final = 0.05
_RETRY_SECONDS: Final = 1.0  # where the system had no thread for a load


class Source:
    """The repository that one application loads models from, if it has one."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._repository: ModelRepository | None = None
        self._builds = False
        self._predictor: ModelSettings | None = None

    def forward_to(self, predictor: ModelSettings) -> None:
        """Set these attributes, `predictor_host` among them, on the models without a predictor."""
        self._predictor = predictor
        for _, model in self._registry.models:
            self._set_predictor(model)

    def _set_predictor(self, model: Any) -> None:
        if self._predictor is not None and isinstance(model, Model) and not model.predictor_host:
            configure(model, self._predictor)

    def follow(self, repository: ModelRepository, *, builds: bool) -> None:
        """Serve the models of a repository, later ones too; with `builds`, it makes others."""
        self._repository = repository
        self._builds = builds
        repository.serve_on(self._registry)

    async def names(self) -> list[str]:
        """Return the names of the models in the directory, which is read in a thread."""
        names: list[str] = []
        if self._repository is not None and self._builds:
            try:
                names = await self._workers.call("index", self._repository.names)
            except OSError as exc:
                logger.error("The directory of models cannot be read: %s", exc)
        return names

    async def has(self, name: str) -> bool:
        """Return whether the repository can build a model of this name."""
        if self._repository is None or not self._builds:
            return False
        return bool(await self._workers.call(f"look for {name}", self._repository.has, name))

    async def build(self, name: str) -> Any:
        """Build a model of the repository. Raises what the model's code raises."""
        assert self._repository is not None
        provide = self._repository.provide
        model = as_model(await call_hook(f"load of {name}", self._workers, provide, name), name)
        self._set_predictor(model)
        return model

    def withdraw(self, name: str) -> None:
        """Let the repository return to the code of the model that is still served."""
        if self._repository is not None:
            self._repository.withdraw(name)

    def note_loaded(self, name: str, model: Any) -> None:
        """Keep the repository's table of models up to date."""
        if self._repository is not None:
            self._repository.models[name] = model

    def note_unloaded(self, name: str) -> None:
        """Keep the repository's table of models up to date."""
        if self._repository is not None:
            self._repository.models.pop(name, None)

    @property
    def _workers(self) -> Workers:
        return self._registry.shared.workers


class _Load:
    """One load of a name, and everything that waits for it.

    Until it has ended it is in the table of loads under way, where others find and join it.
    """

    def __init__(self, under_way: "dict[str, _Load]", name: str) -> None:
        under_way[name] = self
        self._under_way = under_way
        self._name = name
        self._ended = Event()
        self.is_asked_for = False  # by a client
        self._error: BaseException | None = ModelNotReady(name)  # should it be cancelled

    async def run(self, function: Callable[[], Awaitable[None]]) -> None:
        """Call the function that loads; `wait` raises what it raises."""
        try:
            await function()
            self._error = None
        except BaseException as exc:
            if ends_task(exc):
                raise
            self._error = exc
        finally:
            if self._under_way.get(self._name) is self:
                del self._under_way[self._name]
            self._ended.set()

    async def ended_if_asked_for(self) -> None:
        """Wait for the end of this load, successful or not, if a client has asked for it."""
        if self.is_asked_for:
            await self._ended.wait()

    async def wait(self) -> None:
        """Wait for the end. Raises what the load has raised."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error


class Loading:
    """Loads, unloads and stops the models of one registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.source = Source(registry)
        self._background = Background()
        self._retirement = Retirement(registry, self._background)
        self._loads: dict[str, _Load] = {}  # the loads under way that another request may join

    def load_pending(self) -> None:
        """Load in the background what was registered since the last call; stop replaced models."""
        entries = _take_due(self.registry)
        if entries:
            # A model that is ready is not loaded, so there is no load for a request to join.
            loads = [
                partial(
                    _Load({} if entry.model.ready else self._loads, entry.name).run,
                    partial(_load_registered, entry, self.registry, self.source),
                )
                for entry in entries
            ]
            self._background.start_soon(partial(_run_all, loads))
        self._retirement.begin()

    async def finished(self) -> list[Entry]:
        """Load what is pending, wait until no load is under way, and return the models not ready.

        Cancellation leaves the loads running.
        """
        self.load_pending()
        waited: set[Entry] = set()
        while loading := {entry for entry in self.registry if entry.loading} - waited:
            for entry in loading:
                assert entry.attempted is not None
                await entry.attempted.wait()
            waited |= loading
        return [entry for entry in dict.fromkeys(self.registry) if not entry.model.ready]

    async def ready(self) -> None:
        """Start the loads that are pending, wait until all have ended, and ask each `healthy`.

        Cancellation leaves them running. Raises ModelNotReady, which names the models that failed,
        or else those that are not healthy.
        """
        failed = await self.finished()
        if failed:
            why = "; ".join(filter(None, (entry.failure for entry in failed)))
            raise ModelNotReady(", ".join(entry.name for entry in failed), why)
        unwell = [entry.name for entry in [*self.registry] if not await entry.is_usable()]
        if unwell:
            raise ModelNotReady(", ".join(unwell), "Its healthy() returned False.")

    async def load(self, name: str) -> None:
        """Load a model: a known one again, an unloaded one, or a new one of the repository.

        This joins a load of that name that is under way, unless an `unload` came after it.
        Cancellation leaves the load running. Raises ModelNotFound, ModelNotReady.
        """
        load = self._loads.get(name)
        if load is None:
            load = _Load(self._loads, name)
            self._background.start_soon(partial(load.run, partial(self._load_by_name, name)))
        load.is_asked_for = True
        await load.wait()

    async def unload(self, name: str) -> None:
        """Remove a model: it is unknown at once, and stopped after its last request.

        Cancellation leaves the unloading running. Raises ModelNotFound.
        """
        self._loads.pop(name, None)
        await self._background.run(partial(self._unload, name))

    async def asked_for(self) -> None:
        """Wait until the loads that clients have asked for have ended."""
        for under_way in [*self._loads.values()]:
            await under_way.ended_if_asked_for()

    async def close(self, *, within: float) -> None:
        """Cancel what is still being loaded, for at most so many seconds, and stop all models.

        Loads in threads, which nothing can cancel, are not waited for. A model that still has
        requests, or is still being loaded, is not stopped. The others will be loaded again if the
        application is started again.
        """
        registry = self.registry
        is_waited_for = self._retirement.is_stopping or any(
            entry.loading and _loads_on_loop(entry) for entry in registry
        )
        await self._background.cancel(within=within if is_waited_for else _MOMENT)
        self._retirement.give_up()
        for entry in [*registry, *registry.unloaded.values(), *registry.leaving]:
            if not (entry.gate.running or entry.loading):
                await stop(entry)
                registry.leaving.discard(entry)
                _load_at_next_start(entry, registry)

    # -- loading and unloading by name

    async def _load_by_name(self, name: str) -> None:
        async with _locked(self.registry.locks, name):
            known = self.registry.entries.get(name) or self.registry.unloaded.get(name)
            if await self.source.has(name):
                await self._load_new(name, known)
            elif known is not None:
                await self._load_again(name, known)
            else:
                raise ModelNotFound(name)

    async def _load_new(self, name: str, known: Entry | None) -> None:
        """Load a new model of the repository; it replaces the known one if it is ready."""
        entry = Entry(name, None, self.registry.shared)
        try:
            with log_load(lambda: entry):
                model = await self.source.build(name)
                if known is not None and model is known.model:
                    entry = known  # the repository has loaded the same object again
                else:
                    entry.settle(model)
                await start_and_load(entry)
        except BaseException as exc:
            if entry is not known and ends_task(exc):
                entry.is_retired = True
                self.registry.leaving.add(entry)  # whoever cancels stops it
            keep_failure(entry, exc)
        if entry.model.ready:
            entry.failure = None
            self.registry.put(name, entry)
            self._retirement.begin()
            self.source.note_loaded(name, entry.model)
            return
        if entry is not known:
            await stop(entry)
        if known is not None:
            known.failure = entry.failure
            self.source.withdraw(name)
            self.source.note_loaded(name, known.model)
        raise ModelNotReady(name, entry.failure)

    async def _load_again(self, name: str, entry: Entry) -> None:
        """Call `load` once more; a model that was ready stays ready if that fails.

        One that was replaced meanwhile is stopped instead.
        """
        was_ready, was_retired = entry.model.ready, entry.is_retired
        entry.failure = None
        try:
            with log_load(lambda: entry):
                await start(entry)
                await load(entry)
        except BaseException as exc:
            keep_failure(entry, exc)
        if entry.is_retired and not (was_retired and entry.model.ready):
            await stop(entry)  # it was replaced, or its new load failed
        if not entry.model.ready:
            entry.model.ready = was_ready
            raise ModelNotReady(name, entry.failure)
        if entry.is_retired and not was_retired:
            return
        self.registry.put(name, entry)
        self._retirement.begin()
        self.source.note_loaded(name, entry.model)

    async def _unload(self, name: str) -> None:
        self.registry.get(name)
        async with _locked(self.registry.locks, name):
            entry = self.registry.remove(name)
            self.source.note_unloaded(name)
            if not entry.is_retired:
                return  # it has another name
            self.registry.unloaded[name] = entry
            entry.unloading = True
            try:
                await self._retirement.run(entry)
            finally:
                entry.unloading = False
                entry.model.ready = False


@asynccontextmanager
async def _locked(turns: dict[str, deque[Event]], name: str) -> AsyncIterator[None]:
    """Let one after another work on what has a name, in order."""
    own, queue = Event(), turns.setdefault(name, deque())
    queue.append(own)
    queue[0].set()
    try:
        await own.wait()
        yield
    finally:
        queue.remove(own)
        if queue:
            queue[0].set()
        else:
            turns.pop(name, None)


async def _run_all(functions: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(function)


def _loads_on_loop(entry: Entry) -> bool:
    """Return whether a load can be cancelled: whether one of its hooks runs on the event loop."""
    hooks = [hook for hook in ("start", "start_engine", "load") if defines(entry.model, hook)]
    return any(inspect.iscoroutinefunction(getattr(entry.model, hook)) for hook in hooks)


def _take_due(registry: Registry) -> list[Entry]:
    """Take the pending entries that may be loaded now, and mark them as loading."""
    now, pending = monotonic(), registry.pending
    registry.pending = [entry for entry in pending if entry.not_before > now]
    entries = [entry for entry in pending if entry.not_before <= now]
    for entry in entries:
        entry.loading = True
        entry.attempted = Event()
    return entries


async def _load_registered(entry: Entry, registry: Registry, source: Source) -> None:
    """Start a model, and load it if it is not ready; a failure is kept in the entry.

    Raises ModelNotReady.
    """
    assert entry.attempted is not None
    try:
        async with _locked(registry.locks, entry.name):
            await _bring_up(entry, source)
    except BaseException:
        if not entry.is_retired:
            registry.pending.append(entry)  # the next request, or life, tries again
        raise
    finally:
        entry.loading = False
        entry.attempted.set()
    if not entry.model.ready:
        if entry.not_before and not entry.is_retired:
            registry.pending.append(entry)
        raise ModelNotReady(entry.name, entry.failure)
    if not entry.is_retired:
        source.note_loaded(entry.name, entry.model)


async def _bring_up(entry: Entry, source: Source) -> None:
    """Start and load what was registered, unless it leaves before; a failure is kept."""
    entry.failure, entry.not_before = None, 0.0
    try:
        with log_load(lambda: entry):
            if entry.is_awaited:
                entry.settle(await source.build(entry.name))
            if not entry.is_retired:
                await start_and_load(entry)
    except BaseException as exc:
        keep_failure(entry, exc)
        if isinstance(exc, NoThread):
            entry.not_before = monotonic() + _RETRY_SECONDS
    if entry.is_retired:
        await stop(entry)


def _load_at_next_start(entry: Entry, registry: Registry) -> None:
    if entry.needs_loading and not entry.is_retired and entry not in registry.pending:
        entry.model.ready = False
        registry.pending.append(entry)
