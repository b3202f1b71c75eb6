"""KServe's names: replace `kserve` by `modelserve.kserve` in a program's imports.

The modules have the paths of KServe's SDK. Importing them reads neither the command line nor the
environment, and sets up no logging. examples/05_migration shows a program before and after, and
lists every difference.
"""

from modelserve.kserve import errors, logging, model_server
from modelserve.kserve.constants import constants
from modelserve.kserve.inference_client import InferenceGRPCClient
from modelserve.kserve.model import InferenceVerb, Model
from modelserve.kserve.model_repository import ModelRepository
from modelserve.kserve.model_server import ModelServer
from modelserve.kserve.predictor_config import PredictorConfig
from modelserve.kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from modelserve.kserve.utils import utils

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceGRPCClient",
    "InferenceVerb",
    "Model",
    "ModelRepository",
    "ModelServer",
    "PredictorConfig",
    "RequestedOutput",
    "constants",
    "errors",
    "logging",
    "model_server",
    "utils",
]
