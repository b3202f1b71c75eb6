"""Join and divide tensors along their first axis, whose entries are called rows here. Pure.

The data keeps its form: a list, bytes or an array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from modelserve.tensors.data import BUFFERS, Buffer, find_datatype, need
from modelserve.tensors.elements import Misfit, flatten, is_array
from modelserve.tensors.strings import span_strings
from modelserve.tensors.tensor import SIZE, Tensor, without_size

__all__ = ["count_rows", "divide_rows", "join_rows", "row_type"]

T = TypeVar("T", bound=Tensor)


def count_rows(tensor: Tensor) -> int | None:
    """Return the size of the first axis; None without an axis or data."""
    is_empty = tensor._data is None and tensor._raw_data is None
    return None if is_empty or not tensor.shape else int(tensor.shape[0])


def row_type(tensor: Tensor) -> tuple[Any, ...]:
    """Return the properties, except parameters, that must be equal in tensors for `join_rows`."""
    form = tensor._form()
    kind = "bytes" if isinstance(form, BUFFERS) else "array" if is_array(form) else "list"
    return tensor.name, tensor.datatype, tuple(tensor.shape[1:]), kind


def join_rows(tensors: Sequence[T]) -> T:
    """Return one tensor with the rows of several, which have the same `row_type`.

    A tensor without axes is one row.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first
    rows = sum(int(tensor.shape[0]) if tensor.shape else 1 for tensor in tensors)
    forms = [tensor._form() for tensor in tensors]
    data: Any
    if isinstance(forms[0], BUFFERS):
        data = b"".join(forms)
    elif is_array(forms[0]):
        shaped = [form.reshape(t.shape or [1]) for form, t in zip(forms, tensors, strict=True)]
        data = need("numpy").concatenate(shaped)
    else:
        data = []
        for form in forms:
            data += flatten(form)
    joint = _with_data(first, rows, data)
    joint._is_checked = all(tensor._is_checked for tensor in tensors)
    return joint


def divide_rows(tensor: T, sizes: Sequence[int]) -> list[T]:
    """Divide a tensor into tensors with these numbers of rows, which add up to all rows.

    Raises the error of a tensor whose data does not fit its shape.
    """
    pieces = list(_pieces(tensor, [0, *accumulate(sizes)]))
    parts = [_with_data(tensor, rows, data) for rows, data in zip(sizes, pieces, strict=True)]
    for part in parts:
        part._is_checked = tensor._is_checked
    return parts


def _pieces(tensor: Tensor, bounds: list[int]) -> Iterator[Any]:
    """Yield the data between every two of these rows."""
    form, shape = tensor._form(), tensor.shape
    if isinstance(form, BUFFERS):
        offsets = _byte_offsets(tensor, form, bounds)
        view = memoryview(form)
        yield from (view[start:stop] for start, stop in pairwise(offsets))
        return
    if is_array(form):
        rows = form if form.shape == tuple(shape) else form.reshape(shape)
        yield from (rows[start:stop] for start, stop in pairwise(bounds))
        return
    values, row = flatten(form), math.prod(shape[1:])
    yield from (values[start * row : stop * row] for start, stop in pairwise(bounds))


def _byte_offsets(tensor: Tensor, raw: Buffer, bounds: list[int]) -> list[int]:
    row = math.prod(tensor.shape[1:])
    try:
        datatype = find_datatype(tensor.datatype)
        if datatype.size:
            return [bound * row * datatype.size for bound in bounds]
        ends = [0, *(end for _, end in span_strings(memoryview(raw)))]
        return [ends[bound * row] for bound in bounds]
    except (Misfit, IndexError):
        message = f"has data that does not fit its shape {tensor.shape}"
        raise tensor._role.error_of(tensor.name, Misfit(message)) from None


def _with_data(like: T, rows: int, data: Any) -> T:
    """Return a tensor with other rows."""
    parameters = like.parameters
    is_bytes = isinstance(data, BUFFERS)
    if parameters and SIZE in parameters:
        parameters = {**without_size(parameters), **({SIZE: len(data)} if is_bytes else {})}
    tensor = type(like)(like.name, [rows, *like.shape[1:]], like.datatype, None, parameters)
    if is_bytes:
        tensor._raw_data = data
    else:
        tensor._data = data
    return tensor
