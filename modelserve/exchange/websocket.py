"""A WebSocket, as whoever answers a request sees it: a body that comes in and an answer.

The messages of ASGI are translated both ways, so that one pipeline answers all. The first `receive`
accepts, as it makes a host send `100 Continue` for HTTP: what refuses a request before it is the
answer to the handshake. What fails later is a last message, and a close code of 4000 and the
status. Whatever happens, the WebSocket is closed from here.
"""

from contextlib import suppress
from enum import Enum
from typing import Any, Final

import anyio
from starlette.types import Message, Receive, Scope, Send

from modelserve.errors import ResponseCut, describe
from modelserve.exchange.exchange import Exchange
from modelserve.wire.handshake import SUBPROTOCOL
from modelserve.wire.headers import Header
from modelserve.wire.json import error_document
from modelserve.wire.messages import close_reason, status_of

__all__ = ["Socket", "cut"]

_DENIAL: Final = "websocket.http.response"
_CODES: Final = 4000  # those of an application (RFC 6455, 7.4.2), in which a status fits
_COMPLETE: Final = 1000
_CUT_SECONDS: Final = 0.5
# What hosts say in a RuntimeError, where the client has closed first.
_CLOSED_BEFORE: Final = "websocket.close"


class _State(Enum):
    NEW = "neither accepted nor refused"
    OPEN = "accepted, or being accepted"
    DENIED = "refused"
    CLOSED = "closed, by us or by the client"


class Socket:
    """One WebSocket.

    Args:
        scope: As the host has made it.
        receive, send: The host's; the handshake has been received.
        headers: To be sent with the answer to it.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: list[Header]) -> None:
        self._receive = receive
        self._host_send = send
        self._headers = headers
        self._subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        self._can_deny = _DENIAL in (scope.get("extensions") or {})
        self._state = _State.NEW
        self._accepted: anyio.Event | None = None  # while the host is accepting
        self._status = 0  # of the answer

    # -- as the request

    async def receive(self) -> Message:
        """Return the client's next message as it is, or that the client has left, as for HTTP."""
        if self._state is _State.NEW:
            await self._accept()
        if self._state is not _State.CLOSED:
            message = await self._receive()
            if message["type"] == "websocket.receive":
                return message
            self._state = _State.CLOSED
        return {"type": "http.disconnect"}

    async def _accept(self) -> None:
        self._state = _State.OPEN
        accepted = self._accepted = anyio.Event()
        try:
            message = {"type": "websocket.accept", "headers": self._headers}
            await self._send({**message, "subprotocol": self._subprotocol})
        finally:
            self._accepted = None
            accepted.set()

    # -- as the answer

    async def send(self, message: Message) -> None:
        """Send an event of the answer as messages, or as the answer to the handshake."""
        if self._accepted is not None:
            await self._accepted.wait()
        if self._state is _State.CLOSED:
            return
        kind = message["type"]
        if kind == "websocket.send":
            try:
                await self._host_send(message)
            except RuntimeError as exc:
                _check_leaving(exc)
                raise
        elif kind == "http.response.start":
            await self._start(message)
        elif kind == "http.response.body":
            await self._send_body(message["body"], more=message["more_body"])
        else:
            await self._close(message["code"], message["reason"])

    async def _start(self, message: Message) -> None:
        self._status = message["status"]
        if self._state is not _State.NEW:
            return
        if self._status < 400:
            await self._accept()
            return
        self._state = _State.DENIED
        if self._can_deny:
            await self._send({**message, "type": f"{_DENIAL}.start"})

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._state is _State.DENIED:
            await self._deny(body, more=more)
        elif body:  # of a failure: items are messages
            status, document = status_of(body) if self._status < 400 else (self._status, body)
            await self._send({"type": "websocket.send", "text": document.decode()})
            await self._close(_CODES + status, close_reason(document))
        elif not more:
            await self._close(_COMPLETE, "")

    async def _deny(self, body: bytes, *, more: bool) -> None:
        if self._can_deny:
            await self._send({"type": f"{_DENIAL}.body", "body": body, "more_body": more})
        elif not more:  # which hosts make a 403
            await self._send({"type": "websocket.close", "code": _COMPLETE, "reason": ""})
        if not more:
            self._state = _State.CLOSED

    async def _close(self, code: int, reason: str) -> None:
        self._state = _State.CLOSED
        with suppress(OSError):  # the client has closed it, and had all
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _send(self, message: Any) -> None:
        try:
            await self._host_send(message)
        except RuntimeError as exc:
            _check_leaving(exc)
            raise


def _check_leaving(exc: RuntimeError) -> None:
    """Raise what a failure of the host's `send` means where the client has left."""
    if _CLOSED_BEFORE in str(exc):
        raise ConnectionResetError("the client has left") from exc


async def cut(exchange: Exchange) -> None:
    """End an answer that must not look complete and cannot be ended with a message.

    A WebSocket is closed, if the host still can; for HTTP, ResponseCut is raised.
    """
    if exchange.scope["type"] == "http":
        exchange.error = None
        raise ResponseCut("The response was cut short on purpose.") from None
    error, exchange.error = exchange.error, None
    status, detail, _ = describe(error or ResponseCut())
    reason = close_reason(error_document(detail))
    with anyio.move_on_after(_CUT_SECONDS):
        try:
            message = {"type": "websocket.close", "code": _CODES + status, "reason": reason}
            await exchange.send(message)
        except Exception:  # noqa: S110 - it has left
            pass
