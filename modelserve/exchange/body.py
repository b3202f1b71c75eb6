"""Read the body of a request."""

from collections.abc import MutableMapping
from typing import Any

from starlette.types import Receive

from modelserve.errors import ClientGone
from modelserve.wire.coding import check_length, too_large

__all__ = ["read_body", "read_rest"]


async def read_body(receive: Receive, limit: float, content_length: bytes) -> bytes | bytearray:
    """Read a request's body to its end.

    Raises BodyTooLarge as soon as the body is known to exceed the limit, in bytes, with or without
    a content length; ClientGone if the client leaves before its end.
    """
    check_length(content_length, limit)
    return await read_rest(await next_message(receive), receive, limit)


async def next_message(receive: Receive) -> MutableMapping[str, Any]:
    """Return the next message of a body. Raises ClientGone for whatever `receive` raises."""
    try:
        return await receive()
    except Exception as exc:
        raise ClientGone from exc


async def read_rest(
    message: MutableMapping[str, Any], receive: Receive, limit: float
) -> bytes | bytearray:
    """Read a body of which the first message is here. Raises as `read_body`."""
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise too_large(limit)
        more = message.get("more_body")
        if not (more or body):
            return part  # one message, not copied
        body += part
        if not more:
            return body
        message = await next_message(receive)
