"""Triton's generate extension: text in, text out, whole or as server-sent events. Pure.

A hook gets the request's document, `text_input` and `parameters`, and returns or yields text, an
`InferResponse` whose first BYTES output is the text, or a document of its own with `text_output`.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from dataclasses import replace
from typing import Any, Final

from modelserve.errors import InferenceError, InvalidInput
from modelserve.protocols.codec import (
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
    with_model_headers,
)
from modelserve.tensors import InferResponse
from modelserve.wire.accept import framed_encoder
from modelserve.wire.encoders import COLLECTED, SSE, Encoder, ServerSentEvent
from modelserve.wire.head import Head
from modelserve.wire.headers import JSON
from modelserve.wire.json import error_document, parse_json, to_json

__all__ = ["GENERATE", "GENERATE_STREAM"]


class WholeTextFormat(StreamFormat):
    """All the text as one document, with the last value of each other member of the items."""

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        members: dict[str, Any] = {}

        def encode_item(item: Item) -> bytes:
            document = _own_document(item)
            if document is not None:
                members.update(document)
            return _text(item if document is None else document).encode()

        def join(texts: list[bytes]) -> bytes:
            whole = {"text_output": b"".join(texts).decode()}
            return to_json(_document(members | whole, self.ref))

        return replace(COLLECTED, encode=encode_item, join=join)


class TextEventFormat(StreamFormat):
    """Each event is one document; an error is a document too, as Triton writes it."""

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        return self._events()

    def framed_encoder(self) -> Encoder | None:
        return None if framed_encoder(self.accept) is None else self._events()

    def _events(self) -> Encoder:
        return replace(
            SSE,
            encode=lambda item: SSE.encode(_document(item, self.ref)),
            failure=lambda status, detail: SSE.encode(error_document(detail)),
        )


class GenerateCodec(Codec):
    """Triton's generate: the whole text in one document."""

    protocol = "v2"

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> dict[str, Any]:
        """Return the document. Raises InvalidInput for anything else, or one without text."""
        document = parse_json(body)
        if not isinstance(document, dict):
            raise InvalidInput("Expected the request to be a JSON object")
        if not isinstance(document.get("text_input"), str):
            raise InvalidInput('Expected "text_input" to be a string')
        if not isinstance(document.get("parameters", {}), dict):
            raise InvalidInput('Expected "parameters" to be an object')
        return document

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        """Return a value as one document."""
        return with_model_headers(JSON, response_headers), [to_json(_document(value, ref))]

    def document(self, item: Item, payload: Payload, ref: ModelRef) -> dict[str, Any]:
        return _document(item, ref)


def _document(item: Item, ref: ModelRef) -> dict[str, Any]:
    document = _own_document(item)
    if document is None:
        document = {"text_output": _text(item)}
    return document | {"model_name": ref.name, "model_version": ref.version}


def _own_document(item: Item) -> dict[str, Any] | None:
    """Return the model's own document if an item is one or can be converted to one."""
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, dict):
        return item if "text_output" in item else None
    if not hasattr(item, "text_output"):
        return None
    document = parse_json(to_json(item))
    return document if isinstance(document, dict) and "text_output" in document else None


def _text(item: Item) -> str:
    """Return the text of an item; anything but text and responses is written as JSON."""
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, InferResponse):
        return _text_of_response(item)
    if isinstance(item, dict) and "text_output" in item:
        text = item["text_output"]
        return "" if text is None else _text(text)
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item).decode()
    return item if isinstance(item, str) else to_json(item).decode()


def _text_of_response(response: InferResponse) -> str:
    """Return the text of the first BYTES output. Raises InferenceError if there is none."""
    for output in response.outputs:
        if output.datatype == "BYTES":
            try:
                return "".join(filter(None, output.as_string()))
            except (
                InvalidInput
            ) as exc:  # the model's fault: a client of this route sends no tensors
                raise InferenceError(exc.reason) from None
    raise InferenceError("The model's response has no BYTES output to be the text.")


GENERATE: Final = GenerateCodec(WholeTextFormat)
GENERATE_STREAM: Final = GenerateCodec(TextEventFormat, always_streams=True)
