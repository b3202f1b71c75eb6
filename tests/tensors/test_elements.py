"""Missing values in tensors, and values that are not of the datatype: nothing is made of them."""

import datetime
import time

import numpy as np
import orjson
import pandas as pd
import pytest
from bodies import decode, decode_binary, encode_binary, encode_json, sized, tensor

from modelserve.errors import InferenceError, InvalidInput, InvalidOutput, NotText
from modelserve.tensors import InferInput, InferOutput, InferRequest, get_predict_response
from modelserve.tensors.elements import short

NAN = float("nan")
MISSING = [None, NAN, np.float32("nan"), np.datetime64("NaT", "s"), pd.NA, pd.NaT]
DAY = "2024-01-02 00:00:00"


def written(output):
    return orjson.loads(encode_json(output))["outputs"][0]["data"]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize(("datatype", "value"), [("BOOL", True), ("BYTES", "x")])
@pytest.mark.parametrize("form", ["list", "nested", "array", "json", "binary"])
def test_a_missing_value_is_null_in_json_and_an_error_in_binary(datatype, value, missing, form):
    output = InferOutput("y", [2], datatype, [value, missing])
    if form == "nested":
        output = InferOutput("y", [2, 1], datatype, [[value], [missing]])
    array = np.array([value, missing], object)
    if form == "array":
        output.data = array
    elif form in ("json", "binary"):
        output.set_data_from_numpy(array, binary_data=form == "binary")
    assert written(output) == [value, None]
    with pytest.raises(
        InferenceError, match=r"^Output 'y' holds a missing value at index 1"
    ) as info:
        encode_binary(output)
    assert info.value.status == 500


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_numbers_hold_a_missing_value_as_nan_or_not_at_all(missing):
    assert written(InferOutput("y", [2], "FP32", [1, missing])) == [1.0, None]
    assert np.isnan(InferOutput("y", [2], "FP16", [1, missing]).as_numpy()).tolist() == [
        False,
        True,
    ]
    with pytest.raises(InvalidOutput, match=r"^Output 'y' holds .+ at index 1, and INT64 has no"):
        encode_json(InferOutput("y", [2], "INT64", [1, missing]))


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", ["false"]),
        ("BOOL", ["true"]),
        ("BOOL", [0.3]),
        ("BOOL", [1.0]),
        ("BOOL", [2]),
        ("BOOL", [[]]),
        ("BOOL", [True, np.float32(1)]),
        ("INT64", [0.5]),
        ("INT64", ["1"]),
        ("INT8", [300]),
        ("FP32", ["1.5"]),
        ("FP64", [1j]),
        ("BF16", ["1.5"]),
        ("FP16", ["1.5"]),
    ],
)
def test_nothing_is_coerced(datatype, values):
    output = InferOutput("y", [len(values)], datatype, values)
    for act in (encode_binary, InferOutput.as_numpy):
        with pytest.raises(InferenceError, match=r"^Output 'y' h"):
            act(output)
    with pytest.raises((InferenceError, InvalidInput), match=r"^Output 'y' "):
        encode_json(output)
    if datatype == "BOOL" and values != [[]]:
        output = InferOutput("y", [len(values)], datatype, np.array(values, object))
        with pytest.raises(InferenceError, match=r"^Output 'y' holds"):
            encode_json(output)


@pytest.mark.parametrize(
    ("datatype", "values", "expected"),
    [
        ("BOOL", [1, 0], [True, False]),
        ("BOOL", [True, np.False_], [True, False]),
        ("BOOL", np.array([True, False]), [True, False]),
        ("BOOL", pd.Series([True, None], dtype="boolean"), [True, None]),
        ("INT64", [1.0, np.int8(2)], [1, 2]),
        ("FP32", [np.float64(1.5), 2], [1.5, 2.0]),
        ("BYTES", pd.Series(["a", None]), ["a", None]),
        ("BYTES", np.array(["2024-01-02", "NaT"], "M8[ns]"), [DAY, None]),
        ("BYTES", np.array(["2024-01-02", "NaT"], "M8[us]"), [DAY, None]),
        ("BYTES", np.array(["2024-01-02", "NaT"], "M8[D]"), ["2024-01-02", None]),
        (
            "BYTES",
            np.array(["2024-01-02T00:00:00.000000001", "2024-01-02"], "M8[ns]"),
            [DAY + ".000000001", DAY],
        ),
        ("BYTES", [datetime.datetime(2024, 1, 2), pd.Timestamp("2024-01-02")], [DAY, DAY]),
        ("BYTES", np.ma.array(["a", "b"], mask=[False, True]), ["a", None]),
        ("BOOL", np.ma.array([True, True], mask=[False, True]), [True, None]),
        ("FP64", np.ma.array([1.5, 2.5], mask=[False, True]), [1.5, None]),
    ],
)
def test_what_is_written_of_what_models_have(datatype, values, expected):
    assert written(InferOutput("y", [2], datatype, values)) == expected


def test_masked_integers_are_an_error():
    array = np.ma.array([1, 2], mask=[False, True])
    with pytest.raises(
        InferenceError, match=r"^Output 'y' holds None at index 1, and INT64 has no"
    ):
        encode_json(InferOutput("y", [2], "INT64", array))
    with pytest.raises(
        InferenceError, match=r"^Output 'y' holds None at index 1, and INT64 has no"
    ):
        InferOutput("y", [2], "INT64").set_data_from_numpy(array)


