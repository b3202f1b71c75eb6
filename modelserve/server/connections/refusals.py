"""The bounds on what a client may send before it is a request, and the responses beyond them."""

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

LONGEST_HEAD: Final = 1 << 16  # bytes of a head; the framing of a body may have as many
MOST_FIELDS: Final = 1000  # in a head that comes in several parts; each takes much memory
MOST_WAITING_BYTES: Final = 1 << 14  # of pipelined requests; beyond that, nothing is read
TOO_LONG: Final = (
    f"The head of the request has more than {LONGEST_HEAD} bytes or {MOST_FIELDS} fields."
)
LONGEST_INTERVAL: Final = 5.0  # between two checks of all connections
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1 << 18


class Lingering:
    """Reads on for a moment after a refusal: after a reset the client could not read the reason."""

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

    def answer_malformed(self, sentence: str) -> None:
        """Send a 400 in the form of all errors, and close the connection."""
        self.transport.write(document(400, sentence))
        self.transport.close()

    def discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > _LINGER_BYTES:
            self.transport.abort()


def document(status: int, sentence: str) -> bytes:
    """Return a whole response that ends its connection."""
    body = json.dumps({"error": sentence}, separators=(",", ":")).encode()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b"
        % (status, HTTPStatus(status).phrase.encode(), len(body), body)
    )
