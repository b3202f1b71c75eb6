"""CloudEvents 1.0 around any codec, in binary and in structured mode. Pure.

A request that is an event is decoded by the codec of its path from the event's data, and answered
by an event in the same mode: in binary mode the attributes are headers of an answer that is
otherwise as it always is, in structured mode attributes and data are one JSON document, and each
item of a stream is an event of its own.

Written by hand: the `cloudevents` package has one interface in 1.x and another in 2.x, takes data
apart and writes it with the standard json module where a codec has the bytes already, writes a
list in binary mode as Python's repr, and raises AttributeError or TypeError for some bad requests.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import base64
import os
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote
from uuid import uuid4

import orjson
from starlette.datastructures import MutableHeaders

from modelserve.errors import InvalidInput, NestedTooDeep
from modelserve.protocols.codec import Codec, ModelRef, Payload, StreamFormat, parse_json
from modelserve.tensors import InferResponse
from modelserve.tensors.data import short
from modelserve.wire.encoders import NDJSON, SSE, Encoder, ServerSentEvent, to_json
from modelserve.wire.head import Head
from modelserve.wire.headers import Body, Header

__all__ = ["EventSettings", "around"]

_VERSION: Final = "1.0"
_REQUIRED: Final = ("specversion", "id", "source", "type")
_REQUIRED_HEADERS: Final = tuple(f"ce-{name}".encode() for name in _REQUIRED)
_STRUCTURED: Final = "application/cloudevents+json"
_DATA: Final = ("data", "data_base64")
# What is the request's own, or tells of its data, is never merged into a reply.
_NOT_MERGED: Final = frozenset(
    (*_REQUIRED, *_DATA, "time", "datacontenttype", "content-type", "dataschema")
)
# What a header's value holds as it is; the rest is percent-encoded (HTTP binding, 3.1.3.2).
_PLAIN: Final = "".join(set(map(chr, range(0x21, 0x7F))) - set('"%'))


class EventSettings(NamedTuple):
    """What replies say of themselves, by KServe's environment variables.

    `source` is CE_SOURCE and `type` CE_TYPE. With `merge`, CE_MERGE, a reply has the request's
    other attributes too.
    """

    source: str | None = None
    type: str = "io.kserve.inference.response"
    merge: bool = False

    @classmethod
    def from_environment(cls) -> "EventSettings":
        merge = os.environ.get("CE_MERGE", "").lower() == "true"
        return cls(os.environ.get("CE_SOURCE"), os.environ.get("CE_TYPE", cls().type), merge)


def around(codec: Codec, head: Head, settings: EventSettings) -> Codec:
    """Return the codec for a request: the one given or, for an event, one around it."""
    content_type = head.get(b"content-type")
    if content_type != b"application/json" and _is_structured(content_type):
        return _Structured(_Event(codec, settings))
    if all(name in head.headers for name in _REQUIRED_HEADERS):
        return _Binary(_Event(codec, settings))
    return codec


class _Event:
    """One request that is an event, and what both modes have in common."""

    def __init__(self, inner: Codec, settings: EventSettings) -> None:
        self.inner = inner
        self.settings = settings
        self.attributes: dict[str, Any] = {}

    def take(self, attributes: dict[str, Any]) -> None:
        """Keep the attributes. Raises InvalidInput unless they are those of a CloudEvent 1.0."""
        self.attributes = attributes
        for name in _REQUIRED:
            value = attributes.get(name)
            if not isinstance(value, str) or not value:
                raise InvalidInput(f'The CloudEvent has no "{name}" that is a non-empty string.')
        version = attributes["specversion"]
        if version != _VERSION:
            raise InvalidInput(f"The CloudEvent's specversion must be 1.0, not {short(version)}.")

    def decode(self, data: bytes | bytearray, content_type: str, head: Head, ref: ModelRef) -> Any:
        """Return the payload in bytes; on V1 what is not JSON, nor claims to be, is bytes still."""
        if self.inner.protocol != "v1":
            return self.inner.decode(data, head, ref)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as exc:
            if not _is_json(content_type):
                return bytes(data)
            problem = _not_text(data) or exc
            raise InvalidInput(
                f"Failed to decode or parse binary json cloudevent: {problem}"
            ) from None

    def reply(self, ref: ModelRef) -> dict[str, Any]:
        """Return the attributes of a new event."""
        merged = self.attributes if self.settings.merge else {}
        return {
            "specversion": _VERSION,
            "id": str(uuid4()),
            "source": self.settings.source or f"io.kserve.inference.{ref.name}",
            "type": self.settings.type,
            "time": datetime.now(UTC).isoformat(),
            **{name: value for name, value in merged.items() if name not in _NOT_MERGED},
        }


# --- binary mode: attributes in headers, the data is the body -----------------------------------


class _EventCodec(Codec):
    """What both modes share: the protocol is the inner codec's."""

    def __init__(self, event: _Event) -> None:
        self.event = event
        self.protocol = event.inner.protocol
        self.always_streams = event.inner.always_streams

    def json_length(self, head: Head) -> bytes | None:
        return self.event.inner.json_length(head)

    def check(self, payload: Payload) -> None:
        self.event.inner.check(payload)

    def document(self, item: Any, payload: Payload, ref: ModelRef) -> Any:
        return self.event.inner.document(item, payload, ref)

    def error(self, status: int, sentence: str) -> bytes:
        return self.event.inner.error(status, sentence)


