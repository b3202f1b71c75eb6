"""The state of one application, and its life: loading, ready, draining, stopped.

Nothing is bound to an event loop before the first request or the lifespan, so that an application
can be created anywhere, pickled, and mounted.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol
from uuid import uuid4

import anyio

from modelserve.concurrency.admission import Admission
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.loops import Event
from modelserve.concurrency.sleepers import Sleepers
from modelserve.concurrency.threads import Workers
from modelserve.concurrency.uninterrupted import call_to_end
from modelserve.errors import ServerNotReady, ServerShuttingDown
from modelserve.limits import DEFAULTS, Limits
from modelserve.metrics.telemetry import Telemetry
from modelserve.models.load_reports import not_ready, states_of
from modelserve.models.loading import Loading
from modelserve.models.registry import Entry, Registry, Shared, State, infinite_if_none
from modelserve.models.repository import ModelRepository
from modelserve.observers import Observers
from modelserve.protocols.cloudevents import EventSettings
from modelserve.wire.bearer import valid_token
from modelserve.wire.handshake import checked_origins
from modelserve.wire.head import Scope

__all__ = [
    "CLEANUP_AFTER_DRAIN",
    "ModelStatistics",
    "Serving",
    "Statistics",
    "Table",
    "usable_entry",
]

logger = logging.getLogger("modelserve")

# How long clean-up may take once the drain is over, and how long to wait for threads after that.
CLEANUP_AFTER_DRAIN: Final = 1.5
_DECODERS: Final = 2

_EVENTS: Final = EventSettings(uuid4, partial(datetime.now, UTC))


class Table(Protocol):
    """The paths of an application, for the description of its API."""

    @property
    def rows(self) -> Sequence[Any]:
        """The table of routes: `routes.Route`."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """The application's aliases, each with its built-in path."""

    def base_of(self, scope: Scope) -> str:
        """Return the path of the mount that a request was sent to."""


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model: its state, and its requests that run or wait for a slot."""

    state: State
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The activity of an application at one moment.

    Attributes:
        in_flight: Requests that have arrived and have not ended.
        running: Requests that have a slot of the application.
        waiting: Requests that wait for one.
        busy_threads: The label of each call that a worker thread is running.
        loading: How many models are being loaded or are still to be.
        models: The models by name, in the order of registration.
    """

    in_flight: int
    running: int
    waiting: int
    busy_threads: tuple[str, ...]
    loading: int
    models: Mapping[str, ModelStatistics]


