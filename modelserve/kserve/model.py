"""`Model` at KServe's path; its base classes there are the same class here."""

from enum import Enum

from modelserve.kserve.constants.constants import PredictorProtocol
from modelserve.models.model import Model

__all__ = ["BaseKServeModel", "InferenceModel", "InferenceVerb", "Model", "PredictorProtocol"]

BaseKServeModel = InferenceModel = Model


class InferenceVerb(Enum):
    """What KServe tells a model that it calls; nothing here asks for it."""

    EXPLAIN = 1
    PREDICT = 2