class _Binary(_EventCodec):
    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        attributes = {
            name[3:].decode("latin-1"): unquote(value.decode("latin-1"))
            for name, value in head.scope["headers"]
            if name.startswith(b"ce-")
        }
        self.event.take(attributes)
        claimed = attributes.get("content-type") or head.get(b"content-type").decode("latin-1")
        return self.event.decode(body, claimed, head, ref)

    def encode(
        self,
        value: Any,
        head: Head,
        payload: Payload,
        response_headers: MutableHeaders | None,
        ref: ModelRef,
    ) -> tuple[list[Header], list[Body]]:
        headers, buffers = self.event.inner.encode(value, head, payload, response_headers, ref)
        return self.with_attributes(headers, ref), buffers

    def stream_format(
        self,
        head: Head,
        payload: Payload,
        response_headers: MutableHeaders | None,
        ref: ModelRef,
    ) -> StreamFormat:
        head = _accepting_json(head)
        inner = self.event.inner.stream_format(head, payload, response_headers, ref)
        return _BinaryFormat(self, inner, head)

    def with_attributes(self, headers: list[Header], ref: ModelRef) -> list[Header]:
        """Add the attributes to the headers, except those the model set."""
        taken = {name for name, _ in headers}
        added = [
            (f"ce-{name}".encode("latin-1"), quote(value, safe=_PLAIN).encode())
            for name, value in self.event.reply(ref).items()
        ]
        return [*headers, *(header for header in added if header[0] not in taken)]


class _BinaryFormat(StreamFormat):
    """A stream in the form that it would have anyway; its headers have the attributes."""

    def __init__(self, codec: _Binary, inner: StreamFormat, head: Head) -> None:
        super().__init__(head, inner.payload, inner.response_headers, inner.ref)
        self.codec = codec
        self.inner = inner

    def headers(self) -> list[Header]:
        return self.codec.with_attributes(self.inner.headers(), self.ref)

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        return self.inner.encoder(first, empty=empty)

    def framed_encoder(self) -> Encoder | None:
        return self.inner.framed_encoder()


# --- structured mode: attributes and data in one JSON document ----------------------------------


class _Structured(_EventCodec):
    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        document = _parse_object(body)
        scalars = {key: value for key, value in document.items() if not _is_nested(value)}
        self.event.take({key: value for key, value in scalars.items() if key not in _DATA})
        if ("data" in document) is ("data_base64" in document):
            raise InvalidInput('Expected the CloudEvent to have either "data" or "data_base64"')
        if "data_base64" in document:
            claimed = str(scalars.get("datacontenttype", ""))
            return self.event.decode(_decoded(document["data_base64"]), claimed, head, ref)
        if self.protocol == "v1":
            return document["data"]
        return self.event.inner.decode(_written(document["data"]), head, ref)

    def encode(
        self,
        value: Any,
        head: Head,
        payload: Payload,
        response_headers: MutableHeaders | None,
        ref: ModelRef,
    ) -> tuple[list[Header], list[Body]]:
        if isinstance(value, InferResponse):  # as JSON, though the client may ask for binary data
            value = self.document(value, payload, ref)
        headers, buffers = self.event.inner.encode(value, head, payload, response_headers, ref)
        data = b"".join(buffers)
        content_type = dict(headers)[b"content-type"].decode("latin-1")
        others = [header for header in headers if header[0] != b"content-type"]
        document = self.event.reply(ref) | _members(data, content_type)
        return [(b"content-type", _STRUCTURED.encode()), *others], [to_json(document)]

    def stream_format(
        self,
        head: Head,
        payload: Payload,
        response_headers: MutableHeaders | None,
        ref: ModelRef,
    ) -> StreamFormat:
        head = _accepting_json(head)
        inner = self.event.inner.stream_format(head, payload, response_headers, ref)
        return _StructuredFormat(self.event, inner, head)


