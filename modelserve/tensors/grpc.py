"""The messages of V2 over gRPC: read into requests and responses, and written from them. Pure.

Messages are known by the names of their fields only, so that those of generated code, KServe's or
Triton's, will do as well as those of `inference.proto`. Tensors are in the field of their datatype,
or all of a message are raw bytes. Repeated fields are copied by `[:]`: an iterator over one is made
of failing look-ups.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar

from modelserve.errors import InvalidInput
from modelserve.tensors.data import (
    BUFFERS,
    Buffer,
    check_bytes,
    check_count,
    check_json,
    find_datatype,
    plain_shape,
    to_bytes,
    unpack,
)
from modelserve.tensors.documents import (
    RequestFields,
    ResponseFields,
    check_distinct,
    refuse_shared,
)
from modelserve.tensors.elements import Misfit, find_missing, is_array, list_elements, short
from modelserve.tensors.parameters import plain_parameters
from modelserve.tensors.strings import split_strings
from modelserve.tensors.tensor import (
    SIZE,
    InferInput,
    InferOutput,
    RequestedOutput,
    Tensor,
    without_size,
)
from modelserve.wire.protobuf import load_messages

__all__ = [
    "is_message",
    "messages",
    "read_request",
    "read_response",
    "write_parameters",
    "write_tensors",
]

_Tensor = TypeVar("_Tensor", bound=Tensor)

_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Datatypes whose field allows numbers that the datatype does not.
_NARROW: Final = frozenset(("INT8", "INT16", "UINT8", "UINT16"))
# The types of elements that are written unchecked, for fields with the datatype's own range.
_TYPES: Final = {
    "BOOL": bool,
    "INT32": int,
    "INT64": int,
    "UINT32": int,
    "UINT64": int,
    "FP64": float,
    "BYTES": bytes,
}
_MOST_FP32: Final = (2 - 2**-23) * 2.0**127
# Datatypes whose binary data is what their field is on the wire, with the key that comes first.
_PACKED: Final = {"FP32": 6 << 3 | 2, "FP64": 7 << 3 | 2}
_FEW: Final = 16  # with more elements, packing them takes less time than adding them
_INT64: Final = range(-(1 << 63), 1 << 63)
_UINT64: Final = range(1 << 64)


class RequestArguments(RequestFields):
    """Arguments of InferRequest that come from a message."""

    model_name: str
    model_version: str | None
    from_grpc: bool


@cache
def messages() -> Mapping[str, type[Any]]:
    """Return the classes of `inference.proto` by name. Raises ExtraMissing without protobuf."""
    return load_messages("modelserve.tensors", "inference.proto")


def is_message(value: Any, name: str) -> bool:
    """Return whether a value is the message of that name, of whatever class."""
    descriptor = getattr(type(value), "DESCRIPTOR", None)
    return descriptor is not None and descriptor.full_name == f"inference.{name}"


# Reading.


def read_request(message: Any) -> "RequestArguments":
    """Return the fields of a ModelInferRequest; raise InvalidInput if it is not a valid one."""
    return {
        "model_name": message.model_name,
        "model_version": message.model_version or None,
        "request_id": message.id or None,
        "parameters": _read_parameters(message.parameters) or None,
        "infer_inputs": _read_tensors(InferInput, message.inputs, message.raw_input_contents),
        "request_outputs": _read_requested(message.outputs) if message.outputs else None,
        "from_grpc": True,
    }


def read_response(message: Any) -> ResponseFields:
    """Return the fields of a ModelInferResponse; raise InvalidOutput if it is not a valid one."""
    return {
        "model_name": message.model_name,
        "model_version": message.model_version or None,
        "response_id": message.id or None,
        "parameters": _read_parameters(message.parameters) or None,
        "infer_outputs": _read_tensors(InferOutput, message.outputs, message.raw_output_contents),
    }


def _read_tensors(
    kind: type[_Tensor], entries: Sequence[Any], raws: Sequence[bytes]
) -> list[_Tensor]:
    role, tensors = kind._role, []
    if raws and len(raws) != len(entries):
        raise role.error(
            f"There are {len(raws)} raw contents, where there are {len(entries)} {role.key}."
        )
    for index, entry in enumerate(entries[:]):
        tensor = kind(entry.name, entry.shape[:], entry.datatype)
        tensor.parameters = parameters = _read_parameters(entry.parameters)
        try:
            if parameters:
                refuse_shared(parameters)
            if raws:
                _read_raw(tensor, entry, raws[index])
            else:
                _read_contents(tensor, entry.contents)
        except Misfit as exc:
            raise role.error_of(tensor.name, exc) from None
        tensors.append(tensor)
    if len(tensors) > 1:
        check_distinct([tensor.name for tensor in tensors], role.noun, role.error)
    return tensors


def _read_raw(tensor: Tensor, entry: Any, raw: bytes) -> None:
    if entry.HasField("contents") and entry.contents.ByteSize():
        raise Misfit("has contents, and the message has raw contents")
    check_bytes(raw, tensor.shape, find_datatype(tensor.datatype))
    tensor._raw_data = bytearray(raw)  # arrays are views of it, and hooks write to them


def _read_contents(tensor: Tensor, contents: Any) -> None:
    datatype = find_datatype(tensor.datatype)
    field = _FIELDS.get(datatype.name)
    if field is None:
        raise Misfit(f"is {datatype.name}, which goes as raw contents only")
    values = getattr(contents, field)[:]
    if datatype.name in _NARROW:
        values = check_json(values, tensor.shape, datatype)
    else:
        check_count(len(values), tensor.shape, datatype)
    tensor._data = values
    tensor._is_checked = True


def _read_requested(entries: Sequence[Any]) -> list[RequestedOutput]:
    """Return the outputs that a request names."""
    outputs = []
    for entry in entries[:]:
        parameters = _read_parameters(entry.parameters)
        try:
            refuse_shared(parameters)
        except Misfit as exc:
            raise InvalidInput(f"Output {short(entry.name)} {exc}.") from None
        outputs.append(RequestedOutput(entry.name, parameters))
    if len(outputs) > 1:
        check_distinct([output.name for output in outputs], "Output", InvalidInput)
    return outputs


def _read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as values; those that hold none are left out."""
    found: dict[str, Any] = {}
    for key in parameters:  # `items` of these maps takes three times as long
        value = parameters[key]
        if choice := value.WhichOneof("parameter_choice"):
            found[key] = getattr(value, choice)
    return found


