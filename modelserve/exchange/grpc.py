"""Send an answer of gRPC: in gRPC-Web's form as it is, or with trailers of HTTP/2.

The pipeline answers in gRPC-Web's form: the last frame of the body is the status, and an error that
is the whole answer has it in the headers. Its HTTP status is for the log and the metrics only: a
client always gets 200.
"""

from base64 import b64decode, b64encode
from typing import Final

from starlette.types import Message, Receive, Send

from modelserve.wire.grpc import CONTENT_TYPE, MESSAGE, STATUS, split_trailers
from modelserve.wire.headers import Header

__all__ = ["TextAnswer", "TextBody", "TrailersAnswer", "WebAnswer"]

_LENGTH: Final = b"content-length"
_CONTENT: Final[Header] = (b"content-type", CONTENT_TYPE)


class WebAnswer:
    """In gRPC-Web's form, as it is.

    Args:
        send: The host's.
        content_type: The client's.
    """

    def __init__(self, send: Send, content_type: bytes) -> None:
        self._send = send
        self._content_type = content_type

    async def send(self, message: Message) -> None:
        """Send an event of the answer."""
        if message["type"] == "http.response.start":
            headers = [(b"content-type", self._content_type), *_others(message["headers"])]
            message = {"type": message["type"], "status": 200, "headers": headers}
        await self._send(message)


class TextAnswer(WebAnswer):
    """In gRPC-Web's form, each event in base64, for clients that read text only."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message["headers"] if pair[0] != _LENGTH]
            message = {**message, "headers": headers}
        else:
            message = {**message, "body": b64encode(message["body"])}
        await super().send(message)


class TrailersAnswer(WebAnswer):
    """As gRPC over HTTP/2: the status is in trailers."""

    def __init__(self, send: Send, content_type: bytes) -> None:
        super().__init__(send, content_type)
        self._trailers: list[Header] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        body, trailers = split_trailers(message["body"])
        self._trailers += trailers
        more = message["more_body"]
        await self._send({"type": message["type"], "body": body, "more_body": more})
        if not more:
            ending = {"type": "http.response.trailers", "headers": self._trailers}
            await self._send({**ending, "more_trailers": False})

    async def _start(self, message: Message) -> None:
        headers = _others(message["headers"])
        self._trailers = [pair for pair in headers if pair[0] in (STATUS, MESSAGE)]
        kept = [pair for pair in headers if pair[0] not in (STATUS, MESSAGE, _LENGTH)]
        start = {"type": message["type"], "status": 200, "trailers": True}
        await self._send({**start, "headers": [(b"content-type", self._content_type), *kept]})


class TextBody:
    """A request in base64, whose pieces may end anywhere."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._rest = b""

    async def receive(self) -> Message:
        """Return the next event, decoded; what is not base64 ends the call as a bad frame does."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        text = self._rest + message.get("body", b"")
        end = len(text) - len(text) % 4
        self._rest = text[end:]
        return {**message, "body": _decoded(text[:end])}


def _others(headers: list[Header]) -> list[Header]:
    """Return the headers without the content type, which the codec has put first."""
    return headers[1:] if headers[0] == _CONTENT else [h for h in headers if h[0] != _CONTENT[0]]


def _decoded(text: bytes) -> bytes:
    """Return the bytes of base64, of which several may follow one another, each padded."""
    try:
        parts = text.split(b"=")
        return b"".join(b64decode(part + b"=" * (-len(part) % 4), validate=True) for part in parts)
    except ValueError:
        return b"\xff"  # no frame begins with it
