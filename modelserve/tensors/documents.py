"""The JSON documents of V2: read into tensors, and written from them. Pure.

Every value of an input is checked when it is read; the values of an output are checked when they
are used.

In Triton's binary tensor extension a document is followed by the bytes of its tensors, in order.
`tail` is the unread rest of them, None if the body is JSON only.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any, Final, TypedDict, TypeVar

import orjson

from modelserve.errors import InvalidInput, InvalidOutput, ServingError
from modelserve.tensors.data import (
    Buffer,
    check_bytes,
    check_json,
    find_datatype,
    plain_shape,
    to_bytes,
)
from modelserve.tensors.elements import LISTS, Misfit, short
from modelserve.tensors.tensor import (
    SIZE,
    InferInput,
    InferOutput,
    RequestedOutput,
    Role,
    Tensor,
    without_size,
)

__all__ = [
    "LENGTH_HEADER",
    "RequestFields",
    "ResponseFields",
    "check_distinct",
    "parse",
    "read_request",
    "read_response",
    "refuse_shared",
    "requested_entry",
    "tensor_entry",
    "without_null",
]

LENGTH_HEADER: Final = "inference-header-content-length"

_SHARED: Final = "shared_memory_region"
_NOT_SHARED: Final = "is in shared memory (Triton's extension), which is not supported"
_SCALARS: Final = frozenset({str, int, float, bool})

_Tensor = TypeVar("_Tensor", bound=Tensor)


class RequestFields(TypedDict):
    """Arguments of InferRequest that come from a document."""

    infer_inputs: list[InferInput]
    request_id: str | None
    parameters: dict[str, Any] | None
    request_outputs: list[RequestedOutput] | None


class ResponseFields(TypedDict):
    """Arguments of InferResponse that come from a document."""

    response_id: Any
    model_name: Any
    infer_outputs: list[InferOutput]
    model_version: Any
    parameters: dict[str, Any] | None


# Reading.


def parse(body: Buffer, noun: str, error: type[ServingError]) -> Any:
    """Parse a body as JSON; raise `error` if it is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise error(f"Unrecognized {noun} format: {exc}") from None


def read_request(document: Any, tail: memoryview | None = None) -> RequestFields:
    """Return the fields of a request's document; raise InvalidInput if it is not one."""
    if not isinstance(document, dict):
        raise InvalidInput("Expected the request to be a JSON object")
    try:
        parameters = _read_parameters(document)
        _check_flag(parameters, "binary_data_output")
    except Misfit as exc:
        raise InvalidInput(f"The request {exc}.") from None
    inputs = _read_tensors(InferInput, document, tail)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInput('Expected "id" to be a string')
    return {
        "infer_inputs": inputs,
        "request_id": request_id,
        "parameters": parameters,
        "request_outputs": _read_requested(document),
    }


def read_response(document: Any, tail: memoryview | None = None) -> ResponseFields:
    """Return the fields of a response's document; raise InvalidOutput if it is not one."""
    if not isinstance(document, dict):
        raise InvalidOutput("Expected the response to be a JSON object")
    outputs = _read_tensors(InferOutput, document, tail)
    try:
        parameters = _read_parameters(document)
    except Misfit as exc:
        raise InvalidOutput(f"The response {exc}.") from None
    return {
        "response_id": document.get("id"),
        "model_name": document.get("model_name"),
        "infer_outputs": outputs,
        "model_version": document.get("model_version"),
        "parameters": parameters,
    }


def _read_tensors(
    kind: type[_Tensor], document: dict[str, Any], tail: memoryview | None
) -> list[_Tensor]:
    role, tensors = kind._role, []
    for index, entry in enumerate(_read_list(document, role.key, role.error)):
        name = _read_name(entry, role.key, index, role.error)
        try:
            tensor = _read_tensor(kind, name, entry)
            data = entry.get("data")
            if data is None and kind is InferOutput:
                data = _read_contents(entry)
            tail = _read_data(tensor, data, tail)
        except Misfit as exc:
            raise role.error_of(name, exc) from None
        tensors.append(tensor)
    if tail:
        raise role.error(f"{len(tail)} bytes are left over after {_last_binary(role, tensors)}.")
    check_distinct([tensor.name for tensor in tensors], role.noun, role.error)
    return tensors


def _read_tensor(kind: type[_Tensor], name: str, entry: dict[str, Any]) -> _Tensor:
    """Return the tensor of an entry, without its data."""
    shape, datatype = entry.get("shape"), entry.get("datatype")
    if not isinstance(shape, LISTS):
        raise Misfit('has no "shape" that is a list')
    if not isinstance(datatype, str):
        raise Misfit('has no "datatype" that is a string')
    return kind(name, list(shape), datatype, parameters=_read_parameters(entry) or {})


def _read_contents(entry: dict[str, Any]) -> list[Any] | None:
    """Return the data of an output in gRPC's form, `{"contents": {"fp32_contents": [...]}}`."""
    contents = entry.get("contents")
    return [*chain.from_iterable(contents.values())] if isinstance(contents, dict) else None


