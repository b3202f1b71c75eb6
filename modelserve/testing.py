"""Drive any ASGI application message by message, without a server: for tests of streams.

Other test clients return a response once the application has finished, and cannot hang up. This
one returns each event as it is sent, and may disconnect or stop reading at any moment. To the
application it behaves like a server: after a disconnect or the last event, every `receive` returns
`http.disconnect`, and after a disconnect `send` does nothing.

    async with exchange(app, "POST", "/v1/models/m:predict", json={"instances": [1]}) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"first item"
        client.hang_up()
        await client.ended()

    async with websocket(app, "/v1/models/m:predict") as client:
        client.send('{"x": 1}')
        assert await client.message() == '{"y": 2}'
        client.send("")
        assert (await client.closed()).code == 1000

Works on asyncio and trio. Every wait is bounded by `timeout` seconds and raises TimeoutError.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import anyio
import orjson
from starlette.datastructures import Headers

__all__ = [
    "Closed",
    "Cut",
    "Exchange",
    "Head",
    "Response",
    "Socket",
    "exchange",
    "lifespan",
    "request",
    "websocket",
]

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

_DISCONNECT: Final = "http.disconnect"
_LAST: Final = ("http.response.body", "websocket.close", "websocket.http.response.body")


class Cut(Exception):
    """The application ended before its response was complete: a server cuts the connection."""


@dataclass(frozen=True, slots=True)
class Head:
    """The status and the headers of a response."""

    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; `chunks` has the body of each event, except an empty last one."""

    status: int
    headers: Headers
    chunks: Sequence[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return orjson.loads(self.body)


class Exchange:
    """One request to an application, and its response, as the client sees them.

    Attributes:
        error: What the application raised.
        gone: Whether the client has disconnected.
        over: Whether the application has returned or raised.
        scope: The ASGI scope of the request.
        task: The task that the application runs in (asyncio only).
    """

    def __init__(self, app: App, scope: Message, *, timeout: float) -> None:
        self.error: BaseException | None = None
        self.scope = scope
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self._app = app
        self._timeout = timeout
        self._sent: deque[Message] = deque()
        self._to_app: deque[Message] = deque()
        self._complete = False
        self._over = False
        self._held = False
        self._changed = anyio.Event()
        self._leaving: Message = {"type": _DISCONNECT}

    # -- for the test

    async def head(self) -> Head:
        """Wait for the start of the response. Raises Cut if the application ends without one."""
        message = await self._next("http.response.start")
        if message is None:
            raise Cut("The application ended without a response.") from self.error
        return Head(message["status"], Headers(raw=message.get("headers", [])))

    async def chunk(self) -> bytes | None:
        """Wait for the next body event; None once the response is complete.

        Raises Cut if the application ends before it is.
        """
        while True:
            message = await self._next("http.response.body")
            if message is None:
                if self._complete:
                    return None
                raise Cut("The response was not completed.") from self.error
            body = bytes(message.get("body", b""))
            if body or message.get("more_body", False):
                return body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self.chunk()) is not None:
            yield chunk

    async def response(self) -> Response:
        """Wait for the whole response. Raises Cut."""
        head = await self.head()
        return Response(head.status, head.headers, [chunk async for chunk in self])

    def send_body(self, body: bytes, *, more: bool = False) -> None:
        """Send a part of the request's body; for an `exchange` with `body=None`."""
        self._to_app.append({"type": "http.request", "body": body, "more_body": more})
        self._notify()

    def hang_up(self) -> None:
        """Disconnect: from now on `receive` returns `http.disconnect`."""
        self.gone = True
        self._notify()

    def hold(self) -> None:
        """Stop reading: the next `send` does not return until `resume` or `hang_up`."""
        self._held = True

    def resume(self) -> None:
        """Start to read again."""
        self._held = False
        self._notify()

    async def ended(self) -> None:
        """Wait until the application has returned or raised; `error` has what it raised."""
        await self._until(lambda: self._over)

    @property
    def over(self) -> bool:
        """Whether the application has returned or raised."""
        return self._over

    # -- for the application

    async def run(self) -> None:
        """Run the application in the current task."""
        try:
            await self._app(self.scope, self._receive, self._send)
        except BaseException as exc:
            self.error = exc
            # Like servers, survive an application's exceptions; a cancellation is the test's.
            if isinstance(exc, GeneratorExit | anyio.get_cancelled_exc_class()):
                raise
        finally:
            self._over = True
            self._notify()

    async def _receive(self) -> Message:
        while True:
            if self._to_app and not self.gone:
                return self._to_app.popleft()
            if self.gone or self._complete:
                return self._leaving
            await self._changed.wait()

    async def _send(self, message: Message) -> None:
        while self._held and not self.gone:
            await self._changed.wait()
        if self.gone:
            return
        self._sent.append(message)
        if message["type"] in _LAST and not message.get("more_body", False):
            self._complete = True
        self._notify()

    # -- waiting

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(self._timeout):
            while not condition():
                await self._changed.wait()

    async def _next(self, kind: str) -> Message | None:
        await self._until(lambda: bool(self._sent) or self._over or self._complete)
        if not self._sent:
            return None
        message = self._sent.popleft()
        assert message["type"] == kind, f"{kind} expected, {message['type']} came"
        return message


