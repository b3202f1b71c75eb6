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
from modelserve.streams import Coalesced
from modelserve.version import __version__ as __version__

__all__ = [
    "Coalesced",
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
