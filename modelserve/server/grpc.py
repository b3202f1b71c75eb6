"""gRPC's own port: grpcio's server, in the event loop of the HTTP server, in front of the same app.

grpcio brings HTTP/2: flow control, TLS, clients of every kind. A call becomes a request of ASGI
whose messages are in frames, as gRPC-Web's are, so that the application answers both alike. Where
a client leaves, grpcio cancels the task of its call: for one message, that of the application
itself, which is told what a cancellation means; for a stream, one that waits for the application,
which gets a disconnect.
"""

import asyncio
import logging
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from starlette.types import ASGIApp, Message, Scope

from modelserve.concurrency.flight import CANCELS
from modelserve.errors import LoadError, ResponseCut
from modelserve.limits import TIMEOUT_HEADER
from modelserve.server.settings import Settings
from modelserve.wire.grpc import (
    CONTENT_TYPE,
    FRAMES,
    HEALTH,
    MESSAGE,
    SERVICE,
    STATUS,
    STREAMS,
    Frames,
    code_of_host,
    code_of_http,
    frame,
    is_trailers,
    only_message,
    quoted,
    read_trailers,
    unquoted,
)
from modelserve.wire.headers import Header

__all__ = ["GrpcPort"]

logger = logging.getLogger("modelserve")

_CODES: Final[Mapping[int, Any]] = {code.value[0]: code for code in grpc.StatusCode}
_UNKNOWN: Final = 2
_CONTENT: Final[Header] = (b"content-type", CONTENT_TYPE)
# Headers that describe a message of HTTP, or that the bridge sets itself.
_NOT_PASSED: Final = frozenset(
    ("connection", "content-encoding", "content-length", "content-type", "te", "transfer-encoding")
)
_LEFT_OUT: Final = (b"content-", b"grpc-", b"connection", b"transfer-encoding")
_ID: Final = b"x-request-id"
_KEY: Final = re.compile(rb"[0-9a-z_.-]+")
_VALUE: Final = re.compile(rb"[\x20-\x7e]*")
# The time in which a cancellation shows: at first it looks like the end of a stream of requests.
_CANCELLATION_SECONDS: Final = 0.005
_GONE: Final = {"type": "http.disconnect"}
_LEAST_SECONDS: Final = 1e-9  # a time-out of 0 has passed
_LEAST_GRACE: Final = 0.1
_SERVICES: Final = (f"{SERVICE}/", f"{HEALTH}/")


