"""`Model` at KServe's path; KServe's base classes of it are the same class here."""

from enum import Enum

from modelserve.kserve.constants.constants import PredictorProtocol
from modelserve.models.model import Model

__all__ = ["BaseKServeModel", "InferenceModel", "InferenceVerb", "Model", "PredictorProtocol"]

BaseKServeModel = InferenceModel = Model


class InferenceVerb(Enum):
    """The verbs that KServe passes to a model; modelserve does not use them."""

    EXPLAIN = 1
    PREDICT = 2
