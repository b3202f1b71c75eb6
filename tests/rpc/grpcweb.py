"""A call of gRPC to an application, in gRPC-Web's form, and what comes back."""

from dataclasses import dataclass
from typing import Any

from modelserve.testing import Response, request
from modelserve.wire.grpc import (
    HEALTH,
    SERVICE,
    Frames,
    frame,
    is_trailers,
    read_trailers,
    unquoted,
)

WEB = "application/grpc-web+proto"

__all__ = ["HEALTH", "SERVICE", "WEB", "Answer", "call", "read"]


@dataclass(frozen=True)
class Answer:
    """The messages of an answer, as bytes, and how it has ended."""

    code: int
    text: str
    messages: list[bytes]
    response: Response


def read(response: Response) -> Answer:
    """Return what a response in gRPC-Web's form says."""
    messages: list[bytes] = []
    pairs = [(name, value) for name, value in response.headers.raw if name.startswith(b"grpc-")]
    for flags, payload in Frames(float("inf")).feed(response.body):
        if is_trailers(flags):
            pairs += read_trailers(payload)
        else:
            messages.append(payload)
    found = dict(pairs)
    text = unquoted(found.get(b"grpc-message", b""))
    return Answer(int(found[b"grpc-status"]), text, messages, response)


async def call(app: Any, path: str, *messages: Any, **headers: str) -> Answer:
    """Send messages, of protobuf or as bytes, in one body, and read the answer."""
    raw = (m if isinstance(m, bytes) else m.SerializeToString() for m in messages)
    headers = {"content-type": WEB, **{key.replace("_", "-"): v for key, v in headers.items()}}
    body = b"".join(map(frame, raw))
    return read(await request(app, "POST", path, body=body, headers=headers))
