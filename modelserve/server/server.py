"""uvicorn's server with our drain, and the worker processes, for the command line.

From the first SIGTERM or SIGINT on, the `ModelServer`s served refuse what is new while the
listener stays open, so that a probe reads a 503 and not a refused connection. Once the requests
that run have ended, or `drain_timeout` is over, the listener and the connections are closed (one
that was accepted and has not asked yet has a moment to, and reads its 503), the lifespan ends
(models are stopped), and the process with it. A thread of its own sees to it that all this ends in
time, whatever blocks. A second signal ends the process at once.

A supervisor keeps the worker processes. It asks nothing of them but that they live: a worker whose
imports hold the interpreter's lock for minutes is no reason to kill it. One that ends is replaced.
Workers ignore SIGINT, which a terminal sends to all of them; they act on the supervisor's SIGTERM.

Exit codes: 0 after a drain, 2 where the application cannot be loaded, 3 where the server cannot
start, 128 and the signal's number after a second signal.
"""

import asyncio
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Final, NoReturn

import uvicorn
from starlette.types import ASGIApp

from modelserve.app import ModelServer
from modelserve.errors import LoadError
from modelserve.lifespan import CLEANUP_AFTER_DRAIN
from modelserve.limits import DEFAULTS
from modelserve.loader import users_traceback
from modelserve.metrics.shared import DIRECTORY_VARIABLE, shared_directory
from modelserve.server.connections import StalledConnections, has_request, mended

__all__ = ["Server", "Settings", "model_servers", "serve"]

logger = logging.getLogger("modelserve")

CANNOT_LOAD: Final = 2
CANNOT_START: Final = 3

# How long after `drain_timeout` the process is gone: less than the 2 s that are promised.
_LONGEST_END: Final = CLEANUP_AFTER_DRAIN + 0.3
# How long a connection without a request has, once the listener is closed, to make one.
_LAST_CALL: Final = 0.2
# How much the kernel may hold that is not on its way yet, of each connection; without a bound it is
# megabytes, and a client that reads slowly is seen to have read something only once a third is gone.
_UNSENT_BYTES: Final = 1 << 17
_STEADY_SECONDS: Final = 10.0
_LONGEST_PAUSE: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how to serve; `uvicorn` are further arguments of `uvicorn.Config`.

    `set_up_logging` is called in each worker process; like all of this, it has to be picklable.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    uds: str | None = None
    fd: int | None = None
    workers: int = 1
    uvicorn: Mapping[str, Any] = field(default_factory=dict)
    set_up_logging: Callable[[], None] | None = None


def serve(load: Callable[[], ASGIApp], settings: Settings) -> int:
    """Serve the application that `load` returns until a signal comes; return the exit code.

    `load` is called in each worker process, hence picklable. What it raises is told on stderr.
    """
    try:
        listener = _bind(settings)
    except OSError as exc:
        _tell(f"modelserve: Cannot listen on {_place(settings)}: {exc.strerror or exc}.")
        return CANNOT_START
    try:
        if settings.workers > 1:
            launch = partial(_launch, load, settings, listener)
            with _shared_metrics():
                return _Supervisor(launch, settings.workers, listener).run()
        return _serve_alone(load, settings, listener)
    finally:
        listener.close()
        if settings.uds is not None:
            Path(settings.uds).unlink(missing_ok=True)


def model_servers(app: Any) -> list[ModelServer]:
    """Find the `ModelServer`s in an application: itself, mounted in routes, or wrapped.

    It looks into the attributes `app` (middleware and Starlette's `Mount` have it) and `routes`.
    """
    found: list[ModelServer] = []
    seen: dict[int, Any] = {}
    unseen = [app]
    while unseen:
        part = unseen.pop()
        if part is None or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, ModelServer):
            found.append(part)
            continue
        unseen.append(getattr(part, "app", None))
        routes = getattr(part, "routes", None)
        unseen += routes if isinstance(routes, list | tuple) else ()
    return found


