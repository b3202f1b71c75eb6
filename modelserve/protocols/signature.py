"""The tensors that a model declares for V2's metadata, read for other protocols. Pure."""

from typing import Any, NamedTuple

import orjson

from modelserve.wire.json import to_json

__all__ = ["Tensor", "tensors_in"]


class Tensor(NamedTuple):
    """One declared tensor; a dimension of any size is -1, and `shape` is None for any shape."""

    name: str
    datatype: str
    shape: list[int] | None


def tensors_in(declared: Any) -> list[Tensor]:
    """Return the tensors that a model's hook has declared; skip entries that describe none.

    Raises TypeError if the hook returned something that JSON cannot hold.
    """
    document = orjson.loads(to_json(declared))  # objects, such as pydantic's, as they would be sent
    rows = document if isinstance(document, list) else []
    return [_tensor(row) for row in rows if isinstance(row, dict) and "name" in row]


def _tensor(row: dict[str, Any]) -> Tensor:
    shape = row.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        shape = None
    return Tensor(str(row["name"]), str(row.get("datatype", "")).upper(), shape)
