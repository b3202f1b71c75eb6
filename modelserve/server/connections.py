"""What uvicorn leaves undone about its connections, for the command line.

Its httptools protocol tells only the last of pipelined requests that the client has left, frames a
stream in chunks for an HTTP/1.0 client, which does not know them (RFC 9112, 6.1), and stays in
memory for the rest of its keep-alive time where a connection was reset. And neither of its
protocols gives up on a client that reads nothing of an answer that the application is through with:
a whole document that was handed over at once, or the rest of a stream that was cut. Such a
connection would stay, with its buffers, for as long as the client likes.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

__all__ = ["StalledConnections", "has_request", "mended"]

_LONGEST_INTERVAL: Final = 5.0

Message = MutableMapping[str, Any]


def mended(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with what it leaves undone."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return protocol
    if protocol is not HttpToolsProtocol:
        return protocol

    class MendedProtocol(HttpToolsProtocol):
        """Tell each request of a connection that it is lost; send HTTP/1.0 what it understands."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._earlier: deque[Any] = deque()  # those before `cycle`, the first may be running

        def on_headers_complete(self) -> None:
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is before:
                return
            if before is not None and not before.response_complete:
                while self._earlier and self._earlier[0].response_complete:
                    self._earlier.popleft()
                self._earlier.append(before)
            if self.scope["http_version"] == "1.0":
                cycle: Any = self.cycle
                cycle.send = partial(_send_unframed, cycle, cycle.send)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.timeout_keep_alive_task is not None:  # it would hold what was reset till then
                self.timeout_keep_alive_task.cancel()
            for cycle in self._earlier:
                if not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()
            self._earlier.clear()

    return MendedProtocol


async def _send_unframed(
    cycle: Any, send: Callable[[Message], Awaitable[None]], message: Message
) -> None:
    """Send an event without chunks: the end of the connection is the end of the body."""
    if message["type"] == "http.response.start":
        names = {name.lower() for name, _ in message.get("headers", ())}
        if b"content-length" not in names:
            cycle.chunked_encoding = False
    elif cycle.chunked_encoding is False and not cycle.expected_content_length:
        cycle.expected_content_length = len(message.get("body", b""))
    await send(message)


def has_request(connection: Any) -> bool:
    """Say whether the first request of a connection has arrived."""
    return getattr(connection, "cycle", None) is not None


class StalledConnections:
    """Cut the connections whose clients have read nothing for a time.

    Only those that no request is being answered on: while one is, its own `send_timeout` holds, and
    what it leaves unread begins a time of its own.
    """

    def __init__(self, connections: Iterable[Any], seconds: float) -> None:
        self._connections = connections
        self._seconds = seconds
        self._interval = min(seconds / 4, _LONGEST_INTERVAL)
        self._next_look = 0.0
        self._unread: dict[Any, tuple[int, float]] = {}

    def look(self, now: float) -> None:
        """Look at all connections, if it is time to."""
        if now < self._next_look:
            return
        self._next_look = now + self._interval
        before, self._unread = self._unread, {}
        for connection in tuple(self._connections):
            size = _unread(connection)
            if not size:
                continue
            last_size, since = before.get(connection, (-1, now))
            if size != last_size:
                self._unread[connection] = size, now
            elif now - since < self._seconds:
                self._unread[connection] = size, since
            else:
                _abort(connection.transport)


def _abort(transport: Any) -> None:
    """Close a connection at once; without the option, the kernel would go on to offer its data."""
    with suppress(OSError):
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _unread(connection: Any) -> int:
    """Return how many bytes wait for the client, 0 while a request is being answered."""
    if not hasattr(connection, "cycle"):
        return 0  # a WebSocket
    transport, cycle = connection.transport, connection.cycle
    if cycle is None or cycle.response_complete or transport.is_closing():
        size: int = transport.get_write_buffer_size()
        return size and size + _in_kernel(transport)
    return 0


def _in_kernel(transport: Any) -> int:
    """Return how much of what was written the client's side has not taken yet.

    That a client reads slowly shows here long before it shows in the transport: the kernel asks for
    more only when a third of its buffer, which grows to megabytes, is free.
    """
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # it is closed already
        return 0
