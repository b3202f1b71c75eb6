"""Read the body of a request."""

from starlette.types import Message, Receive

from modelserve.errors import ClientGone
from modelserve.wire.coding import check_length, too_large

__all__ = ["read_body", "read_rest"]


async def read_body(receive: Receive, limit: float, content_length: bytes) -> bytes | bytearray:
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


async def read_rest(message: Message, receive: Receive, limit: float) -> bytes | bytearray:
    """Read a body of which the first message is here. Raises as `read_body`.

    The body grows in one buffer: parts that are joined at the end would take twice its memory.
    """
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise too_large(limit)
        more = message.get("more_body")
        if not (more or body):
            return part  # the whole body, not copied
        body += part
        if not more:
            return body
        try:
            message = await receive()
        except Exception as exc:  # whatever it is, the client has left
            raise ClientGone from exc
