"""The Open Inference Protocol (KServe V2): infer, whole, collected or streamed. Pure.

A stream returned to `infer` is collected into one response, in which outputs of one name are
concatenated along their first dimension, unless `Accept` asks for NDJSON or SSE. `infer_stream` is
MLServer's: always SSE, one response in each event. An item that is no `InferResponse` is converted:
a document with `outputs` is one; anything else is the one element of an output called `output`.
"""

from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from modelserve.errors import InferenceError, InvalidInput, NotAcceptable
from modelserve.protocols.codec import (
    OCTETS,
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
    encode_value,
    with_model_headers,
)
from modelserve.tensors import (
    InferOutput,
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
    response_document,
)
from modelserve.tensors.messages import json_length
from modelserve.wire.accept import choose_among, framed_encoder
from modelserve.wire.cost import check_cost
from modelserve.wire.encoders import (
    COLLECTED,
    NDJSON,
    SSE,
    Encoder,
    ServerSentEvent,
    encode_documents,
)
from modelserve.wire.head import Head
from modelserve.wire.headers import JSON
from modelserve.wire.json import parse_json, to_json

__all__ = ["INFER", "INFER_STREAM", "as_response", "wants_ready_only"]

_LENGTH_HEADER: Final = b"inference-header-content-length"
_NOT_ACCEPTABLE: Final = (
    "Nothing that Accept allows can be sent. This stream is available as application/json, "
    "application/x-ndjson and text/event-stream."
)


