"""Tensors joined and divided along their first axis, in each form of their data."""

from typing import Any

import numpy as np
import pytest

from modelserve.errors import InvalidInput
from modelserve.tensors import InferInput, InferOutput
from modelserve.tensors.rows import count_rows, divide_rows, join_rows, row_type


def tensor(data: Any, *, shape: list[int], datatype: str = "INT32", **more: Any) -> InferInput:
    return InferInput("x", shape, datatype, data, **more)


def binary(array: Any, datatype: str) -> InferInput:
    made = InferInput("x", list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


FORMS = {
    "flat list": tensor([1, 2, 3, 4, 5, 6], shape=[3, 2]),
    "nested list": tensor([[1, 2], [3, 4], [5, 6]], shape=[3, 2]),
    "array": tensor(np.arange(1, 7, dtype="i4").reshape(3, 2), shape=[3, 2]),
    "flat array": tensor(np.arange(1, 7, dtype="i4"), shape=[3, 2]),
    "bytes": binary(np.arange(1, 7, dtype="i4").reshape(3, 2), "INT32"),
    "text": tensor(["a", "b", "c", "d", "e", "f"], shape=[3, 2], datatype="BYTES"),
    "bytes of elements": binary(
        np.array([[b"", b"bb"], [b"\xff", b"d"], [b"", b""]], object), "BYTES"
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [[3], [1, 2], [2, 1], [1, 1, 1], [0, 3], [3, 0]])
def test_divided_and_joined_it_is_as_before(form: str, sizes: list[int]) -> None:
    whole = FORMS[form]
    parts = divide_rows(whole, sizes)
    assert [count_rows(part) for part in parts] == sizes
    assert [part.shape for part in parts] == [[size, 2] for size in sizes]
    assert all(part.is_binary == whole.is_binary for part in parts)
    joint = join_rows(parts)
    assert np.array_equal(joint.as_numpy(), whole.as_numpy())
    assert (joint.shape, joint.datatype, joint.name) == ([3, 2], whole.datatype, "x")
    if whole.is_binary:
        assert joint.parameters == whole.parameters


def test_a_part_has_its_own_rows() -> None:
    for form in ("flat list", "nested list", "array", "flat array", "bytes"):
        first, second = divide_rows(FORMS[form], [1, 2])
        assert first.as_numpy().tolist() == [[1, 2]]
        assert second.as_numpy().tolist() == [[3, 4], [5, 6]]


def test_the_size_of_binary_data_is_that_of_the_part() -> None:
    (part, _) = divide_rows(binary(np.zeros((4, 3), "f8"), "FP64"), [1, 3])
    assert part.parameters == {"binary_data_size": 24}
    assert join_rows([part, part]).parameters == {"binary_data_size": 48}


def test_other_parameters_stay() -> None:
    whole = tensor([1, 2], shape=[2], parameters={"unit": "m"})
    assert [part.parameters for part in divide_rows(whole, [1, 1])] == [{"unit": "m"}] * 2


def test_outputs_stay_outputs() -> None:
    (part,) = divide_rows(InferOutput("y", [1], "INT8", [1]), [1])
    assert isinstance(part, InferOutput)


@pytest.mark.parametrize(
    ("shape", "data", "count"), [([2, 3], [0] * 6, 2), ([], [1], None), ([2], None, None)]
)
def test_count_rows(shape: list[int], data: Any, count: int | None) -> None:
    assert count_rows(tensor(data, shape=shape)) == count


def test_only_what_has_one_type_may_be_joined() -> None:
    kinds = [row_type(whole) for whole in FORMS.values()]
    assert kinds[0] == kinds[1] == ("x", "INT32", (2,), "list")
    assert len(set(kinds)) == 5
    assert row_type(tensor([1, 2], shape=[2])) != row_type(tensor([1, 2], shape=[2, 1]))


def test_an_output_whose_elements_are_too_few_is_an_error_that_names_it() -> None:
    broken = binary(np.array([b"a", b"b"], object), "BYTES")
    broken.shape = [3]
    with pytest.raises(InvalidInput, match="'x' has data that does not fit its shape"):
        divide_rows(broken, [1, 2])
