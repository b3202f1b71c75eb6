"""Triton's generate extension: text in, text out, whole or as server-sent events. Pure.

A hook gets the document as it came, `text_input` and `parameters`, and returns or yields text, an
`InferResponse` whose first BYTES output is the text, or a document of its own with `text_output`.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from dataclasses import replace
from typing import Any, Final

import orjson
from starlette.datastructures import MutableHeaders

from modelserve.errors import InferenceError, InvalidInput
from modelserve.exchange.exchange import JSON, Header, model_headers
from modelserve.protocols.codec import Body, Codec, Named, with_own
from modelserve.tensors import InferResponse
from modelserve.wire.encoders import (
    COLLECTED,
    SSE,
    Encoder,
    ServerSentEvent,
    error_document,
    named_encoder,
    to_json,
)
from modelserve.wire.head import Request

__all__ = ["GENERATE", "GENERATE_STREAM"]


def decode(body: bytes | bytearray, request: Request, named: Named) -> dict[str, Any]:
    """Return the document. Raises InvalidInput where it is none, or has no text."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"Unrecognized request format: {exc}") from None
    if not isinstance(document, dict):
        raise InvalidInput("Expected the request to be a JSON object")
    if not isinstance(document.get("text_input"), str):
        raise InvalidInput('Expected "text_input" to be a string')
    if not isinstance(document.get("parameters", {}), dict):
        raise InvalidInput('Expected "parameters" to be an object')
    return document


def check(payload: Any) -> None:
    """Let every payload go on: `decode` has looked at it."""


def encode(
    value: Any, request: Request, payload: Any, own: MutableHeaders | None, named: Named
) -> tuple[list[Header], list[Body]]:
    """Return a value as one document."""
    return with_own(JSON, own), [to_json(_document(value, named))]


class _Form:
    """How generated text goes out."""

    def __init__(
        self, request: Request, payload: Any, own: MutableHeaders | None, named: Named
    ) -> None:
        self.own = own
        self.named = named
        self.asks_for_events = named_encoder(request.accept) is not None

    def headers(self) -> list[Header]:
        return model_headers(self.own) if self.own else []


class WholeForm(_Form):
    """All the text as one document."""

    def named_encoder(self) -> Encoder | None:
        return None

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        return replace(
            COLLECTED,
            encode=lambda item: _text(item).encode(),
            join=lambda texts: to_json(_document(b"".join(texts).decode(), self.named)),
        )


class EventsForm(_Form):
    """One document an event; an error is a document too, as Triton writes it."""

    def named_encoder(self) -> Encoder | None:
        return self.encoder(None, empty=False) if self.asks_for_events else None

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        return replace(
            SSE,
            encode=lambda item: SSE.encode(_document(item, self.named)),
            failure=lambda sentence: SSE.encode(error_document(sentence)),
        )


def _document(item: Any, named: Named) -> dict[str, Any]:
    item = item.data if isinstance(item, ServerSentEvent) else item
    own = item if isinstance(item, dict) and "text_output" in item else {"text_output": _text(item)}
    return own | {"model_name": named.model, "model_version": named.version}


def _text(item: Any) -> str:
    """Return the text of an item; what is neither text nor a response is written as JSON."""
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, InferResponse):
        return _text_of_response(item)
    if isinstance(item, dict) and isinstance(item.get("text_output"), str):
        return str(item["text_output"])
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item).decode()
    return item if isinstance(item, str) else to_json(item).decode()


def _text_of_response(response: InferResponse) -> str:
    """Return what the first BYTES output holds. Raises InferenceError where there is no text."""
    for output in response.outputs:
        if output.datatype == "BYTES":
            try:
                return "".join(output.as_string())
            except InvalidInput as exc:  # a client of this route has no say in tensors
                raise InferenceError(exc.reason) from None
    raise InferenceError("The model's response has no BYTES output to be the text.")


GENERATE: Final = Codec(
    "v2",
    decode,
    check,
    encode,
    WholeForm,
    document=lambda item, payload, named: _document(item, named),
)
GENERATE_STREAM: Final = replace(GENERATE, form=EventsForm, always_streams=True)
