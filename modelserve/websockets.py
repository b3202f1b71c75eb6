"""WebSockets on the paths of models: who may open one, and the request that it becomes."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from modelserve.endpoints import Request, Target
from modelserve.errors import Forbidden
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.websocket import Socket
from modelserve.lifespan import Serving
from modelserve.routes import NOT_FOUND, Routes
from modelserve.wire.handshake import SUBPROTOCOL, bearer_token, is_allowed_origin, without_bearer
from modelserve.wire.head import NEW_IDS, valid_id
from modelserve.wire.headers import Header

__all__ = ["open_socket"]

_METHOD: Final = "GET"
# Headers of a body, which a WebSocket does not have: they must be ignored.
_OF_BODIES: Final = frozenset(
    (b"accept", b"content-encoding", b"content-length", b"content-type", b"expect")
)
_SUBPROTOCOLS: Final = b"sec-websocket-protocol"


async def open_socket(
    serving: Serving, routes: Routes, scope: Scope, receive: Receive, send: Send
) -> Request | None:
    """Turn a WebSocket into a request: its target, and how it is received and answered.

    None if its client has left already.
    """
    if (await receive())["type"] != "websocket.connect":
        return None
    headers = _headers(scope)
    given = dict(headers)
    socket = Socket(scope, receive, send, [(b"x-request-id", given[b"x-request-id"])])
    target = _target(serving, routes.find(scope), given)
    offered = without_bearer(scope.get("subprotocols") or ())
    request = {**scope, "method": _METHOD, "headers": headers, "subprotocols": offered}
    return target, request, socket.receive, socket.send


def _target(serving: Serving, target: Target, headers: Mapping[bytes, bytes]) -> Target:
    """Return the target of a path for a WebSocket; NOT_FOUND if it takes none."""
    codec = target.codec.over_socket
    if codec is None:
        return NOT_FOUND
    origin, host = (headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
    # No browser sends a token by itself.
    has_token = serving.token is not None and not serving.origins
    is_allowed = has_token or is_allowed_origin(origin, host, serving.origins)
    return Target(
        {_METHOD: None if is_allowed else _refuse}, target.ref, codec, target.verb, target.hook
    )


async def _refuse(serving: Serving, target: Target, exchange: Exchange) -> None:
    raise Forbidden(
        "Web pages of this origin may not open a WebSocket here;"
        " ModelServer(origins=...) or --cors-origin allows it."
    )


def _headers(scope: Scope) -> list[Header]:
    """Return the headers of the handshake, with the id of the request."""
    pairs: list[Any] = [
        (name, value)
        for name, value in scope["headers"]
        if not (name in _OF_BODIES or name in (b"x-request-id", _SUBPROTOCOLS))
        and not name.startswith(b"ce-")
    ]
    subprotocols = scope.get("subprotocols") or ()
    token = bearer_token(subprotocols)
    if token is not None and b"authorization" not in dict(pairs):
        pairs.append((b"authorization", b"Bearer " + token))
    if SUBPROTOCOL in subprotocols:
        pairs.append((_SUBPROTOCOLS, SUBPROTOCOL.encode()))
    ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
    pairs.append((b"x-request-id", valid_id(ids[-1]) if ids else next(NEW_IDS)))
    return pairs
