"""Serve an application with given settings, as the command line does."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from starlette.types import ASGIApp

from modelserve.server import listener
from modelserve.server.logs import print_error
from modelserve.server.process import run_alone
from modelserve.server.settings import CANNOT_LOAD, CANNOT_START, Settings
from modelserve.server.supervisor import Supervisor, launch, shared_metrics

__all__ = ["serve"]


def serve(load: Callable[[], ASGIApp], settings: Settings) -> int:
    """Serve the application that `load` returns until a signal comes; return the exit code.

    `load` is called in each worker process, which receives it by pickle. What it raises is printed
    to stderr.

    The exit code is 0 after a drain, 2 if the application cannot be loaded or this system lacks
    something that the settings need, 3 if the server cannot start, and 4 if a model cannot be
    loaded and `exit_on_load_failure` is set. After a second signal the process exits with 128 plus
    the signal's number.
    """
    if settings.unsupported is not None:
        print_error(f"modelserve: {settings.unsupported}")
        return CANNOT_LOAD
    try:
        sock = listener.bind(settings)
    except OSError as exc:
        print_error(f"modelserve: Cannot listen on {settings.address}: {exc.strerror or exc}.")
        return CANNOT_START
    with ExitStack() as stack:
        if settings.uds is not None:
            stack.callback(listener.SocketFile(settings.uds).remove)
        stack.callback(sock.close)
        return _serve_on(sock, load, settings, stack)


def _serve_on(
    sock: socket.socket, load: Callable[[], ASGIApp], settings: Settings, stack: ExitStack
) -> int:
    launch_worker = partial(launch, load, settings, sock)
    if settings.watched:
        from modelserve.server.reload import Reloader  # it imports watchfiles

        return Reloader(launch_worker, settings.watched).run()
    if settings.workers > 1:
        with shared_metrics():
            return Supervisor(launch_worker, settings.workers, sock).run()
    return run_alone(load, settings, sock, before_exit=stack.close)
