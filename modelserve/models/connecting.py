"""Let a model call its predictor, without importing an HTTP client before there is a model."""

from typing import Any

__all__ = ["connect", "is_predictor_ready"]


def connect(model: Any) -> None:
    """Give a model its `Remote`, once. No connection is made before the first call."""
    from modelserve.models import remote

    remote.connect(model)


async def is_predictor_ready(model: Any) -> bool:
    """Return whether a model's predictor is ready for it, where it is to be asked; else True.

    False for a predictor that cannot be asked.
    """
    if not (model.predictor_health_check and model.predictor_host):
        return True
    return bool(await model._remote.is_ready(model))
