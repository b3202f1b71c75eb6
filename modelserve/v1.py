"""KServe V1 (TensorFlow Serving's REST predict): bytes and headers to payload, result to bytes.

Pure. A codec is two functions and a class: `decode`, `encode`, and the form of a stream.
"""

from typing import Any, Final

import orjson
from starlette.datastructures import MutableHeaders

from modelserve.encoders import Encoder, choose_encoder, not_acceptable, own_encoder, to_json
from modelserve.errors import InvalidInput, NestedTooDeep, NotAcceptable
from modelserve.responses import JSON, Header, model_headers

__all__ = ["Form", "check", "decode", "encode", "is_json"]

# What is read as JSON, beside `application/*+json`: curl -d sends the form type, many send none.
_JSON_TYPES: Final = frozenset(
    (b"", b"application/json", b"application/octet-stream", b"application/x-www-form-urlencoded")
)
_TEXT: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")
_OCTETS: Final[Header] = (b"content-type", b"application/octet-stream")


def decode(body: bytes, content_type: bytes) -> Any:
    """Return the payload: any JSON value, or the raw bytes of any other type.

    Raises InvalidInput, with the parser's words, for what should be JSON and is not.
    """
    if not is_json(content_type):
        return body
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"Unrecognized request format: {exc}") from None


def is_json(content_type: bytes) -> bool:
    """Say whether a body of this media type is read as JSON; parameters are ignored."""
    if content_type == b"application/json":
        return True
    name = content_type.partition(b";")[0].strip().lower()
    return name in _JSON_TYPES or (name.startswith(b"application/") and name.endswith(b"+json"))


def check(payload: Any) -> None:
    """Check what goes to `predict` or `explain`. Raises InvalidInput."""
    if isinstance(payload, dict) and not isinstance(payload.get("instances", []), list):
        raise InvalidInput('Expected "instances" to be a list')


def encode(
    value: Any, payload: Any, response_headers: MutableHeaders | None
) -> tuple[list[Header], bytes]:
    """Return the headers and the body of a value; text and bytes are the body as they are.

    Raises TypeError for a value that JSON cannot hold. A value too deep to be written is the
    client's fault where its request was as deep: InvalidInput, else NestedTooDeep.
    """
    content_type, body = _body(value, payload)
    if not response_headers:
        return [content_type], body
    own = model_headers(response_headers)
    return (own if b"content-type" in dict(own) else [content_type, *own]), body


def _body(value: Any, payload: Any) -> tuple[Header, bytes]:
    if type(value) is not dict:
        if isinstance(value, str):
            return _TEXT, value.encode()
        if isinstance(value, bytes | bytearray | memoryview):
            return _OCTETS, bytes(value)
        if hasattr(value, "to_dict") and hasattr(value, "outputs"):  # an InferResponse
            value = value.to_dict()
    try:
        return JSON, to_json(value)
    except NestedTooDeep:
        if _is_deep(payload):
            raise InvalidInput("The request is nested too deep to be answered.") from None
        raise


class Form:
    """How a V1 stream goes out: the model's own content type, else what `Accept` allows."""

    def __init__(self, accept: str | None, response_headers: MutableHeaders | None) -> None:
        self.accept = accept
        self.response_headers = response_headers

    def headers(self) -> list[Header]:
        return model_headers(self.response_headers) if self.response_headers else []

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        own = self.response_headers.get("content-type") if self.response_headers else None
        if own is not None:
            return own_encoder(own)
        encoder = choose_encoder(self.accept, first, empty=empty)
        if encoder is None:
            raise NotAcceptable(not_acceptable())
        return encoder


def _is_deep(value: Any, levels: int = 254) -> bool:
    """Say whether a JSON value has more levels of nesting than this."""
    level = [value]
    for _ in range(levels):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> Any:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
