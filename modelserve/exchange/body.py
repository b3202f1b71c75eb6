"""Read the body of a request."""

from starlette.types import Message, Receive

from modelserve.errors import ClientGone
from modelserve.wire.coding import check_length, too_large

__all__ = ["read_body", "read_rest"]


async def read_body(receive: Receive, limit: float, content_length: bytes) -> bytes:
    """Read a request's body to its end.

    Raises BodyTooLarge as soon as the body is known to exceed the limit, in bytes, with or without
    a content length; ClientGone if the client leaves before its end.
    """
    check_length(content_length, limit)
    try:
        message = await receive()
    except Exception as exc:  # whatever it is, the client has left
        raise ClientGone from exc
    return await read_rest(message, receive, limit)


async def read_rest(message: Message, receive: Receive, limit: float) -> bytes:
    """Read a body of which the first message is here. Raises as `read_body`."""
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
        try:
            message = await receive()
        except Exception as exc:  # whatever it is, the client has left
            raise ClientGone from exc
