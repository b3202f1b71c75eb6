"""Triton's documents about a model, beyond V2: its configuration and its statistics. Pure.

Triton's perf_analyzer asks for both. The keys are those of its extensions `model_configuration` and
`statistics`.
"""

from typing import Any, Final

from modelserve.metrics.figures import Figures
from modelserve.protocols.signature import Tensor, tensors_in

__all__ = ["config_document", "statistics_document"]

_TYPES: Final = {
    "BOOL": "TYPE_BOOL",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "FP16": "TYPE_FP16",
    "BF16": "TYPE_BF16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BYTES": "TYPE_STRING",
}
_NONE: Final = {"count": 0, "ns": 0}


def config_document(name: str, platform: str, inputs: Any, outputs: Any) -> dict[str, Any]:
    """Return a model's configuration.

    Shapes include the dimension of the batch, as they do in Triton where `max_batch_size` is 0.

    Args:
        inputs, outputs: As the model's hooks declare them.
    """
    return {
        "name": name,
        "platform": platform,
        "backend": "modelserve",
        "max_batch_size": 0,
        "input": [_tensor(tensor) | {"optional": False} for tensor in tensors_in(inputs)],
        "output": [_tensor(tensor) for tensor in tensors_in(outputs)],
        "model_transaction_policy": {"decoupled": False},
    }


def statistics_document(name: str, version: str, figures: Figures) -> dict[str, Any]:
    """Return how many requests a model has answered and how long they took, in nanoseconds.

    `preprocess` counts as the making of the input, `postprocess` as that of the output.
    """
    done = _duration(figures.done, figures.seconds - figures.failed_seconds)
    return {
        "name": name,
        "version": version,
        "inference_count": figures.done,
        "execution_count": figures.batches or figures.done,
        "inference_stats": {
            "success": done,
            "fail": _duration(figures.failed, figures.failed_seconds),
            "queue": _duration(figures.done, figures.queued_seconds),
            "compute_input": _stages(figures, "preprocess"),
            "compute_infer": _stages(figures, "predict", "explain"),
            "compute_output": _stages(figures, "postprocess"),
            "cache_hit": _NONE,
            "cache_miss": _NONE,
        },
        "batch_stats": [],
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": _TYPES.get(tensor.datatype, "TYPE_INVALID"),
        "dims": [-1] if tensor.shape is None else tensor.shape,
        "is_shape_tensor": False,
    }


def _stages(figures: Figures, *stages: str) -> dict[str, int]:
    """Return how often some hooks ran and for how long.

    Hooks that the model does not have count once for each request, with no time.
    """
    counts = [figures.stages[stage] for stage in stages if stage in figures.stages]
    if not counts:
        return _duration(figures.done, 0.0)
    return _duration(sum(count for count, _ in counts), sum(seconds for _, seconds in counts))


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": max(round(seconds * 1e9), 0)}
