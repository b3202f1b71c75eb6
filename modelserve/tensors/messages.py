"""V2 requests and responses (the Open Inference Protocol), and the bodies they travel in. Pure.

The types have the names, constructors and methods of KServe's `kserve.protocol.infer_type`, so
that code written for it runs unchanged.

Two rules decide what is raised. A fault in a request is `InvalidInput`, which names the tensor. A
fault in a response, of a model or of a predictor behind it, is `InvalidOutput`; but if a client
wants JSON for data that cannot be JSON (FP16, bytes that are not UTF-8), that is `InvalidInput`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from modelserve.errors import InvalidInput, InvalidOutput
from modelserve.tensors.data import Buffer, need
from modelserve.tensors.documents import (
    LENGTH_HEADER,
    parse,
    read_request,
    read_response,
    requested_entry,
    tensor_entry,
    without_null,
)
from modelserve.tensors.elements import flatten, short
from modelserve.tensors.grpc import messages as grpc_messages
from modelserve.tensors.grpc import read_request as read_grpc_request
from modelserve.tensors.grpc import read_response as read_grpc_response
from modelserve.tensors.grpc import write_parameters, write_tensors
from modelserve.tensors.parameters import plain_parameters
from modelserve.tensors.tensor import InferInput, InferOutput, RequestedOutput, Tensor

__all__ = [
    "InferRequest",
    "InferResponse",
    "decode_request",
    "encode_response",
    "generate_uuid",
    "grpc_response",
    "json_length",
    "response_document",
    "rest_document",
]


class InferRequest:
    """One V2 inference request.

    `raw_inputs` are the binary data of the inputs, in order; with `from_grpc`, outputs are binary
    if these are given.
    """

    def __init__(
        self,
        model_name: str,
        infer_inputs: list[InferInput],
        request_id: str | None = None,
        raw_inputs: Sequence[Buffer] | None = None,
        from_grpc: bool | None = False,
        parameters: dict[str, Any] | None = None,
        request_outputs: list[RequestedOutput] | None = None,
        model_version: str | None = None,
    ) -> None:
        self.id = request_id
        self.model_name = model_name
        self.model_version = model_version
        self.inputs = infer_inputs
        self.parameters = parameters and plain_parameters(parameters)
        self.request_outputs = request_outputs
        # KServe has the method and the attribute too.
        self.from_grpc = from_grpc  # type: ignore[method-assign,assignment]
        self._is_of_grpc = bool(from_grpc)
        self._raw_inputs = bool(raw_inputs)
        if raw_inputs:
            _set_raw(infer_inputs, raw_inputs)

    @classmethod
    def from_rest(cls, model_name: str, request: Any) -> InferRequest:
        """Return the request in a JSON document; raise InvalidInput if it is not one."""
        return cls(model_name, **read_request(request))

    @classmethod
    def from_inference_request(cls, request: Any, model_name: str) -> InferRequest:
        """Return the request in KServe's `v2_datamodels.InferenceRequest`, as `from_rest` does."""
        return cls.from_rest(model_name, request.model_dump(exclude_none=True))

    @classmethod
    def from_bytes(cls, req_bytes: Buffer, json_length: int, model_name: str) -> InferRequest:
        """Return the request in a body whose first `json_length` bytes are JSON, the rest tensors.

        The tensors are views into the body. Raises InvalidInput for any other body, bytes left over
        included.
        """
        view = memoryview(req_bytes)
        if not 0 <= json_length <= len(view):
            raise InvalidInput(
                f"{LENGTH_HEADER} is {json_length}, and the body has {len(view)} bytes."
            )
        document = parse(view[:json_length], "request", InvalidInput)
        return cls(model_name, **read_request(document, view[json_length:]))

    @classmethod
    def from_grpc(cls, request: Any) -> InferRequest:
        """Return the request in a ModelInferRequest; raise InvalidInput if it is not valid.

        The message may be of generated code, such as KServe's. BYTES that are not raw are `bytes`.
        """
        made = cls(**read_grpc_request(request))
        made._raw_inputs = bool(request.raw_input_contents)
        return made

    def to_grpc(self) -> Any:
        """Return the request as a ModelInferRequest of our own class.

        Raises InvalidInput for an input that does not fit, ExtraMissing without protobuf.
        """
        message = _grpc_message("ModelInferRequest", self)
        write_tensors(self.inputs, message.inputs, message.raw_input_contents)
        for output in self.request_outputs or ():
            entry = message.outputs.add(name=output.name)
            write_parameters(output.parameters or {}, entry.parameters)
        return message

    @property
    def use_binary_outputs(self) -> bool:
        """Whether the client wants binary data for outputs that it does not name."""
        if self._is_of_grpc:
            return self._raw_inputs
        return bool((self.parameters or {}).get("binary_data_output", False))

    def get_input_by_name(self, name: str) -> InferInput | None:
        """Return the input of that name, or None."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def as_dataframe(self) -> Any:
        """Return the inputs as the columns of a pandas DataFrame, BYTES as text.

        Raises InvalidInput where they differ in length, ImportError without pandas.
        """
        columns = {tensor.name: _column(tensor) for tensor in self.inputs}
        if len(set(map(len, columns.values()))) > 1:
            raise InvalidInput("The inputs differ in length and cannot be columns of one table.")
        return need("pandas").DataFrame(columns)

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """Return what a client sends: (document, None), or (body, length of its JSON part).

        Inputs that are bytes go as binary data. Raises InvalidInput for an input that does not fit.
        """
        buffers: list[Buffer] = []
        document: dict[str, Any] = {
            "id": self.id or generate_uuid(),
            "model_name": self.model_name,
            "inputs": [
                without_null(tensor_entry(tensor, buffers if tensor.is_binary else None))
                for tensor in self.inputs
            ],
        }
        if self.request_outputs:
            document["outputs"] = [requested_entry(output) for output in self.request_outputs]
        if self.parameters:
            document["parameters"] = self.parameters
        return _join(document, buffers)

    def to_dict(self) -> dict[str, Any]:
        """Return the request as a dict."""
        return {
            "id": self.id,
            "model_name": self.model_name,
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "parameters": self.parameters,
            "from_grpc": self.from_grpc,
        }

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, InferRequest)
            and self.model_name == other.model_name
            and self.id == other.id
            and self.from_grpc == other.from_grpc
            and (self.parameters or None) == (other.parameters or None)
            and self.inputs == other.inputs
            and self.request_outputs == other.request_outputs
        )

    def __repr__(self) -> str:
        return (
            f"InferRequest(model_name={self.model_name!r}, id={self.id!r}, inputs={self.inputs}, "
            f"parameters={self.parameters}, from_grpc={self.from_grpc})"
        )


class InferResponse:
    """One V2 inference response.

    `requested_outputs`, where given, are the outputs that are sent, in that order, each in its own
    form; otherwise all are sent, as binary data with `use_binary_outputs`, else as JSON.
    `raw_outputs` are the binary data of the outputs, in order; `from_grpc` is there for KServe's
    signature.
    """

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: list[InferOutput],
        model_version: str | None = None,
        raw_outputs: Sequence[Buffer] | None = None,
        from_grpc: bool | None = False,
        parameters: dict[str, Any] | None = None,
        use_binary_outputs: bool | None = False,
        requested_outputs: list[RequestedOutput] | None = None,
    ) -> None:
        self.id = response_id
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = infer_outputs
        self.parameters = parameters and plain_parameters(parameters)
        self.from_grpc = from_grpc  # type: ignore[method-assign,assignment]
        self.use_binary_outputs = use_binary_outputs
        self.requested_outputs = requested_outputs
        if raw_outputs:
            _set_raw(infer_outputs, raw_outputs)

    @classmethod
    def from_rest(cls, response: Any) -> InferResponse:
        """Return the response in a JSON document; raise InvalidOutput if it is not one.

        Values are not checked: `as_numpy` and `to_rest` do that.
        """
        return cls(**read_response(response))

    @classmethod
    def from_bytes(cls, res_bytes: Buffer, json_length: int) -> InferResponse:
        """Return the response in a body whose first `json_length` bytes are JSON, the rest tensors.

        The tensors are views into the body. Raises InvalidOutput for any other body.
        """
        view = memoryview(res_bytes)
        if not 0 <= json_length <= len(view):
            raise InvalidOutput(
                f"{LENGTH_HEADER} is {json_length}, and the response has {len(view)} bytes."
            )
        document = parse(view[:json_length], "response", InvalidOutput)
        return cls(**read_response(document, view[json_length:]))

    @classmethod
    def from_grpc(cls, response: Any) -> InferResponse:
        """Return the response in a ModelInferResponse; raise InvalidOutput if it is not valid.

        The message may be of generated code, such as KServe's or Triton's.
        """
        return cls(**read_grpc_response(response), from_grpc=True)

    def to_grpc(self) -> Any:
        """Return the response as a ModelInferResponse of our own class.

        Raises as `to_rest`, and ExtraMissing without protobuf.
        """
        return grpc_response(self)

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """Return the output of that name, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """Return (document, None), or (body, length of its JSON part) where any output is binary.

        Raises InvalidInput for a requested output that does not exist or cannot be JSON,
        InvalidOutput for data that does not fit its shape or datatype.
        """
        buffers: list[Buffer] = []
        document = _wire_document(self, None, buffers)
        return _join(_in_rest_order(document), buffers)

    def to_dict(self) -> dict[str, Any]:
        """Return the response as a dict."""
        return {
            "id": self.id,
            "model_name": self.model_name,
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "parameters": self.parameters,
            "from_grpc": self.from_grpc,
        }

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, InferResponse)
            and self.model_name == other.model_name
            and self.model_version == other.model_version
            and self.id == other.id
            and self.from_grpc == other.from_grpc
            and (self.parameters or None) == (other.parameters or None)
            and self.outputs == other.outputs
        )

    def __repr__(self) -> str:
        return (
            f"InferResponse(model_name={self.model_name!r}, id={self.id!r}, "
            f"outputs={self.outputs}, parameters={self.parameters}, from_grpc={self.from_grpc})"
        )


