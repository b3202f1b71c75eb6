"""`PredictorConfig` at KServe's path."""

from modelserve.models.remote import PredictorConfig

__all__ = ["PredictorConfig"]