def test_null_of_an_input_of_bytes_is_none():
    (read,) = decode(tensor(["a", None], datatype="BYTES", shape=[2])).inputs
    assert (read.data, read.as_string()) == (["a", None], ["a", None])
    assert read.as_numpy().tolist() == ["a", None]
    request = decode(tensor(["a", None], datatype="BYTES", shape=[2]))
    assert request.as_dataframe()["x"].isna().tolist() == [False, True]
    document, _ = request.to_rest()
    assert document["inputs"][0]["data"] == ["a", None]
    with pytest.raises(InvalidInput, match="'x' holds None at index 0, not true or false"):
        decode(tensor([None], datatype="BOOL"))


def test_data_of_a_picture_is_the_programs_error():
    read = decode_binary(b"\1\0\0\0\xff", sized(5, datatype="BYTES")).inputs[0]
    with pytest.raises(NotText, match=r"^Input 'x' holds bytes that .+`as_numpy\(\)`") as info:
        _ = read.data
    assert info.value.status == 500
    assert read.as_numpy().tolist() == [b"\xff"]


def test_a_list_that_was_changed_is_checked_again():
    (read,) = decode(tensor([1], datatype="INT64")).inputs
    assert read.as_numpy().tolist() == [1]
    read.data[0] = 1.5
    with pytest.raises(InvalidInput, match=r"^Input 'x' has data that does not fit"):
        read.as_numpy()


def test_arrays_of_lists_are_writable():
    for data in ([1, 2], [1.0, None]):
        array = InferInput("x", [2], "FP32", data).as_numpy()
        array[0] = 5
        assert array[0] == 5


def test_many_elements_too_many_are_not_counted_to_the_end():
    body = bytes(4 * 10_000)
    with pytest.raises(InvalidInput, match=r"^Input 'x' has more than 1001 elements"):
        decode_binary(body, sized(len(body), datatype="BYTES", shape=[1]))


COLUMNS = [
    (pd.Series(["x", None], dtype=object), "BYTES", ["x", None]),
    (pd.Series(["x", np.nan], dtype=object), "BYTES", ["x", None]),
    (pd.Series(["x", pd.NA], dtype="string"), "BYTES", ["x", None]),
    (pd.Series(["x", None], dtype="category"), "BYTES", ["x", None]),
    (pd.Series(pd.to_datetime(["2024-01-02", None])), "BYTES", [DAY, None]),
    (pd.Series(pd.to_datetime(["2024-01-02", None])).astype("M8[ns]"), "BYTES", [DAY, None]),
    (pd.Series(pd.to_datetime(["2024-01-02", None], utc=True)), "BYTES", [DAY + "+00:00", None]),
    (pd.Series([True, None], dtype="boolean"), "BOOL", [True, None]),
    (pd.Series([True, False], dtype="boolean"), "BOOL", [True, False]),
    (pd.Series([True, None], dtype=object), "BOOL", [True, None]),
    (pd.Series([1, None], dtype="Int64"), "FP64", [1.0, None]),
    (pd.Series([1, 2], dtype="Int32"), "INT32", [1, 2]),
    (pd.Series([1, None], dtype=object), "FP64", [1.0, None]),
    (pd.Series([1.5, None], dtype="Float32"), "FP64", [1.5, None]),
    (pd.Series([1.5, None]), "FP64", [1.5, None]),
    (pd.Series([1, "x"], dtype=object), "BYTES", ["1", "x"]),
    (["x", None], "BYTES", ["x", None]),
    (["x", NAN], "BYTES", ["x", None]),
    ([True, None], "BOOL", [True, None]),
    ([b"a\0", b"b"], "BYTES", ["a\0", "b"]),
]


@pytest.mark.parametrize(("column", "datatype", "data"), COLUMNS, ids=repr)
def test_columns(column, datatype, data):
    result = pd.DataFrame({"c": column}) if isinstance(column, pd.Series) else column
    (output,) = get_predict_response(InferRequest("m", []), result, "m").outputs
    assert (output.datatype, written(output)) == (datatype, data)


def test_a_column_with_a_missing_value_is_an_error_in_binary():
    request = InferRequest("m", [], parameters={"binary_data_output": True})
    result = pd.DataFrame({"c": pd.Series(["x", None])})
    (output,) = get_predict_response(request, result, "m").outputs
    with pytest.raises(InferenceError, match=r"^Output 'c' holds a missing value at index 1"):
        encode_binary(output)


def test_integers_that_become_others_as_floats_are_an_error():
    result = pd.DataFrame({"c": pd.Series([2**53 + 1, None], dtype="Int64")})
    with pytest.raises(InferenceError, match=r"^Output 'c' has integers that FP64 cannot hold"):
        get_predict_response(InferRequest("m", []), result, "m")


@pytest.mark.slow
def test_a_large_object_is_cut_in_a_sentence() -> None:
    assert short({str(n): {"a": [1]} for n in range(9)}) == (
        "{'0': {'a': [1]}, '1': {'a': [1]}, '2': {'a': [1]}, '3': {'a': [1]}, ...}"
    )
    assert short({"b": 1, "a": {}}) == "{'b': 1, 'a': {}}"
    large = [[dict.fromkeys(map(str, range(500_000)), 0)]]
    times = []
    for write in (repr, short):
        before = time.thread_time()
        write(large)
        times.append(time.thread_time() - before)
    assert times[1] < times[0] / 2