# Bodies.


def decode_request(body: Buffer, length_header: str | None, *, model_name: str) -> InferRequest:
    """Return the request in a body; `length_header` is `inference-header-content-length`'s value.

    Without the header the whole body is JSON, whatever the content type; so it is where the header
    is larger than the body: KServe's client leaves that of an earlier request in the caller's
    headers. The arrays of binary tensors are writable. Raises InvalidInput, and nothing else, for
    anything that a client can send.
    """
    length = None if length_header is None else json_length(body, length_header)
    if length is None:
        return InferRequest.from_rest(model_name, parse(body, "request", InvalidInput))
    if isinstance(body, bytes):  # in one piece, so small; one gathered from pieces is writable
        body = bytearray(body)
    return InferRequest.from_bytes(body, length, model_name)


def json_length(body: Buffer, length_header: str) -> int | None:
    """Return how many bytes of a body are JSON by its length header, None where all are.

    Raises InvalidInput for a header that is no number.
    """
    length = _parse_length(length_header)
    return None if length > len(body) else length


def _parse_length(header: str) -> int:
    """Return the number of bytes that a length header has; raise InvalidInput for another value."""
    digits = header.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise InvalidInput(f"{LENGTH_HEADER} is not a number of bytes: {short(header)}.")
    return int(digits)


