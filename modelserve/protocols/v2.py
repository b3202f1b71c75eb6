"""The Open Inference Protocol (KServe V2): infer, whole, collected or streamed. Pure.

A stream returned to `infer` is collected into one response, outputs of one name put together along
their first dimension, unless `Accept` asks for NDJSON or SSE. `infer_stream` is MLServer's: always
SSE, one response an event. An item that is no `InferResponse` becomes one: a document with
`outputs` as it is, anything else as the one element of an output called `output`.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, Final

import orjson
from starlette.datastructures import MutableHeaders

from modelserve.errors import InferenceError, InvalidInput, NotAcceptable
from modelserve.exchange.exchange import JSON, Header, model_headers
from modelserve.protocols.codec import Body, Codec, Named, encode_value, with_own
from modelserve.tensors import (
    InferOutput,
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
    response_document,
)
from modelserve.wire.encoders import (
    COLLECTED,
    NDJSON,
    SSE,
    Encoder,
    ServerSentEvent,
    choose_form,
    named_encoder,
    to_json,
)
from modelserve.wire.head import Request

__all__ = ["INFER", "INFER_STREAM", "StreamForm", "as_document"]

_LENGTH: Final = b"inference-header-content-length"
_NOT_ACCEPTABLE: Final = (
    "Nothing that Accept allows can be sent. This stream is available as application/json, "
    "application/x-ndjson and text/event-stream."
)
_OCTETS: Final[Header] = (b"content-type", b"application/octet-stream")


def decode(body: bytes | bytearray, request: Request, named: Named) -> InferRequest:
    """Return the request, JSON or, with the length header, binary; whatever the content type.

    Raises InvalidInput, naming the tensor and what is wrong with it.
    """
    length = request.get(_LENGTH).decode("latin-1") if request.has(_LENGTH) else None
    infer_request = decode_request(body, length, model_name=named.model)
    infer_request.model_version = named.version
    return infer_request


def check(payload: Any) -> None:
    """Let every payload go on: `decode` has looked at it."""


def encode(
    value: Any, request: Request, payload: Any, own: MutableHeaders | None, named: Named
) -> tuple[list[Header], list[Body]]:
    """Return a response as JSON, or as JSON and raw tensors where the client asked for that."""
    if not isinstance(value, InferResponse):
        headers, body = encode_value(value, payload, own)
        return headers, [body]
    buffers, json_length = encode_response(value, payload, to_json=to_json)
    if json_length is None:
        return with_own(JSON, own), list(buffers)
    length = (_LENGTH, b"%d" % json_length)
    return [*with_own(_OCTETS, own), length], list(buffers)


def wants_ready_alone(body: bytes | bytearray) -> bool:
    """Read the body of a request for the repository index (Triton's); most have none.

    Raises InvalidInput.
    """
    try:
        document = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"Unrecognized request format: {exc}") from None
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise InvalidInput('Expected the request to be a JSON object, and its "ready" a boolean')
    return ready


class StreamForm:
    """How the items of one stream go out: as responses, in the encoders that are offered."""

    def __init__(
        self, request: Request, payload: Any, own: MutableHeaders | None, named: Named
    ) -> None:
        self.request = request
        self.own = own
        self.document = lambda item: as_document(item, payload, named)
        self.nothing = lambda: response_document(_response([], payload, named))

    def headers(self) -> list[Header]:
        return model_headers(self.own) if self.own else []

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        """Collect unless `Accept` asks for a stream. Raises NotAcceptable."""
        form = choose_form(self.request.accept, (COLLECTED, NDJSON, SSE))
        if form is None:
            raise NotAcceptable(_NOT_ACCEPTABLE)
        if form.join is None:
            return _of_documents(form, self.document)
        return _collecting(self.document, self.nothing)

    def named_encoder(self) -> Encoder | None:
        named = named_encoder(self.request.accept)
        return None if named is None else _of_documents(named, self.document)


class EventsForm(StreamForm):
    """Server-sent events, whatever `Accept` says."""

    def encoder(self, first: Any, *, empty: bool) -> Encoder:
        return _of_documents(SSE, self.document)

    def named_encoder(self) -> Encoder | None:
        named = named_encoder(self.request.accept)
        return None if named is None else _of_documents(SSE, self.document)


def as_document(item: Any, payload: Any, named: Named) -> dict[str, Any]:
    """Return an item of a stream as a V2 response document."""
    if isinstance(item, dict) and "outputs" in item:
        return item
    if not isinstance(item, InferResponse):
        item = _response([_as_output(item)], payload, named)
    return response_document(item, payload if isinstance(payload, InferRequest) else None)


def _response(outputs: list[InferOutput], payload: Any, named: Named) -> InferResponse:
    return InferResponse(getattr(payload, "id", None), named.model, outputs, named.version)


def _as_output(item: Any) -> InferOutput:
    if isinstance(item, bytes | bytearray | memoryview):
        item = bytes(item).decode()
    text = item if isinstance(item, str) else to_json(item).decode()
    return InferOutput("output", [1], "BYTES", [text])


def _of_documents(form: Encoder, document: Callable[[Any], dict[str, Any]]) -> Encoder:
    """Have a form write each item as a document; an event keeps its fields."""

    def encode_item(item: Any) -> bytes:
        if not isinstance(item, ServerSentEvent):
            return form.encode(document(item))
        event = ServerSentEvent(document(item.data), event=item.event, id=item.id, retry=item.retry)
        return form.encode(event)

    return replace(form, encode=encode_item)


def _collecting(
    document: Callable[[Any], dict[str, Any]], nothing: Callable[[], dict[str, Any]]
) -> Encoder:
    """Put all items together as one response; `nothing` is what becomes of none."""
    documents: list[dict[str, Any]] = []

    def encode_item(item: Any) -> bytes:
        item = item.data if isinstance(item, ServerSentEvent) else item
        documents.append(document(item))
        return to_json(documents[-1])  # for its size, and for what it raises

    def join(items: list[bytes]) -> bytes:
        if len(items) == 1:
            return items[0]
        return to_json(_merged(documents) if documents else nothing())

    return replace(COLLECTED, encode=encode_item, join=join)


def _merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first document with the outputs of all, put together by name."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for output in chain.from_iterable(document["outputs"] for document in documents):
        parts.setdefault(output["name"], []).append(output)
    return documents[0] | {"outputs": [_concatenated(outputs) for outputs in parts.values()]}


def _concatenated(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return outputs of one name as one, along their first dimension."""
    first = outputs[0]
    rests = [(output["datatype"], output["shape"][1:]) for output in outputs]
    if any(rest != rests[0] for rest in rests):
        raise InferenceError(
            f"The items of the stream do not fit together: output {first['name']!r} changes its "
            "shape or datatype."
        )
    rows = sum((output["shape"] or [1])[0] for output in outputs)
    data = list(chain.from_iterable(output["data"] for output in outputs))
    return first | {"shape": [rows, *first["shape"][1:]], "data": data}


INFER: Final = Codec("v2", decode, check, encode, StreamForm, document=as_document)
INFER_STREAM: Final = replace(INFER, form=EventsForm, always_streams=True)