class Serving:
    """The models of one application and everything that their requests share."""

    def __init__(
        self,
        limits: Limits,
        *,
        threads: int = 40,
        debug: bool = False,
        token: str | None = None,
        coalesce: bool = False,
        control: bool | None = None,
        wait_for_load: bool = False,
        origins: Collection[str] = (),
        observers: Observers | None = None,
    ) -> None:
        if not isinstance(limits, Limits):
            raise TypeError(f"The limits of a ModelServer must be Limits: {limits!r}")
        self.limits, self.max_binary_bytes = limits.with_defaults(DEFAULTS), limits.binary_bytes
        self.max_body_bytes = infinite_if_none(self.limits.max_body_bytes)
        self.deadlines = self.limits.deadlines()
        self.debug = debug
        self.token = None if token is None else valid_token(token)
        self.control, self.wait_for_load = control, wait_for_load
        self.origins = checked_origins(origins)
        self.telemetry = Telemetry(observers=observers)
        self.has_playground = False
        self.workers = Workers(threads)
        # Not the threads of hooks, which may all be busy.
        self.scraper, self.decoders = Workers(1), Workers(_DECODERS)
        self.admission = Admission(self.limits)
        self.flights, self.unattended = Flights(), Flights()
        self.registry = Registry(
            Shared(limits, self.workers, self.telemetry, self.admission, coalesce, self.unattended)
        )
        self.loading = Loading(self.registry)
        self.events = _EVENTS.with_variables(os.environ)
        self.stopping = self.draining = self._has_repository = self.hosted = False
        self._drain = _Drain(self)
        self.table: Table  # given by the application
        self.documents: Any = None  # a cache for the description of the API
        self.watches: dict[Any, Any] = {}  # the watches of the health of models
        self.sleepers = Sleepers()  # woken when a drain begins
        self._stop_announced: Event | None = None

    # -- before it serves

    def reconfigure(self, limits: Limits, *, threads: int | None, debug: bool) -> None:
        """Apply command-line settings, which take precedence over the application's."""
        before = self.registry.shared
        limits = limits.with_defaults(before.limits)
        self.limits, self.max_binary_bytes = limits.with_defaults(DEFAULTS), limits.binary_bytes
        self.max_body_bytes = infinite_if_none(self.limits.max_body_bytes)
        self.deadlines = self.limits.deadlines()
        self.debug = self.debug or debug
        self.workers = Workers(threads or self.workers.limit)
        self.admission = Admission(self.limits)
        self.registry.reconfigure(
            replace(before, limits=limits, workers=self.workers, admission=self.admission)
        )

    def use(self, repository: ModelRepository) -> None:
        """Serve the models of a repository and of its directory, and load others from it by name.

        Raises OSError if there is no such directory.
        """
        if isinstance(repository, str | os.PathLike):
            raise TypeError(f"The repository must be a ModelRepository, as of {repository!r}")
        self.follow(repository, loads_by_name=True)
        self._has_repository = True
        names = repository.names()
        _tell_hidden(self.registry, repository, names)
        for name in names:
            self.registry.expect(name)
        if not names:
            logger.warning("There is no model in %s", repository.models_dir)

    def follow(self, repository: ModelRepository, *, loads_by_name: bool = False) -> None:
        """Serve the models of a repository, including later ones.

        With `loads_by_name`, the repository also builds models that are loaded over HTTP.
        """
        self.loading.source.follow(repository, builds=loads_by_name)

    # -- while it serves

    def load_pending(self) -> None:
        """Load newly registered models in the background; never waits."""
        self.loading.load_pending()

    async def check_ready(self) -> None:
        """Return if the whole application can take requests. Raises the answer to a probe."""
        if self.stopping:
            raise ServerShuttingDown
        registry = self.registry
        is_empty = self._has_repository and not (registry.entries or registry.unloaded)
        if is_empty or not await self.registry.all_ready():
            raise ServerNotReady

    @property
    def is_controllable(self) -> bool:
        """Whether models may be loaded and unloaded over HTTP."""
        return self._has_repository if self.control is None else self.control

    async def expose(self, accept: str | None) -> tuple[bytes, bytes]:
        """Return the metrics' content type and text, made in a thread."""
        self.telemetry.open()
        result: tuple[bytes, bytes] = await self.scraper.call(
            "metrics", self.telemetry.expose, accept
        )
        return result

    def loads(self) -> dict[str, State]:
        """Return READY, LOADING or, after a failure, UNAVAILABLE for each model by name."""
        return states_of(self.registry)

    def statistics(self) -> Statistics:
        """Return a snapshot of requests, threads and models."""
        return _statistics(self)

    # -- its life

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Load the models in the background; on the way out drain, then stop them.

        On asyncio, a cancellation of the task on the way out cuts the drain short, and is raised at
        the end; one by a cancel scope waits for the drain.
        """
        self.hosted = True
        self.stopping = self.draining = False
        self._drain = _Drain(self)
        self.admission.refuse_waiting(None)
        self.events = _EVENTS.with_variables(os.environ)
        self.flights.reset_cleanup_cap()
        self.unattended.reset_cleanup_cap()
        self.telemetry.open()
        self.load_pending()
        try:
            if self.wait_for_load:
                self._stop_announced = Event()
                await _until_either(self.loading.finished, self._stop_announced.wait)
            yield
        finally:
            await call_to_end(partial(_end, self), when_cancelled=self.cut_short)

    def announce_stop(self) -> None:
        """Fail readiness probes, and stop waiting for loads; keep serving requests."""
        self.stopping = True
        if self._stop_announced is not None:
            self._stop_announced.set()

    def refuse_new(self) -> None:
        """Begin to drain: not ready, queued and new requests are refused, running ones go on."""
        self.stopping = self.draining = True
        self.admission.refuse_waiting(ServerShuttingDown)
        self.sleepers.wake()

    async def drain(self) -> None:
        """Refuse new requests and wait until the last one has ended, for a bounded time.

        Requests still running after `drain_timeout` are answered, cancelled and cleaned up. A
        second drain, at the end of the lifespan after the server's, does not wait again.
        """
        await self._drain.run()

    def cut_short(self) -> None:
        """End the requests that a drain still waits for, now or once it begins."""
        self._drain.cut_short()


class _Drain:
    """The drain of one life of an application."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._is_over = self._is_short = False
        self._patience: list[anyio.CancelScope] = []

    async def run(self) -> None:
        if not self._is_over:
            self._serving.refuse_new()
            _log_loads(self._serving.loads())
            await self._wait()
            await self._end_requests()
            self._is_over = True

    def cut_short(self) -> None:
        self._is_short = True
        for scope in self._patience:
            scope.cancel()

    async def _wait(self) -> None:
        """Wait for requests, and for the loads that clients have asked for."""
        serving = self._serving
        seconds = 0.0 if self._is_short else infinite_if_none(serving.limits.drain_timeout)
        with anyio.move_on_after(seconds) as scope:
            self._patience.append(scope)
            await serving.flights.emptied()
            await serving.loading.asked_for()

    async def _end_requests(self) -> None:
        serving = self._serving
        if serving.flights:
            for flights in (serving.flights, serving.unattended):
                flights.cancel_all(ServerShuttingDown, cleanup_cap=CLEANUP_AFTER_DRAIN)
            with anyio.move_on_after(CLEANUP_AFTER_DRAIN):
                await serving.flights.emptied()
                await serving.unattended.emptied()
        if serving.flights:
            logger.warning(
                "%d requests have not ended; busy threads: %s",
                len(serving.flights),
                ", ".join(serving.workers.running) or "none",
            )