class GrpcPort:
    """A port on which gRPC is served.

    Args:
        app: The application.
        settings: With a `grpc_port`.
        limit: The most bytes that a message may have.

    Raises LoadError for a key or a certificate that cannot be used.
    """

    def __init__(self, app: ASGIApp, settings: Settings, *, limit: float) -> None:
        self._app = app
        self._settings = settings
        self._limit = limit
        self._credentials = _credentials(settings.uvicorn)
        self._server: Any = None

    async def start(self, state: Mapping[str, Any]) -> None:
        """Listen; `state` is the lifespan's. Raises OSError, unless the port is optional."""
        settings = self._settings
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers((_Methods(self._app, state, self._credentials),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = _listen(server, f"{host}:{settings.grpc_port}", self._credentials)
        except RuntimeError:  # without a reason
            text = f"gRPC's port {settings.grpc_port} of {host} cannot be used"
            if not settings.grpc_is_optional:
                raise OSError(text) from None
            logger.warning("%s: gRPC is not served", text)
            return
        await server.start()
        self._server = server
        logger.info("gRPC is served on %s:%d", host, port)

    def _options(self) -> list[tuple[str, int]]:
        most = int(self._limit) if self._limit < 1 << 31 else -1
        options = {
            "grpc.max_receive_message_length": most,
            "grpc.max_send_message_length": -1,
            "grpc.so_reuseport": int(self._settings.workers > 1),
        }
        return [*(options | dict(self._settings.grpc_options)).items()]

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and end after some seconds those that are left."""
        if self._server is not None:
            await self._server.stop(max(seconds, _LEAST_GRACE))


def _listen(server: Any, address: str, credentials: Any) -> int:
    if credentials is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, credentials))


def _credentials(uvicorn: Mapping[str, Any]) -> Any:
    """Return the credentials for TLS, by HTTP's settings; None without TLS. Raises LoadError."""
    certfile = uvicorn.get("ssl_certfile")
    if not certfile:
        return None
    if uvicorn.get("ssl_keyfile_password"):
        raise LoadError("gRPC's port cannot use a key with a password.")
    try:
        chain = Path(certfile).read_bytes()
        key = Path(uvicorn.get("ssl_keyfile") or certfile).read_bytes()
    except OSError as exc:
        raise LoadError(f"The TLS certificate or key cannot be used: {exc}.") from None
    return grpc.ssl_server_credentials([(key, chain)])


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Hands the calls of gRPC's services to the application: other paths are HTTP's."""

    def __init__(self, app: ASGIApp, state: Mapping[str, Any], credentials: Any) -> None:
        self._app = app
        self._state = state
        self._scheme = "http" if credentials is None else "https"
        self._known: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        """Return the handler of a method; None where there is no such service."""
        path = details.method
        if not path.startswith(_SERVICES):
            return None
        handler = self._known.get(path)
        if handler is None:
            handler = self._handler(path)
            if len(self._known) < 100:  # clients may ask for anything
                self._known[path] = handler
        return handler

    def _handler(self, path: str) -> Any:
        app, scope_of = self._app, partial(_scope, self._template(path), self._state)
        if path in STREAMS:

            async def answer_stream(requests: Any, context: Any) -> None:
                call = _Stream(context)
                await call.run(app, scope_of(context))
                call.set_status()

            return grpc.stream_stream_rpc_method_handler(answer_stream)

        async def answer(request: bytes, context: Any) -> bytes:
            call = _Unary(request)
            try:
                await app(scope_of(context), call.receive, call.send)
            except Exception as exc:  # the application has logged it
                call.note_failure(exc)
            return call.answer_in(context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _template(self, path: str) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": "POST",
            "scheme": self._scheme,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "client": None,
            "server": None,
            "extensions": {CANCELS: {}, FRAMES: {}},
        }


def _scope(template: Scope, state: Mapping[str, Any], context: Any) -> Scope:
    headers = [_CONTENT]
    for key, value in context.invocation_metadata():
        if key not in _NOT_PASSED:
            headers.append(_header(key, value))
    seconds = context.time_remaining()
    if seconds is not None:
        headers.append((TIMEOUT_HEADER, b"%.9f" % max(seconds, _LEAST_SECONDS)))
    scope = {**template, "headers": headers}
    if state:
        scope["state"] = dict(state)
    return scope


class _Unary:
    """A call of one message, answered with one; it is cancelled where its client leaves."""

    def __init__(self, request: bytes) -> None:
        self._request: bytes | None = request
        self._status = 0
        self._parts: list[bytes] = []
        self._pairs: list[Header] = []

    async def receive(self) -> Message:
        """Return the request, and nothing after it."""
        request, self._request = self._request, None
        if request is None:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": frame(request or b""), "more_body": False}

    async def send(self, message: Message) -> None:
        """Keep what is sent, until the application has ended."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._pairs = message["headers"]
        elif body := message.get("body"):
            self._parts.append(body)

    def note_failure(self, error: Exception) -> None:
        """Note what the application has raised: the answer is incomplete."""
        self._parts.clear()
        self._pairs = _failure(error)

    def answer_in(self, context: Any) -> bytes:
        """Return the message of the answer, and tell grpcio the rest."""
        pairs, body = self._pairs, b"".join(self._parts)
        message = only_message(body)
        if message is not None and pairs[0] == _CONTENT:  # as most are
            if metadata := _metadata(pairs):
                context.set_trailing_metadata(metadata)
            return message
        if _is_grpc(pairs):
            message, pairs = _read(body, pairs)
        _set_status(context, self._status, pairs)
        return message or b""


def _read(body: bytes, headers: list[Header]) -> tuple[bytes, list[Header]]:
    """Return the message in a body, and the headers with the trailers in it."""
    message, pairs = b"", list(headers)
    for flags, payload in Frames(math.inf).feed(body):
        if is_trailers(flags):
            pairs += read_trailers(payload)
        else:
            message = payload
    return message, pairs


class _Stream:
    """A call with a stream of messages in either direction.

    Attributes:
        gone: Done once the client has left.
    """

    gone: "asyncio.Future[None]"

    def __init__(self, context: Any) -> None:
        self._context = context
        self._has_ended = False
        self._status = 0
        self._pairs: list[Header] = []
        self._frames: Frames | None = None
        self._opening: asyncio.Future[None] | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application to its end, which a client's leaving only hastens."""
        self.gone = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(app(scope, self.receive, self.send))
        await self._until_done(task)
        if task.cancelled() or task.exception() is not None:
            self._pairs = _failure(None if task.cancelled() else task.exception())
        if self._opening is not None:  # grpcio takes no status before its end
            await self._until_done(self._opening)
            if not self._opening.cancelled():
                self._opening.exception()  # it is no news

    async def _until_done(self, task: "asyncio.Future[None]") -> None:
        """Wait for a task; a cancellation says that the client has left."""
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                if not self.gone.done():
                    self.gone.set_result(None)

    async def receive(self) -> Message:
        """Return the next message, the end of them, then that the client has left."""
        if self._has_ended:
            await asyncio.shield(self.gone)
            return _GONE
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            return {"type": "http.request", "body": frame(message), "more_body": True}
        self._has_ended = True
        await asyncio.wait((self.gone,), timeout=_CANCELLATION_SECONDS)
        return _GONE if self.gone.done() else {"type": "http.request", "more_body": False}

    async def send(self, message: Message) -> None:
        """Send what is sent: it waits while the client does not read."""
        if self.gone.done():
            raise ConnectionResetError("the client has left")
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._frames is not None:
            for flags, payload in self._frames.feed(message.get("body", b"")):
                if is_trailers(flags):
                    self._pairs += read_trailers(payload)
                else:
                    await self._sent(self._context.write(payload))

    async def _sent(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except Exception as exc:  # grpcio has several for it, which are not public
            raise ConnectionResetError("the client has left") from exc

    async def _start(self, message: Message) -> None:
        self._status = message["status"]
        headers = list(message["headers"])
        if not _is_grpc(headers) or STATUS in dict(headers):
            self._pairs = headers
            return
        self._frames = Frames(math.inf)
        opening = self._context.send_initial_metadata(_metadata(headers))
        self._opening = asyncio.ensure_future(opening)
        await self._sent(asyncio.shield(self._opening))

    def set_status(self) -> None:
        """Tell grpcio the status."""
        _set_status(self._context, self._status, self._pairs)


def _failure(error: BaseException | None) -> list[Header]:
    """Return the trailers for what the application has raised."""
    if not isinstance(error, ResponseCut):
        return [(STATUS, b"%d" % _UNKNOWN)]
    return [(STATUS, b"%d" % code_of_http(error.status)), (MESSAGE, quoted(error.detail))]


# --- headers and metadata -----------------------------------------------------------------------


def _is_grpc(headers: Iterable[Header]) -> bool:
    return dict(headers).get(b"content-type", b"").startswith(b"application/grpc")


def _set_status(context: Any, status: int, pairs: list[Header]) -> None:
    """Set the status of a call by its trailers, else by the status of HTTP; and the metadata."""
    found = dict(pairs)
    code = int(found[STATUS]) if STATUS in found else code_of_host(status)
    if code:
        context.set_code(_CODES.get(code, grpc.StatusCode.UNKNOWN))
        context.set_details(unquoted(found.get(MESSAGE, b"")))
    if metadata := _metadata(pairs):
        context.set_trailing_metadata(metadata)


def _metadata(headers: Iterable[Header]) -> tuple[tuple[str, str | bytes], ...]:
    """Return headers as metadata, without those of HTTP and what metadata cannot hold."""
    found: list[tuple[str, str | bytes]] = []
    for key, value in headers:
        if key == _ID:
            found.append(("x-request-id", value.decode()))
        elif not (key.startswith(_LEFT_OUT) or _cannot_be_sent(key, value)):
            found.append(_entry(key, value))
    return tuple(found)


def _cannot_be_sent(key: bytes, value: bytes) -> bool:
    return not (_KEY.fullmatch(key) and _VALUE.fullmatch(value))


def _entry(key: bytes, value: bytes) -> tuple[str, str | bytes]:
    if key.endswith(b"-bin"):
        return key.decode(), b64decode(value + b"=" * (-len(value) % 4))
    return key.decode(), value.decode()


def _header(key: str, value: str | bytes) -> Header:
    """Return metadata as a header; a binary value in base64, as it travels."""
    given = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return key.encode(), b64encode(given) if key.endswith("-bin") else given
