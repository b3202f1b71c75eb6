"""Clients that read nothing of a response that the application has finished."""

import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from modelserve.server.connections.refusals import LONGEST_INTERVAL

try:
    import fcntl
    import termios
except ImportError:  # not Unix
    _HAS_IOCTL = False
else:
    _HAS_IOCTL = True

__all__ = ["StalledConnections"]


class StalledConnections:
    """Cut the connections whose clients have read nothing for a time.

    Only those without a running request: while one runs, its own `send_timeout` holds. Then the
    unread rest has the same time again.

    The option TCP_USER_TIMEOUT cannot do this. It also cuts clients that do read, but slowly: while
    the receive window opens by less than the next segment, the kernel sends by its probe timer, and
    counts from the first probe although data is acknowledged (Linux 6.18). And Unix domain sockets
    do not have it.
    """

    def __init__(self, connections: Iterable[Any], seconds: float) -> None:
        self._connections = connections
        self._seconds = seconds
        self._interval = min(seconds / 4, LONGEST_INTERVAL)
        self._next_check = 0.0
        self._unread: dict[Any, tuple[int, float]] = {}

    def check(self, now: float) -> None:
        """Check all connections, if it is time to."""
        if now < self._next_check:
            return
        self._next_check = now + self._interval
        before, self._unread = self._unread, {}
        for connection in tuple(self._connections):
            size = _unread_bytes(connection)
            if not size:
                continue
            last_size, since = before.get(connection, (-1, now))
            if size != last_size:
                self._unread[connection] = size, now
            elif now - since < self._seconds:
                self._unread[connection] = size, since
            else:
                _abort(connection.transport)


def _unread_bytes(connection: Any) -> int:
    """Return how many bytes wait for the client; 0 while a request is running."""
    transport, cycle = getattr(connection, "transport", None), getattr(connection, "cycle", None)
    if transport is None:
        return 0
    is_socket = not hasattr(connection, "cycle")  # a WebSocket, which may be unable to close
    if is_socket and not transport.is_closing():
        return 0
    if cycle is None or getattr(cycle, "response_complete", False) or transport.is_closing():
        size: int = transport.get_write_buffer_size()
        # A TLS transport has another one below it, whose buffer is hidden and may hold all.
        if size or transport.get_extra_info("sslcontext") is not None:
            size += _unsent_by_kernel(transport)
        return size
    return 0


def _unsent_by_kernel(transport: Any) -> int:
    """Return how many of the written bytes the client's system has not acknowledged.

    This shows a slow client long before the transport's buffer does: the kernel asks for more only
    when a third of its own buffer, which grows to megabytes, is free.
    """
    if not _HAS_IOCTL:
        return 0
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # it is closed already
        return 0


def _abort(transport: Any) -> None:
    """Reset a connection. Without SO_LINGER the kernel would keep trying to send its data."""
    with suppress(OSError):
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