class Server(uvicorn.Server):
    """Run one application, and end as the module says.

    Without a `ModelServer` in it that `model_servers` finds, it ends as uvicorn does: the listener
    is closed first, and requests have as long as `drain_timeout` is by default.

    Args:
        config: uvicorn's, with the application.
        app: The same application, to find the `ModelServer`s in.
        alone: End at once at a second signal; a worker process leaves that to its supervisor.
        on_start: Called with `drain_timeout` once the server listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: ASGIApp,
        *,
        alone: bool = True,
        on_start: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._servings = [server._serving for server in model_servers(app)]
        timeouts = [serving.limits.drain_timeout for serving in self._servings]
        self.drain_seconds = max(
            (math.inf if seconds is None else seconds for seconds in timeouts),
            default=DEFAULTS.drain_timeout or 0.0,
        )
        self._stalled = StalledConnections(self.server_state.connections, self._send_seconds())
        self._alone = alone
        self._on_start = on_start
        self._loop: asyncio.AbstractEventLoop
        self._drain_task: asyncio.Task[None] | None = None
        self._signalled = threading.Event()
        self._signalled_at = math.inf

    # -- signals

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals over for good: from now on the process either serves or ends."""
        if threading.current_thread() is threading.main_thread():
            for sig in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGTERM,):
                signal.signal(sig, self.handle_exit)
            threading.Thread(target=self._end_in_time, name="modelserve-end", daemon=True).start()
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at a second signal, end at once."""
        if self._signalled.is_set():
            if self._alone:
                os._exit(128 + sig)
            return
        self._signalled_at = monotonic()
        self._signalled.set()
        if self.started:
            self._loop.call_soon_threadsafe(self._begin_to_drain)
        else:
            self.should_exit = True

    def _end_in_time(self) -> None:
        """End the process when its time is over; in a thread, since anything else may be blocked."""
        self._signalled.wait()
        if self.drain_seconds < threading.TIMEOUT_MAX:
            threading.Event().wait(self.drain_seconds + _LONGEST_END)
            self._leave()

    def _leave(self) -> NoReturn:
        """End the process now, though something blocks; say what."""
        busy = [label for serving in self._servings for label in serving.workers.running]
        text = "Ending now, without waiting any longer; busy threads: %s"
        _exit(0, partial(logger.warning, text, ", ".join(busy) or "none"))

    # -- the server's life

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except OSError as exc:  # another process has begun to listen on the same address
            logger.error("Cannot listen: %s", exc.strerror or exc)
            await self.lifespan.shutdown()
            sys.exit(CANNOT_START)
        logger.info("Serving on %s (process %d)", self._url(sockets or ()), os.getpid())
        if self._on_start is not None:
            self._on_start(self.drain_seconds)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, the connections as each one's answer ends, and the application."""
        late = _accept_all(sockets or ())
        for closable in (*self.servers, *(sockets or ())):
            closable.close()
        await self._answer_late(late)
        for open_connection in list(self.server_state.connections):
            open_connection.shutdown()
        await self._connections_ended()
        await self.lifespan.shutdown()
        if any(serving.flights or serving.workers.running for serving in self._servings):
            self._leave()

    async def on_tick(self, counter: int) -> bool:
        self._stalled.look(monotonic())
        return await super().on_tick(counter)

    def _begin_to_drain(self) -> None:
        for serving in self._servings:
            serving.refuse_new()
        self._drain_task = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        """Wait, with the listener open, for the requests that run now; then let the server end."""
        running = set(self.server_state.tasks)
        logger.info("Stopping; running: %d, for %g s at most", len(running), self.drain_seconds)
        try:
            await asyncio.gather(*(serving.drain() for serving in self._servings))
            if self._servings and running:
                await asyncio.wait(running, timeout=self._left(self.drain_seconds))
        finally:
            self.should_exit = True

    async def _answer_late(self, accepted: Iterable[socket.socket]) -> None:
        """Serve those whose connection was made in time, so that none is reset unanswered."""
        now = monotonic()
        ends = max(min(now + _LAST_CALL, self._signalled_at + self.drain_seconds), now + 0.05)
        serving = [self._loop.create_task(self._serve_accepted(sock)) for sock in accepted]
        await asyncio.sleep(0)
        while monotonic() < ends:
            made = all(task.done() for task in serving)
            if made and all(map(has_request, self.server_state.connections)):
                return
            await asyncio.sleep(0.005)

    async def _serve_accepted(self, sock: socket.socket) -> None:
        with suppress(OSError):  # ssl.SSLError is one
            await self._loop.connect_accepted_socket(self._protocol, sock, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def _connections_ended(self) -> None:
        """Wait for what is still being sent, and for requests that are not a `ModelServer`'s."""
        state = self.server_state
        ends = max(self._signalled_at + self.drain_seconds, monotonic() + 0.1)
        while (  # noqa: ASYNC110  (nothing tells when a connection has ended)
            state.connections or state.tasks
        ) and monotonic() < ends:
            await asyncio.sleep(0.01)
        for task in state.tasks:
            task.cancel()
        if state.tasks:
            await asyncio.wait(
                set(state.tasks), timeout=self._left(self.drain_seconds + CLEANUP_AFTER_DRAIN)
            )

    def _send_seconds(self) -> float:
        """Return how long a client may read nothing of what it was answered."""
        limits = [serving.limits.send_timeout for serving in self._servings]
        return max((seconds for seconds in limits if seconds is not None), default=math.inf)

    def _left(self, seconds: float) -> float | None:
        """Return what is left of the seconds since the signal; None is no limit."""
        left = max(0.0, self._signalled_at + seconds - monotonic())
        return None if math.isinf(left) else left

    def _url(self, sockets: Sequence[socket.socket]) -> str:
        scheme = "https" if self.config.is_ssl else "http"
        names = [sock.getsockname() for server in self.servers for sock in server.sockets]
        name = names[0] if names else sockets[0].getsockname()
        if not isinstance(name, tuple):
            return f"unix:{name}"
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"{scheme}://{host}:{name[1]}"


def _accept_all(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """Take the connections that wait to be accepted: closing the listener would reset them."""
    accepted = []
    for listener in listeners:
        listener.setblocking(False)
        with suppress(OSError):
            while True:
                accepted.append(listener.accept()[0])
    return accepted


# --- one process --------------------------------------------------------------------------------


def _serve_alone(load: Callable[[], ASGIApp], settings: Settings, listener: socket.socket) -> int:
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, _end_while_loading)
    try:
        server = _server(load, settings)
    except Exception as exc:
        _tell(_failure(exc))
        return CANNOT_LOAD
    server.run(sockets=[listener])
    return 0


def _end_while_loading(sig: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)  # nothing is being served yet


def _server(
    load: Callable[[], ASGIApp],
    settings: Settings,
    *,
    alone: bool = True,
    on_start: Callable[[float], None] | None = None,
) -> Server:
    """Load the application and make its server. Raises LoadError for unusable settings."""
    app = load()
    config = uvicorn.Config(
        app,
        **{"interface": "asgi3", "access_log": False, "log_config": None, **settings.uvicorn},
        workers=1,
    )
    try:
        config.load()
    except OSError as exc:  # ssl.SSLError is one
        raise LoadError(f"The TLS certificate or key cannot be used: {exc}.") from None
    except ImportError as exc:
        raise LoadError(f"--http {config.http} needs a package: {exc}.") from None
    config.http_protocol_class = mended(config.http_protocol_class)
    return Server(config, app, alone=alone, on_start=on_start)


def _failure(exc: Exception) -> str:
    """Say why the application cannot be loaded; what is not ours goes with its traceback."""
    if isinstance(exc, LoadError):
        return f"modelserve: {exc}"
    lines = traceback.format_exception(type(exc), exc, users_traceback(exc))
    return f"{''.join(lines)}modelserve: The application raised {type(exc).__name__} on import."


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _exit(code: int, last_words: Callable[[], object]) -> NoReturn:
    """End the process without waiting for threads, nor long for a log that nobody reads."""

    def speak() -> None:
        last_words()
        logging.shutdown()
        sys.stdout.flush()

    try:
        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        speaker.join(0.1)
    finally:
        os._exit(code)


# --- where to listen ----------------------------------------------------------------------------


def _bind(settings: Settings) -> socket.socket:
    """Take the address; nobody listens on it until a server has started. Raises OSError."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    if settings.uds is not None:
        return _bind_unix(Path(settings.uds))
    found = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: Path) -> socket.socket:
    if path.is_socket():
        path.unlink()  # of a server that is gone
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o666)
    except OSError:
        sock.close()
        raise
    return sock


def _place(settings: Settings) -> str:
    if settings.fd is not None:
        return f"file descriptor {settings.fd}"
    return settings.uds or f"{settings.host}:{settings.port}"


# --- worker processes ---------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process, as its supervisor sees it."""

    process: SpawnProcess
    pipe: "connection.Connection[Any, Any] | None"
    ready_at: float = math.inf
    drain_seconds: float = 0.0
    failure: str | None = None

    def read(self) -> None:
        """Take what the worker says: its failure to load, or, once it serves, its drain time-out."""
        try:
            while self.pipe is not None and self.pipe.poll():
                news = self.pipe.recv()
                if isinstance(news, str):
                    self.failure = news
                else:
                    self.ready_at, self.drain_seconds = monotonic(), news
        except (EOFError, OSError):
            self.pipe = None

    def send_signal(self, sig: signal.Signals) -> None:
        if self.process.pid is not None and self.process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, sig)


