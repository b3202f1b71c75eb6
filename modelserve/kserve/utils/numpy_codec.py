"""Conversion between V2 datatypes and numpy dtypes, at KServe's path. Needs numpy."""

from typing import Any

from modelserve.tensors.data import DATATYPES, find_dtype, name_datatype, need

__all__ = ["from_np_dtype", "to_np_dtype"]


def to_np_dtype(dtype: str) -> Any:
    """Return the numpy dtype of a V2 datatype, or None if there is none."""
    row = DATATYPES.get(dtype)
    return None if row is None else find_dtype(row)


def from_np_dtype(np_dtype: Any) -> str | None:
    """Return the V2 datatype of a numpy dtype, or None if there is none."""
    return name_datatype(need("numpy").dtype(np_dtype))
