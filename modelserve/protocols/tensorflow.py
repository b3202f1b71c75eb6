"""TensorFlow Serving's documents about a model, beyond V1: its state and its signature. Pure.

Keys, nulls and numbers are those of its protobuf messages in JSON: `GetModelStatusResponse` and
`GetModelMetadataResponse`. 64-bit integers are text there.
"""

from typing import Any, Final

from modelserve.protocols.signature import Tensor, tensors_in

__all__ = ["signature_document", "status_document"]

_TYPES: Final = {
    "BOOL": "DT_BOOL",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}


def status_document(version: str, state: str, failure: str = "") -> dict[str, Any]:
    """Return the state of one version of a model: START, LOADING, AVAILABLE, UNLOADING or END.

    Args:
        failure: Why it was not loaded.
    """
    status = {"error_code": "INTERNAL" if failure else "OK", "error_message": failure}
    return {"model_version_status": [{"version": version, "state": state, "status": status}]}


def signature_document(name: str, version: str | None, inputs: Any, outputs: Any) -> dict[str, Any]:
    """Return what a model takes and returns.

    Args:
        inputs, outputs: As the model's hooks declare them.
    """
    signature = {
        "inputs": {tensor.name: _tensor_info(tensor) for tensor in tensors_in(inputs)},
        "outputs": {tensor.name: _tensor_info(tensor) for tensor in tensors_in(outputs)},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": version},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def _tensor_info(tensor: Tensor) -> dict[str, Any]:
    sizes = tensor.shape or []
    return {
        "dtype": _TYPES.get(tensor.datatype, "DT_INVALID"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in sizes],
            "unknown_rank": tensor.shape is None,
        },
        "name": tensor.name,
    }
