"""Tensors as models see them: KServe's constructors and methods."""

import numpy as np
import pytest
from bodies import decode, decode_binary, sized, tensor

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors import InferInput, InferOutput, RequestedOutput
from modelserve.tensors.grpc import messages


def test_bytes_as_numpy_are_text_from_json_and_bytes_from_binary():
    text = decode(tensor(["a", "é"], datatype="BYTES", shape=[2, 1])).inputs[0].as_numpy()
    assert (text.dtype, text.shape, text.tolist()) == (np.object_, (2, 1), [["a"], ["é"]])
    read = decode_binary(b"\1\0\0\0a", sized(5, datatype="BYTES")).inputs[0]
    assert (read.as_numpy().dtype, read.as_numpy().tolist()) == (np.object_, [b"a"])
    output = InferOutput("o", [3], "BYTES", ["a", b"b", 5])
    assert output.as_numpy().tolist() == ["a", b"b", 5]


def test_data_of_a_binary_input_is_a_list_and_changes_to_it_count():
    read = decode_binary(b"\1\2", sized(2, datatype="INT8", shape=[2])).inputs[0]
    read.data[0] = 9
    assert read.data == [9, 2]
    assert read.as_numpy().tolist() == [9, 2]


def test_data_replaces_binary_data():
    read = decode_binary(b"\1\2", sized(2, datatype="INT8", shape=[2])).inputs[0]
    read.data = [3, 4]
    assert (read.as_numpy().tolist(), read.is_binary) == ([3, 4], False)


def test_data_that_is_not_utf8():
    read = decode_binary(b"\1\0\0\0\xff", sized(5, datatype="BYTES")).inputs[0]
    with pytest.raises(InvalidInput, match=r"^Input 'x' holds bytes that are not UTF-8"):
        _ = read.data
    with pytest.raises(InvalidInput, match=r"^Input 'x' holds bytes that are not UTF-8"):
        read.as_string()
    assert read.as_numpy().tolist() == [b"\xff"]


def test_as_string():
    assert decode(tensor(["a", "é"], datatype="BYTES", shape=[2])).inputs[0].as_string() == [
        "a",
        "é",
    ]
    assert InferInput("x", [2, 1], "BYTES", [[b"a"], [b"b"]]).as_string() == ["a", "b"]
    read = decode_binary(b"\1\0\0\0a", sized(5, datatype="BYTES")).inputs[0]
    assert (read.as_string(), read.is_binary) == (["a"], True)
    with pytest.raises(InvalidInput, match=r"^Input 'x' is not BYTES"):
        InferInput("x", [1], "FP32", [1]).as_string()


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (InferInput("x", [1], "FP8", [1]), InvalidInput),
        (InferInput("x", [1], "FP32"), InvalidInput),
        (InferInput("x", [3], "FP32", [1]), InvalidInput),
        (InferInput("x", [1], "FP32", ["a"]), InvalidInput),
        (InferInput("x", [1], "INT8", [300]), InvalidInput),
        (InferInput("x", [2], "BYTES", ["a"]), InvalidInput),
        (InferOutput("x", [3], "FP32", [1]), InferenceError),
    ],
)
def test_as_numpy_of_what_does_not_fit(tensor, fault):
    with pytest.raises(fault, match=r"^(Input|Output) 'x' has "):
        tensor.as_numpy()


def test_as_numpy_of_arrays_and_nested_lists():
    array = np.array([[1, 2]], "f4")
    assert InferInput("x", [1, 2], "FP32", array).as_numpy() is not None
    assert np.shares_memory(InferInput("x", [2], "FP32", array).as_numpy(), array)
    assert InferInput("x", [4], "FP32", [[1, 2], [3, 4]]).as_numpy().tolist() == [1, 2, 3, 4]


def test_set_data_from_numpy_sets_the_form_and_the_parameter():
    parameters = {"k": 1}
    tensor = InferInput("x", [2], "INT8", parameters=parameters)
    tensor.set_data_from_numpy(np.array([1, 2], "i1"))
    assert tensor.parameters == {"k": 1, "binary_data_size": 2}
    assert parameters == {"k": 1}
    tensor.set_data_from_numpy(np.array([3, 4], "i1"), binary_data=False)
    assert (tensor.data, tensor.parameters) == ([3, 4], {"k": 1})


