"""KServe V1 (TensorFlow Serving's REST predict): bytes and headers to payload, result to bytes.

Pure.
"""

import math
import re
from codecs import BOM_UTF8
from typing import Any, Final

import orjson

from modelserve.errors import InvalidInput, NotAcceptable
from modelserve.limits import Limits
from modelserve.protocols.codec import (
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
    encode_value,
)
from modelserve.wire.accept import (
    NOT_ACCEPTABLE,
    choose_encoder,
    encoder_for_type,
    framed_encoder,
)
from modelserve.wire.cost import check_cost
from modelserve.wire.encoders import Encoder, natural_encoder
from modelserve.wire.forms import FormData, read_urlencoded
from modelserve.wire.head import Head
from modelserve.wire.headers import JSON, Header
from modelserve.wire.json import parse_json
from modelserve.wire.lines import Cutter, Lines, Pieces
from modelserve.wire.media import LINE_TYPES, is_json, media_type
from modelserve.wire.messages import MESSAGES, Messages, as_message
from modelserve.wire.values import JSON_OPTIONS, to_builtin

__all__ = ["V1", "V1_SOCKET"]

# Types of bodies that may be anything: requests and others send bytes without a type.
_FORM_TYPE: Final = "application/x-www-form-urlencoded"  # curl -d sends JSON with it, too
_MULTIPART: Final = "multipart/form-data"
_OCTETS: Final = "application/octet-stream"
_OPEN_TYPES: Final = frozenset(("", _OCTETS, _FORM_TYPE))
_USUAL_TYPES: Final = {name.encode(): name for name in _OPEN_TYPES}
_OPENING: Final = re.compile(rb"[ \t\r\n]*[{\[]")
_NO_INSTANCES: Final[list[Any]] = []


class V1StreamFormat(StreamFormat):
    """The model's own content type, else what `Accept` allows."""

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        content_type = self._content_type()
        if content_type is not None:
            return encoder_for_type(content_type)
        accept = self.accept
        if self.default is not None and (accept or "*/*") == "*/*":
            accept = self.default
        elif accept is None and not empty:
            return natural_encoder(first)
        encoder = choose_encoder(accept, first, empty=empty)
        if encoder is None:
            raise NotAcceptable(NOT_ACCEPTABLE)
        return encoder

    def framed_encoder(self) -> Encoder | None:
        return None if self._content_type() else framed_encoder(self.accept)

    def _content_type(self) -> str | None:
        return self.response_headers.get("content-type") if self.response_headers else None


class V1Codec(Codec):
    """KServe V1."""

    protocol = "v1"
    takes_forms = True
    takes_lines = True

    def cutter(self, media_type: str, limits: Limits, *, iterates: bool) -> Cutter | None:
        """Return the cutter for lines of JSON or, if the hook iterates, for any other bytes."""
        if media_type in LINE_TYPES:
            return Lines(math.inf if limits.max_line_bytes is None else limits.max_line_bytes)
        if not iterates or is_json(media_type) or media_type in ("", _FORM_TYPE, _MULTIPART):
            return None
        return Pieces()

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        """Refuse JSON with too many values; a body of any type is JSON if it begins so."""
        name = media_type(head.get(b"content-type").decode("latin-1"))
        if is_json(name) or (name in _OPEN_TYPES and _OPENING.match(body)):
            check_cost(body, limit)

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        """Return any JSON value, a form, or the raw bytes of a body of another type.

        Raises InvalidInput, with the parser's message, for a body that should be JSON and is not.
        """
        content_type = head.headers.get(b"content-type", b"")
        if content_type == b"application/json":
            try:
                return orjson.loads(body)
            except orjson.JSONDecodeError:
                return parse_json(body)  # raises InvalidInput
        name = _USUAL_TYPES.get(content_type) or media_type(content_type.decode("latin-1"))
        return _decode_other(body, name)

    def check(self, payload: Payload) -> None:
        if isinstance(payload, dict) and not isinstance(
            payload.get("instances", _NO_INSTANCES), list
        ):
            raise InvalidInput('Expected "instances" to be a list')

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        """Return the headers and the body of a value; text and bytes are the body as they are."""
        if response_headers is None and type(value) is dict:
            try:
                return [JSON], [orjson.dumps(value, to_builtin, JSON_OPTIONS)]
            except orjson.JSONEncodeError:
                pass  # `encode_value` has a fallback, or the right error
        headers, body = encode_value(value, payload, response_headers)
        return headers, [body]


def _decode_other(body: Any, name: str) -> Payload:
    """Return the payload of a body, bytes or a ReadBody, whose media type is not plain JSON."""
    if name in _OPEN_TYPES:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            if _is_meant_as_json(body) or not (name or body):
                return parse_json(body)  # raises InvalidInput
        if name != _FORM_TYPE:
            return bytes(body)
        if body.startswith(BOM_UTF8):  # a file of JSON from Windows, sent by curl
            return parse_json(body)  # raises InvalidInput
        return FormData([*read_urlencoded(body)])
    if name.startswith("application/") and is_json(name):
        return parse_json(body)
    return bytes(body) if isinstance(body, bytes | bytearray) else body.payload


def _is_meant_as_json(body: bytes | bytearray) -> bool:
    """Return whether a body is text that begins like a JSON object or list."""
    if _OPENING.match(body) is None:
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


class V1BytesCodec(V1Codec):
    """The same for a hook that is annotated to take bytes: it gets application/octet-stream so."""

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        if not _is_octets(head):
            super().check_cost(body, head, limit)

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        return bytes(body) if _is_octets(head) else super().decode(body, head, ref)


def _is_octets(head: Head) -> bool:
    return media_type(head.get(b"content-type").decode("latin-1")) == _OCTETS


class V1SocketFormat(StreamFormat):
    """Items as messages, whatever the client accepts; it is too late for headers."""

    as_message = staticmethod(as_message)

    def headers(self) -> list[Header]:
        return []

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        return MESSAGES


class V1SocketCodec(V1Codec):
    """The same over a WebSocket: each message is an instance."""

    protocol = "ws"
    takes_forms = False
    is_socket = True

    def cutter(self, media_type: str, limits: Limits, *, iterates: bool) -> Cutter | None:
        """Return the parser of messages: text has a line's limit, bytes have a body's."""
        text, data = limits.max_line_bytes, limits.max_body_bytes
        return Messages(math.inf if text is None else text, math.inf if data is None else data)


V1_SOCKET: Final = V1SocketCodec(V1SocketFormat, always_streams=True)
V1: Final = V1Codec(V1StreamFormat, over_socket=V1_SOCKET, of_bytes=V1BytesCodec(V1StreamFormat))
