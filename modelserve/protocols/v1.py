"""KServe V1 (TensorFlow Serving's REST predict): bytes and headers to payload, result to bytes.

Pure.
"""

from typing import Any, Final

import orjson
from starlette.datastructures import MutableHeaders

from modelserve.errors import InvalidInput, NotAcceptable
from modelserve.exchange.exchange import JSON, Header, model_headers
from modelserve.protocols.codec import Body, Codec, Named, encode_value
from modelserve.wire.encoders import (
    JSON_OPTIONS,
    Encoder,
    choose_encoder,
    named_encoder,
    not_acceptable,
    own_encoder,
    to_builtin,
)
from modelserve.wire.head import Request

__all__ = ["CODEC", "Form"]

# What is read as JSON, beside `application/*+json`: curl -d sends the form type, many send none.
_JSON_TYPES: Final = frozenset(
    (b"", b"application/json", b"application/octet-stream", b"application/x-www-form-urlencoded")
)


def decode(body: bytes | bytearray, request: Request, named: Named) -> Any:
    """Return the payload: any JSON value, or the raw bytes of any other type.

    Raises InvalidInput, with the parser's words, for what should be JSON and is not.
    """
    content_type = request.headers.get(b"content-type", b"")
    if content_type != b"application/json" and not is_json(content_type):
        return bytes(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"Unrecognized request format: {exc}") from None


def is_json(content_type: bytes) -> bool:
    """Say whether a body of this media type is read as JSON; parameters are ignored."""
    name = content_type.partition(b";")[0].strip().lower()
    return name in _JSON_TYPES or (name.startswith(b"application/") and name.endswith(b"+json"))


def check(payload: Any) -> None:
    """Check what goes to `predict` or `explain`. Raises InvalidInput."""
    if isinstance(payload, dict) and not isinstance(payload.get("instances", []), list):
        raise InvalidInput('Expected "instances" to be a list')


class Form:
    """How a V1 stream goes out: the model's own content type, else what `Accept` allows."""

    __slots__ = ("accept", "response_headers")

    def __init__(
        self,
        request: Request,
        payload: Any,
        response_headers: MutableHeaders | None,
        named: Named | None = None,
    ) -> None:
        self.accept = request.accept
        self.response_headers = response_headers

    def headers(self) -> list[Header]:
        return model_headers(self.response_headers) if self.response_headers else []

    def named_encoder(self) -> Encoder | None:
        own = self.response_headers and self.response_headers.get("content-type")
        return None if own else named_encoder(self.accept)

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        own = self.response_headers.get("content-type") if self.response_headers else None
        if own is not None:
            return own_encoder(own)
        encoder = choose_encoder(self.accept, first, empty=empty)
        if encoder is None:
            raise NotAcceptable(not_acceptable())
        return encoder


def encode(
    value: Any, request: Request, payload: Any, own: MutableHeaders | None, named: Named
) -> tuple[list[Header], list[Body]]:
    """Return the headers and the body of a value; text and bytes are the body as they are."""
    if own is None and type(value) is dict:  # most are: 0.5 us less
        try:
            return [JSON], [orjson.dumps(value, to_builtin, JSON_OPTIONS)]
        except orjson.JSONEncodeError:
            pass  # what is wrong with it, if anything is, `encode_value` knows
    headers, body = encode_value(value, payload, own)
    return headers, [body]


CODEC: Final = Codec("v1", decode, check, encode, Form)