class Closed(NamedTuple):
    """How a WebSocket was closed."""

    code: int
    reason: str


class Socket:
    """One WebSocket to an application, as the client sees it.

    Attributes:
        exchange: The underlying exchange, with `error`, `gone`, `over`, `task`, `hold` and
            `resume`.
    """

    def __init__(self, client: Exchange) -> None:
        self.exchange = client
        self._closed: Closed | None = None
        client._to_app.append({"type": "websocket.connect"})

    async def accepted(self) -> str | None:
        """Wait for the end of the handshake; return the subprotocol.

        Raises Cut if it is refused.
        """
        message = await self._next()
        if message is None or message["type"] != "websocket.accept":
            raise Cut(f"The WebSocket was not accepted: {message}") from self.exchange.error
        subprotocol: str | None = message.get("subprotocol")
        return subprotocol

    async def denial(self) -> Response:
        """Wait for the answer to a refused handshake; a bare 403 if there is none."""
        message = await self._next()
        if message is not None and message["type"] == "websocket.close":
            return Response(403, Headers(), [])
        if message is None or message["type"] != "websocket.http.response.start":
            raise Cut(f"The handshake was not refused: {message}") from self.exchange.error
        chunks: list[bytes] = []
        more = True
        while more:
            part = await self._next()
            if part is None:
                raise Cut("The refusal was not completed.") from self.exchange.error
            chunks.append(part.get("body", b""))
            more = part.get("more_body", False)
        return Response(message["status"], Headers(raw=message.get("headers", [])), chunks)

    async def message(self) -> str | bytes | None:
        """Wait for the next message; None once the WebSocket is closed.

        Raises Cut if the application ends without closing it.
        """
        while self._closed is None:
            message = await self._next()
            if message is None:
                raise Cut("The WebSocket was not closed.") from self.exchange.error
            if message["type"] == "websocket.close":
                self._closed = Closed(message.get("code", 1000), message.get("reason") or "")
            elif message["type"] == "websocket.send":
                data: bytes | None = message.get("bytes")
                return message["text"] if data is None else data
        return None

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while (message := await self.message()) is not None:
            yield message

    async def closed(self) -> Closed:
        """Wait until the application has closed the WebSocket; messages before that are lost."""
        async for _ in self:
            pass
        assert self._closed is not None
        return self._closed

    def send(self, message: str | bytes) -> None:
        """Send a message: text or bytes."""
        key = "text" if isinstance(message, str) else "bytes"
        self.exchange._to_app.append({"type": "websocket.receive", key: message})
        self.exchange._notify()

    def close(self, code: int = 1000) -> None:
        """Close, or with 1006 disappear: `receive` returns that after the sent messages."""
        leaving = {"type": "websocket.disconnect", "code": code, "reason": ""}
        self.exchange._to_app.append(leaving)
        self.exchange._leaving = leaving
        self.exchange._notify()

    async def ended(self) -> None:
        """Wait until the application has returned or raised."""
        await self.exchange.ended()

    async def _next(self) -> Message | None:
        client = self.exchange
        await client._until(lambda: bool(client._sent) or client._over)
        return client._sent.popleft() if client._sent else None


