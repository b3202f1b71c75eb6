"""A request whose answer is read while its body is still being written.

httpx writes the whole body first (httpx issue 1475), so this is an HTTP/1.1 exchange of its own, on
h11 and anyio. A task writes the rows as they come. The code that asks for items reads the socket,
only when it asks; so each side waits for the other and nothing piles up. An early answer of the
server, a 404 or a 401, is seen while rows are being written, and ends the writing.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from modelserve.client.connections import CONNECT_SECONDS, LARGEST_ERROR, LONGEST_HEAD
from modelserve.client.failures import ClientError
from modelserve.client.flows import Answer, Complaints, Form, decoder_of, is_plain, refusal
from modelserve.client.items import Decoder
from modelserve.client.lots import Lots
from modelserve.client.requests import Request, Server
from modelserve.client.sockets import BROKEN, connect
from modelserve.client.sources import Rows

if TYPE_CHECKING:
    import h11

__all__ = ["Pipe"]

_READ_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 64 * 1024  # a server has to accept so many bytes within the time limit


class Pipe(Lots):
    """The items of an answer that comes while rows are sent.

    An exception of the rows' source is raised as it is, and the server sees its client leave.
    """

    def __init__(
        self,
        request: Request,
        rows: Rows,
        complaints: Complaints,
        trusted: ssl.SSLContext | None,
        *,
        form: Form,
    ) -> None:
        super().__init__()
        self._request = request
        self._rows = rows
        self._complaints = complaints
        self._trusted = trusted
        self._form = form
        self._opened = anyio.Event()
        self._reading = anyio.CancelScope()
        self._failure: Exception | None = None
        self._stream: ByteStream | None = None
        self._connection: h11.Connection | None = None
        self._incoming: _Incoming | None = None
        self._decoder: Decoder | None = None
        self._moved = 0.0
        self._closed = self._is_reading = False

    # --- the task that writes -------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            stream = await _connect(self._complaints, self._trusted)
            try:
                self._begin(stream)
                await self._write(stream)
                if self._failure is None:
                    await anyio.sleep_forever()  # until the answer has been read
            finally:
                self._closed = True
                await self._close(stream)
        except Exception as exc:
            self._failure = exc
            self._reading.cancel()
        finally:
            self._closed = True
            self._opened.set()

    async def _close(self, stream: ByteStream) -> None:
        """Close the connection once nothing reads it any more."""
        with anyio.CancelScope(shield=True):
            self._reading.cancel()
            while self._is_reading:
                await anyio.lowlevel.checkpoint()
        await anyio.aclose_forcefully(stream)

    def _begin(self, stream: ByteStream) -> None:
        import h11

        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)
        self._incoming = _Incoming(self._connection, self._receive, self._complaints)
        self._opened.set()

    async def _write(self, stream: ByteStream) -> None:
        """Write the request; stop silently if the connection ends: the answer says why."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._rows.run)
            try:
                await self._write_rows(stream)
            except anyio.BrokenResourceError:
                pass  # the server's answer may still be unread
            except Exception as exc:  # an error of the source; the task group would wrap it
                self._failure = exc
                self._reading.cancel()
            tasks.cancel_scope.cancel()

    async def _write_rows(self, stream: ByteStream) -> None:
        import h11

        assert self._connection is not None
        try:
            head = self._connection.send(_head(self._request, self._complaints.server))
        except h11.LocalProtocolError as exc:
            raise ClientError(f"The request cannot be sent: {exc}") from None
        await self._send(stream, head)
        while lot := await self._rows.take():
            await self._send(stream, self._connection.send(h11.Data(data=b"".join(lot))))
        await self._send(stream, self._connection.send(h11.EndOfMessage()))

    async def _send(self, stream: ByteStream, piece: bytes | None) -> None:
        piece = piece or b""
        for start in range(0, len(piece), _WRITE_BYTES):
            await stream.send(piece[start : start + _WRITE_BYTES])
            self._moved = anyio.current_time()

    # --- the code that asks for items, and so reads ---------------------------------------------

    async def _next_lot(self) -> list[Any]:
        await self._opened.wait()
        self._check()
        assert self._incoming is not None
        if self._decoder is None:
            self._decoder = await self._incoming.decoder(self._form)
        while True:
            items = self._decoder.lot()
            if items or self._decoder.ended:
                return items
            self._decoder.feed(await self._incoming.piece())

    async def _receive(self) -> bytes:
        """Read the socket; return b"" at its end.

        The time limit counts while the server neither sends nor accepts bytes, but not while the
        source has no rows.
        """
        assert self._stream is not None
        self._moved = anyio.current_time()
        while True:
            self._check()
            patient_until = self._patient_until()
            if anyio.current_time() >= patient_until:
                raise self._complaints.stalled()
            with anyio.CancelScope(deadline=patient_until) as self._reading:
                try:
                    self._is_reading = True
                    return await self._stream.receive(_READ_BYTES)
                except BROKEN:
                    self._check()
                    return b""
                finally:
                    self._is_reading = False

    def _patient_until(self) -> float:
        return max(self._moved, self._rows.last_awaited()) + self._complaints.seconds

    def _check(self) -> None:
        """Raise what went wrong while connecting or writing."""
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise ClientError("The client has been closed.")


