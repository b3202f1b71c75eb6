"""What uvicorn leaves undone about its connections, for the command line.

Its httptools protocol tells only the last of pipelined requests that the client has left, and frames
a stream in chunks for an HTTP/1.0 client, which does not know them (RFC 9112, 6.1).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

__all__ = ["mended"]

Message = MutableMapping[str, Any]


def mended(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with what it leaves undone."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return protocol
    if protocol is not HttpToolsProtocol:
        return protocol

    class MendedProtocol(HttpToolsProtocol):
        """Tell each request of a connection that it is lost; send HTTP/1.0 what it understands."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._earlier: deque[Any] = deque()  # those before `cycle`, the first may be running

        def on_headers_complete(self) -> None:
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is before:
                return
            if before is not None and not before.response_complete:
                while self._earlier and self._earlier[0].response_complete:
                    self._earlier.popleft()
                self._earlier.append(before)
            if self.scope["http_version"] == "1.0":
                cycle: Any = self.cycle
                cycle.send = partial(_send_unframed, cycle, cycle.send)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for cycle in self._earlier:
                if not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()
            self._earlier.clear()

    return MendedProtocol


async def _send_unframed(
    cycle: Any, send: Callable[[Message], Awaitable[None]], message: Message
) -> None:
    """Send an event without chunks: the end of the connection is the end of the body."""
    if message["type"] == "http.response.start":
        names = {name.lower() for name, _ in message.get("headers", ())}
        if b"content-length" not in names:
            cycle.chunked_encoding = False
    elif cycle.chunked_encoding is False and not cycle.expected_content_length:
        cycle.expected_content_length = len(message.get("body", b""))
    await send(message)