async def _end(serving: Serving) -> None:
    await serving.drain()
    await serving.loading.close(within=CLEANUP_AFTER_DRAIN)
    for workers in (serving.workers, serving.scraper, serving.decoders):
        workers.close()
    serving.telemetry.close()
    serving.hosted = False


async def _until_either(*functions: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the first of some async functions has returned; cancel the others."""

    async def run(function: Callable[[], Awaitable[Any]]) -> None:
        await function()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(run, function)


async def usable_entry(
    serving: Serving, name: str, version: str | None, note: Callable[[Entry], object]
) -> Entry:
    """Return the model that a name leads to, once it can take a request.

    Args:
        note: Called with each entry before it is waited for: its limits and its series hold.

    Raises ModelNotFound, ModelNotReady.
    """
    if serving.registry.pending:  # there may be no lifespan
        serving.load_pending()
    while True:
        entry = serving.registry.get(name, version)
        note(entry)
        if entry.checks_health or not entry.model.ready:
            await _wait_until_usable(serving, entry)
        if not entry.is_retired:  # nor replaced meanwhile
            return entry


async def _wait_until_usable(serving: Serving, entry: Entry) -> None:
    """Return if a model can take a request. Raises ModelNotReady.

    Without a lifespan, a request waits for the load that it or another request has begun.
    """
    if entry.loading and not serving.hosted and entry.attempted is not None:
        await entry.attempted.wait()
    if not await entry.is_usable():
        raise not_ready(serving.registry, entry, debug=serving.debug)


def _tell_hidden(registry: Registry, repository: ModelRepository, names: Sequence[str]) -> None:
    """Warn of models of a directory whose names the application has; a client may load them."""
    for name in names:
        known = registry.entries.get(name)
        if known is not None and not known.is_awaited and name not in repository.models:
            text = "The model %s of the repository is not served: the application has another %s"
            logger.warning(text, name, name)


def _log_loads(states: Mapping[str, State]) -> None:
    """Log the state of the loads, if any is still under way."""
    loading = [name for name, state in states.items() if state is State.LOADING]
    if loading:
        others = [f"{name} is {state}" for name, state in states.items() if name not in loading]
        text = "Stopping while models are loading: %s%s"
        logger.warning(text, ", ".join(loading), "".join(f"; {other}" for other in others))


def _statistics(serving: Serving) -> Statistics:
    registry, gate = serving.registry, serving.admission.gate
    return Statistics(
        in_flight=len(serving.flights),
        running=gate.running,
        waiting=gate.waiting,
        busy_threads=tuple(serving.workers.running),
        loading=len(registry.pending) + sum(entry.loading for entry in {*registry}),
        models={
            name: ModelStatistics(entry.state, entry.gate.running, entry.gate.waiting)
            for name, entry in registry.entries.items()
        },
    )
