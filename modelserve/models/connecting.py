"""Let a model call its predictor, without importing an HTTP client before there is a model."""

from typing import Any

__all__ = ["connect"]


def connect(model: Any) -> None:
    """Give a model its `Remote`, once. No connection is made before the first call."""
    from modelserve.models import remote

    remote.connect(model)
