"""One process that serves: load the application, make its server, run it."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from starlette.types import ASGIApp

from modelserve.errors import LoadError
from modelserve.loader import users_traceback
from modelserve.metrics.shared import DIRECTORY_VARIABLE
from modelserve.metrics.shared_directory import remove_abandoned
from modelserve.server.application import find_drainables
from modelserve.server.connections.mending import mended
from modelserve.server.connections.refusals import LONGEST_HEAD
from modelserve.server.logs import print_error
from modelserve.server.server import Server
from modelserve.server.settings import CANNOT_LOAD, Settings
from modelserve.server.signals import leave_to_supervisor, stop_signals

__all__ = ["make_server", "run_alone", "run_worker"]


def run_alone(
    load: Callable[[], ASGIApp],
    settings: Settings,
    listener: socket.socket,
    *,
    before_exit: Callable[[], object],
) -> int:
    """Serve in this process until a signal comes; return the exit code.

    `before_exit` is called if the process exits instead, from any thread.
    """
    if threading.current_thread() is threading.main_thread():
        for sig in stop_signals():
            signal.signal(sig, _exit_while_loading)
    try:
        server = make_server(load, settings, before_exit=before_exit)
    except Exception as exc:
        print_error(_failure(exc))
        return CANNOT_LOAD
    server.run(sockets=[listener])
    if not settings.ends_process:
        server.released.set()
    return server.exit_code


def run_worker(
    load: Callable[[], ASGIApp],
    settings: Settings,
    listener: socket.socket,
    pipe: "Connection[Any, Any]",
) -> None:
    """Serve in a worker process, until its supervisor sends SIGTERM or ends.

    Once it listens, it sends the seconds that its stop may take through the pipe; if it cannot
    load, the reason.
    """
    leave_to_supervisor()
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    if settings.set_up_logging is not None:
        settings.set_up_logging()
    try:
        server = make_server(load, settings, alone=False, on_start=pipe.send)
    except Exception as exc:
        pipe.send(_failure(exc))
        sys.exit(CANNOT_LOAD)
    try:
        server.run(sockets=[listener])
    finally:
        if DIRECTORY_VARIABLE in os.environ:  # the supervisor may have been killed
            remove_abandoned(Path(os.environ[DIRECTORY_VARIABLE]))
    sys.exit(server.exit_code)


def make_server(
    load: Callable[[], ASGIApp],
    settings: Settings,
    *,
    kind: type[Server] = Server,
    **options: Any,
) -> Server:
    """Load the application and make its server, with further options of it.

    Raises LoadError for unusable settings.
    """
    if settings.grpc_port is not None:  # else its core logs, as plain text, what clients send
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app = load()
    config = uvicorn.Config(
        app,
        **{"interface": "asgi3", "access_log": False, "log_config": None, **settings.uvicorn},
        workers=1,
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )
    try:
        config.load()
    except OSError as exc:  # ssl.SSLError is one
        problem = _unreadable(settings.uvicorn) or exc
        raise LoadError(f"The TLS certificate or key cannot be used: {problem}.") from None
    except ImportError as exc:
        raise LoadError(f"--http {config.http} needs a package: {exc}.") from None
    config.http_protocol_class = mended(config.http_protocol_class)
    if settings.grpc_port is not None:
        from modelserve.server.grpc import GrpcPort  # it imports grpcio

        limit = max((serving.max_binary_bytes for serving in find_drainables(app)), default=inf)
        options["ports"] = [GrpcPort(app, settings, limit=limit)]
    return kind(
        config,
        app,
        shutdown_delay=settings.shutdown_delay,
        head_timeout=settings.head_timeout,
        exit_on_load_failure=settings.exit_on_load_failure,
        **options,
    )


def _unreadable(options: Mapping[str, Any]) -> OSError | None:
    """Return why a file for TLS cannot be read; unlike OpenSSL's, the error names the file."""
    for path in filter(None, (options.get("ssl_certfile"), options.get("ssl_keyfile"))):
        try:
            Path(path).read_bytes()
        except OSError as exc:
            return exc
    return None


def _failure(exc: Exception) -> str:
    """Return why the application cannot be loaded, with a traceback unless it is a LoadError."""
    if isinstance(exc, LoadError):
        return f"modelserve: {exc}"
    lines = traceback.format_exception(type(exc), exc, users_traceback(exc))
    return f"{''.join(lines)}modelserve: The application raised {type(exc).__name__} on import."


def _exit_while_loading(sig: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)  # nothing is being served yet


def _end_with_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
