"""What uvicorn leaves undone about its connections; the one module that knows uvicorn's insides.

Its httptools protocol, each mended by the method that is named:

- All requests of a read are parsed at once, and each answer lets another read in, so that any
  number may wait (`_receive`); while any wait, nothing is read, not even that the client has left
  (`_settle`).
- Heads, trailers and the extensions of chunks have no bound (`_settle`).
- The fields of a trailer become headers of the request (`on_headers_complete`; RFC 9110, 6.5.1).
- A stream for an HTTP/1.0 client is sent in chunks, which that does not know
  (`on_headers_complete`; RFC 9112, 6.1).
- The body of a request that asks for a protocol which is not spoken, as Java's client and `curl
  --http2` do, is lost where it comes in the same read, and parsed as requests where it does not
  (`_ignore_upgrade`; RFC 9110, 7.8).
- What cannot be parsed is answered at once, before or inside of the responses to the requests in
  front of it (`send_400_response`).
- Only the last of pipelined requests learns that the client has left, and a connection that was
  reset stays in memory for the rest of its keep-alive time (`connection_lost`).

Its h11 protocol (`_H11`): a head that is too long is a 400, or none if it comes in one read; what
cannot be parsed behind a response that has begun is an exception; while requests wait, nothing is
read.

Both: a client that never ends its head, or stops inside of a body, keeps its connection for ever
(`SilentConnections`); so does one that reads nothing of a response that the application is done
with (`StalledConnections`).

A release whose attributes are not the known ones is left as it is.
"""

import asyncio
import json
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

try:
    import fcntl
    import termios
except ImportError:  # not Unix
    _HAS_IOCTL = False
else:
    _HAS_IOCTL = True

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
else:
    H11Protocol = HttpToolsProtocol = object

__all__ = [
    "LONGEST_HEAD",
    "SilentConnections",
    "StalledConnections",
    "has_request",
    "mended",
    "new_protocol",
    "watch",
]

LONGEST_HEAD: Final = 1 << 16  # bytes of a head; as much again of a body may be no data
_MOST_FIELDS: Final = 1000  # of a head that comes in several parts; each takes far more than it has
_PART: Final = 1 << 12  # bytes that are parsed at once: no more than some 200 requests
_MOST_WAITING: Final = 100  # pipelined requests, beyond which a client's next ones are not parsed
_MOST_WAITING_BYTES: Final = 1 << 14
# Bytes of framing that each byte of a body allows: chunks of one byte have five.
_FRAMING: Final = 16
_H11_PART: Final = 1 << 14  # what h11 takes at once: it sees that a head is too long in between
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1 << 18

_LONGEST_INTERVAL: Final = 5.0
# The attributes of uvicorn's objects that the mended protocols rely on.
_PROTOCOL_USES: Final = frozenset(
    ("cycle", "flow", "headers", "parser", "pipeline", "scope", "timeout_keep_alive_task")
)
_CYCLE_USES: Final = frozenset(
    (
        "body",
        "chunked_encoding",
        "disconnected",
        "expected_content_length",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
    )
)
_H11_USES: Final = frozenset(("conn", "cycle", "timeout_keep_alive_task"))
_TOO_LONG: Final = (
    f"The head of the request has more than {LONGEST_HEAD} bytes or {_MOST_FIELDS} fields."
)
_TOO_LATE: Final = "The head of the request was not received in time."

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


def watch(connections: Iterable[Any], *, unread: float, unsent: float) -> Callable[[float], None]:
    """Return what is to be called often, with the time: it cuts the clients that are too slow.

    Args:
        connections: Those of the server.
        unread: Seconds in which a client has to read something.
        unsent: Seconds in which it has to send a head, and a part of a body.
    """
    watches = StalledConnections(connections, unread), SilentConnections(connections, unsent)

    def check(now: float) -> None:
        for each in watches:
            each.check(now)

    return check


