"""Send a response object of starlette's that a hook has returned, as it is.

Such an object is an ASGI application: it is called with a `send` that goes through the exchange, so
that limits, clean-up and the log are those of any other answer.
"""

import sys
from collections.abc import Iterable
from typing import Any

import anyio
from starlette.datastructures import MutableHeaders
from starlette.types import Message

from modelserve.concurrency.flight import Phase
from modelserve.errors import InferenceError
from modelserve.exchange.exchange import Exchange
from modelserve.wire.headers import Header, sendable_headers

__all__ = ["is_response", "send_response"]

_LENGTH = b"content-length"


def is_response(value: Any) -> bool:
    """Return whether a value is a response of starlette's or FastAPI's, without importing them."""
    module = sys.modules.get("starlette.responses")
    return module is not None and isinstance(value, module.Response)


async def send_response(
    exchange: Exchange, response: Any, response_headers: MutableHeaders | None
) -> None:
    """Send status, headers and body of a response, then run its background tasks.

    Headers that the model has set on `response_headers` are added. A failure before the first part
    of the body is an ordinary status; a later one cuts the connection. Raises ClientGone if the
    client has left, InferenceError where the protocol has no place for it.
    """
    if not exchange.codec.carries_responses:
        raise InferenceError(f"A response of HTTP cannot go over {exchange.codec.protocol}.")
    head: Message | None = None

    async def send(message: Message) -> None:
        nonlocal head
        if message["type"] == "http.response.start":
            head = message
            return
        exchange.check_reason()
        if head is not None:
            headers = _headers(head.get("headers", ()), response_headers)
            await exchange.start(head["status"], headers)
            head = None
        exchange.enter(Phase.SEND)
        body = bytes(message.get("body", b""))
        if not message.get("more_body", False):
            await exchange.finish(body)
        else:
            await exchange.send_part(body)
            exchange.enter(Phase.ITEM)

    asgi = {**exchange.scope.get("asgi", {}), "spec_version": "2.4"}
    scope = {**exchange.scope, "asgi": asgi, "extensions": {}}
    await response(scope, _receive_nothing, send)
    if exchange.phase != Phase.DONE:
        raise RuntimeError(f"{type(response).__name__} has not sent the end of its body")


async def _receive_nothing() -> Message:
    """Wait to be cancelled: the request's flight notices when the client leaves."""
    await anyio.sleep_forever()
    raise AssertionError


def _headers(pairs: Iterable[Header], response_headers: MutableHeaders | None) -> list[Header]:
    """Return the headers of a response, with its own length: a 204 has none."""
    pairs = list(pairs)
    headers = sendable_headers(MutableHeaders(raw=pairs))
    headers += [pair for pair in pairs if pair[0] == _LENGTH]
    if response_headers:
        names = {name for name, _ in headers}
        added = sendable_headers(response_headers)
        headers += [pair for pair in added if pair[0] not in names]
    return headers
