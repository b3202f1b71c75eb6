"""Serve machine-learning models over ASGI, streaming first."""

from modelserve.app import ModelServer
from modelserve.encoders import ServerSentEvent
from modelserve.errors import (
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServingError,
)
from modelserve.limits import Limits
from modelserve.model import Model

__version__ = "0.1.0"

__all__ = [
    "InferenceError",
    "InvalidInput",
    "Limits",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelServer",
    "ServerSentEvent",
    "ServingError",
]