def _read_data(tensor: Tensor, data: Any, tail: memoryview | None) -> memoryview | None:
    """Set a tensor's data, and return the rest of `tail` for the next tensor."""
    parameters = tensor.parameters or {}
    refuse_shared(parameters)
    size = parameters.pop(SIZE, None)
    if size is not None:
        if data is not None:
            raise Misfit(f'has both "data" and "{SIZE}"')
        return _read_binary(tensor, size, tail)
    if data is None:
        raise Misfit('has no "data"')
    if isinstance(tensor, InferInput):
        data = check_json(data, tensor.shape, find_datatype(tensor.datatype))
        tensor._is_checked = True
    tensor._data = data
    return tail


def _read_binary(tensor: Tensor, size: Any, tail: memoryview | None) -> memoryview:
    if tail is None:
        raise Misfit(f"is binary data, and the header {LENGTH_HEADER} is missing or too large")
    if type(size) is not int or size < 0:
        raise Misfit(f'has a "{SIZE}" that is not a number of bytes: {short(size)}')
    if size > len(tail):
        raise Misfit(f"has {size} bytes of binary data, and {len(tail)} are left in the body")
    raw = tail[:size]
    check_bytes(raw, tensor.shape, find_datatype(tensor.datatype))
    tensor._raw_data = raw
    return tail[size:]


def _last_binary(role: Role, tensors: list[_Tensor]) -> str:
    noun = role.noun.lower()
    names = [short(tensor.name) for tensor in tensors if tensor.is_binary]
    if names:
        return f"the last binary {noun} {names[-1]}"
    return f"the JSON, where no {noun} is binary"


def _read_requested(document: dict[str, Any]) -> list[RequestedOutput] | None:
    """Return the outputs that a request names, or None for all."""
    if document.get("outputs") is None:
        return None
    outputs = []
    for index, entry in enumerate(_read_list(document, "outputs", InvalidInput)):
        name = _read_name(entry, "outputs", index, InvalidInput)
        try:
            parameters = _read_parameters(entry) or {}
            _check_flag(parameters, "binary_data")
            refuse_shared(parameters)
        except Misfit as exc:
            raise InvalidInput(f"Output {short(name)} {exc}.") from None
        outputs.append(RequestedOutput(name, parameters))
    check_distinct([output.name for output in outputs], "Output", InvalidInput)
    return outputs or None


def _read_list(document: dict[str, Any], key: str, error: type[ServingError]) -> list[Any]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise error(f'Expected "{key}" to be a list')
    return entries


def _read_name(entry: Any, key: str, index: int, error: type[ServingError]) -> str:
    if not isinstance(entry, dict):
        raise error(f"Expected {key}[{index}] to be a JSON object")
    name = entry.get("name")
    if not isinstance(name, str):
        raise error(f'Expected {key}[{index}] to have a "name" that is a string')
    return name


def _read_parameters(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return a copy of an entry's parameters, all scalars; None if it has none."""
    parameters = entry.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise Misfit(f'has "parameters" that are not an object: {short(parameters)}')
    for key, value in parameters.items():
        if type(value) not in _SCALARS:
            raise Misfit(
                f"has the parameter {short(key)} that is not a string, "
                f"number or boolean: {short(value)}"
            )
    return dict(parameters)


def _check_flag(parameters: dict[str, Any] | None, key: str) -> None:
    if parameters and not isinstance(parameters.get(key, False), bool):
        raise Misfit(f'has the parameter "{key}" that is not true or false')


def refuse_shared(parameters: Mapping[str, Any]) -> None:
    """Raise Misfit for the parameters of a tensor in shared memory."""
    if _SHARED in parameters:
        raise Misfit(_NOT_SHARED)


def check_distinct(names: list[str], noun: str, error: type[ServingError]) -> None:
    """Raise an error for a duplicate name."""
    if len(set(names)) < len(names):
        [(name, _)] = Counter(names).most_common(1)
        raise error(f"Duplicate {noun.lower()} {short(name)}.")


# Writing.


def tensor_entry(tensor: Tensor, buffers: list[Buffer] | None) -> dict[str, Any]:
    """Return a tensor's entry in a response, with `parameters` even if null.

    The data is appended to `buffers` as bytes; without `buffers` it is a flat list in the entry.
    Raises the error of the tensor's role if the data does not fit.
    """
    try:
        shape, datatype = plain_shape(tensor.shape), find_datatype(tensor.datatype)
        parameters = without_size(tensor.parameters)
        entry = {
            "name": tensor.name,
            "shape": shape,
            "datatype": tensor.datatype,
            "parameters": parameters or None,
        }
        if buffers is None:
            entry["data"] = tensor._role.to_json(tensor._form(), shape, datatype)
        else:
            raw = to_bytes(tensor._form(), shape, datatype)
            entry["parameters"] = {**parameters, SIZE: len(raw)}
            buffers.append(raw)
    except Misfit as exc:
        raise tensor._role.error_of(tensor.name, exc) from None
    return entry


def requested_entry(output: RequestedOutput) -> dict[str, Any]:
    """Return the entry of a requested output."""
    return without_null({"name": output.name, "parameters": output.parameters or None})


def without_null(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry in a request, or of KServe's `to_rest`: without `parameters` if null."""
    return {key: value for key, value in entry.items() if key != "parameters" or value is not None}