@asynccontextmanager
async def websocket(
    app: App,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    accept: bool = True,
    timeout: float = 10.0,
    **scope: Any,
) -> AsyncIterator[Socket]:
    """Open one WebSocket; on leaving the block, disappear and wait until the application has ended.

    Args:
        accept: Wait until the application has accepted. Without it, `accepted` or `denial` waits.
        scope: Further keys of the ASGI scope, such as `root_path`.

    Raises Cut if it is not accepted.
    """
    given = _scope("GET", path, {"host": "127.0.0.1:8080", **(headers or {})})
    del given["method"]
    socket_keys: Message = {
        "type": "websocket",
        "scheme": "ws",
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}},
    }
    client = Exchange(app, {**given, **socket_keys, **scope}, timeout=timeout)
    client._leaving = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    socket = Socket(client)
    _start(client)
    try:
        if accept:
            await socket.accepted()
        yield socket
    finally:
        client.hang_up()
        with anyio.CancelScope(shield=True):
            await client.ended()


@asynccontextmanager
async def exchange(
    app: App,
    method: str,
    path: str,
    *,
    body: bytes | None = b"",
    json: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    **scope: Any,
) -> AsyncIterator[Exchange]:
    """Send one request; on leaving the block, hang up and wait until the application has ended.

    Args:
        body: The request's body; None to send it with `send_body`.
        json: A value to send as a JSON body instead.
        scope: Further keys of the ASGI scope, such as `root_path`.

    What the application raises is kept in `error`.
    """
    if json is not None:
        body = orjson.dumps(json)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        headers = {"content-type": "application/json", **given}
    client = Exchange(app, {**_scope(method, path, headers or {}), **scope}, timeout=timeout)
    if body is not None:
        client.send_body(body)
    _start(client)
    try:
        yield client
    finally:
        client.hang_up()
        with anyio.CancelScope(shield=True):
            await client.ended()


async def request(app: App, method: str, path: str, **options: Any) -> Response:
    """Send one request and return the whole response; options as for `exchange`. Raises Cut."""
    async with exchange(app, method, path, **options) as client:
        response = await client.response()
        await client.ended()
        return response


@asynccontextmanager
async def lifespan(app: App, *, timeout: float = 10.0) -> AsyncIterator[None]:
    """Run an application's lifespan around a block. Raises RuntimeError if it fails."""
    client = _Lifespan(app, timeout=timeout)
    _start(client)
    await client.complete("startup")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await client.complete("shutdown")


class _Lifespan(Exchange):
    """The messages of a lifespan, in the same queues."""

    def __init__(self, app: App, *, timeout: float) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        super().__init__(app, scope, timeout=timeout)

    async def complete(self, stage: str) -> None:
        self._to_app.append({"type": f"lifespan.{stage}"})
        self._notify()
        await self._until(lambda: bool(self._sent) or self._over)
        message = self._sent.popleft() if self._sent else {"type": "nothing"}
        if message["type"] != f"lifespan.{stage}.complete":
            raise RuntimeError(f"{stage} failed: {message.get('message')}") from self.error


def _scope(method: str, path: str, headers: Mapping[str, str]) -> Message:
    raw_path, _, query = path.encode().partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path.decode()),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
    }


def _start(client: Exchange) -> None:
    """Run the application in a task outside of the test's cancel scopes, as a server does."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        trio.lowlevel.spawn_system_task(client.run)
    else:
        client.task = loop.create_task(client.run())
