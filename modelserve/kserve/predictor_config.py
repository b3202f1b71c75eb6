"""`PredictorConfig` at KServe's path."""

from modelserve.models.predictor import PredictorConfig

__all__ = ["PredictorConfig"]
