"""V2's requests, responses and tensors (the Open Inference Protocol). Pure."""

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
