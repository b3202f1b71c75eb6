"""KServe's helpers: payloads to arrays and tables, results to responses."""

import numpy as np
import pandas as pd
import pytest
from bodies import decode, tensor

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors import InferRequest, get_predict_input, get_predict_response


def test_get_predict_input_of_v1():
    assert get_predict_input({"instances": [[1, 2], [3, 4]]}).tolist() == [[1, 2], [3, 4]]
    assert get_predict_input({"inputs": [1]}).tolist() == [1]
    assert get_predict_input({"instances": []}).tolist() == []
    assert get_predict_input({"instances": ["a", "b"]}) == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "columns", "table"),
    [
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], None, {"a": [1, 2], "b": ["x", "y"]}),
        ([[{"a": 1}, {"a": 2}], [{"a": 3}]], None, {"a": [1, 2, 3]}),
        ([{"a": [1, 2], "b": [3, 4]}, {"a": 5, "b": 6}], None, {"a": [1, 2, 5], "b": [3, 4, 6]}),
        ([{"a": 1, "b": 2}], ["b", "a"], {"b": [2], "a": [1]}),
    ],
)
def test_get_predict_input_of_rows_of_objects(rows, columns, table):
    frame = get_predict_input({"instances": rows}, columns)
    assert list(frame.columns) == list(table)
    assert frame.to_dict("list") == table


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (5, 'Expected "instances" to be a list'),
        ({}, 'Expected "instances" to be a list'),
        ({"instances": {}}, 'Expected "instances" to be a list'),
        ({"inputs": 5}, 'Expected "inputs" to be a list'),
        ({"instances": [[1], [2, 3]]}, 'Expected "instances" to be rows of one kind'),
        ({"instances": [[1, "a"]]}, 'Expected "instances" not to mix numeric and string values'),
        ({"instances": [1.5, "a"]}, 'Expected "instances" not to mix numeric and string values'),
        ({"inputs": [["a"], [True]]}, 'Expected "inputs" not to mix numeric and string values'),
        ({"instances": [{"a": 1}, 5]}, 'Expected "instances" to be rows of one kind'),
        ({"instances": [{"a": [1], "b": [1, 2]}]}, 'Expected "instances" to be rows of one kind'),
        ({"instances": [{"a": [1]}, [[5]]]}, 'Expected "instances" to be rows of one kind'),
        (InferRequest("m", []), "The request has no inputs"),
    ],
)
def test_get_predict_input_refuses(payload, words):
    with pytest.raises(InvalidInput, match=f"^{words}"):
        get_predict_input(payload)


def test_get_predict_input_of_v2():
    request = decode(tensor([1, 2], shape=[1, 2]))
    assert get_predict_input(request).tolist() == [[1, 2]]
    request.parameters = {"content_type": "pd"}
    assert get_predict_input(request).to_dict("list") == {"x": [1, 2]}
    assert get_predict_input(decode(tensor(["a"], datatype="BYTES"))) == ["a"]


@pytest.mark.parametrize(
    ("result", "rows"),
    [
        (np.array([[1, 2]]), [[1, 2]]),
        ([1, "a"], [1, "a"]),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ],
)
def test_get_predict_response_of_v1(result, rows):
    assert get_predict_response({"instances": []}, result, "m") == {"predictions": rows}


@pytest.mark.parametrize(
    ("result", "outputs"),
    [
        (np.array([[1.5]], "f4"), [("output-0", "FP32", [1, 1], [1.5])]),
        ([1, 2], [("output-0", "INT64", [2], [1, 2])]),
        (["a", "é"], [("output-0", "BYTES", [2], ["a", "é"])]),
        (
            pd.DataFrame({"a": [1.5], "b": ["x"], 3: [True]}),
            [("a", "FP64", [1], [1.5]), ("b", "BYTES", [1], ["x"]), ("3", "BOOL", [1], [True])],
        ),
    ],
)
def test_get_predict_response_of_v2(result, outputs):
    response = get_predict_response(decode(id="i"), result, "m")
    assert response.id == "i"
    assert [(o.name, o.datatype, o.shape, o.data) for o in response.outputs] == outputs


def test_get_predict_response_passes_on_what_was_asked_for():
    request = decode(
        outputs=[{"name": "output-0", "parameters": {"binary_data": True}}],
        parameters={"binary_data_output": True},
    )
    response = get_predict_response(request, np.array([1], "i1"), "m")
    assert response.requested_outputs == request.request_outputs
    assert response.use_binary_outputs
    assert len(response.id) == 36
    assert response.to_rest()[0].endswith(b"}\1")


def test_get_predict_response_refuses_dtypes_that_v2_does_not_have():
    with pytest.raises(InferenceError, match=r"^Output 'output-0' has the dtype complex128"):
        get_predict_response(decode(), np.zeros(1, complex), "m")
