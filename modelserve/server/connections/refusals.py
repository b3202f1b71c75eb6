"""The bounds of what a client may send before it is a request, and how it is told of them."""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

__all__ = [
    "LONGEST_HEAD",
    "LONGEST_INTERVAL",
    "MOST_FIELDS",
    "MOST_WAITING_BYTES",
    "TOO_LONG",
    "Lingering",
    "document",
]

LONGEST_HEAD: Final = 1 << 16  # bytes of a head; as much again of a body may be no data
MOST_FIELDS: Final = 1000  # of a head that comes in several parts; each takes far more than it has
MOST_WAITING_BYTES: Final = 1 << 14  # of pipelined requests, before no more is read
TOO_LONG: Final = (
    f"The head of the request has more than {LONGEST_HEAD} bytes or {MOST_FIELDS} fields."
)
LONGEST_INTERVAL: Final = 5.0  # between two looks at all connections
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1 << 18


class Lingering:
    """Reads on for a moment after a refusal: a reset would keep its client from reading why."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    timeout_keep_alive_task: Any
    _unset_keepalive_if_required: Callable[[], None]
    _discarded = 0

    def answer(self, status: int, sentence: str) -> None:
        """Send a response, and close the connection once the client has had time to read it."""
        self.transport.write(document(status, sentence))
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > _LINGER_BYTES:
            self.transport.abort()


def document(status: int, sentence: str) -> bytes:
    """Return a whole response, which ends its connection."""
    body = json.dumps({"error": sentence}, separators=(",", ":")).encode()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b"
        % (status, HTTPStatus(status).phrase.encode(), len(body), body)
    )
