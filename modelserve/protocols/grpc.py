"""The Open Inference Protocol over gRPC: the service `inference.GRPCInferenceService`. Pure.

An answer is in gRPC-Web's form, with the status in a last frame. Errors that are the whole answer
have theirs in the headers. A hook is given an `InferRequest`, as over HTTP; what it returns becomes
a response by the same rules. protobuf is imported with the first message.
"""

from collections.abc import Mapping
from copy import copy
from functools import cache
from itertools import chain
from typing import Any, Final

from modelserve.errors import InferenceError, MethodNotAllowed, RouteNotFound, single_cause
from modelserve.protocols.codec import (
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
)
from modelserve.protocols.v2 import as_response
from modelserve.tensors import InferOutput, InferRequest, InferResponse
from modelserve.tensors.grpc import is_message, messages
from modelserve.tensors.messages import grpc_response
from modelserve.tensors.rows import join_rows, row_type
from modelserve.wire.encoders import Encoder, ServerSentEvent
from modelserve.wire.grpc import (
    CONTENT_TYPE,
    MESSAGE,
    OK,
    STATUS,
    UNIMPLEMENTED,
    code_of_http,
    frame,
    message_in,
    quoted,
    trailers,
)
from modelserve.wire.head import Head
from modelserve.wire.headers import Header, sendable_headers
from modelserve.wire.json import detail_text
from modelserve.wire.protobuf import load_messages, parsed

__all__ = [
    "CONTENT",
    "DONE",
    "GRPC",
    "GRPC_INFER",
    "GrpcCodec",
    "answer_headers",
    "classes",
    "merge_responses",
    "read_call",
    "stream_ending",
    "stream_error",
    "stream_response",
    "wants_ending",
    "write_answer",
]

CONTENT: Final[Header] = (b"content-type", CONTENT_TYPE)
_ACCEPTED: Final[Header] = (b"grpc-accept-encoding", b"identity,gzip,deflate")
DONE: Final = trailers(OK)
_RESPONSE: Final = "ModelInferResponse"


class GrpcCodec(Codec):
    """The common part of all methods: one message in a frame, and errors."""

    protocol = "grpc"
    carries_responses = False

    def unwrap(self, body: bytes | bytearray, head: Head) -> tuple[bytes | bytearray, bytes]:
        message, is_compressed = message_in(body)
        return message, head.get(b"grpc-encoding") if is_compressed else b""

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        """Check nothing beyond the bytes: a message takes little more memory than they do."""

    def error(
        self, status: int, detail: Any, error: BaseException | None = None
    ) -> tuple[int, list[Header], bytes]:
        """Return an error as headers alone; the status is HTTP's, for the log and the metrics."""
        headers = [CONTENT, (STATUS, b"%d" % _code_of(status, error))]
        if text := detail_text(detail):
            headers.append((MESSAGE, quoted(text)))
        if status == 415:
            headers.append(_ACCEPTED)
        return status, headers, b""


