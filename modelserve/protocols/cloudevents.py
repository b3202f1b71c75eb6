"""CloudEvents 1.0 around any codec, in binary and in structured mode. Pure.

If a request is an event, the codec of its path decodes the event's data, and the answer is an event
in the same mode. In binary mode the attributes are headers of an otherwise ordinary response. In
structured mode attributes and data are one JSON document, and each item of a stream is an event of
its own.

The `cloudevents` package is not used: it has one interface in 1.x and another in 2.x, parses and
writes data with the standard json module although a codec has the bytes already, writes a list in
binary mode as Python's repr, and raises AttributeError or TypeError for some bad requests.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import base64
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote

import orjson

from modelserve.errors import InvalidInput, NestedTooDeep
from modelserve.protocols.codec import (
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
)
from modelserve.tensors import InferResponse
from modelserve.tensors.elements import short
from modelserve.wire.cost import check_cost
from modelserve.wire.encoders import NDJSON, SSE, Encoder, encode_documents
from modelserve.wire.head import Head
from modelserve.wire.headers import Header
from modelserve.wire.json import parse_json, to_json
from modelserve.wire.media import is_json, media_type

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["EventSettings", "codec_for"]

_VERSION: Final = "1.0"
_REQUIRED: Final = ("specversion", "id", "source", "type")
_REQUIRED_HEADERS: Final = tuple(f"ce-{name}".encode() for name in _REQUIRED)
_STRUCTURED: Final = "application/cloudevents+json"
_DATA: Final = ("data", "data_base64")
# Attributes that identify the request or describe its data are never merged into a reply.
_NOT_MERGED: Final = frozenset(
    (*_REQUIRED, *_DATA, "time", "datacontenttype", "content-type", "dataschema")
)
# Characters that a header holds unescaped; others are percent-encoded (HTTP binding, 3.1.3.2).
_UNESCAPED: Final = "".join(set(map(chr, range(0x21, 0x7F))) - set('"%'))


class EventSettings(NamedTuple):
    """The attributes of replies.

    Each reply gets a new id and the time from `new_id` and `now`. With `merge`, it has the
    request's other attributes too.
    """

    new_id: Callable[[], object]
    now: Callable[[], "datetime"]
    source: str | None = None
    type: str = "io.kserve.inference.response"
    merge: bool = False

    def with_variables(self, variables: Mapping[str, str]) -> "EventSettings":
        """Apply KServe's environment variables: CE_SOURCE, CE_TYPE and CE_MERGE."""
        return self._replace(
            source=variables.get("CE_SOURCE", self.source),
            type=variables.get("CE_TYPE", self.type),
            merge=variables.get("CE_MERGE", "").lower() == "true",
        )


def codec_for(codec: Codec, head: Head, settings: EventSettings) -> Codec:
    """Return the codec for a request: the one given or, for an event, one around it."""
    content_type = head.get(b"content-type")
    if content_type != b"application/json" and _is_structured(content_type):
        return _StructuredCodec(codec, settings)
    if all(name in head.headers for name in _REQUIRED_HEADERS):
        return _BinaryCodec(codec, settings)
    return codec


class _EventFormat(StreamFormat):
    """The stream of a reply, around that of the path's codec."""

    def __init__(
        self, codec: "_EventCodec", inner: StreamFormat, head: Head, payload: Payload
    ) -> None:
        super().__init__(head, payload, inner.response_headers, inner.ref)
        self.codec = codec
        self.inner = inner
        self.payload = payload

    def headers(self) -> list[Header]:
        return self.inner.headers()

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        return self.inner.encoder(first, empty=empty)

    def framed_encoder(self) -> Encoder | None:
        return self.inner.framed_encoder()


