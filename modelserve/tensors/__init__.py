"""V2's requests, responses and tensors (the Open Inference Protocol). Pure.

From the bottom up: `elements` (elements of lists and arrays, and missing values), `data` (the data
of a tensor in its three forms), `tensor` (one tensor), `documents` (JSON documents of tensors),
`messages` (whole requests and responses, and their bodies) and `frames` (conversion of arrays and
tables).
"""

from modelserve.tensors.frames import get_predict_input, get_predict_response
from modelserve.tensors.messages import (
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
    generate_uuid,
    response_document,
    rest_document,
)
from modelserve.tensors.tensor import InferInput, InferOutput, RequestedOutput

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "decode_request",
    "encode_response",
    "generate_uuid",
    "get_predict_input",
    "get_predict_response",
    "response_document",
    "rest_document",
]
