"""Serve machine-learning models over ASGI, streaming first."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from modelserve.version import __version__ as __version__

if TYPE_CHECKING:
    from modelserve.app import ModelServer
    from modelserve.concurrency.steps import Slot
    from modelserve.errors import (
        InferenceError,
        InvalidInput,
        ModelNotFound,
        ModelNotReady,
        ServingError,
    )
    from modelserve.exchange.coalescing import Coalesced
    from modelserve.exchange.uploads import Upload
    from modelserve.limits import Limits
    from modelserve.models.checks import instances
    from modelserve.models.model import Model
    from modelserve.models.policies import Batching, Stepping
    from modelserve.models.repository import ModelRepository
    from modelserve.observers import RequestRecord
    from modelserve.tensors import (
        InferInput,
        InferOutput,
        InferRequest,
        InferResponse,
        RequestedOutput,
    )
    from modelserve.wire.encoders import ServerSentEvent

__all__ = [
    "Batching",
    "Coalesced",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceError",
    "InvalidInput",
    "Limits",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelRepository",
    "ModelServer",
    "RequestRecord",
    "RequestedOutput",
    "ServerSentEvent",
    "ServingError",
    "Slot",
    "Stepping",
    "Upload",
    "instances",
]

# Where each name is defined; it is imported when it is first asked for (PEP 562).
_MODULES: Final = {
    "Batching": "models.policies",
    "Coalesced": "exchange.coalescing",
    "InferInput": "tensors",
    "InferOutput": "tensors",
    "InferRequest": "tensors",
    "InferResponse": "tensors",
    "InferenceError": "errors",
    "InvalidInput": "errors",
    "Limits": "limits",
    "Model": "models.model",
    "ModelNotFound": "errors",
    "ModelNotReady": "errors",
    "ModelRepository": "models.repository",
    "ModelServer": "app",
    "RequestRecord": "observers",
    "RequestedOutput": "tensors",
    "ServerSentEvent": "wire.encoders",
    "ServingError": "errors",
    "Upload": "exchange.uploads",
    "instances": "models.checks",
    "Slot": "concurrency.steps",
    "Stepping": "models.policies",
}

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
