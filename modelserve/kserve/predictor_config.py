"""`PredictorConfig` at KServe's path."""

from modelserve.kserve.constants.constants import PredictorProtocol
from modelserve.models.predictor import PredictorConfig

__all__ = ["PredictorConfig", "PredictorProtocol"]