# Writing.


def write_tensors(tensors: Sequence[Tensor], entries: Any, raws: Any, *, raw: bool = False) -> None:
    """Add tensors to a message.

    All go as raw bytes, with their size as a parameter, if `raw` is set, one of them is bytes or an
    array, or has no other form. Raises the error of the tensor's role for data that does not fit.
    """
    raw = raw or any(map(_is_raw, tensors))
    for tensor in tensors:
        try:
            _write_tensor(tensor, entries, raws if raw else None)
        except Misfit as exc:
            raise tensor._role.error_of(tensor.name, exc) from None


def _is_raw(tensor: Tensor) -> bool:
    return tensor.is_binary or tensor.datatype not in _FIELDS or is_array(tensor._data)


def _write_tensor(tensor: Tensor, entries: Any, raws: Any) -> None:
    shape, datatype = plain_shape(tensor.shape), find_datatype(tensor.datatype)
    entry = entries.add(name=tensor.name, datatype=datatype.name, shape=shape)
    form = tensor._form()
    if others := without_size(tensor.parameters):
        write_parameters(others, entry.parameters)
    if raws is not None:
        raw = to_bytes(form, shape, datatype)
        raws.append(raw if type(raw) is bytes else bytes(raw))
        entry.parameters[SIZE].int64_param = len(raw)  # as KServe's responses have it
        return
    key = _PACKED.get(datatype.name)
    field = getattr(entry.contents, _FIELDS[datatype.name])
    if type(form) is list and (key is None or len(form) <= _FEW) and _fits(form, datatype.name):
        check_count(len(form), shape, datatype)
        try:
            field.extend(form)
            return
        except ValueError:  # a number out of the datatype's range, reported below
            del field[:]
    if key is not None:
        entry.contents.MergeFromString(_packed(to_bytes(form, shape, datatype), key))
        return
    if datatype.size:
        values: list[Any] = unpack(to_bytes(form, shape, datatype), datatype)
    else:
        values = _byte_elements(form)
        check_count(len(values), shape, datatype)
    field.extend(values)


def _packed(raw: Buffer, key: int) -> bytes:
    """Return binary data as a field on the wire."""
    head, size = bytearray((key,)), len(raw)
    while size > 0x7F:  # seven bits in a byte, the lowest first
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, raw))


def _fits(values: list[Any], name: str) -> bool:
    """Return whether a field takes all elements as they are, or raises ValueError."""
    if name == "FP32":  # it would turn a number out of range into infinity
        is_float = {*map(type, values)} == {float}
        return is_float and -_MOST_FP32 <= min(values) and max(values) <= _MOST_FP32
    return name in _TYPES and {*map(type, values)} == {_TYPES[name]}


def _byte_elements(form: Any) -> list[bytes]:
    """Return the elements of BYTES in any form. Raises Misfit for a missing one."""
    if isinstance(form, BUFFERS):
        return split_strings(memoryview(form))
    values = list_elements(form)
    if (at := find_missing(values)) is not None:
        raise Misfit(f"holds a missing value at index {at}, which gRPC cannot hold")
    return [value if isinstance(value, bytes) else str(value).encode() for value in values]


def write_parameters(parameters: Mapping[str, Any], target: Any) -> None:
    """Add parameters to a map of a message; a value that fits no field is added as text."""
    for key, value in plain_parameters(parameters).items():
        field = _parameter_field(value)
        if not hasattr(target[key], field):  # KServe's messages have fewer
            field = "string_param"
        setattr(target[key], field, value if field != "string_param" else str(value))


def _parameter_field(value: Any) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param" if value in _INT64 else "uint64_param" if value in _UINT64 else ""
    return "double_param" if isinstance(value, float) else "string_param"
