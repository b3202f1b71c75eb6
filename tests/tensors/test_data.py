"""The data of V2 tensors: tables of datatypes in JSON, bytes and arrays, both ways."""

import re
import struct
import sys
import time
from array import array

import numpy as np
import orjson
import pytest
from bodies import (
    BINARY_ONLY,
    DATATYPES,
    IN_JSON,
    binary_body,
    decode,
    decode_binary,
    encode_binary,
    encode_json,
    sized,
    tensor,
)

from modelserve.errors import InvalidInput
from modelserve.tensors import InferInput, InferOutput, InferRequest, decode_request
from modelserve.tensors.data import check_bytes, find_datatype
from modelserve.tensors.elements import Misfit


def values(array):
    return [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype"), IN_JSON)
def test_reads_json(datatype, data, raw, dtype):
    request = decode(tensor(data, datatype=datatype.lower(), shape=[1, 2]))
    (read,) = request.inputs
    assert (read.datatype, read.data, read.shape) == (datatype, data, [1, 2])
    assert read.as_numpy().dtype == dtype
    assert read.as_numpy().shape == (1, 2)
    assert values(read.as_numpy()) == data


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype"), DATATYPES)
def test_reads_binary(datatype, data, raw, dtype):
    request = decode_binary(raw, sized(len(raw), datatype=datatype.lower(), shape=[2, 1]))
    (read,) = request.inputs
    assert read.is_binary
    assert read.as_numpy().dtype == dtype
    assert read.as_numpy().shape == (2, 1)
    assert read.as_numpy().astype("O").reshape(-1).tolist() == (
        [b"a", "é".encode()] if datatype == "BYTES" else data
    )
    assert read.parameters == {}
    assert read.data == data
    assert values(read.as_numpy().astype("O")) == data


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype"), IN_JSON)
@pytest.mark.parametrize("nested", [False, True])
def test_writes_a_list_as_json(datatype, data, raw, dtype, nested):
    output = InferOutput("o", [2, 1], datatype, [[v] for v in data] if nested else data)
    assert orjson.loads(encode_json(output))["outputs"] == [
        {"name": "o", "shape": [2, 1], "datatype": datatype, "parameters": None, "data": data}
    ]


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype"), DATATYPES)
@pytest.mark.parametrize("form", ["list", "array", "binary", "json"])
def test_writes_every_form_as_binary(datatype, data, raw, dtype, form):
    output = InferOutput("o", [2], datatype, data)
    array = np.array(data, dtype)
    if form == "array":
        output.data = array
    elif form != "list":
        output.set_data_from_numpy(array, binary_data=form == "binary")
    document, raws = encode_binary(output)
    assert raws == [raw]
    assert document["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype"), IN_JSON)
@pytest.mark.parametrize("form", ["array", "binary", "json"])
def test_writes_every_form_as_json(datatype, data, raw, dtype, form):
    output = InferOutput("o", [2], datatype)
    array = np.array(data, dtype)
    if form == "array":
        output.data = array
    else:
        output.set_data_from_numpy(array, binary_data=form == "binary")
    assert orjson.loads(encode_json(output))["outputs"][0]["data"] == data


@pytest.mark.parametrize("datatype", sorted(BINARY_ONLY))
def test_refuses_16_bit_floats_in_json(datatype):
    with pytest.raises(InvalidInput, match=f"Input 'x' is {datatype}, which goes as binary data"):
        decode(tensor([1.5], datatype=datatype))
    with pytest.raises(InvalidInput, match=f"Output 'o' is {datatype}, which goes as binary data"):
        encode_json(InferOutput("o", [1], datatype, [1.5]))


def test_numbers_are_written_as_their_datatype_holds_them():
    body = encode_json(InferOutput("o", [3], "FP32", [1, 0.1, float("nan")]))
    assert b'"data":[1.0,0.10000000149011612,null]' in body
    body = encode_json(InferOutput("o", [2], "INT64", [1.0, np.int64(2)]))
    assert b'"data":[1,2]' in body


def test_infinity_and_nan_are_null():
    array = np.array([np.inf, -np.inf, np.nan], "f4")
    output = InferOutput("o", [3], "FP32", array)
    assert b'"data":[null,null,null]' in encode_json(output)


def test_null_is_nan():
    (read,) = decode(tensor([1, None], shape=[2])).inputs
    assert np.isnan(read.as_numpy()).tolist() == [False, True]
    _, (raw,) = encode_binary(InferOutput("o", [2], "FP64", [1, None]))
    assert raw[:8] == struct.pack("<d", 1)


