"""A WebSocket in the form of a request with a body and an answer.

The messages of ASGI are translated both ways, so that the same pipeline answers all requests. The
first `receive` accepts the WebSocket, as for HTTP it makes a host send `100 Continue`: a refusal
before that is the answer to the handshake. A later failure is a last message, and a close code of
4000 plus the status. Whatever happens, the WebSocket is closed by this module.
"""

from collections.abc import Awaitable
from enum import Enum
from typing import Final

import anyio
from starlette.types import Message, Receive, Scope, Send

from modelserve.errors import ResponseCut, describe
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.sending import is_gone
from modelserve.wire.handshake import SUBPROTOCOL
from modelserve.wire.headers import Header
from modelserve.wire.json import detail_text, error_document
from modelserve.wire.messages import close_reason, status_of

__all__ = ["Socket", "cut"]

_DENIAL: Final = "websocket.http.response"
_CODES: Final = 4000  # codes for applications (RFC 6455, 7.4.2), to which a status is added
_COMPLETE: Final = 1000
_CUT_SECONDS: Final = 0.5
_LEFT: Final[Message] = {"type": "websocket.disconnect", "code": 1005}


class _State(Enum):
    NEW = "neither accepted nor refused"
    OPEN = "accepted, or being accepted"
    DENIED = "refused"
    CLOSED = "closed"


_ACCEPTED: Final = (_State.OPEN, _State.CLOSED)  # a refused one too, once all has been sent


class Socket:
    """One WebSocket.

    Args:
        scope: The host's scope.
        receive, send: The host's functions; the handshake has been received.
        headers: Sent with the answer to the handshake.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: list[Header]) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        self._can_deny = _DENIAL in (scope.get("extensions") or {})
        self._state = _State.NEW
        self._accepted: anyio.Event | None = None  # while the host is accepting
        self._status = 0  # of the answer

    # -- as the request

    def receive(self) -> Awaitable[Message]:
        """Return an awaitable of the client's next message, which is passed on as it is."""
        return self._receive() if self._state in _ACCEPTED else self._receive_first()

    async def _receive_first(self) -> Message:
        if self._state is _State.NEW:
            await self._accept()
            return await self._receive()
        return _LEFT

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

    def send(self, message: Message) -> Awaitable[None]:
        """Return an awaitable that sends a message, or an event of the answer as messages."""
        is_open = self._state is _State.OPEN and self._accepted is None
        if is_open and message["type"] == "websocket.send":
            return self._send(message)
        return self._send_event(message)

    async def _send_event(self, message: Message) -> None:
        if self._accepted is not None:
            await self._accepted.wait()
        if self._state is _State.CLOSED:
            return
        kind = message["type"]
        if kind == "http.response.start":
            await self._start(message)
        elif kind == "http.response.body":
            await self._send_body(message["body"], more=message["more_body"])
        elif kind == "websocket.send":
            await self._send(message)
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
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except Exception as exc:
            if not is_gone(exc):  # the client closed it itself, after the last message
                raise


async def cut(exchange: Exchange) -> None:
    """End an answer that must not look complete and cannot be ended with a message.

    A WebSocket is closed, if the host still can; for HTTP, ResponseCut is raised.
    """
    error, exchange.error = exchange.error, None
    status, detail, _ = describe(error or ResponseCut())
    if exchange.scope["type"] == "http":
        text = "The response was cut short on purpose."
        raise ResponseCut(text, status=status, detail=detail_text(detail)) from None
    reason = close_reason(error_document(detail))
    with anyio.move_on_after(_CUT_SECONDS):
        try:
            message = {"type": "websocket.close", "code": _CODES + status, "reason": reason}
            await exchange.send(message)
        except Exception:  # noqa: S110 - it has left
            pass
