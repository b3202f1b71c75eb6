"""Serve machine-learning models over ASGI, streaming first."""

from modelserve.app import ModelServer
from modelserve.errors import (
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServingError,
)
from modelserve.exchange.streams import Coalesced
from modelserve.limits import Limits
from modelserve.models.model import Model
from modelserve.version import __version__ as __version__
from modelserve.wire.encoders import ServerSentEvent

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
