"""Serve in an event loop of another program, such as a notebook's.

Signals, the process and the event loop are left alone. The server ends when the code that awaits it
is cancelled, and drains as the command line does at SIGTERM. A second cancellation cuts that short:
the requests that are left are ended, with a moment to clean up.
"""

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

from starlette.types import ASGIApp

from modelserve.concurrency.uninterrupted import wait_to_end
from modelserve.server import listener
from modelserve.server.lateness import Lateness
from modelserve.server.process import make_server
from modelserve.server.server import Server
from modelserve.server.settings import Settings

__all__ = ["serve_embedded"]

logger = logging.getLogger("modelserve")


class EmbeddedServer(Server):
    """A server that ends only itself, not its process."""

    _is_interrupted = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lateness = Lateness(math.inf)  # the program's own code runs in the loop too

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the program."""
        yield

    def interrupt(self) -> None:
        """Start to stop; the second time, end what is left."""
        if self._is_interrupted:
            self._hurry()
        else:
            self._is_interrupted = True
            self.handle_exit(signal.SIGINT, None)

    def _hurry(self) -> None:
        self.drain_seconds, self._drains_at = 0.0, monotonic()
        for serving in self._servings:
            serving.cut_short()
        if self.started:
            self._start_to_drain()

    def _start_to_drain(self) -> None:
        if self._drain_task is None:  # else there was no delay, or it was cut short
            super()._start_to_drain()

    def _exit_now(self) -> None:
        logger.warning("Stopped, while hooks in threads are still running")


async def serve_embedded(load: Callable[[], ASGIApp], settings: Settings) -> None:
    """Serve the application that `load` returns until this is cancelled, then drain.

    Raises OSError where the address cannot be listened on, RuntimeError where the server cannot
    start or stops by itself.
    """
    if settings.unsupported is not None:
        raise RuntimeError(settings.unsupported)
    server = make_server(load, settings, alone=False, kind=EmbeddedServer)
    assert isinstance(server, EmbeddedServer)
    try:
        sock = listener.bind(settings)
    except OSError as exc:
        why = exc.strerror or exc
        raise OSError(exc.errno, f"Cannot listen on {settings.address}: {why}") from None
    with ExitStack() as stack:
        if settings.uds is not None:
            stack.callback(listener.SocketFile(settings.uds).remove)
        stack.callback(sock.close)
        sock.listen()  # now, so that clients that connect before the server has started wait for it
        await _serve_until_cancelled(server, sock)


async def _serve_until_cancelled(server: EmbeddedServer, sock: socket.socket) -> None:
    task = asyncio.create_task(_serve(server, sock))
    cancellation = await wait_to_end(task, when_cancelled=server.interrupt)
    if cancellation is not None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("The server has failed while it stopped", exc_info=task.exception())
        raise cancellation
    await task
    raise RuntimeError("The server has stopped by itself; the log says why")


async def _serve(server: Server, sock: socket.socket) -> None:
    try:
        await server.serve(sockets=[sock])
    except SystemExit:
        raise RuntimeError("The server could not start; the log says why") from None
