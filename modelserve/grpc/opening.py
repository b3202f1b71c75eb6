"""The request that a call of gRPC becomes.

A call comes in gRPC-Web's form over any host, or with trailers over a host of HTTP/2 that can send
them; or from gRPC's own port, see `server.grpc`, which reads what the pipeline writes.
"""

from dataclasses import replace
from typing import Final

from starlette.types import Receive, Scope, Send

from modelserve.endpoints import NO_CODEC, Endpoint, Request, Target
from modelserve.errors import ServingError
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.grpc import TextAnswer, TextBody, TrailersAnswer, WebAnswer
from modelserve.lifespan import Serving
from modelserve.limits import TIMEOUT_HEADER
from modelserve.wire.grpc import FRAMES, seconds_of
from modelserve.wire.media import media_type

__all__ = ["open_call"]

_TIMEOUT: Final = b"grpc-timeout"
_TRAILERS: Final = "http.response.trailers"
_WEB: Final = "gRPC-Web"
_TEXT: Final = "gRPC-Web in base64"
_HTTP2: Final = "gRPC over HTTP/2"
_KINDS: Final = {
    b"application/grpc-web": _WEB,
    b"application/grpc-web+proto": _WEB,
    b"application/grpc-web-text": _TEXT,
    b"application/grpc-web-text+proto": _TEXT,
    b"application/grpc": _HTTP2,
    b"application/grpc+proto": _HTTP2,
}


class _NotGrpc(ServingError):
    status = 415

    def __init__(self) -> None:
        super().__init__(
            "This path is gRPC's: the content type is application/grpc or application/grpc-web."
        )


class _NoTrailers(ServingError):
    status = 501

    def __init__(self) -> None:
        super().__init__(
            "This server cannot send the trailers that gRPC needs: use gRPC-Web, or the port that"
            " modelserve --grpc-port opens."
        )


def open_call(target: Target, scope: Scope, receive: Receive, send: Send) -> Request:
    """Return the request that a call is: what it means, and how it is received and answered."""
    extensions = scope.get("extensions") or ()
    if FRAMES in extensions:
        return target, scope, receive, send
    content_type = timeout = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == _TIMEOUT:
            timeout = value
    if timeout:
        scope = {**scope, "headers": [*scope["headers"], (TIMEOUT_HEADER, _limit(timeout))]}
    kind = _KINDS.get(content_type) or _KINDS.get(_media_type(content_type))
    if kind is _WEB:
        return target, scope, receive, WebAnswer(send, content_type).send
    if kind is _TEXT:
        return target, scope, TextBody(receive).receive, TextAnswer(send, content_type).send
    if kind is None:
        return replace(_refusing(target, _refuse_type), codec=NO_CODEC), scope, receive, send
    if _TRAILERS not in extensions:
        answer = WebAnswer(send, content_type)
        return _refusing(target, _refuse_http), scope, receive, answer.send
    return target, scope, receive, TrailersAnswer(send, content_type).send


def _media_type(content_type: bytes) -> bytes:
    return media_type(content_type.decode("latin-1")).encode("latin-1")


def _limit(timeout: bytes) -> bytes:
    """Return a time limit as in HTTP; an invalid one is passed on, and refused under that name."""
    seconds = seconds_of(timeout)
    return timeout if seconds is None else b"%.9f" % seconds


def _refusing(target: Target, refuse: Endpoint) -> Target:
    """Return a target that refuses its methods; one without methods stays as it is."""
    return replace(target, endpoints=dict.fromkeys(target.endpoints, refuse))


async def _refuse_type(serving: Serving, target: Target, exchange: Exchange) -> None:
    raise _NotGrpc


async def _refuse_http(serving: Serving, target: Target, exchange: Exchange) -> None:
    raise _NoTrailers