@pytest.mark.benchmark
def test_checking_a_million_floats_costs_less_than_parsing_them():
    body = orjson.dumps({"inputs": [tensor([i / 7 for i in range(10**6)], shape=[10**6])]})
    started = time.perf_counter()
    document = orjson.loads(body)
    parsed = time.perf_counter()
    InferRequest.from_rest("m", document)
    assert time.perf_counter() - parsed < parsed - started


RANGES = [
    ("INT8", -129, 128),
    ("INT16", -32769, 32768),
    ("INT32", -(2**31) - 1, 2**31),
    ("INT64", -(2**63) - 1, 2**63),
    ("UINT8", -1, 256),
    ("UINT16", -1, 65536),
    ("UINT32", -1, 2**32),
    ("UINT64", -1, 2**64),
]


@pytest.mark.parametrize(("datatype", "below", "above"), RANGES)
def test_values_out_of_range(datatype, below, above):
    for value in (below, above):
        document = {"inputs": [tensor([0, 0, value, 0, value], datatype=datatype, shape=[5])]}
        with pytest.raises(InvalidInput, match=f"^Input 'x' holds {value} at index 2, which is "):
            InferRequest.from_rest("m", document)
    fit = [below + 1, above - 1]
    assert decode(tensor(fit, datatype=datatype, shape=[2])).inputs[0].data == fit


def test_the_largest_fp32_as_its_shortest_digits_is_in_range():
    assert decode(tensor([3.4028235e38])).inputs[0].as_numpy()[0] == np.finfo("f4").max


def test_surrogates_are_refused_where_another_parser_lets_them_through():
    with pytest.raises(InvalidInput, match=r"^Input 'x' holds text with surrogates"):
        InferRequest.from_rest("m", {"inputs": [tensor(["\ud800"], datatype="BYTES")]})


def test_a_deep_value_is_not_spelled_out():
    deep = b'[{"a":' * 500 + b"0" + b"}]" * 500
    body = orjson.dumps({"inputs": [tensor(["deep"])]}).replace(b'["deep"]', deep)
    with pytest.raises(InvalidInput, match=r"^Input 'x' holds \{'a': \[.*\.\.\..* at index 0, not"):
        decode_request(body, None, model_name="m")


def test_deep_nesting_is_flattened():
    body = orjson.dumps({"inputs": [tensor(["deep"])]}).replace(
        b'["deep"]', b"[" * 1000 + b"5" + b"]" * 1000
    )
    assert decode_request(body, None, model_name="m").inputs[0].data == [5]


@pytest.mark.parametrize("shape", [[], [1, 1, 1], [0], [2, 0, 3]])
def test_scalars_and_empty_tensors(shape):
    count = int(np.prod(shape))
    read = decode(tensor([1] * count, shape=shape)).inputs[0]
    assert read.as_numpy().shape == tuple(shape)
    read = decode_binary(bytes(4 * count), sized(4 * count, shape=shape)).inputs[0]
    assert read.as_numpy().shape == tuple(shape)
    output = InferOutput("o", shape, "FP32")
    output.set_data_from_numpy(read.as_numpy())
    assert encode_binary(output)[1] == [bytes(4 * count)]
    assert orjson.loads(encode_json(output))["outputs"][0]["data"] == [0.0] * count


def test_binary_data_is_viewed_without_a_copy():
    body, length = binary_body(struct.pack("<2f", 1, 2), sized(8, shape=[2]))
    writable = bytearray(body)
    array = decode_request(writable, length, model_name="m").inputs[0].as_numpy()
    writable[-4:] = struct.pack("<f", 5)
    assert array.tolist() == [1, 5]
    array[0] = 3
    assert writable[-8:-4] == struct.pack("<f", 3)
    assert decode_request(body, length, model_name="m").inputs[0].as_numpy().flags.writeable
    frozen = InferRequest.from_bytes(body, int(length), "m").inputs[0].as_numpy()
    assert not frozen.flags.writeable


def test_output_bytes_that_are_not_utf8():
    output = InferOutput("o", [2], "BYTES")
    output.set_data_from_numpy(np.array([b"a", b"\xff"], object))
    assert encode_binary(output)[1] == [b"\1\0\0\0a\1\0\0\0\xff"]
    with pytest.raises(InvalidInput, match=r"^Output 'o' holds bytes that are not UTF-8"):
        encode_json(output)
    with pytest.raises(InvalidInput, match=r"^Output 'o' holds bytes that are not UTF-8"):
        encode_json(InferOutput("o", [1], "BYTES", [b"\xff"]))