def encode_response(
    response: InferResponse,
    request: InferRequest | None = None,
    *,
    to_json: Callable[[Any], bytes] | None = None,
) -> tuple[list[Buffer], int | None]:
    """Return the pieces of a response's body and, where it is binary, its JSON part's length.

    The pieces are the JSON and then the tensors, not joined, so that nothing large is copied.
    What `request` asks of outputs counts where the response itself says nothing about them.
    `to_json` writes documents, orjson unless given. Raises what `InferResponse.to_rest` raises.
    """
    buffers: list[Buffer] = []
    document = _wire_document(response, request, buffers)
    document["id"] = _id(response, request)
    write = to_json or _dumps
    if not buffers:
        return [write(document)], None
    head = write(_in_rest_order(document))
    return [head, *buffers], len(head)


def grpc_response(response: InferResponse, request: InferRequest | None = None) -> Any:
    """Return a response as a ModelInferResponse, with raw contents if the request has them.

    Raises what `InferResponse.to_grpc` raises.
    """
    message = _grpc_message("ModelInferResponse", response)
    if not message.id and request is not None:
        message.id = request.id or ""
    raw = response.use_binary_outputs or (request is not None and request.use_binary_outputs)
    outputs = response.outputs
    if requested := _requested_outputs(response, request):
        outputs = [_find_output(response, output.name) for output in requested]
    write_tensors(outputs, message.outputs, message.raw_output_contents, raw=bool(raw))
    return message


