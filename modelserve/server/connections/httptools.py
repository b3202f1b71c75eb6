"""uvicorn's protocol for httptools, fixed."""

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.flow_control import FlowControl

from modelserve.server.connections.refusals import (
    LONGEST_HEAD,
    MOST_FIELDS,
    MOST_WAITING_BYTES,
    TOO_LONG,
    Lingering,
)

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
else:
    HttpToolsProtocol = object

__all__ = ["HttpToolsMends"]

_PART: Final = 1 << 12  # bytes that are parsed at once: at most about 200 requests
_MOST_WAITING: Final = 100  # pipelined requests; while so many wait, no more are parsed
# The bytes of framing allowed for each byte of a body: a chunk of one byte has five.
_FRAMING: Final = 16

Message = MutableMapping[str, Any]


class _Dropped(list[tuple[bytes, bytes]]):
    """A list that drops what is appended: the fields of trailers."""

    def append(self, field: tuple[bytes, bytes], /) -> None:
        pass


_DROPPED: Final = _Dropped()


class _Flow(FlowControl):
    """A flow control that does not resume reading while `is_held`."""

    is_held = False

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()


class _Repeated:
    """Passes a parser's calls to a protocol, except those for a head that it already has."""

    def __init__(self, protocol: "HttpToolsMends") -> None:
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
    """uvicorn's protocol for httptools, with correct requests."""

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
        if self.timeout_keep_alive_task is not None:  # it would keep a reset connection in memory
            self.timeout_keep_alive_task.cancel()
        for cycle in self._earlier:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._earlier.clear()


class _InOrder(Lingering, _Requests):
    """The same; malformed data is answered after the requests before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_amid = False  # inside of a request, or requests or data wait
        self._refusal: Callable[[], None] | None = None  # sent in its turn
        self._overhead = 0  # bytes of heads and of framing

    def _when_answered(self) -> None:
        """Have `_go_on` called once no request waits. This costs other connections nothing."""
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
        self._refuse(partial(self.answer_malformed, msg))

    def _refuse(self, answer: Callable[[], None]) -> None:
        """Answer malformed data once all requests before it are answered."""
        self._is_amid = True
        self._refusal = answer
        cycle = self.cycle
        if not self._is_in_head() and cycle.more_body and not cycle.response_complete:
            if not self.pipeline:  # the malformed request is the one that is running
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


class HttpToolsMends(_InOrder):
    """The same, with bounds.

    Nearly all requests come in a read of their own, and are parsed as uvicorn does it. In any other
    case at most `_PART` bytes are parsed at a time, and `_settle` checks the result. Bytes that may
    not be parsed yet are kept in `_rest`; while there are any, nothing is read.
    """

    _parse_all: Callable[[bytes | memoryview], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rest: memoryview | None = None
        self._body_left = 0  # bytes to come by the content-length
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
            self.discard(len(data))
        elif self._rest is not None:
            self._rest = data

    def _parse(self, part: memoryview) -> int:
        """Parse a part; return how many of its bytes were parsed."""
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
        """Ignore an upgrade to an unknown protocol and parse on; return where."""
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
        """Return whether the connection is still open and HTTP's, not a WebSocket's."""
        return self in self.connections and not self.transport.is_closing()

    def _begin_body(self) -> None:
        """Take a length from the head that has just been parsed."""
        cycle = self.cycle
        self._body_left = 0
        if cycle is not None and cycle.scope is self.scope and cycle.more_body:
            for name, value in cycle.scope["headers"]:
                if name == b"content-length":  # llhttp has checked that it is a number
                    self._body_left = max(0, int(value) - len(cycle.body))

    def _settle(self, size: int) -> None:
        """Check the bounds, now that so many bytes have been parsed."""
        if not self._is_open() or self._refusal is not None:
            return
        is_in_head = self._is_in_head()
        self._is_amid = is_in_head or self.cycle.more_body or bool(self.pipeline)
        if is_in_head:
            is_long = self._overhead > LONGEST_HEAD
            if is_long or (self.headers is not None and len(self.headers) > MOST_FIELDS):
                self._refuse(partial(self.answer, 431, TOO_LONG))
                return
        elif self._overhead > LONGEST_HEAD:
            self.transport.abort()
            return
        if not self.pipeline:
            self._waiting_bytes = 0
            return
        self._waiting_bytes += size
        if len(self.pipeline) > _MOST_WAITING or self._waiting_bytes > MOST_WAITING_BYTES:
            self._rest = memoryview(b"")
            self.flow.pause_reading()
            self.flow.is_held = True
            self._when_answered()
        else:
            self.flow.resume_reading()

    def _go_on(self) -> None:
        """Parse on, now that no request waits any more, or answer malformed data."""
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
