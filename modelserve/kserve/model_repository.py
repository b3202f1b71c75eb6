"""`ModelRepository` at KServe's path."""

from modelserve.models.repository import MODEL_MOUNT_DIRS, ModelRepository

__all__ = ["MODEL_MOUNT_DIRS", "ModelRepository"]
