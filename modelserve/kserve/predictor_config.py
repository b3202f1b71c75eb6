"""`PredictorConfig` at KServe's path."""

from modelserve.predictor import PredictorConfig

__all__ = ["PredictorConfig"]
