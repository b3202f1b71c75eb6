"""V2's JSON documents at KServe's path: objects with members as attributes.

Nothing is checked here: `InferRequest.from_rest` does that.
"""

from modelserve.kserve.protocol.rest.openai.types.document import Document

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "RequestInput",
    "RequestOutput",
    "ResponseOutput",
]


class InferenceRequest(Document):
    """A request: id, parameters, inputs and outputs."""


class RequestInput(Document):
    """An input of a request: name, shape, datatype, parameters and data."""


class RequestOutput(Document):
    """An output that a request asks for: name and parameters."""


class InferenceResponse(Document):
    """A response: model_name, model_version, id, parameters and outputs."""


class ResponseOutput(Document):
    """An output of a response: name, shape, datatype, parameters and data."""