class InferStreamFormat(StreamFormat):
    """Each item is a response; they are collected into one unless `Accept` asks for a stream."""

    def __init__(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> None:
        super().__init__(head, payload, response_headers, ref)
        self.payload = payload

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        encoder = choose_among(self.accept, (COLLECTED, NDJSON, SSE))
        if encoder is None:
            raise NotAcceptable(_NOT_ACCEPTABLE)
        return self._with_documents(encoder) if encoder.join is None else self._collecting()

    def framed_encoder(self) -> Encoder | None:
        encoder = framed_encoder(self.accept)
        return None if encoder is None else self._with_documents(encoder)

    def _with_documents(self, encoder: Encoder) -> Encoder:
        return replace(encoder, encode=encode_documents(encoder.encode, self._document))

    def _collecting(self) -> Encoder:
        """Return an encoder that merges all items into one response."""
        documents: list[dict[str, Any]] = []

        def encode_item(item: Item) -> bytes:
            item = item.data if isinstance(item, ServerSentEvent) else item
            documents.append(self._document(item))
            return to_json(documents[-1])  # for its size, and for what it raises

        def join(items: list[bytes]) -> bytes:
            if len(items) == 1:
                return items[0]
            return to_json(_merged(documents) if documents else self._empty_document())

        return replace(COLLECTED, encode=encode_item, join=join)

    def _document(self, item: Item) -> dict[str, Any]:
        return _document(item, self.payload, self.ref)

    def _empty_document(self) -> dict[str, Any]:
        return response_document(_response([], self.payload, self.ref))


class EventStreamFormat(InferStreamFormat):
    """Each item is a response in a server-sent event, whatever `Accept` says."""

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        return self._with_documents(SSE)

    def framed_encoder(self) -> Encoder | None:
        return None if framed_encoder(self.accept) is None else self._with_documents(SSE)


class InferCodec(Codec):
    """V2's infer, in JSON and binary."""

    protocol = "v2"
    takes_binary = True

    def json_length(self, head: Head) -> bytes | None:
        return head.headers.get(_LENGTH_HEADER)

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        header = head.headers.get(_LENGTH_HEADER)
        length = None if header is None else json_length(body, header.decode("latin-1"))
        check_cost(body if length is None else memoryview(body)[:length], limit)

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> InferRequest:
        """Return the request, binary with the length header and JSON without it.

        If the length exceeds the body, the client has left over the header of an earlier request:
        the body is JSON. The content type does not matter. Raises InvalidInput, which names the
        tensor and its fault.
        """
        length = head.headers.get(_LENGTH_HEADER)
        request = decode_request(
            body, None if length is None else length.decode("latin-1"), model_name=ref.name
        )
        request.model_version = ref.version
        return request

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        """Return a response as JSON, or as JSON and raw tensors where the client asked for that."""
        if not isinstance(value, InferResponse):
            headers, body = encode_value(value, payload, response_headers)
            return headers, [body]
        if ref.version is not None:
            value = _with_version(value, ref.version)
        buffers, json_length = encode_response(value, payload, to_json=to_json)
        if json_length is None:
            return with_model_headers(JSON, response_headers), list(buffers)
        length = (_LENGTH_HEADER, b"%d" % json_length)
        return [*with_model_headers(OCTETS, response_headers), length], list(buffers)

    def document(self, item: Item, payload: Payload, ref: ModelRef) -> dict[str, Any]:
        return _document(item, payload, ref)


def wants_ready_only(body: bytes | bytearray) -> bool:
    """Return whether a request for the repository index wants ready models only (Triton's).

    Most have no body. Raises InvalidInput.
    """
    document = parse_json(body) if body.strip() else {}
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise InvalidInput('Expected a JSON object whose "ready" is a boolean')
    return ready


# --- items as responses -------------------------------------------------------------------------


def _document(item: Item, payload: Payload, ref: ModelRef) -> dict[str, Any]:
    """Return an item of a stream as a V2 response document."""
    if isinstance(item, dict) and "outputs" in item:
        return item
    response = as_response(item, payload, ref)
    return response_document(response, payload if isinstance(payload, InferRequest) else None)


def as_response(item: Item, payload: Payload, ref: ModelRef) -> InferResponse:
    """Return a hook's result as a response; any other value is the one element of an output.

    Raises InvalidOutput for a document with `outputs` that is not a valid response.
    """
    if isinstance(item, InferResponse):
        return item if ref.version is None else _with_version(item, ref.version)
    if isinstance(item, dict) and "outputs" in item:
        return InferResponse.from_rest({"model_name": ref.name, **item})
    return _response([_output(item)], payload, ref)


def _with_version(response: InferResponse, version: str) -> InferResponse:
    """Return a response with the version that the path names, unless the model has set one."""
    if response.model_version is None:
        response = copy(response)  # it is the model's
        response.model_version = version
    return response


def _response(outputs: list[InferOutput], payload: Payload, ref: ModelRef) -> InferResponse:
    return InferResponse(getattr(payload, "id", None), ref.name, outputs, ref.version)


def _output(item: Item) -> InferOutput:
    if isinstance(item, bytes | bytearray | memoryview):
        item = bytes(item).decode()
    text = item if isinstance(item, str) else to_json(item).decode()
    return InferOutput("output", [1], "BYTES", [text])


def _merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first document with the outputs of all documents, concatenated by name."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for output in chain.from_iterable(document["outputs"] for document in documents):
        parts.setdefault(output["name"], []).append(output)
    return documents[0] | {"outputs": [_concatenated(outputs) for outputs in parts.values()]}


def _concatenated(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return outputs of one name as one, along their first dimension."""
    first = outputs[0]
    row_types = [(output["datatype"], output["shape"][1:]) for output in outputs]
    if any(row_type != row_types[0] for row_type in row_types):
        raise InferenceError(
            f"The items of the stream do not fit together: output {first['name']!r} changes its "
            "shape or datatype."
        )
    rows = sum((output["shape"] or [1])[0] for output in outputs)
    data = list(chain.from_iterable(output["data"] for output in outputs))
    return first | {"shape": [rows, *first["shape"][1:]], "data": data}


INFER: Final = InferCodec(InferStreamFormat)
INFER_STREAM: Final = InferCodec(EventStreamFormat, always_streams=True)
