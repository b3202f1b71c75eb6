"""What one application owns, and its life: loading, ready, draining, stopped.

Nothing of it is bound to an event loop before the first request or the lifespan, so that an
application can be made anywhere, pickled, and mounted.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio

from modelserve.concurrency.admission import Admission
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.threads import Workers
from modelserve.errors import ModelNotFound, ModelNotReady, ServerShuttingDown
from modelserve.limits import DEFAULTS, Limits
from modelserve.metrics.telemetry import Telemetry
from modelserve.models.registry import Entry, Registry
from modelserve.models.repository import ModelRepository
from modelserve.protocols.cloudevents import EventSettings

__all__ = ["Serving"]

logger = logging.getLogger("modelserve")

# How long clean-up may take once the drain is over, and how long to wait for threads after that.
CLEANUP_AFTER_DRAIN: Final = 1.5


class Serving:
    """The models of one application and all that their requests share."""

    def __init__(
        self,
        limits: Limits,
        *,
        threads: int = 40,
        debug: bool = False,
        token: str | None = None,
        coalesce: bool = False,
    ) -> None:
        self._asked = limits
        self.limits = limits.with_defaults(DEFAULTS)
        self.debug = debug
        self.token = token
        self.telemetry = Telemetry()
        self.workers = Workers(threads)
        self._scraper = Workers(1)  # never one of those that hooks may keep busy
        self.registry = Registry(limits, self.workers, self.telemetry, coalesce=coalesce)
        self.admission = Admission(self.limits)
        self.flights = Flights()
        self.events = EventSettings.from_environment()
        self.max_body_bytes = _infinite_if_none(self.limits.max_body_bytes)
        self.draining = False
        self._drained = False
        self._hosted = False
        self._background = _Background()
        self._retiring: set[Entry] = set()

    def reconfigure(self, limits: Limits, *, threads: int | None, debug: bool) -> None:
        """Put in what the command line says of the application, before it serves."""
        self._asked = limits.with_defaults(self._asked)
        self.limits = self._asked.with_defaults(DEFAULTS)
        self.max_body_bytes = _infinite_if_none(self.limits.max_body_bytes)
        self.debug = self.debug or debug
        self.workers = Workers(threads or self.workers.limit)
        self.admission = Admission(self.limits)
        self.registry.reconfigure(self._asked, self.workers)

    def use(self, repository: ModelRepository) -> None:
        """Serve the models of a repository and of its directory, and ask it for others by name.

        Raises OSError where there is no such directory.
        """
        self.follow(repository)
        self.registry.asks_repository = True
        for name in repository.names():
            self.registry.expect(name)

    def follow(self, repository: ModelRepository) -> None:
        """Serve what a repository is given, now and from now on."""
        self.registry.repository = repository
        repository.serve_on(self.registry)

    async def expose(self, accept: str | None) -> tuple[bytes, bytes]:
        """Return the metrics' content type and text, made in a thread."""
        self.telemetry.open()
        result: tuple[bytes, bytes] = await self._scraper.call(
            "metrics", self.telemetry.expose, accept
        )
        return result

    def load_pending(self) -> None:
        """Load in the background what is registered and was not tried yet; never waits.

        The task is the event loop's own: no request that is cancelled cancels it.
        """
        if self.registry.pending:
            entries = self.registry.take_pending()
            self._background.start(partial(self.registry.load_all, entries))
        self._retire_leaving()

    async def usable(self, entry: Entry) -> None:
        """Return if a model can take a request. Raises ModelNotReady.

        Where no lifespan runs, a request waits for the load that it or another began.
        """
        if entry.loading and not self._hosted and entry.attempted is not None:
            await entry.attempted.wait()
        ready = await entry.is_ready() if entry.checks_health else entry.model.ready
        if not ready:
            raise entry.not_ready(debug=self.debug)

    async def load(self, name: str) -> None:
        """Load a model, again if need be; a client that leaves does not stop it.

        Raises ModelNotFound, ModelNotReady.
        """
        await self._in_background(partial(self._reload, name))

    async def unload(self, name: str) -> None:
        """Take a model out, and stop it after its running requests. Raises ModelNotFound."""
        await self._in_background(partial(self.registry.unload, name, self._retire))

    async def index(self) -> list[dict[str, str]]:
        """Return the repository index; the directory is read in a thread."""
        registry, found = self.registry, []
        if registry.repository is not None and registry.asks_repository:
            try:
                found = await self.workers.call("index", registry.repository.names)
            except OSError as exc:
                logger.error("The directory of models cannot be read: %s", exc)
        return registry.index(found)

    async def _reload(self, name: str) -> None:
        try:
            await self.registry.reload(name)
        except ModelNotReady as exc:
            raise exc if self.debug else ModelNotReady(name) from None
        finally:
            self._retire_leaving()

    def _retire_leaving(self) -> None:
        for entry in self.registry.leaving - self._retiring:
            self._background.start(partial(self._retire, entry))

    async def _retire(self, entry: Entry) -> None:
        """Stop a model after its last request, or when that has taken as long as a drain may."""
        self._retiring.add(entry)
        try:
            with anyio.move_on_after(self._drain_seconds()) as bound:
                await entry.gate.emptied()
            if bound.cancelled_caught:
                logger.warning("Model %s is stopped under its requests", entry.name)
                self.admission.refuse_waiting_for(entry.gate, partial(ModelNotFound, entry.name))
            await self.registry.stop(entry)
        finally:
            self.registry.leaving.discard(entry)
            self._retiring.discard(entry)

    async def _in_background(self, function: Callable[[], Awaitable[None]]) -> None:
        done = anyio.Event()
        errors: list[Exception] = []

        async def run() -> None:
            try:
                await function()
            except Exception as exc:
                errors.append(exc)
            finally:
                done.set()

        self._background.start(run)
        await done.wait()
        if errors:
            raise errors[0]

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Load the models in the background; on the way out drain, then stop them."""
        self._hosted = True
        self.draining = self._drained = False
        self.admission.refuse_waiting(None)
        self.events = EventSettings.from_environment()
        self.flights.reset_cleanup_cap()
        self.telemetry.open()
        self.load_pending()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self.drain()
                await self._background.stop(within=CLEANUP_AFTER_DRAIN)
                await self._stop_idle()
                self.workers.close()
                self._scraper.close()
                self.telemetry.close()
            self._hosted = False

    def refuse_new(self) -> None:
        """Begin to drain: not ready, queued and new requests refused, running ones go on."""
        self.draining = True
        self.admission.refuse_waiting(ServerShuttingDown)

    async def drain(self) -> None:
        """Refuse what is new, and wait until the last request has ended, for a bounded time.

        Those still running after `drain_timeout` are told, cancelled, and cleaned up. A second
        drain, by whoever ends the lifespan after the server's own, does not wait again.
        """
        if self._drained:
            return
        self.refuse_new()
        with anyio.move_on_after(self._drain_seconds()):
            await self.flights.emptied()
        if self.flights:
            self.flights.cancel_all(ServerShuttingDown, cleanup_cap=CLEANUP_AFTER_DRAIN)
            with anyio.move_on_after(CLEANUP_AFTER_DRAIN):
                await self.flights.emptied()
        if self.flights:
            logger.warning(
                "%d requests have not ended; busy threads: %s",
                len(self.flights),
                ", ".join(self.workers.running) or "none",
            )
        self._drained = True

    async def _stop_idle(self) -> None:
        """Stop the models, except under a request or a load that has outlived the drain."""
        for entry in [*self.registry, *self.registry.leaving]:
            if not (entry.gate.running or entry.loading):
                await self.registry.stop(entry)
                self.registry.rest(entry)

    def _drain_seconds(self) -> float:
        return _infinite_if_none(self.limits.drain_timeout)


def _infinite_if_none(limit: float | None) -> float:
    return math.inf if limit is None else limit


class _Background:
    """Tasks of the event loop's own: no request that is cancelled cancels them."""

    def __init__(self) -> None:
        self._scopes: dict[anyio.CancelScope, object] = {}
        self._ended: anyio.Event | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_scopes": {}, "_ended": None}

    def start(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a function; does not wait."""
        scope = anyio.CancelScope()
        self._scopes[scope] = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            trio.lowlevel.spawn_system_task(self._run, function, scope)
        else:  # kept, since the loop itself holds tasks weakly
            self._scopes[scope] = loop.create_task(self._run(function, scope))

    async def stop(self, *, within: float) -> None:
        """Cancel what still runs, and wait until it has ended for so many seconds."""
        for scope in self._scopes:
            scope.cancel()
        with anyio.move_on_after(within):
            while self._scopes:
                self._ended = anyio.Event()
                await self._ended.wait()

    async def _run(self, function: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await function()
        finally:
            del self._scopes[scope]
            if self._ended is not None:
                self._ended.set()