class _Incoming:
    """The response, as events of h11 made of the bytes that `receive` returns."""

    def __init__(
        self,
        connection: h11.Connection,
        receive: Callable[[], Awaitable[bytes]],
        complaints: Complaints,
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._complaints = complaints

    async def decoder(self, form: Form) -> Decoder:
        """Wait for the head of the response. Raises AnswerError for an unsuccessful one."""
        import h11

        head = await self._event(started=False)
        while isinstance(head, h11.InformationalResponse):
            head = await self._event(started=False)
        if not isinstance(head, h11.Response):
            raise self._complaints.unreadable()
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        answer = Answer(head.status_code, headers, None)
        if not 200 <= head.status_code < 300:
            raise refusal(answer._replace(body=await self._error_body()))
        if not is_plain(headers):
            raise self._complaints.unreadable()
        return decoder_of(answer, self._complaints, form)

    async def _error_body(self) -> bytes:
        """Read the body of an unsuccessful response as far as it comes."""
        body = b""
        try:
            while len(body) < LARGEST_ERROR and (piece := await self.piece()) is not None:
                body += piece
        except ClientError:
            pass  # the status is enough
        return body

    async def piece(self) -> bytes | None:
        """Return the next piece of the response's body, None at its end."""
        import h11

        event = await self._event(started=True)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise self._complaints.unreadable()

    async def _event(self, *, started: bool) -> Any:
        import h11

        ended = False
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError:
                if not ended:
                    raise self._complaints.unreadable() from None
                cut = self._complaints.cut() if started else self._complaints.no_answer()
                raise cut from None
            if event is h11.NEED_DATA:
                received = await self._receive()
                ended = not received
                self._connection.receive_data(received)
            elif isinstance(event, h11.ConnectionClosed):
                raise self._complaints.cut() if started else self._complaints.no_answer()
            else:
                return event


def _head(request: Request, server: Server) -> h11.Request:
    """Return the head of the request. Raises h11.LocalProtocolError if HTTP does not allow it."""
    import h11

    headers = [(b"host", server.authority.encode()), (b"transfer-encoding", b"chunked")]
    headers += server.headers_of(request)
    return h11.Request(method=request.method, target=server.base + request.path, headers=headers)


async def _connect(complaints: Complaints, trusted: ssl.SSLContext | None) -> ByteStream:
    """Return a connection to the server. Raises Unreachable."""
    server, seconds = complaints.server, min(complaints.seconds, CONNECT_SECONDS)
    try:
        with anyio.fail_after(seconds):
            return await connect(server.host, server.port, trusted)
    except TimeoutError:
        problem = OSError(f"no connection within {seconds:g} s")
        raise complaints.unreachable(problem) from None
    except BROKEN as exc:
        raise complaints.unreachable(exc) from None