@pytest.mark.parametrize(
    ("data", "written"),
    [
        ([np.float32(1), np.float32(2)], [1.0, 2.0]),
        ([np.array([1.0]), np.array([2.0])], [1.0, 2.0]),
        (((1, 2),), [1.0, 2.0]),
        ((1, np.float64(2)), [1.0, 2.0]),
        ([None, 2], [None, 2.0]),
        (array("d", [1, 2]), [1.0, 2.0]),
    ],
)
def test_what_models_put_into_lists(data, written):
    assert orjson.loads(encode_json(InferOutput("o", (2,), "FP32", data)))["outputs"][0] == {
        "name": "o",
        "shape": [2],
        "datatype": "FP32",
        "parameters": None,
        "data": written,
    }


def test_what_models_put_into_bytes():
    output = InferOutput("o", [4], "BYTES", ["é", b"b", 5, np.str_("s")])
    assert orjson.loads(encode_json(output))["outputs"][0]["data"] == ["é", "b", "5", "s"]
    assert b"".join(encode_binary(output)[1]).endswith(b"\1\0\0\x005\1\0\0\0s")


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype"), IN_JSON)
def test_everything_but_arrays_works_without_numpy(monkeypatch, datatype, data, raw, dtype):
    monkeypatch.setitem(sys.modules, "numpy", None)
    read = decode_binary(raw, sized(len(raw), datatype=datatype, shape=[2])).inputs[0]
    output = InferOutput("o", [2], datatype, read.data)
    assert encode_binary(output)[1] == [raw]
    assert orjson.loads(encode_json(output))["outputs"][0]["data"] == data
    with pytest.raises(ImportError, match=r"needs numpy: pip install 'modelserve\[tensors\]'"):
        read.as_numpy()


def test_the_error_names_the_package(monkeypatch):
    for module in ("ml_dtypes", "pandas"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"needs ml_dtypes: pip install 'modelserve\[tensors\]'"):
        InferInput("x", [1], "BF16", [1]).as_numpy()
    with pytest.raises(ImportError, match=r"needs pandas: pip install pandas"):
        decode(tensor([1])).as_dataframe()


def test_numbers_are_read_on_a_big_endian_machine(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    for datatype, data, raw, _ in DATATYPES:
        read = decode_binary(raw, sized(len(raw), datatype=datatype, shape=[2])).inputs[0]
        assert read.data == data


@pytest.mark.parametrize(
    ("datatype", "data", "bad", "sentence"),
    [
        ("INT8", b"1", b"999", "holds 999 at index 999999, which is out of range for INT8"),
        ("INT64", b"1", b"1.5", "holds 1.5 at index 999999, not an integer"),
        ("FP32", b"1", b"1e39", "holds 1e+39 at index 999999, which is out of range for FP32"),
        ("FP32", b"null", b"1e39", "holds 1e+39 at index 999999, which is out of range for FP32"),
        ("FP32", b"0.5", b"null", None),
        ("FP64", b"null", b"null", None),
        ("BOOL", b"true", b"false", None),
        ("BOOL", b"true", b"1", "holds 1 at index 999999, not true or false"),
        ("BYTES", b"null", b"{}", "holds {} at index 999999, not a string"),
    ],
)
def test_one_bad_value_among_many_is_found_fast(
    datatype: str, data: bytes, bad: bytes, sentence: str | None, a_moment: float
) -> None:
    head = b'{"inputs":[{"name":"x","shape":[1000000],"datatype":"%s","data":['
    body = head % datatype.encode() + (data + b",") * 999_999 + bad + b"]}]}"
    before = time.thread_time()
    if sentence is None:
        decode_request(body, None, model_name="m")
    else:
        with pytest.raises(InvalidInput, match=re.escape(sentence)):
            decode_request(body, None, model_name="m")
    assert time.thread_time() - before < 20 * a_moment


def test_a_bool_that_is_none_is_found_at_any_place() -> None:
    for at in (0, (1 << 20) - 1, 1 << 20, (1 << 20) + 5):
        raw = bytearray(2 << 20)
        check_bytes(raw, [2 << 20], find_datatype("BOOL"))
        raw[at] = 2
        with pytest.raises(Misfit, match="bytes other than 0 and 1"):
            check_bytes(raw, [2 << 20], find_datatype("BOOL"))