def test_set_data_from_numpy_copies():
    array = np.array([1, 2], "i1")
    output = InferOutput("o", [2], "INT8")
    output.set_data_from_numpy(array)
    array[:] = 0
    assert output.as_numpy().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (np.array([1, 2], ">i4"), [1, 2]),
        (np.arange(4, dtype="<i4")[1::2], [1, 3]),
        (np.asfortranarray(np.arange(4, dtype="i4").reshape(2, 2)), [0, 1, 2, 3]),
    ],
)
def test_set_data_from_numpy_takes_any_layout(array, values):
    output = InferOutput("o", list(array.shape), "INT32")
    output.set_data_from_numpy(array)
    assert output.is_binary
    assert output.data == values


@pytest.mark.parametrize(
    ("array", "elements"),
    [
        (np.array(["a", "é"]), ["a", "é"]),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (np.array(["a", 5], object), ["a", "5"]),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), ["2020-01-01", "2020-01-02"]),
    ],
)
def test_set_data_from_numpy_takes_anything_with_a_str_as_bytes(array, elements):
    output = InferOutput("o", [2], "BYTES")
    output.set_data_from_numpy(array)
    assert output.as_string() == elements
    output.set_data_from_numpy(array, binary_data=False)
    assert output.data == elements


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([1], "Expected a numpy array for 'o', not "),
        (np.zeros(1), "Output 'o' is FP32, and the array is float64"),
        (np.zeros(1, "c8"), "Output 'o' is FP32, and the array is complex64"),
        (np.zeros((1, 1), "f4"), r"Output 'o' has the shape \[1\], and the array \[1, 1\]"),
    ],
)
def test_set_data_from_numpy_refuses(array, words):
    with pytest.raises(InferenceError, match=f"^{words}"):
        InferOutput("o", [1], "FP32").set_data_from_numpy(array)


def test_equality_is_by_elements_whatever_the_form():
    array = np.array([1, 2], "f4")
    one = InferInput("x", [2], "FP32", [1.0, 2.0], parameters={"binary_data_size": 8})
    two = InferInput("x", [2], "FP32")
    two.set_data_from_numpy(array)
    assert one == two
    assert one == InferInput("x", [2], "fp32", array, {"binary_data_size": 8})
    assert one != InferInput("x", [2], "FP32", [1.0, 3.0], {"binary_data_size": 8})
    assert one != InferInput("x", [2], "FP32", None, {"binary_data_size": 8})
    assert one != InferInput("x", [2], "FP32", ["a", "b"], {"binary_data_size": 8})
    assert one != InferOutput("x", [2], "FP32", [1.0, 2.0], {"binary_data_size": 8})
    assert InferInput("x", [2], "FP32") == InferInput("x", [2], "FP32")
    assert InferInput("x", [1], "FP32", [1]) == InferInput("x", [1], "FP32", [1], {})
    assert InferInput("x", [1], "FP32", [1]) != InferInput("x", [1], "FP32", [1], {"a": 0})
    assert RequestedOutput("a") == RequestedOutput("a", {})
    assert RequestedOutput("a") == RequestedOutput("a") != RequestedOutput("a", {"k": 1})


def test_repr_is_short():
    read = decode_binary(bytes(4), sized(4)).inputs[0]
    assert repr(read) == (
        "InferInput(name='x', shape=[1], datatype='FP32', data=<4 bytes>, parameters={})"
    )
    assert repr(RequestedOutput("a")) == "RequestedOutput(name='a', parameters=None)"


def test_attributes_are_settable():
    read = InferInput("x", [1], "FP32", [1])
    read.parameters, read.shape = {"k": 1}, [1, 1]
    assert read.to_dict() == {
        "name": "x",
        "shape": [1, 1],
        "datatype": "FP32",
        "data": [1],
        "parameters": {"k": 1},
    }


def test_parameters_may_be_messages_of_grpc():
    pytest.importorskip("google.protobuf")
    parameter = messages()["InferParameter"]
    given = {
        "a": parameter(string_param="v"),
        "b": parameter(bool_param=True),
        "c": parameter(),
        "d": 1,
    }
    for made in (InferInput("x", [1], "INT32", [1], given), RequestedOutput("x", given)):
        assert made.parameters == {"a": "v", "b": True, "d": 1}
    plain = {"a": "v", "b": None}
    assert InferOutput("x", [1], "INT32", [1], plain).parameters is plain
    request = messages()["ModelInferRequest"](parameters={"a": given["a"]})
    assert RequestedOutput("x", request.parameters).parameters == {"a": "v"}