def mended(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with what it leaves undone."""
    module = sys.modules.get(protocol.__module__)
    cycle = getattr(module, "RequestResponseCycle", None)
    if protocol.__qualname__ == "HttpToolsProtocol":
        is_known = _sets(protocol, _PROTOCOL_USES) and _sets(cycle, _CYCLE_USES)
        # These two are called for each request; `super()` would cost it as much as the bounds do.
        direct = {
            "_parse_all": protocol.data_received,
            "_on_body": getattr(protocol, "on_body", None),
        }
        return type("MendedHttpTools", (_Bounded, protocol), direct) if is_known else protocol
    if protocol.__qualname__ == "H11Protocol" and _sets(protocol, _H11_USES):
        return type("MendedH11", (_H11, protocol), {})
    return protocol


def _sets(cls: Any, attributes: frozenset[str]) -> bool:
    """Return whether the constructor of a class sets these attributes."""
    code = getattr(getattr(cls, "__init__", None), "__code__", None)
    return code is not None and attributes <= set(code.co_names)


class _Lingering:
    """Reads on for a moment after a refusal: a reset would keep its client from reading why."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    timeout_keep_alive_task: Any
    _unset_keepalive_if_required: Callable[[], None]
    _discarded = 0

    def _answer(self, status: int, sentence: str) -> None:
        """Send a response, and close the connection once the client has had time to read it."""
        self.transport.write(_document(status, sentence))
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > _LINGER_BYTES:
            self.transport.abort()


# --- httptools ----------------------------------------------------------------------------------


class _Dropped(list[tuple[bytes, bytes]]):
    """Where the fields of trailers go."""

    def append(self, field: tuple[bytes, bytes], /) -> None:
        pass


_DROPPED: Final = _Dropped()


class _Flow(FlowControl):
    """Lets nothing be read, whoever asks, while `is_held`."""

    is_held = False

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()


class _Repeated:
    """Receive a parser's calls for a protocol; those for a head that it has had are dropped."""

    def __init__(self, protocol: "_Bounded") -> None:
        self._protocol = protocol
        self._has_had_head = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def parser_inside(self, framing: bytes) -> Any:
        """Return a parser that has parsed a head with this field. Raises ValueError."""
        import httptools

        parser = httptools.HttpRequestParser(self)
        with suppress(AttributeError):  # a release before 0.6.3
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        try:
            parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        except httptools.HttpParserError as exc:
            raise ValueError(f"not a framing: {framing!r}") from exc
        self._has_had_head = False
        return parser

    def on_message_begin(self) -> None:
        if not self._has_had_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._has_had_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_had_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._has_had_head:
            self._protocol.on_headers_complete()


class _Requests(HttpToolsProtocol):
    """uvicorn's protocol for httptools, whose requests are right."""

    _on_body: Callable[[bytes], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received = 0  # bytes of bodies
        self._earlier: deque[Any] = deque()  # cycles before `cycle`; the first may be running

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return
        self.headers = _DROPPED
        if before is not None and not before.response_complete:
            while self._earlier and self._earlier[0].response_complete:
                self._earlier.popleft()
            self._earlier.append(before)
        if self.scope["http_version"] == "1.0":
            cycle: Any = self.cycle
            cycle.send = partial(_send_without_chunks, cycle, cycle.send)

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        self._on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:  # it holds a reset connection in memory
            self.timeout_keep_alive_task.cancel()
        for cycle in self._earlier:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._earlier.clear()


class _InOrder(_Lingering, _Requests):
    """The same, and answers what cannot be parsed in its turn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_amid = False  # in a request, or requests wait, or some data does
        self._refusal: Callable[[], None] | None = None  # once all before it are answered
        self._overhead = 0  # bytes of a head or a body that were no data

    def _when_answered(self) -> None:
        """See to it that `_go_on` is called once no request waits. Others pay nothing for it."""
        for cycle in (*self._earlier, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.on_response = self._on_response_complete

    def _on_response_complete(self) -> None:
        self.on_response_complete()
        if not self.pipeline:
            self._go_on()

    def _go_on(self) -> None:
        raise NotImplementedError

    def _is_in_head(self) -> bool:
        return self.cycle is None or self.cycle.scope is not self.scope

    def send_400_response(self, msg: str) -> None:
        self._refuse(partial(super().send_400_response, msg))

    def _refuse(self, answer: Callable[[], None]) -> None:
        """Answer what cannot be parsed once all requests before it are answered."""
        self._is_amid = True
        self._refusal = answer
        cycle = self.cycle
        if not self._is_in_head() and cycle.more_body and not cycle.response_complete:
            if not self.pipeline:  # it is the request that is running
                if cycle.response_started:
                    self.transport.close()
                else:
                    answer()
                return
            self.pipeline.popleft()
            self.cycle = self._earlier.pop()
            cycle = self.cycle
        if not self.pipeline and (cycle is None or cycle.response_complete):
            answer()
        else:
            self._when_answered()


class _Bounded(_InOrder):
    """The same, with bounds.

    Nearly all requests come in one read that holds nothing else, and are parsed as uvicorn does it.
    Of all others at most `_PART` bytes are parsed at a time, and `_settle` looks at what they made.
    What a connection may not have parsed yet is its `_rest`; while it has one, nothing is read.
    """

    _parse_all: Callable[[bytes | memoryview], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rest: memoryview | None = None
        self._body_left = 0  # by the content-length
        self._waiting_bytes = 0  # since requests wait
        self._stopped_at: int | None = None  # by a head that asks for another protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_amid or len(data) > _PART:
            self._receive(memoryview(data))
            return
        self._parse_all(data)
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.scope is not self.scope or self.pipeline:
            parsed = len(data) if self._stopped_at is None else self._ignore_upgrade()
            self._overhead = 0
            self._begin_body()
            self._settle(parsed)
            if parsed < len(data):
                self._receive(memoryview(data)[parsed:])

    def _receive(self, data: memoryview) -> None:
        """Parse what may be parsed now; keep the rest."""
        if self._rest is not None:
            data = memoryview(bytes(self._rest) + data)
        elif self._refusal is None:
            while data and self._rest is None and self._refusal is None:
                data = data[self._parse(data[: max(_PART, self._body_left)]) :]
                if not self._is_open():
                    return
        if self._refusal is not None:
            self._discard(len(data))
        elif self._rest is not None:
            self._rest = data

    def _parse(self, part: memoryview) -> int:
        """Return how much of it has been parsed."""
        scope, cycle, received = self.scope, self.cycle, self.received
        self._parse_all(part)
        parsed = len(part) if self._stopped_at is None else self._ignore_upgrade()
        self._body_left = max(0, self._body_left - len(part))
        if scope is self.scope and cycle is self.cycle:
            self._overhead += len(part) - (_FRAMING + 1) * (self.received - received)
            self._overhead = max(0, self._overhead)
        else:
            self._overhead = 0
            self._begin_body()
        self._settle(parsed)
        return parsed

    def _unsupported_upgrade_warning(self) -> None:
        super()._unsupported_upgrade_warning()
        exc = sys.exception()
        if isinstance(exc, Exception) and self.cycle is not None:
            self._stopped_at = exc.args[0]
            self.cycle.more_body = True

    def _ignore_upgrade(self) -> int:
        """Parse on behind a head that asks for a protocol which is not spoken; return where."""
        stopped_at, self._stopped_at = self._stopped_at, None
        framing = b"content-length: 0"
        for name, value in self.cycle.scope["headers"]:
            if name in (b"content-length", b"transfer-encoding"):
                framing = b"%b: %b" % (name, value)
        try:
            self.parser = _Repeated(self).parser_inside(framing)
        except ValueError:
            self.send_400_response("Invalid HTTP request received.")
        return stopped_at or 0

    def _is_open(self) -> bool:
        """Return whether it has not ended, and is not a WebSocket's now."""
        return self in self.connections and not self.transport.is_closing()

    def _begin_body(self) -> None:
        """Take a length from the head that has just been parsed."""
        cycle = self.cycle
        self._body_left = 0
        if cycle is not None and cycle.scope is self.scope and cycle.more_body:
            for name, value in cycle.scope["headers"]:
                if name == b"content-length":  # llhttp has made sure that it is a number
                    self._body_left = max(0, int(value) - len(cycle.body))

    def _settle(self, size: int) -> None:
        """See to the bounds, now that so many bytes have been parsed."""
        if not self._is_open() or self._refusal is not None:
            return
        is_in_head = self._is_in_head()
        self._is_amid = is_in_head or self.cycle.more_body or bool(self.pipeline)
        if is_in_head:
            is_long = self._overhead > LONGEST_HEAD
            if is_long or (self.headers is not None and len(self.headers) > _MOST_FIELDS):
                self._refuse(partial(self._answer, 431, _TOO_LONG))
                return
        elif self._overhead > LONGEST_HEAD:
            self.transport.abort()
            return
        if not self.pipeline:
            self._waiting_bytes = 0
            return
        self._waiting_bytes += size
        if len(self.pipeline) > _MOST_WAITING or self._waiting_bytes > _MOST_WAITING_BYTES:
            self._rest = memoryview(b"")
            self.flow.pause_reading()
            self.flow.is_held = True
            self._when_answered()
        else:
            self.flow.resume_reading()

    def _go_on(self) -> None:
        """Parse on, now that no request waits any more, or give the answer to what cannot be."""
        self.flow.is_held = False
        rest, self._rest = self._rest, None
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            if self.cycle is None or self.cycle.response_complete:
                self._refusal()
        elif rest is not None:
            self._waiting_bytes = 0
            self._receive(rest)
        if self._rest is None:
            self.flow.resume_reading()


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


def _document(status: int, sentence: str) -> bytes:
    """Return a whole response, which ends its connection."""
    body = json.dumps({"error": sentence}, separators=(",", ":")).encode()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b"
        % (status, HTTPStatus(status).phrase.encode(), len(body), body)
    )


# --- h11 ----------------------------------------------------------------------------------------


class _H11(_Lingering, H11Protocol):
    """uvicorn's protocol for h11, which answers what cannot be parsed as it should."""

    received = 0  # bytes of bodies
    _is_refused = False

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._discard(len(data))
            return
        for start in range(0, len(data), _H11_PART):
            cycle = self.cycle
            before = 0 if cycle is None else len(cycle.body)
            super().data_received(data[start : start + _H11_PART])
            if cycle is not None and cycle is self.cycle:
                self.received += len(cycle.body) - before
            if self._is_refused or self not in self.connections or self.transport.is_closing():
                return
        if self.flow.read_paused and self._may_read():
            self.flow.resume_reading()

    def _may_read(self) -> bool:
        waiting, _ = self.conn.trailing_data
        return len(self.cycle.body) <= HIGH_WATER_LIMIT and len(waiting) <= _MOST_WAITING_BYTES

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # nothing may be sent inside of it
        elif getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._is_refused = True
            self._answer(431, _TOO_LONG)
        else:
            super().send_400_response(msg)


# --- clients that send nothing ------------------------------------------------------------------


class SilentConnections:
    """Cut the connections whose clients do not send what the server waits for.

    A head has to be complete in so many seconds; of a body some data has to come in that time. A
    connection that is idle between two requests has the keep-alive time. A client that closes its
    connection while it is not being read, having sent more than the server takes, is noticed here.
    """

    def __init__(self, connections: Iterable[Any], seconds: float) -> None:
        self._connections = connections
        self._seconds = seconds
        self._interval = min(seconds / 4, _LONGEST_INTERVAL)
        self._next_check = 0.0
        self._waited_for: dict[Any, tuple[tuple[Any, int], float]] = {}

    def check(self, now: float) -> None:
        """Check all connections, if it is time to."""
        if now < self._next_check:
            return
        self._next_check = now + self._interval
        before, self._waited_for = self._waited_for, {}
        for connection in tuple(self._connections):
            if _has_left(connection):
                connection.transport.abort()
                continue
            awaited = _awaited(connection)
            if awaited is None:
                continue
            last, since = before.get(connection, (None, now))
            if last is None or last[0] is not awaited[0] or last[1] != awaited[1]:
                self._waited_for[connection] = awaited, now
            elif now - since < self._seconds:
                self._waited_for[connection] = awaited, since
            else:
                _end_late(connection)


def _awaited(connection: Any) -> tuple[Any, int] | None:
    """Return what changes when a client sends what is waited for; None where nothing is."""
    try:
        cycle = connection.cycle
        if cycle is None or cycle.response_complete:
            is_idle = connection.timeout_keep_alive_task is not None
            return None if is_idle or connection.transport.is_closing() else (cycle, 0)
        if cycle.more_body and not _is_excused(connection):
            return cycle, connection.received
    except AttributeError:  # a WebSocket, or a protocol that is not known
        pass
    return None


def _has_left(connection: Any) -> bool:
    """Return whether a client is gone that nobody else notices: nothing is being read."""
    try:
        if not connection.flow.read_paused or connection.transport.is_closing():
            return False
        ended = select.poll()
        ended.register(connection.transport.get_extra_info("socket"), select.POLLRDHUP)
        return bool(ended.poll(0))
    except (AttributeError, OSError, ValueError):  # another protocol, not Linux, closed already
        return False


def _is_excused(connection: Any) -> bool:
    """Return whether a client is right not to send more of a body now."""
    cycle = connection.cycle
    return (
        connection.flow.read_paused
        or cycle.waiting_for_100_continue
        or cycle.response_started  # it may be a conversation
        or bool(getattr(connection, "pipeline", ()))  # another request is running
    )


def _end_late(connection: Any) -> None:
    """End a connection; say why where a head has begun and no response is under way."""
    cycle, transport = connection.cycle, connection.transport
    if (cycle is None or cycle.response_complete) and _has_begun(connection):
        transport.write(_document(408, _TOO_LATE))
        transport.close()
    else:
        transport.abort()


def _has_begun(connection: Any) -> bool:
    """Return whether a part of a head has come."""
    conn, scope = getattr(connection, "conn", None), connection.scope
    if conn is not None:
        return bool(conn.trailing_data[0])
    return scope is not None and (connection.cycle is None or connection.cycle.scope is not scope)


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
    if transport is None:
        return 0
    is_socket = not hasattr(connection, "cycle")  # which may have to close, and cannot
    if is_socket and not transport.is_closing():
        return 0
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
