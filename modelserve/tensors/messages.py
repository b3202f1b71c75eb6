"""V2 requests and responses (the Open Inference Protocol) and their codecs. Pure.

The types have the names, constructors and methods of KServe's `kserve.protocol.infer_type`, so
that code written for it runs unchanged. Three modules, each on top of the one before:
`tensor_data` (the data of a tensor in its three forms), `tensor_types` (one tensor, and its entry
in a JSON document), and this one (a whole request or response; what others import).

Two rules decide what is raised. What only the sender of a request can have got wrong is
`InvalidInput` and names the tensor. What a model, or a predictor behind it, got wrong in a
response is `InvalidOutput`; but what a client asked for in JSON and cannot be JSON (FP16, bytes
that are not UTF-8) is again `InvalidInput`.

Binary data is Triton's extension: a JSON part, whose length is in a header, then the tensors.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from modelserve.errors import InvalidInput, InvalidOutput, ServingError
from modelserve.tensors.data import Buffer, flatten, need, short
from modelserve.tensors.tensor import (
    LENGTH_HEADER,
    InferInput,
    InferOutput,
    RequestedOutput,
    attach,
    binary_entry,
    expect_flag,
    expect_object,
    json_entry,
    read_parameters,
    read_requested,
    read_tensors,
    requested_entry,
    same,
)

__all__ = [
    "InferRequest",
    "InferResponse",
    "decode_request",
    "encode_response",
    "generate_uuid",
    "response_document",
    "rest_document",
]


class InferRequest:
    """One V2 inference request. `from_grpc` and `raw_inputs` are there for KServe's signature.

    `raw_inputs` are the binary data of the inputs, in order.
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
        self.parameters = parameters
        self.request_outputs = request_outputs
        self.from_grpc = from_grpc
        self._raw_inputs = bool(raw_inputs)
        attach(infer_inputs, raw_inputs)

    @classmethod
    def from_rest(cls, model_name: str, request: Any) -> InferRequest:
        """Return the request that a JSON document is; raise InvalidInput for any other document."""
        return cls._read(request, None, model_name)

    @classmethod
    def from_bytes(cls, req_bytes: Buffer, json_length: int, model_name: str) -> InferRequest:
        """Return the request of a body whose first `json_length` bytes are JSON, the rest tensors.

        The tensors are views into the body. Raises InvalidInput for a body that is not so, bytes
        left over included.
        """
        view = memoryview(req_bytes)
        if not 0 <= json_length <= len(view):
            raise InvalidInput(
                f"{LENGTH_HEADER} is {json_length}, and the body has {len(view)} bytes."
            )
        document = _parse(view[:json_length], "request", fault=InvalidInput)
        return cls._read(document, view[json_length:], model_name)

    @classmethod
    def _read(cls, document: Any, tail: memoryview | None, model_name: str) -> InferRequest:
        expect_object(document, "the request", fault=InvalidInput)
        parameters = read_parameters(document, "The request", fault=InvalidInput)
        expect_flag(parameters, "binary_data_output", "The request")
        return cls(
            model_name,
            read_tensors(InferInput, document, tail),
            request_id=_read_id(document),
            parameters=parameters,
            request_outputs=read_requested(document),
        )

    @property
    def use_binary_outputs(self) -> bool:
        """Whether the client wants every output as binary data, outputs that it names apart."""
        if self.from_grpc:
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

        Inputs that are bytes go as binary data. Raises InvalidInput for an input that cannot go.
        """
        raws: list[Buffer] = []
        document: dict[str, Any] = {
            "id": self.id or generate_uuid(),
            "model_name": self.model_name,
            "inputs": [
                binary_entry(tensor, raws) if tensor.is_binary else json_entry(tensor)
                for tensor in self.inputs
            ],
        }
        if self.request_outputs:
            document["outputs"] = [requested_entry(output) for output in self.request_outputs]
        if self.parameters:
            document["parameters"] = self.parameters
        return _joined(document, raws)

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
        names = "model_name id from_grpc parameters inputs request_outputs"
        return isinstance(other, InferRequest) and same(self, other, names)

    def __repr__(self) -> str:
        return (
            f"InferRequest(model_name={self.model_name!r}, id={self.id!r}, inputs={self.inputs}, "
            f"parameters={self.parameters}, from_grpc={self.from_grpc})"
        )


class InferResponse:
    """One V2 inference response.

    `requested_outputs`, where given, are the outputs that are sent, in that order, each in its own
    form; otherwise all are, as binary data with `use_binary_outputs`, else as JSON. `from_grpc`
    and `raw_outputs` are there for KServe's signature.
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
        self.parameters = parameters
        self.from_grpc = from_grpc
        self.use_binary_outputs = use_binary_outputs
        self.requested_outputs = requested_outputs
        attach(infer_outputs, raw_outputs)

    @classmethod
    def from_rest(cls, response: Any) -> InferResponse:
        """Return the response that a JSON document is; raise InvalidOutput for any other one.

        Values are not looked at: `as_numpy` and `to_rest` do that.
        """
        return cls._read(response, None)

    @classmethod
    def from_bytes(cls, res_bytes: Buffer, json_length: int) -> InferResponse:
        """Return the response of a body whose first `json_length` bytes are JSON.

        The tensors are views into the body. Raises InvalidOutput for a body that is not so.
        """
        view = memoryview(res_bytes)
        if not 0 <= json_length <= len(view):
            raise InvalidOutput(
                f"{LENGTH_HEADER} is {json_length}, and the response has {len(view)} bytes."
            )
        document = _parse(view[:json_length], "response", fault=InvalidOutput)
        return cls._read(document, view[json_length:])

    @classmethod
    def _read(cls, document: Any, tail: memoryview | None) -> InferResponse:
        expect_object(document, "the response", fault=InvalidOutput)
        return cls(
            document.get("id"),
            document.get("model_name"),
            read_tensors(InferOutput, document, tail),
            model_version=document.get("model_version"),
            parameters=read_parameters(document, "The response", fault=InvalidOutput),
        )

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """Return the output of that name, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """Return (document, None), or (body, length of its JSON part) where any output is binary.

        Raises InvalidInput for a requested output that does not exist or cannot be JSON,
        InvalidOutput for data that does not fit its shape or datatype.
        """
        raws: list[Buffer] = []
        return _joined(_rest_document(self, _chosen(self, None), raws), raws)

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
        names = "model_name model_version id from_grpc parameters outputs"
        return isinstance(other, InferResponse) and same(self, other, names)

    def __repr__(self) -> str:
        return (
            f"InferResponse(model_name={self.model_name!r}, id={self.id!r}, "
            f"outputs={self.outputs}, parameters={self.parameters}, from_grpc={self.from_grpc})"
        )


# The codec: a request's body to an InferRequest, an InferResponse to a body.


def decode_request(body: Buffer, length_header: str | None, *, model_name: str) -> InferRequest:
    """Return the request in a body; `length_header` is `inference-header-content-length`'s value.

    Without the header the whole body is JSON, whatever the content type; with it, the arrays of the
    tensors may be written to. Raises InvalidInput, and nothing else, for anything that a client can
    send.
    """
    if length_header is None:
        return InferRequest.from_rest(model_name, _parse(body, "request", fault=InvalidInput))
    digits = length_header.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise InvalidInput(f"{LENGTH_HEADER} is not a number of bytes: {short(length_header)}.")
    if isinstance(body, bytes):  # came in one piece, which is small; in pieces it is writable
        body = bytearray(body)
    return InferRequest.from_bytes(body, int(digits), model_name)


def encode_response(
    response: InferResponse,
    request: InferRequest | None = None,
    *,
    to_json: Callable[[Any], bytes] | None = None,
) -> tuple[list[Buffer], int | None]:
    """Return the pieces of a response's body and, where it is binary, its JSON part's length.

    The pieces are the JSON and then the tensors, not joined, so that nothing large is copied.
    What `request` asks of outputs holds where the response itself says nothing about them.
    `to_json` writes documents, orjson unless given. Raises as `InferResponse.to_rest` does.
    """
    raws: list[Buffer] = []
    document = _rest_document(response, _chosen(response, request), raws)
    document["id"] = document["id"] or (request and request.id) or generate_uuid()
    write = to_json or _dumps
    if not raws:
        return [write(_wire_document(document))], None
    head = write(document)
    return [head, *raws], len(head)


def rest_document(response: InferResponse) -> dict[str, Any]:
    """Return a response as `to_rest` does, with no binary data whatever was asked for."""
    return _rest_document(response, [(tensor, False) for tensor, _ in _chosen(response, None)], [])


def response_document(
    response: InferResponse, request: InferRequest | None = None
) -> dict[str, Any]:
    """Return a response as JSON has it, with no binary data whatever was asked for.

    This is for where only JSON can go: an event of a stream, a CloudEvent.
    """
    outputs = [(tensor, False) for tensor, _ in _chosen(response, request)]
    document = _rest_document(response, outputs, [])
    document["id"] = document["id"] or (request and request.id) or generate_uuid()
    return _wire_document(document)


def _chosen(
    response: InferResponse, request: InferRequest | None
) -> list[tuple[InferOutput, bool]]:
    """Return the outputs to send, each with whether it goes as binary data.

    Where outputs are named, what is said about all of them does not count (KServe's rule).
    """
    requested = response.requested_outputs or (request and request.request_outputs)
    if requested:
        return [
            (_find_output(response, output.name), bool(output.binary_data)) for output in requested
        ]
    binary = response.use_binary_outputs or (request is not None and request.use_binary_outputs)
    return [(tensor, bool(binary)) for tensor in response.outputs]


def _find_output(response: InferResponse, name: str) -> InferOutput:
    tensor = response.get_output_by_name(name)
    if tensor is None:
        raise InvalidInput(
            f"Unexpected inference output {short(name)} for model {response.model_name!r}"
        )
    return tensor


def _rest_document(
    response: InferResponse, outputs: Iterable[tuple[InferOutput, bool]], raws: list[Buffer]
) -> dict[str, Any]:
    """Return what `to_rest` does, KServe's keys and order; binary data is appended to `raws`."""
    document: dict[str, Any] = {
        "id": response.id,
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": [
            binary_entry(tensor, raws) if binary else json_entry(tensor)
            for tensor, binary in outputs
        ],
    }
    if response.parameters:
        document["parameters"] = response.parameters
    return document