class MergedFormat(StreamFormat):
    """The responses of a stream as one, their outputs of one name concatenated."""

    def __init__(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> None:
        super().__init__(head, payload, response_headers, ref)
        self._payload = payload

    def headers(self) -> list[Header]:
        return answer_headers(self.response_headers)[1:]

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        responses: list[InferResponse] = []

        def add(item: Item) -> bytes:
            responses.append(as_response(_data(item), self._payload, self.ref))
            # for its size, and for what it raises
            return bytes(_serialized(responses[-1], self._payload, self.ref))

        def join(parts: list[bytes]) -> bytes:
            if len(parts) == 1:
                return frame(parts[0]) + DONE
            if not responses:
                responses.append(as_response({"outputs": []}, None, self.ref))
            whole = merge_responses(responses)
            return frame(_serialized(whole, self._payload, self.ref)) + DONE

        return Encoder(CONTENT_TYPE.decode(), add, join=join)


class InferCodec(GrpcCodec):
    """ModelInfer: one request, one response."""

    takes_binary = True

    def open(self, body: bytes | bytearray, head: Head) -> tuple[ModelRef, Payload]:
        request = InferRequest.from_grpc(parsed(messages()["ModelInferRequest"], body))
        return ModelRef(request.model_name, request.model_version), request

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        message = _serialized(value, payload, ref)
        return answer_headers(response_headers), [frame(message) + DONE]


# --- ModelStreamInfer ---------------------------------------------------------------------------

_STREAM_RESPONSE: Final = "ModelStreamInferResponse"
# Triton's names, for clients that want to know which response is the last for a request.
_WANTS_ENDING: Final = "triton_enable_empty_final_response"
_FINAL: Final = "triton_final_response"


def wants_ending(request: InferRequest) -> bool:
    """Return whether the client wants the last response to a request to be marked."""
    return bool((request.parameters or {}).get(_WANTS_ENDING))


def stream_response(value: Any, request: InferRequest, ref: ModelRef, *, final: bool) -> bytes:
    """Return a hook's result as one message of the stream, in a frame.

    Args:
        request: What it answers.
        final: No other response to it will follow.
    """
    response = _message(_data(value), request, ref)
    if wants_ending(request):
        response.parameters[_FINAL].bool_param = final
    message = classes()[_STREAM_RESPONSE](infer_response=response)
    return frame(message.SerializeToString())


def stream_error(detail: Any, request: InferRequest | None) -> bytes:
    """Return an error as one message of the stream; its id is that of the request."""
    message = classes()[_STREAM_RESPONSE](error_message=detail_text(detail))
    if request is not None:
        message.infer_response.id = request.id or ""
        message.infer_response.model_name = request.model_name
        if wants_ending(request):
            message.infer_response.parameters[_FINAL].bool_param = True
    return frame(message.SerializeToString())


def stream_ending(status: int, detail: Any) -> bytes:
    """Return the status of a stream that has failed."""
    return trailers(code_of_http(status), detail_text(detail))


def answer_headers(response_headers: SetHeaders) -> list[Header]:
    """Return the headers of an answer: the content type first, then what the model has set."""
    if not response_headers:
        return [CONTENT]
    pairs = sendable_headers(response_headers)
    others = [p for p in pairs if p[0] != b"content-type" and not p[0].startswith(b"grpc-")]
    return [CONTENT, *others]


# --- methods that run no model ------------------------------------------------------------------


@cache
def classes() -> Mapping[str, type[Any]]:
    """Return the classes of all messages by name. Raises ExtraMissing without protobuf."""
    return {**messages(), **load_messages("modelserve.protocols", "health.proto")}


def read_call(name: str, body: bytes | bytearray) -> Any:
    """Return the request of a method, by the name of its message. Raises InvalidInput."""
    return parsed(classes()[name], body)


def write_answer(name: str, document: Mapping[str, Any]) -> bytes:
    """Return a document as the message of that name, in a frame."""
    return frame(classes()[name](**document).SerializeToString())


# --- results of hooks ---------------------------------------------------------------------------


def _code_of(status: int, error: BaseException | None) -> int:
    if error is not None:
        error = single_cause(error)
    if type(error) in (RouteNotFound, MethodNotAllowed):
        return UNIMPLEMENTED  # an unknown method
    return code_of_http(status)


def _serialized(value: Any, payload: Payload, ref: ModelRef) -> bytes:
    return bytes(_message(value, payload, ref).SerializeToString())


def _message(value: Any, payload: Payload, ref: ModelRef) -> Any:
    """Return what a hook gives as a ModelInferResponse.

    It may be such a message itself, of generated code too.
    """
    if not isinstance(value, InferResponse):
        if is_message(value, _RESPONSE):
            return value
        value = as_response(value, payload, ref)
    elif ref.version is not None:
        value = as_response(value, payload, ref)
    return grpc_response(value, payload if isinstance(payload, InferRequest) else None)


def _data(item: Item) -> Any:
    item = item.data if isinstance(item, ServerSentEvent) else item
    return InferResponse.from_grpc(item) if is_message(item, _RESPONSE) else item


def merge_responses(responses: list[InferResponse]) -> InferResponse:
    """Return the first response with the outputs of all, concatenated by name."""
    parts: dict[str, list[InferOutput]] = {}
    for output in chain.from_iterable(response.outputs for response in responses):
        parts.setdefault(output.name, []).append(output)
    whole = copy(responses[0])
    whole.outputs = [_joined(outputs) for outputs in parts.values()]
    return whole


def _joined(outputs: list[InferOutput]) -> InferOutput:
    if len(set(map(row_type, outputs))) > 1:
        raise InferenceError(
            f"The items of the stream do not fit together: output {outputs[0].name!r} changes its "
            "shape or datatype."
        )
    return join_rows(outputs)


GRPC: Final = GrpcCodec()
GRPC_INFER: Final = InferCodec(MergedFormat)