class _Supervisor:
    """Keep a number of worker processes alive until a signal comes or none can start."""

    def __init__(self, launch: Callable[[], _Worker], count: int, listener: socket.socket) -> None:
        self._launch = launch
        self._count = count
        self._listener = listener
        self._workers: list[_Worker] = []
        self._code: int | None = None
        self._signalled = False
        self._served = False
        self._early_deaths = 0
        self._launch_at = -math.inf

    def run(self) -> int:
        """Return the exit code once all workers have ended."""
        resource_tracker.ensure_running()  # it unblocks SIGINT, which `_launch` blocks
        with self._signals() as wake:
            while self._code is None:
                self._fill()
                self._wait(wake)
                self._look()
            self._stop(wake)
        return self._code

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Yield a socket that becomes readable with every signal, a child's end included."""
        wake, woken = socket.socketpair()
        with wake, woken:
            wake.setblocking(False)
            woken.setblocking(False)
            signal.signal(signal.SIGCHLD, _nothing)
            for sig in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sig, self._handle)
            signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
            try:
                yield wake
            finally:
                signal.set_wakeup_fd(-1)

    def _handle(self, sig: int, frame: FrameType | None) -> None:
        """Stop the workers; at a second signal kill them and end at once, but tidily."""
        if self._signalled:
            for worker in self._workers:
                worker.send_signal(signal.SIGKILL)
            raise SystemExit(128 + sig)
        self._signalled = True
        self._code = 0 if self._code is None else self._code

    def _fill(self) -> None:
        while len(self._workers) < self._count and monotonic() >= self._launch_at:
            self._workers.append(self._launch())

    def _wait(self, wake: socket.socket) -> None:
        """Wait for a signal or for news from a worker; look around once a second in any case."""
        pipes = [worker.pipe for worker in self._workers if worker.pipe is not None]
        connection.wait([wake, *pipes], timeout=1.0)
        with suppress(BlockingIOError):
            wake.recv(4096)

    def _look(self) -> None:
        """Read the workers' news, and take out those that have ended."""
        for worker in list(self._workers):
            alive = worker.process.is_alive()
            worker.read()
            self._served = self._served or worker.ready_at < math.inf
            if not alive:
                self._workers.remove(worker)
                if self._code is None:
                    self._has_ended(worker)

    def _has_ended(self, worker: _Worker) -> None:
        """Replace a worker, later and later if they end soon; give up if none has ever served."""
        code = worker.process.exitcode or 0
        if worker.failure is not None:
            _tell(worker.failure)
        elif not self._served:
            logger.error("Worker %s ended before it served: %s", worker.process.pid, _end(code))
        if not self._served:
            self._code = CANNOT_LOAD if worker.failure is not None else CANNOT_START
            return
        steady = monotonic() - worker.ready_at > _STEADY_SECONDS
        self._early_deaths = 0 if steady else self._early_deaths + 1
        pause = min(2.0**self._early_deaths - 2, _LONGEST_PAUSE)
        self._launch_at = monotonic() + pause
        logger.warning("Worker %s ended, and is replaced: %s", worker.process.pid, _end(code))

    def _stop(self, wake: socket.socket) -> None:
        """End the workers, each with its own drain, and kill those that overrun.

        The listener is theirs alone by now: it is gone with the last of them that answers.
        """
        self._listener.close()
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        since = monotonic()
        while self._workers and monotonic() < since + self._longest_drain():
            self._wait(wake)
            self._look()
        for worker in self._workers:
            logger.warning("Worker %s did not end in time and is killed", worker.process.pid)
            worker.send_signal(signal.SIGKILL)
            worker.process.join()

    def _longest_drain(self) -> float:
        return max(worker.drain_seconds for worker in self._workers) + _LONGEST_END + 0.1


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """Give the workers a directory for their metrics, unless the environment names one."""
    with ExitStack() as stack:
        if not os.environ.get(DIRECTORY_VARIABLE):
            try:
                os.environ[DIRECTORY_VARIABLE] = stack.enter_context(shared_directory())
            except OSError as exc:
                logger.warning("Each worker will show its own metrics only: %s", exc)
        yield


def _end(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _launch(load: Callable[[], ASGIApp], settings: Settings, listener: socket.socket) -> _Worker:
    """Start a worker process, with SIGINT blocked until it has a handler for it."""
    pipe, its_pipe = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(load, settings, listener, its_pipe)
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    its_pipe.close()
    return _Worker(process, pipe)


def _work(
    load: Callable[[], ASGIApp],
    settings: Settings,
    listener: socket.socket,
    pipe: "connection.Connection[Any, Any]",
) -> None:
    """Serve, in a worker process."""
    signal.signal(signal.SIGINT, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    if settings.set_up_logging is not None:
        settings.set_up_logging()
    try:
        server = _server(load, settings, alone=False, on_start=pipe.send)
    except Exception as exc:
        pipe.send(_failure(exc))
        sys.exit(CANNOT_LOAD)
    server.run(sockets=[listener])


def _end_with_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _nothing(sig: int, frame: FrameType | None) -> None:
    """Handle a signal; unlike an ignored one, it is not ignored by the programs that we start."""
