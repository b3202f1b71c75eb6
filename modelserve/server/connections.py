"""What uvicorn leaves undone about its connections; the one module that knows uvicorn's insides.

Three things about its httptools protocol: only the last of pipelined requests learns that the
client has left; a stream for an HTTP/1.0 client is sent in chunks, which that does not know (RFC
9112, 6.1); and a connection that was reset stays in memory for the rest of its keep-alive time. A
release whose attributes are not the known ones is left as it is.

And one about all its protocols: a client that reads nothing of a response that the application is
done with (a whole document, or the rest of a stream that was cut) keeps its connection, with all
buffers, for as long as it likes.
"""

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import uvicorn

try:
    import fcntl
    import termios
except ImportError:  # not Unix
    _HAS_IOCTL = False
else:
    _HAS_IOCTL = True

__all__ = ["StalledConnections", "has_request", "mended", "new_protocol"]

_LONGEST_INTERVAL: Final = 5.0
# The attributes of uvicorn's objects that the mended protocol relies on.
_PROTOCOL_USES: Final = frozenset(("cycle", "scope", "timeout_keep_alive_task"))
_CYCLE_USES: Final = frozenset(
    (
        "chunked_encoding",
        "disconnected",
        "expected_content_length",
        "message_event",
        "response_complete",
    )
)

Message = MutableMapping[str, Any]


def new_protocol(server: uvicorn.Server) -> asyncio.Protocol:
    """Make the protocol of a connection that was not accepted by a server's own listener."""
    protocol: asyncio.Protocol = server.config.http_protocol_class(  # type: ignore[call-arg]
        config=server.config, server_state=server.server_state, app_state=server.lifespan.state
    )
    return protocol


def has_request(connection: Any) -> bool:
    """Return whether the first request of a connection has arrived."""
    return getattr(connection, "cycle", None) is not None


# --- httptools ----------------------------------------------------------------------------------


def mended(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with what it leaves undone."""
    try:
        from uvicorn.protocols.http import httptools_impl
    except ImportError:
        return protocol
    if protocol is not httptools_impl.HttpToolsProtocol or not _is_known(httptools_impl):
        return protocol

    class MendedProtocol(httptools_impl.HttpToolsProtocol):
        """Report a lost connection to each of its requests; send HTTP/1.0 what it understands."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._earlier: deque[Any] = deque()  # cycles before `cycle`; the first may be running

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
                cycle.send = partial(_send_without_chunks, cycle, cycle.send)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.timeout_keep_alive_task is not None:  # it holds a reset connection in memory
                self.timeout_keep_alive_task.cancel()
            for cycle in self._earlier:
                if not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()
            self._earlier.clear()

    return MendedProtocol


def _is_known(httptools_impl: Any) -> bool:
    """Return whether the constructors of a release set the attributes that are used here."""
    cycle = getattr(httptools_impl, "RequestResponseCycle", None)
    return _sets(httptools_impl.HttpToolsProtocol, _PROTOCOL_USES) and _sets(cycle, _CYCLE_USES)


def _sets(cls: Any, attributes: frozenset[str]) -> bool:
    code = getattr(getattr(cls, "__init__", None), "__code__", None)
    return code is not None and attributes <= set(code.co_names)


async def _send_without_chunks(
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


# --- clients that read nothing ------------------------------------------------------------------


class StalledConnections:
    """Cut the connections whose clients have read nothing for a time.

    Only those without a running request: while one runs, its own `send_timeout` holds, and what it
    leaves unread has as long again.

    The option TCP_USER_TIMEOUT cannot do this. It also cuts clients that do read, but slowly: while
    the receive window opens by less than the next segment, the kernel sends by its probe timer, and
    counts from the first probe although data is acknowledged (Linux 6.18). And Unix domain sockets
    do not have it.
    """

    def __init__(self, connections: Iterable[Any], seconds: float) -> None:
        self._connections = connections
        self._seconds = seconds
        self._interval = min(seconds / 4, _LONGEST_INTERVAL)
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
    if transport is None or not hasattr(connection, "cycle"):
        return 0  # a WebSocket
    if cycle is None or getattr(cycle, "response_complete", False) or transport.is_closing():
        size: int = transport.get_write_buffer_size()
        # Below a TLS transport there is another one, which may hold all and cannot be seen.
        if size or transport.get_extra_info("sslcontext") is not None:
            size += _unsent_by_kernel(transport)
        return size
    return 0


def _unsent_by_kernel(transport: Any) -> int:
    """Return how much of what was written the client's system has not acknowledged.

    It shows that a client reads slowly long before the transport's buffer does: the kernel asks for
    more only when a third of its own, which grows to megabytes, is free.
    """
    if not _HAS_IOCTL:
        return 0
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # it is closed already
        return 0


def _abort(transport: Any) -> None:
    """Reset a connection. Without the option, the kernel would go on offering the data it holds."""
    with suppress(OSError):
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
