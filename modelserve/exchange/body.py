"""Read the body of a request."""

from starlette.types import Receive

from modelserve.errors import ClientGone
from modelserve.wire.coding import check_length, too_large

__all__ = ["read_body"]


async def read_body(receive: Receive, limit: float, content_length: bytes) -> bytes | bytearray:
    """Read a request's body to its end.

    Raises BodyTooLarge as soon as the body is known to exceed the limit, in bytes, with or without
    a content length; ClientGone if the client leaves before its end.
    """
    if len(content_length) > 4 or limit < 10_000:  # else it cannot be over the limit
        check_length(content_length, limit)
    parts: list[bytes] | None = None
    size = 0
    while True:
        try:
            message = await receive()
        except Exception as exc:  # whatever it is, the client has left
            raise ClientGone from exc
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        if not message.get("more_body"):
            return part if parts is None else b"".join((*parts, part))
        if parts is None:
            parts = []
        parts.append(part)
