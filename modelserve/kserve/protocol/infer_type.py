"""The V2 requests, responses and tensors at KServe's path."""

from typing import Any

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from modelserve.tensors.data import need
from modelserve.tensors.elements import Misfit
from modelserve.tensors.parameters import plain_parameters
from modelserve.tensors.strings import join_strings, split_strings

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "deserialize_bytes_tensor",
    "serialize_byte_tensor",
    "to_http_parameters",
]


def serialize_byte_tensor(input_tensor: Any) -> Any:
    """Return the binary form of an array of bytes or text as an array of no dimensions.

    Its `item()` is the bytes; an empty array has an empty one. Raises InferenceError for any other
    array.
    """
    numpy = need("numpy")
    if not input_tensor.size:
        return numpy.empty([0], dtype=numpy.object_)
    if input_tensor.dtype.kind not in "OSU":
        raise InferenceError(f"A tensor of {input_tensor.dtype} has no bytes or text.")
    return numpy.asarray(join_strings(input_tensor.ravel().tolist()), dtype=numpy.object_)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Any:
    """Return the elements of BYTES in binary form as a flat array of bytes. Raises InvalidInput."""
    numpy = need("numpy")
    try:
        elements = split_strings(memoryview(encoded_tensor))
    except Misfit as exc:
        raise InvalidInput(f"The tensor {exc}.") from None
    array = numpy.empty(len(elements), dtype=numpy.object_)
    array[:] = elements
    return array


def to_http_parameters(parameters: Any) -> dict[str, Any]:
    """Return parameters with the values that messages of gRPC hold."""
    return dict(plain_parameters(parameters))


def _contains_fp16_datatype(infer_response: InferResponse) -> bool:
    """Return whether an output is FP16. KServe has it, and its tests import it."""
    return any(output.datatype == "FP16" for output in infer_response.outputs)