def _wire_document(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without binary data as it is sent: another order, and nulls."""
    return {
        "model_name": document["model_name"],
        "model_version": document["model_version"],
        "id": document["id"],
        "parameters": document.get("parameters"),
        "outputs": [
            {
                "name": output["name"],
                "shape": output["shape"],
                "datatype": output["datatype"],
                "parameters": output.get("parameters"),
                "data": output["data"],
            }
            for output in document["outputs"]
        ],
    }


def _joined(
    document: dict[str, Any], raws: list[Buffer]
) -> tuple[dict[str, Any] | bytes, int | None]:
    if not raws:
        return document, None
    head = _dumps(document)
    return b"".join([head, *raws]), len(head)


def _dumps(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def _parse(body: Buffer, noun: str, *, fault: type[ServingError]) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise fault(f"Unrecognized {noun} format: {exc}") from None


def _read_id(document: dict[str, Any]) -> str | None:
    value = document.get("id")
    if not isinstance(value, str | None):
        raise InvalidInput('Expected "id" to be a string')
    return value


def generate_uuid() -> str:
    """Return a new random id."""
    return str(uuid.uuid4())


def _column(tensor: InferInput) -> list[Any]:
    return tensor.as_string() if tensor.datatype == "BYTES" else flatten(tensor.data)
