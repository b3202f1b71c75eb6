"""`Model` at KServe's path; KServe's base classes of it are the same class here.

KServe's module has more names than it defines, and transformers import them from it.
"""

from enum import Enum

from modelserve.errors import InvalidInput
from modelserve.kserve.constants.constants import PredictorProtocol
from modelserve.models.model import Model
from modelserve.models.predictor import PredictorConfig
from modelserve.tensors import InferRequest, InferResponse

__all__ = [
    "BaseKServeModel",
    "InferRequest",
    "InferResponse",
    "InferenceModel",
    "InferenceVerb",
    "InvalidInput",
    "Model",
    "PredictorConfig",
    "PredictorProtocol",
]

BaseKServeModel = InferenceModel = Model


class InferenceVerb(Enum):
    """The verbs that KServe passes to a model; modelserve does not use them."""

    EXPLAIN = 1
    PREDICT = 2
