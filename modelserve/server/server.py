"""uvicorn's server, with our drain.

From the first SIGTERM, SIGINT or SIGHUP on, the model servers are not ready, and refuse new
requests once `shutdown_delay` is over, while the listener stays open, so that a probe reads a 503
and not a refused connection. Once the running requests have ended, or `drain_timeout` is over, the
listener and the connections are closed. A connection that was accepted but has sent no request yet
has a moment to send one, and reads its 503. Then the lifespan ends (models are stopped), and the
process with it. A thread ends the process in time if anything blocks. A second signal ends it at
once.
"""

import asyncio
import contextvars
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from modelserve.lifespan import CLEANUP_AFTER_DRAIN
from modelserve.limits import DEFAULTS
from modelserve.server.application import Drainable, find_drainables
from modelserve.server.connections.mending import has_request, new_protocol, watch
from modelserve.server.lateness import Lateness
from modelserve.server.listener import accept_waiting
from modelserve.server.settings import CANNOT_LOAD_MODELS, CANNOT_START, HEAD_TIMEOUT
from modelserve.server.signals import Impatience, stop_signals
from modelserve.server.starting import Start

__all__ = ["LONGEST_EXIT", "Port", "Server"]

logger = logging.getLogger("modelserve")

# Seconds after `drain_timeout` at which the process exits: less than the 2 that are promised.
LONGEST_EXIT: Final = CLEANUP_AFTER_DRAIN + 0.3
# Seconds for a connection without a request to send one, once the listener is closed.
_LATE_REQUEST_SECONDS: Final = 0.2
_LONG: Final = 86_400.0
_LATE_TICK: Final = 1.0  # seconds; a tick is due each 0.1 s