class _StructuredFormat(StreamFormat):
    """A stream of structured events, framed as its items would be, as NDJSON if they would not.

    What is collected is one event.
    """

    def __init__(self, event: _Event, inner: StreamFormat, head: Head) -> None:
        super().__init__(head, inner.payload, inner.response_headers, inner.ref)
        self.event = event
        self.inner = inner

    def headers(self) -> list[Header]:
        return self.inner.headers()

    def framed_encoder(self) -> Encoder | None:
        chosen = self.inner.framed_encoder()
        return None if chosen is None else self._framed(chosen)

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        chosen = self.inner.encoder(first, empty=empty)
        if chosen.join is None:
            return self._framed(NDJSON if chosen.idle is None else chosen)
        join = chosen.join
        return replace(chosen, media_type=_STRUCTURED, join=lambda items: self._whole(join(items)))

    def _framed(self, frame: Encoder) -> Encoder:
        write = SSE.encode if frame.idle == SSE.idle else NDJSON.encode

        def encode(item: Any) -> bytes:
            if not isinstance(item, ServerSentEvent):
                return write(self._document(item))
            document = self._document(item.data)
            return write(ServerSentEvent(document, event=item.event, id=item.id, retry=item.retry))

        return replace(frame, encode=encode)

    def _document(self, item: Any) -> dict[str, Any]:
        data = self.event.inner.document(item, self.payload, self.ref)
        attributes = self.event.reply(self.ref)
        if not isinstance(data, bytes | bytearray | memoryview):
            return attributes | {"data": data}
        content_type = dict(self.headers()).get(b"content-type", b"application/octet-stream")
        return attributes | _members(bytes(data), content_type.decode("latin-1"))

    def _whole(self, data: bytes) -> bytes:
        return to_json(self.event.reply(self.ref) | _members(data, "application/json"))


def _members(data: bytes, content_type: str) -> dict[str, Any]:
    """Return data as members of a document: as JSON, which may be a model's own, text or base64."""
    if _is_json(content_type):
        with suppress(orjson.JSONDecodeError):
            orjson.loads(data)
            return _described(content_type) | {"data": orjson.Fragment(data)}
    if content_type.startswith("text/"):
        with suppress(UnicodeDecodeError):
            return _described(content_type) | {"data": data.decode()}
    return _described(content_type) | {"data_base64": base64.b64encode(data).decode()}


def _described(content_type: str) -> dict[str, Any]:
    """Name the type of an event's data, unless it is what goes without saying."""
    return {} if content_type == "application/json" else {"datacontenttype": content_type}


def _parse_object(body: bytes | bytearray) -> dict[str, Any]:
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidInput("Expected the CloudEvent to be a JSON object")
    return document


def _is_nested(value: Any) -> bool:
    return value is None or isinstance(value, dict | list)


def _not_text(data: bytes | bytearray) -> UnicodeDecodeError | None:
    """Return what keeps data from being text, in words that say where (KServe's)."""
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        return exc
    return None


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise InvalidInput('Expected "data_base64" of the CloudEvent to be base64') from None


def _written(data: Any) -> bytes:
    try:
        return to_json(data)
    except NestedTooDeep:
        raise InvalidInput("The data of the CloudEvent is nested too deep.") from None


# --- headers ------------------------------------------------------------------------------------


def _is_structured(content_type: bytes) -> bool:
    return _media_type(content_type.decode("latin-1")) == _STRUCTURED


def _is_json(content_type: str) -> bool:
    name = _media_type(content_type)
    return name == "application/json" or name.endswith("+json")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _accepting_json(head: Head) -> Head:
    """Return a head whose `Accept` says application/json where it named a structured event."""
    accept = (head.accept or "").lower()
    if _STRUCTURED not in accept:
        return head
    others = [header for header in head.scope["headers"] if header[0] != b"accept"]
    accepted = accept.replace(_STRUCTURED, "application/json").encode("latin-1")
    return Head({**head.scope, "headers": [*others, (b"accept", accepted)]})