def response_document(
    response: InferResponse, request: InferRequest | None = None
) -> dict[str, Any]:
    """Return a response as a JSON document, without binary data even if it was asked for.

    This is for places where only JSON can go: an event of a stream, a CloudEvent.
    """
    document = _wire_document(response, request, None)
    document["id"] = _id(response, request)
    return document


def rest_document(response: InferResponse) -> dict[str, Any]:
    """Return a response as `to_rest` does, without binary data even if it was asked for."""
    return _in_rest_order(_wire_document(response, None, None))


def generate_uuid() -> str:
    """Return a new random id."""
    return str(uuid.uuid4())


def _id(response: InferResponse, request: InferRequest | None) -> str:
    return response.id or (request and request.id) or generate_uuid()


def _grpc_message(name: str, source: InferRequest | InferResponse) -> Any:
    """Return a message with the common fields of requests and responses."""
    message = grpc_messages()[name](
        model_name=source.model_name, model_version=source.model_version, id=source.id
    )
    if source.parameters:
        write_parameters(source.parameters, message.parameters)
    return message


def _wire_document(
    response: InferResponse, request: InferRequest | None, buffers: list[Buffer] | None
) -> dict[str, Any]:
    """Return a response's document with KServe's keys, order and nulls, byte for byte.

    Binary data is appended to `buffers`; where there are none, all data is JSON.
    """
    return {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "parameters": response.parameters or None,
        "outputs": [
            tensor_entry(tensor, buffers if binary else None)
            for tensor, binary in _choose_outputs(response, request)
        ],
    }


def _in_rest_order(document: dict[str, Any]) -> dict[str, Any]:
    """Return a response's document in the form of KServe's `to_rest` and binary responses."""
    ordered = {
        "id": document["id"],
        "model_name": document["model_name"],
        "model_version": document["model_version"],
        "outputs": [without_null(entry) for entry in document["outputs"]],
        "parameters": document["parameters"],
    }
    return without_null(ordered)


def _choose_outputs(
    response: InferResponse, request: InferRequest | None
) -> list[tuple[InferOutput, bool]]:
    """Return the outputs to send, each with whether it is sent as binary data.

    If outputs are named, settings for all of them do not count (KServe's rule).
    """
    if requested := _requested_outputs(response, request):
        return [
            (_find_output(response, output.name), bool(output.binary_data)) for output in requested
        ]
    binary = response.use_binary_outputs or (request is not None and request.use_binary_outputs)
    return [(tensor, bool(binary)) for tensor in response.outputs]


def _requested_outputs(
    response: InferResponse, request: InferRequest | None
) -> list[RequestedOutput] | None:
    return response.requested_outputs or (None if request is None else request.request_outputs)


def _find_output(response: InferResponse, name: str) -> InferOutput:
    tensor = response.get_output_by_name(name)
    if tensor is None:
        raise InvalidInput(
            f"Unexpected inference output {short(name)} for model {response.model_name!r}"
        )
    return tensor


def _set_raw(tensors: Sequence[Tensor], raws: Sequence[Buffer]) -> None:
    for tensor, raw in zip(tensors, raws, strict=False):
        tensor._data, tensor._raw_data = None, raw


def _column(tensor: InferInput) -> list[Any]:
    return tensor.as_string() if tensor.datatype == "BYTES" else flatten(tensor.data)


def _join(
    document: dict[str, Any], buffers: list[Buffer]
) -> tuple[dict[str, Any] | bytes, int | None]:
    if not buffers:
        return document, None
    head = _dumps(document)
    return b"".join([head, *buffers]), len(head)


def _dumps(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
