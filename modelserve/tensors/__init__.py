"""V2's requests, responses and tensors (the Open Inference Protocol). Pure."""

from modelserve.tensors.messages import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
    decode_request,
    encode_response,
    generate_uuid,
    get_predict_input,
    get_predict_response,
    response_document,
    rest_document,
)

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