class _EventCodec(Codec):
    """The common part of both modes: one request that is an event, around the codec of its path."""

    event_format: type[_EventFormat]

    def __init__(self, inner: Codec, settings: EventSettings) -> None:
        super().__init__(inner.format_class, always_streams=inner.always_streams)
        self.inner = inner
        self.settings = settings
        self.protocol = inner.protocol
        self.takes_binary = inner.takes_binary
        self.attributes: dict[str, Any] = {}
        self.limit = math.inf  # of JSON values

    def json_length(self, head: Head) -> bytes | None:
        return self.inner.json_length(head)

    def check(self, payload: Payload) -> None:
        self.inner.check(payload)

    def stream_format(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> StreamFormat:
        head = _accepting_json(head)
        inner = self.inner.stream_format(head, payload, response_headers, ref)
        return self.event_format(self, inner, head, payload)

    def document(self, item: Item, payload: Payload, ref: ModelRef) -> Any:
        return self.inner.document(item, payload, ref)

    def error(
        self, status: int, detail: Any, error: BaseException | None = None
    ) -> tuple[int, list[Header], bytes]:
        return self.inner.error(status, detail, error)

    def keep_attributes(self, attributes: dict[str, Any]) -> None:
        """Keep the request's attributes. Raises InvalidInput unless it is a CloudEvent 1.0."""
        self.attributes = attributes
        for name in _REQUIRED:
            value = attributes.get(name)
            if not isinstance(value, str) or not value:
                raise InvalidInput(f'The CloudEvent has no "{name}" that is a non-empty string.')
        version = attributes["specversion"]
        if version != _VERSION:
            raise InvalidInput(f"The CloudEvent's specversion must be 1.0, not {short(version)}.")

    def check_data_cost(self, data: bytes | bytearray, head: Head, limit: float) -> None:
        """Refuse an event's data that has too many JSON values. Raises BodyTooLarge."""
        if self.protocol == "v1":  # it is parsed regardless of its type
            check_cost(data, limit)
        else:
            self.inner.check_cost(data, head, limit)

    def decode_data(
        self, data: bytes | bytearray, content_type: str, head: Head, ref: ModelRef
    ) -> Payload:
        """Return the payload in the bytes of an event's data.

        On V1, data that neither is JSON nor claims to be stays bytes.
        """
        if self.protocol != "v1":
            return self.inner.decode(data, head, ref)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as exc:
            if not is_json(media_type(content_type)):
                return bytes(data)
            problem = _unicode_error(data) or exc
            raise InvalidInput(
                f"Failed to decode or parse binary json cloudevent: {problem}"
            ) from None

    def reply_attributes(self, ref: ModelRef) -> dict[str, Any]:
        """Return the attributes of a new event."""
        merged = self.attributes if self.settings.merge else {}
        return {
            "specversion": _VERSION,
            "id": str(self.settings.new_id()),
            "source": self.settings.source or f"io.kserve.inference.{ref.name}",
            "type": self.settings.type,
            "time": self.settings.now().isoformat(),
            **{name: value for name, value in merged.items() if name not in _NOT_MERGED},
        }


# --- binary mode: attributes in headers, the data is the body -----------------------------------


class _BinaryFormat(_EventFormat):
    """The stream of the path's codec; the attributes are among its headers."""

    def headers(self) -> list[Header]:
        return _with_attributes(self.inner.headers(), self.codec.reply_attributes(self.ref))


class _BinaryCodec(_EventCodec):
    event_format = _BinaryFormat

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        self.check_data_cost(body, head, limit)

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        attributes = {
            name[3:].decode("latin-1"): unquote(_unquoted(value).decode("latin-1"))
            for name, value in head.scope["headers"]
            if name.startswith(b"ce-")
        }
        self.keep_attributes(attributes)
        claimed = attributes.get("content-type") or head.get(b"content-type").decode("latin-1")
        return self.decode_data(body, claimed, head, ref)

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        headers, buffers = self.inner.encode(value, head, payload, response_headers, ref)
        return _with_attributes(headers, self.reply_attributes(ref)), buffers


def _unquoted(value: bytes) -> bytes:
    """Undo a quoted string (HTTP binding, 3.1.3.2)."""
    if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"'):
        return re.sub(rb"\\(.)", rb"\1", value[1:-1])
    return value


def _with_attributes(headers: list[Header], attributes: dict[str, Any]) -> list[Header]:
    """Add the attributes to the headers, except those that the model has set."""
    present = {name for name, _ in headers}
    added = [
        (f"ce-{name}".encode("latin-1"), quote(value, safe=_UNESCAPED).encode())
        for name, value in attributes.items()
    ]
    return [*headers, *(header for header in added if header[0] not in present)]


# --- structured mode: attributes and data in one JSON document ----------------------------------


class _StructuredFormat(_EventFormat):
    """A stream of structured events: SSE if the path's codec chooses it, else NDJSON.

    A collected stream is one event.
    """

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        encoder = self.inner.encoder(first, empty=empty)
        join = encoder.join
        if join is None:
            return self._of_events(NDJSON if encoder.idle is None else encoder)
        return replace(
            encoder, media_type=_STRUCTURED, join=lambda items: self._collected(join(items))
        )

    def framed_encoder(self) -> Encoder | None:
        encoder = self.inner.framed_encoder()
        return None if encoder is None else self._of_events(encoder)

    def _of_events(self, encoder: Encoder) -> Encoder:
        """Return an encoder with this framing that writes an event for each item."""
        framed = SSE if media_type(encoder.media_type) == SSE.media_type else NDJSON
        return replace(encoder, encode=encode_documents(framed.encode, self._event))

    def _event(self, item: Item) -> dict[str, Any]:
        data = self.codec.document(item, self.payload, self.ref)
        attributes = self.codec.reply_attributes(self.ref)
        if not isinstance(data, bytes | bytearray | memoryview):
            return attributes | {"data": data}
        content_type = dict(self.headers()).get(b"content-type", b"application/octet-stream")
        return attributes | _data_members(bytes(data), content_type.decode("latin-1"))

    def _collected(self, data: bytes) -> bytes:
        attributes = self.codec.reply_attributes(self.ref)
        return to_json(attributes | _data_members(data, "application/json"))


class _StructuredCodec(_EventCodec):
    event_format = _StructuredFormat

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        self.limit = limit  # data in base64 is checked when it is decoded
        check_cost(body, limit)

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        document = _parse_object(body)
        scalars = {key: value for key, value in document.items() if not _is_nested(value)}
        self.keep_attributes({key: value for key, value in scalars.items() if key not in _DATA})
        if ("data" in document) is ("data_base64" in document):
            raise InvalidInput('Expected the CloudEvent to have either "data" or "data_base64"')
        if "data_base64" in document:
            claimed = str(scalars.get("datacontenttype", ""))
            data = _from_base64(document["data_base64"])
            self.check_data_cost(data, head, self.limit)
            return self.decode_data(data, claimed, head, ref)
        if self.protocol == "v1":
            return document["data"]
        return self.inner.decode(_encoded_again(document["data"]), head, ref)

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        if isinstance(value, InferResponse):  # as JSON, even if the client wants binary data
            value = self.document(value, payload, ref)
        headers, buffers = self.inner.encode(value, head, payload, response_headers, ref)
        content_type = dict(headers)[b"content-type"].decode("latin-1")
        others = [header for header in headers if header[0] != b"content-type"]
        members = _data_members(b"".join(buffers), content_type)
        event = self.reply_attributes(ref) | members
        return [(b"content-type", _STRUCTURED.encode()), *others], [to_json(event)]


def _data_members(data: bytes, content_type: str) -> dict[str, Any]:
    """Return the members of an event that hold its data: as JSON, as text or in base64."""
    described = {} if content_type == "application/json" else {"datacontenttype": content_type}
    if is_json(media_type(content_type)):
        with suppress(orjson.JSONDecodeError):  # the model may have set the type itself
            orjson.loads(data)
            return described | {"data": orjson.Fragment(data)}
    if content_type.startswith("text/"):
        with suppress(UnicodeDecodeError):
            return described | {"data": data.decode()}
    return described | {"data_base64": base64.b64encode(data).decode()}


def _parse_object(body: bytes | bytearray) -> dict[str, Any]:
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidInput("Expected the CloudEvent to be a JSON object")
    return document


def _is_nested(value: Any) -> bool:
    return value is None or isinstance(value, dict | list)


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise InvalidInput('Expected "data_base64" of the CloudEvent to be base64') from None


def _encoded_again(data: Any) -> bytes:
    """Return data as bytes for the codec of the path to decode."""
    try:
        return to_json(data)
    except NestedTooDeep:
        raise InvalidInput("The data of the CloudEvent is nested too deep.") from None


def _unicode_error(data: bytes | bytearray) -> UnicodeDecodeError | None:
    """Return the error of data that is not UTF-8; KServe shows its text for JSON."""
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        return exc
    return None


# --- headers of the request ---------------------------------------------------------------------


def _is_structured(content_type: bytes) -> bool:
    return media_type(content_type.decode("latin-1")) == _STRUCTURED


def _accepting_json(head: Head) -> Head:
    """Return a head that accepts application/json instead of structured events."""
    accept = (head.accept or "").lower()
    if _STRUCTURED not in accept:
        return head
    others = [header for header in head.scope["headers"] if header[0] != b"accept"]
    accepted = accept.replace(_STRUCTURED, "application/json").encode("latin-1")
    return Head({**head.scope, "headers": [*others, (b"accept", accepted)]})