class Port(Protocol):
    """A further port beside HTTP's, in the same event loop."""

    async def start(self, state: Mapping[str, Any]) -> None:
        """Serve, and log the address; `state` is the lifespan's. Raises OSError."""

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and end those that are left after some seconds."""


class Server(uvicorn.Server):
    """Run one application, and end as described above.

    If `find_drainables` finds no model server in the application, it ends as under uvicorn: the
    listener is closed first, and requests have the default `drain_timeout`.

    Args:
        config: uvicorn's, with the application.
        app: The same application, to find the model servers in.
        alone: Exit at once at a second signal; a worker process leaves that to its supervisor.
        on_start: Called once the server listens, with the seconds that its stop may take.
        shutdown_delay: Seconds after a signal for which new requests are still served.
        head_timeout: Seconds within which a client has to send a head, and each part of a body.
        exit_on_load_failure: Stop once a model has failed to load.
        before_exit: Called if the process exits at once, from any thread.
        ports: Further ports, served from after the start until the drain is over.

    Attributes:
        exit_code: The exit code of the process, once the server has stopped.
        released: Set this if the process goes on after that.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: ASGIApp,
        *,
        alone: bool = True,
        on_start: Callable[[float], None] | None = None,
        shutdown_delay: float = 0.0,
        head_timeout: float = HEAD_TIMEOUT,
        exit_on_load_failure: bool = False,
        before_exit: Callable[[], object] = lambda: None,
        ports: Sequence["Port"] = (),
    ) -> None:
        super().__init__(config)
        self._app = app
        self._servings = find_drainables(app)
        self.drain_seconds = _drain_seconds(self._servings)
        self._check_connections = watch(
            self.server_state.connections,
            unread=_send_seconds(self._servings),
            unsent=head_timeout,
        )
        self.exit_code = 0
        self._start = Start(self._servings, must_succeed=exit_on_load_failure)
        self._shutdown_delay = shutdown_delay
        self._alone = alone
        self._on_start = on_start
        self._before_exit = before_exit
        self._ports = ports
        self._loop: asyncio.AbstractEventLoop
        self._context = contextvars.copy_context()  # a signal comes in that of any request
        self._lateness = Lateness(_LATE_TICK)
        self._drain_task: asyncio.Task[None] | None = None
        self._signalled, self.released = threading.Event(), threading.Event()
        self._impatience = Impatience()
        self._drains_at = math.inf

    # -- signals

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals until the process exits; uvicorn would restore the old handlers."""
        if threading.current_thread() is threading.main_thread():
            for sig in stop_signals() if self._alone else (signal.SIGTERM,):
                signal.signal(sig, self.handle_exit)
            threading.Thread(target=self._exit_in_time, name="modelserve-exit", daemon=True).start()
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to stop; at a second signal, exit at once."""
        if self._impatience.grows(sig) and self._alone:
            _exit(128 + sig, self._before_exit)
        if self._signalled.is_set():
            return
        self._drains_at = monotonic() + (self._shutdown_delay if self.started else 0.0)
        self._signalled.set()
        if self.started:
            self._loop.call_soon_threadsafe(self._start_to_stop, context=self._context)
        else:
            self.should_exit = True
            self._loop.call_soon_threadsafe(self._start.give_up, self, context=self._context)

    def _exit_in_time(self) -> None:
        """Exit once the time is over; runs in a thread, since everything else may be blocked."""
        self._signalled.wait()
        if self._start.blocks():
            self._exit_now()
        if self.drain_seconds < threading.TIMEOUT_MAX:
            seconds = self._drains_at - monotonic() + self.drain_seconds + LONGEST_EXIT
            if not self.released.wait(seconds):
                self._exit_now()

    def _exit_now(self) -> None:
        busy = [label for serving in self._servings for label in serving.workers.running]
        text = "Exiting without waiting any longer; busy threads: %s; still loading: %s"
        names = (", ".join(names) or "none" for names in (busy, self._start.loading))
        _exit(self.exit_code, self._before_exit, partial(logger.warning, text, *names))

    # -- start and end

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()  # before signals are handled here
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._alone:
            self._start.show()
        try:
            await super().startup(sockets)
            if not self.should_exit:
                for port in self._ports:
                    await port.start(self.lifespan.state)
        except OSError as exc:  # another process has begun to listen on the same address
            logger.error("Cannot listen: %s", exc.strerror or exc)
            await self.lifespan.shutdown()
            sys.exit(CANNOT_START)
        if self.should_exit:
            return
        _log_start(_url(self, sockets or ()), self._app)
        if self._on_start is not None:
            self._on_start(self._shutdown_delay + self.drain_seconds)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, then each connection after its response, then the application."""
        accepted = accept_waiting(sockets or ())
        for closable in (*self.servers, *(sockets or ())):
            closable.close()
        await _answer_late_requests(self, accepted, self._ends())
        for open_connection in list(self.server_state.connections):
            open_connection.shutdown()
        for port in self._ports:
            await _stop_port(port, self._ends)
        await _finish_responses(self.server_state, self._ends)
        await self.lifespan.shutdown()
        if any(serving.flights or serving.workers.running for serving in self._servings):
            self._exit_now()

    async def on_tick(self, counter: int) -> bool:
        self._check_connections(now := monotonic())
        self._lateness.note(now)
        if not self._signalled.is_set() and self._start.has_failed():
            self.exit_code = CANNOT_LOAD_MODELS
            self._drains_at = monotonic()
            self._signalled.set()
            self._start_to_stop()
        return await super().on_tick(counter)

    def _start_to_stop(self) -> None:
        self._start.noticed.set()
        for serving in self._servings:
            serving.announce_stop()
        if self._shutdown_delay:
            logger.info("Stopping: new requests are served for %g s", self._shutdown_delay)
            self._loop.call_later(self._shutdown_delay, self._start_to_drain)
        else:
            self._start_to_drain()

    def _start_to_drain(self) -> None:
        for serving in self._servings:
            serving.refuse_new()
        self._drain_task = self._loop.create_task(self._drain())

    def _ends(self) -> float:
        """Return when running requests have had their time."""
        return self._drains_at + self.drain_seconds

    async def _drain(self) -> None:
        """Wait for the running requests with the listener open; then let the server exit."""
        running = set(self.server_state.tasks)
        logger.info(
            "Stopping: running requests (%d) have %g s to finish", len(running), self.drain_seconds
        )
        try:
            await asyncio.gather(*(serving.drain() for serving in self._servings))
            if self._servings and running:
                await asyncio.wait(running, timeout=_seconds_until(self._ends()))
        finally:
            self.should_exit = True


def _log_start(url: str, app: ASGIApp) -> None:
    logger.info("Serving on %s (process %d)", url, os.getpid())
    if _has_page(app) and url.startswith("http"):
        logger.info("A page to try the models in: %s/playground", url)


def _has_page(app: ASGIApp) -> bool:
    """Return whether there is a page for people; that of a mounted application is unknown."""
    return any(serving.has_playground for serving in find_drainables(app, mounted=False))


async def _answer_late_requests(
    server: uvicorn.Server, accepted: Iterable[socket.socket], until: float
) -> None:
    """Serve the connections that were made in time: none is reset without an answer."""
    now, loop = monotonic(), asyncio.get_running_loop()
    ends = max(min(now + _LATE_REQUEST_SECONDS, until), now + 0.05)
    tasks = [loop.create_task(_connect(server, sock)) for sock in accepted]
    await asyncio.sleep(0)
    while monotonic() < ends:
        connected = all(task.done() for task in tasks)
        if connected and all(map(has_request, server.server_state.connections)):
            return
        await asyncio.sleep(0.005)


async def _stop_port(port: Port, ends: Callable[[], float]) -> None:
    """Take nothing more on a port, and wait until what was answered there has been sent."""
    soonest = monotonic() + _LATE_REQUEST_SECONDS
    stopping = asyncio.ensure_future(port.stop(_LONG))
    while not stopping.done() and monotonic() < max(ends(), soonest):
        await asyncio.wait((stopping,), timeout=0.05)  # a signal may bring the end nearer
    await port.stop(0.0)
    await stopping


async def _finish_responses(state: ServerState, ends: Callable[[], float]) -> None:
    """Wait until responses have been sent, and for requests of other applications."""
    soonest = monotonic() + 0.1
    while (  # noqa: ASYNC110  (no event says that a connection has ended)
        state.connections or state.tasks
    ) and monotonic() < max(ends(), soonest):
        await asyncio.sleep(0.01)
    for task in state.tasks:
        task.cancel()
    if state.tasks:
        cut_at = ends() + CLEANUP_AFTER_DRAIN
        await asyncio.wait(set(state.tasks), timeout=_seconds_until(cut_at))


def _seconds_until(moment: float) -> float | None:
    """Return the time until a moment as a timeout: None is no limit."""
    seconds = max(0.0, moment - monotonic())
    return None if math.isinf(seconds) else seconds


async def _connect(server: uvicorn.Server, sock: socket.socket) -> None:
    with suppress(OSError):  # ssl.SSLError is one
        await asyncio.get_running_loop().connect_accepted_socket(
            partial(new_protocol, server), sock, ssl=server.config.ssl
        )


def _drain_seconds(servings: Iterable[Drainable]) -> float:
    """Return how long running requests have to finish."""
    limits = [serving.limits.drain_timeout for serving in servings]
    return max(
        (math.inf if seconds is None else seconds for seconds in limits),
        default=DEFAULTS.drain_timeout or 0.0,
    )


def _send_seconds(servings: Iterable[Drainable]) -> float:
    """Return how long a client may read nothing."""
    limits = [serving.limits.send_timeout for serving in servings]
    return max((seconds for seconds in limits if seconds is not None), default=math.inf)


def _url(server: uvicorn.Server, sockets: Sequence[socket.socket]) -> str:
    scheme = "https" if server.config.is_ssl else "http"
    names = [sock.getsockname() for listener in server.servers for sock in listener.sockets]
    name = names[0] if names else sockets[0].getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{scheme}://{host}:{name[1]}"


def _exit(code: int, *steps: Callable[[], object]) -> NoReturn:
    """Exit after some last steps, without waiting for threads or for steps that block."""

    def take() -> None:
        for step in (*steps, logging.shutdown, sys.stdout.flush):
            step()

    try:
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(0.1)
    finally:
        os._exit(code)
