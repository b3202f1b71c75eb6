"""Read the body of a request, undo its content coding, and parse it."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Message, Receive

from modelserve.concurrency.budget import Share
from modelserve.concurrency.threads import Workers
from modelserve.concurrency.uncollected import call_uncollected
from modelserve.errors import ClientGone
from modelserve.exchange.forms import FormReader
from modelserve.limits import SMALL_BYTES
from modelserve.wire.coding import Inflation, check_length, inflation, too_large

__all__ = ["decoded", "feed_rest", "parsed", "read_body", "read_rest"]

# At most this is decompressed on the event loop, in a few milliseconds. The rest is decompressed in
# a thread, about as much at a time, so that many bodies take turns and one can be cancelled.
_SMALL_IN: Final = 1 << 16
_SMALL_OUT: Final = 1 << 20


def read_body(
    receive: Receive, limit: float, content_length: bytes, share: Share | None = None
) -> Awaitable[bytes | bytearray]:
    """Return an awaitable that reads a request's body to its end. Raises as `read_rest`.

    A declared length over the limit, in bytes, raises before anything is received.
    """
    check_length(content_length, limit)
    return read_rest(None, receive, limit, share)


async def read_rest(
    message: Message | None, receive: Receive, limit: float, share: Share | None = None
) -> bytes | bytearray:
    """Read the rest of a body, given its first message if that has been received.

    The body grows in one buffer: joining parts at the end would take twice its memory. `share`
    counts its bytes. Raises BodyTooLarge as soon as it exceeds the limit, in bytes, with or without
    a content length; what the share raises; ClientGone if the client leaves before its end.
    """
    body = bytearray()
    while True:
        if message is None:
            try:
                message = await receive()
            except Exception as exc:  # whatever it is, the client has left
                raise ClientGone from exc
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
        if share is not None:
            share.grow(len(part))
        message = None


async def feed_rest(
    message: Message, receive: Receive, limit: float, share: Share, reader: FormReader
) -> None:
    """Give a body, of which the first message is given, to a reader, piece by piece as it arrives.

    `share` counts all received bytes, though some may be on disk. Raises as `read_rest`, and what
    the reader raises.
    """
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        if len(reader) + len(part) > limit:
            raise too_large(limit)
        await reader.feed(part)
        if not message.get("more_body"):
            return
        share.grow(len(part))
        try:
            message = await receive()
        except Exception as exc:  # whatever it is, the client has left
            raise ClientGone from exc


async def decoded(
    body: bytes | bytearray, coding: bytes, limit: float, share: Share, threads: Workers
) -> bytes | bytearray:
    """Undo the content coding of a body: on the event loop if it is small, else in `threads`.

    `share` counts the growing result meanwhile. Cancellation waits for the step under way. Raises
    UnsupportedCoding, InvalidInput, BodyTooLarge, and what the share raises.
    """
    stream = inflation(body, coding, limit)
    if stream is None:
        return body
    stream.run(most_in=_SMALL_IN, most_out=_SMALL_OUT)
    while stream.plain is None:
        share.resize(len(body) + stream.size)
        await threads.call("content-encoding", _run_on, stream)
    return stream.plain


def _run_on(stream: Inflation) -> None:
    stream.run(most_in=_SMALL_OUT, most_out=_SMALL_OUT)


async def parsed(parse: Callable[[], Any], size: int, share: Share, threads: Workers) -> Any:
    """Parse a body of so many bytes: on the event loop if it is small, else in `threads`.

    A parser keeps the interpreter's lock, but other requests run before and after it. `share`
    counts a body that is not small. Cancellation waits for the end. Raises what `parse` and the
    share raise.
    """
    if size <= SMALL_BYTES:
        return parse()
    share.resize(size)
    return await threads.call("decode", call_uncollected, parse)
