"""V2 tensors: tables of bytes both ways, every 400, KServe's methods, Triton's client."""

import json
import struct
import subprocess
import sys
import time
import tracemalloc

import ml_dtypes
import numpy as np
import orjson
import pandas as pd
import pytest

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
    decode_request,
    encode_response,
    generate_uuid,
    get_predict_input,
    get_predict_response,
    response_document,
)

# datatype, values as JSON has them, little-endian bytes, numpy's dtype
DATATYPES = [
    ("BOOL", [True, False], b"\1\0", "?"),
    ("INT8", [-128, 127], b"\x80\x7f", "i1"),
    ("INT16", [-32768, 1], b"\x00\x80\x01\x00", "<i2"),
    ("INT32", [-(2**31), 1], b"\x00\x00\x00\x80\x01\x00\x00\x00", "<i4"),
    ("INT64", [-(2**63), 2**63 - 1], bytes(7) + b"\x80" + b"\xff" * 7 + b"\x7f", "<i8"),
    ("UINT8", [0, 255], b"\x00\xff", "u1"),
    ("UINT16", [1, 65535], b"\x01\x00\xff\xff", "<u2"),
    ("UINT32", [1, 2**32 - 1], b"\x01\x00\x00\x00\xff\xff\xff\xff", "<u4"),
    ("UINT64", [1, 2**64 - 1], b"\x01" + bytes(7) + b"\xff" * 8, "<u8"),
    ("FP16", [1.5, -2.0], b"\x00\x3e\x00\xc0", "<f2"),
    ("BF16", [1.5, -2.0], b"\xc0\x3f\x00\xc0", ml_dtypes.bfloat16),
    ("FP32", [1.5, -2.0], b"\x00\x00\xc0\x3f\x00\x00\x00\xc0", "<f4"),
    ("FP64", [1.5, -2.0], bytes(6) + b"\xf8\x3f" + bytes(7) + b"\xc0", "<f8"),
    ("BYTES", ["a", "é"], b"\1\0\0\0a\2\0\0\0\xc3\xa9", "O"),
]
BINARY_ONLY = {"FP16", "BF16"}
IN_JSON = [row for row in DATATYPES if row[0] not in BINARY_ONLY]


def tensor(data=None, *, datatype="FP32", shape=(1,), **more):
    entry = {"name": "x", "shape": shape if shape is ... else list(shape)}
    entry |= {"datatype": datatype, "data": data, **more}
    return {key: value for key, value in entry.items() if value is not ...}


def decode(*tensors, **more):
    return decode_request(orjson.dumps({"inputs": tensors, **more}), None, model_name="m")


def binary_body(raw, *tensors, **more):
    head = json.dumps({"inputs": tensors, **more}).encode()
    return head + raw, str(len(head))


def decode_binary(raw, *tensors, **more):
    return decode_request(*binary_body(raw, *tensors, **more), model_name="m")


def sized(size, **more):
    return tensor(..., parameters={"binary_data_size": size}, **more)


def values(array):
    return [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]


def encode_json(*outputs, **more):
    (body,), length = encode_response(InferResponse("1", "m", list(outputs), **more))
    assert length is None
    return body


def encode_binary(*outputs, **more):
    more = {"use_binary_outputs": True, **more}
    (head, *raws), length = encode_response(InferResponse("1", "m", list(outputs), **more))
    assert length == len(head)
    return orjson.loads(head), [bytes(raw) for raw in raws]


# Every datatype, both ways, in both forms.


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


# The response, byte for byte as KServe writes it.


def test_json_response_has_kserves_order_and_nulls():
    assert encode_json(InferOutput("o", [1, 2], "INT32", [1, 2])) == (
        b'{"model_name":"m","model_version":null,"id":"1","parameters":null,"outputs":['
        b'{"name":"o","shape":[1,2],"datatype":"INT32","parameters":null,"data":[1,2]}]}'
    )


def test_json_response_with_everything():
    output = InferOutput("o", [0], "FP32", [], {"k": 1, "binary_data_size": 9})
    assert encode_json(output, model_version="2", parameters={"p": True}) == (
        b'{"model_name":"m","model_version":"2","id":"1","parameters":{"p":true},"outputs":['
        b'{"name":"o","shape":[0],"datatype":"FP32","parameters":{"k":1},"data":[]}]}'
    )


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


def test_binary_response_has_kserves_keys():
    document, _ = encode_binary(InferOutput("o", [1], "INT8", [1], {"k": "v"}))
    assert document == {
        "id": "1",
        "model_name": "m",
        "model_version": None,
        "outputs": [
            {
                "name": "o",
                "shape": [1],
                "datatype": "INT8",
                "parameters": {"k": "v", "binary_data_size": 1},
            }
        ],
    }


def test_response_without_an_id_takes_the_requests_or_a_new_one():
    response = InferResponse(None, "m", [])
    request = InferRequest("m", [], request_id="r")
    assert response_document(response, request)["id"] == "r"
    assert len(response_document(response)["id"]) == 36
    assert json.loads(encode_response(response, request)[0][0])["id"] == "r"


def test_documents_are_written_by_the_given_writer():
    pieces, _ = encode_response(InferResponse("1", "m", []), to_json=lambda _: b"{}")
    assert pieces == [b"{}"]


# Which outputs, and in which form.


def two_outputs():
    return [InferOutput("a", [1], "INT8", [1]), InferOutput("b", [1], "INT8", [2])]


FORMS = [
    # outputs of the request, its parameters, the names answered, the names answered in binary
    (None, None, "ab", ""),
    (None, {"binary_data_output": True}, "ab", "ab"),
    (None, {"binary_data_output": False}, "ab", ""),
    ([], {"binary_data_output": True}, "ab", "ab"),
    ([{"name": "b"}], None, "b", ""),
    ([{"name": "b"}, {"name": "a"}], None, "ba", ""),
    ([{"name": "b"}], {"binary_data_output": True}, "b", ""),
    ([{"name": "b", "parameters": {"binary_data": True}}], None, "b", "b"),
    ([{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}], None, "ba", "b"),
    (
        [{"name": "a", "parameters": {"binary_data": False}}],
        {"binary_data_output": True},
        "a",
        "",
    ),
]


@pytest.mark.parametrize("said_by", ["request", "response"])
@pytest.mark.parametrize(("outputs", "parameters", "names", "binary"), FORMS)
def test_outputs_are_sent_as_asked(outputs, parameters, names, binary, said_by):
    request = decode(outputs=outputs, parameters=parameters)
    response = InferResponse("1", "m", two_outputs())
    if said_by == "response":
        response.requested_outputs = request.request_outputs
        response.use_binary_outputs = request.use_binary_outputs
    pieces, length = encode_response(response, request if said_by == "request" else None)
    document = orjson.loads(pieces[0])
    entries = document["outputs"]
    assert [entry["name"] for entry in entries] == list(names)
    assert [entry["name"] for entry in entries if "data" not in entry] == list(binary)
    assert len(pieces) == 1 + len(binary)
    assert length == (len(pieces[0]) if binary else None)
    assert response_document(response, request)["outputs"] == [
        {
            "name": name,
            "shape": [1],
            "datatype": "INT8",
            "parameters": None,
            "data": [" ab".index(name)],
        }
        for name in names
    ]


def test_unknown_requested_output_is_the_clients_fault():
    request = decode(outputs=[{"name": "x"}])
    with pytest.raises(InvalidInput, match=r"^Unexpected inference output 'x' for model 'm'$"):
        encode_response(InferResponse("1", "m", two_outputs()), request)


def test_an_echoed_binary_tensor_is_not_copied():
    request = decode_binary(b"\1\2", sized(2, datatype="INT8", shape=[2]))
    output = InferOutput("o", [2], "INT8")
    output.set_data_from_numpy(request.inputs[0].as_numpy())
    echo = InferResponse("1", "m", [output], raw_outputs=[request.inputs[0]._raw_data])
    (_, raw), _ = encode_response(echo, decode(parameters={"binary_data_output": True}))
    assert raw is request.inputs[0]._raw_data


def test_memory_of_a_binary_echo_is_one_copy():
    size = 8_000_000
    body, length = binary_body(
        bytes(size), sized(size, shape=[size // 4]), parameters={"binary_data_output": True}
    )
    body = bytearray(body)  # as it is gathered from the pieces in which it comes
    tracemalloc.start()
    request = decode_request(body, length, model_name="m")
    array = request.inputs[0].as_numpy()
    assert tracemalloc.get_traced_memory()[1] < 100_000
    output = InferOutput("o", list(array.shape), "FP32")
    output.set_data_from_numpy(array)
    encode_response(InferResponse("1", "m", [output]), request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.05 * size


@pytest.mark.benchmark
def test_checking_a_million_floats_costs_less_than_parsing_them():
    body = orjson.dumps({"inputs": [tensor([i / 7 for i in range(10**6)], shape=[10**6])]})
    started = time.perf_counter()
    document = orjson.loads(body)
    parsed = time.perf_counter()
    InferRequest.from_rest("m", document)
    assert time.perf_counter() - parsed < parsed - started


# Every 400.

BAD_DOCUMENTS = [
    (b"", "^Unrecognized request format: "),
    (b"{", "^Unrecognized request format: "),
    (b'{"inputs":[NaN]}', "^Unrecognized request format: "),
    (b'{"inputs":["\xff"]}', "^Unrecognized request format: "),
    (b"[" * 2000, "^Unrecognized request format: "),
    (b"null", "^Expected the request to be a JSON object$"),
    (b"[]", "^Expected the request to be a JSON object$"),
    (b"{}", '^Expected "inputs" to be a list$'),
    (b'{"inputs":null}', '^Expected "inputs" to be a list$'),
    (b'{"inputs":5}', '^Expected "inputs" to be a list$'),
    (b'{"inputs":{}}', '^Expected "inputs" to be a list$'),
    (b'{"inputs":[],"id":5}', '^Expected "id" to be a string$'),
    (b'{"inputs":[],"parameters":5}', '^The request has "parameters" that are not an object: 5'),
    (b'{"inputs":[],"parameters":{"a":[]}}', "^The request has the parameter 'a' that is not"),
    (b'{"inputs":[],"parameters":{"a":null}}', "^The request has the parameter 'a' that is not"),
    (
        b'{"inputs":[],"parameters":{"binary_data_output":1}}',
        '^The request has the parameter "binary_data_output" that is not true or false',
    ),
    (b'{"inputs":[],"outputs":5}', '^Expected "outputs" to be a list$'),
    (b'{"inputs":[],"outputs":[5]}', r"^Expected outputs\[0\] to be a JSON object$"),
    (b'{"inputs":[],"outputs":[{}]}', r'^Expected outputs\[0\] to have a "name" that is a string'),
    (b'{"inputs":[],"outputs":[{"name":"a"},{"name":"a"}]}', "^Output 'a' is there more than once"),
    (
        b'{"inputs":[],"outputs":[{"name":"a","parameters":{"binary_data":1}}]}',
        "^Output 'a' has the parameter \"binary_data\" that is not true or false",
    ),
    (
        b'{"inputs":[],"outputs":[{"name":"a","parameters":[]}]}',
        "^Output 'a' has \"parameters\" that are not an object",
    ),
    (
        b'{"inputs":[],"outputs":[{"name":"a","parameters":{"shared_memory_region":"r"}}]}',
        "^Output 'a' is in shared memory",
    ),
    (
        (
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8",'
            b'"parameters":{"shared_memory_region":"r","shared_memory_byte_size":1}}]}'
        ),
        "^Input 'x' is in shared memory",
    ),
    (b'{"inputs":[5]}', r"^Expected inputs\[0\] to be a JSON object$"),
    (b'{"inputs":[{}]}', r'^Expected inputs\[0\] to have a "name" that is a string$'),
    (b'{"inputs":[{"name":1}]}', r'^Expected inputs\[0\] to have a "name" that is a string$'),
]


@pytest.mark.parametrize(("body", "words"), BAD_DOCUMENTS)
def test_bad_documents(body, words):
    with pytest.raises(InvalidInput, match=words):
        decode_request(body, None, model_name="m")
    with pytest.raises(InvalidInput, match=words):
        decode_request(body, str(len(body)), model_name="m")


BAD_TENSORS = [
    (tensor([1], shape=...), 'has no "shape" that is a list'),
    (tensor([1]) | {"shape": 1}, 'has no "shape" that is a list'),
    (tensor([1]) | {"shape": None}, 'has no "shape" that is a list'),
    (tensor([1], shape=["1"]), "has a shape that is not a list of whole numbers: "),
    (tensor([1], shape=[1.0]), "has a shape that is not a list of whole numbers: "),
    (tensor([1], shape=[True]), "has a shape that is not a list of whole numbers: "),
    (tensor([1], shape=[-1]), r"has a negative dimension in its shape \[-1\]"),
    (tensor([1], shape=[-1, -1]), "has a negative dimension in its shape "),
    (tensor([1], shape=[2**62, 4]), "has a shape that is too large"),
    (tensor([], shape=[0, 2**62, 4]), "has a shape that is too large"),
    (tensor([1], shape=[2**63]), "has a shape that is too large"),
    (tensor([1], shape=[10**9]), r"has 1 elements where its shape \[1000000000\] asks for 10+"),
    (tensor([1], shape=[1] * 33), "has 33 dimensions, and 32 is the most there can be"),
    (tensor([1], shape=[2**60] * 100_000), "has 100000 dimensions"),
    (tensor([1], datatype=...), 'has no "datatype" that is a string'),
    (tensor([1], datatype=5), 'has no "datatype" that is a string'),
    (tensor([1], datatype="FP8"), "has the unknown datatype 'FP8'"),
    (tensor([1], datatype=""), "has the unknown datatype ''"),
    (tensor(...), 'has no "data"'),
    (tensor(None), 'has no "data"'),
    (tensor(5), "has data that is not a list: 5"),
    (tensor("abc", datatype="BYTES"), "has data that is not a list: 'abc'"),
    (tensor({}), "has data that is not a list: {}"),
    (tensor([1, 2]), r"has 2 elements where its shape \[1\] asks for 1"),
    (tensor([]), r"has 0 elements where its shape \[1\] asks for 1"),
    (tensor([[1, 2]]), r"has 2 elements where its shape \[1\] asks for 1"),
    (tensor([[1, 2], [3]], shape=[3]), "has rows of different lengths in its data"),
    (tensor([[1], 2], shape=[2]), "has values beside lists in its data"),
    (tensor([1, [2]], shape=[2]), r"holds \[2\] at index 1, which is not a number"),
    (tensor(["a"]), "holds 'a' at index 0, which is not a number"),
    (tensor([True]), "holds True at index 0, which is not a number"),
    (tensor([{}]), "holds {} at index 0, which is not a number"),
    (tensor([1e39]), r"holds 1e\+39 at index 0, which is out of range for FP32"),
    (tensor([None, 0, -1e39], shape=[3]), "holds -1e.39 at index 2, which is out of range"),
    (tensor([1.5], datatype="INT32"), "holds 1.5 at index 0, which is not a whole number"),
    (tensor([1.0], datatype="INT32"), "holds 1.0 at index 0, which is not a whole number"),
    (tensor([None], datatype="INT32"), "holds None at index 0, which is not a whole number"),
    (tensor([0, True], datatype="INT64", shape=[2]), "holds True at index 1, which is not a whole"),
    (tensor(["1"], datatype="UINT8"), "holds '1' at index 0, which is not a whole number"),
    (tensor([1], datatype="BOOL"), "holds 1 at index 0, which is not true or false"),
    (tensor(["true"], datatype="BOOL"), "holds 'true' at index 0, which is not true or false"),
    (tensor([1], datatype="BYTES"), "holds 1 at index 0, which is not a string"),
    (tensor([None], datatype="BYTES"), "holds None at index 0, which is not a string"),
    (tensor([[97]], datatype="BYTES"), "holds 97 at index 0, which is not a string"),
    (tensor([1], parameters=[]), 'has "parameters" that are not an object'),
    (tensor([1], parameters={"a": {}}), "has the parameter 'a' that is not a string, number"),
    (tensor([1], parameters={"binary_data_size": 4}), 'has both "data" and "binary_data_size"'),
    (sized(4), "is binary data, and the header inference-header-content-length is missing"),
]


@pytest.mark.parametrize(("entry", "words"), BAD_TENSORS)
def test_bad_tensors_are_named(entry, words):
    with pytest.raises(InvalidInput, match=f"^Input 'x' {words}"):
        decode(entry)


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
    with pytest.raises(
        InvalidInput, match=r"^Input 'x' holds \{'a': \[.*\.\.\..* at index 0, which"
    ):
        decode_request(body, None, model_name="m")


def test_deep_nesting_is_flattened():
    body = orjson.dumps({"inputs": [tensor(["deep"])]}).replace(
        b'["deep"]', b"[" * 1000 + b"5" + b"]" * 1000
    )
    assert decode_request(body, None, model_name="m").inputs[0].data == [5]


def test_duplicate_inputs():
    with pytest.raises(InvalidInput, match=r"^Input 'x' is there more than once"):
        decode(tensor([1]), tensor([1]) | {"name": "y"}, tensor([1]))


@pytest.mark.parametrize("header", ["", "x", "-1", "1.5", "1e3", "²", "٣", "9" * 5000, "1 2"])
def test_bad_length_headers(header):
    with pytest.raises(InvalidInput, match=r"^inference-header-content-length is not a number of"):
        decode_request(b"{}", header, model_name="m")


def test_length_headers_past_the_body():
    with pytest.raises(InvalidInput, match=r"is 3, and the body has 2 bytes"):
        decode_request(b"{}", "3", model_name="m")
    with pytest.raises(InvalidInput, match=r"is -1, and the body has 2 bytes"):
        InferRequest.from_bytes(b"{}", -1, "m")
    with pytest.raises(InvalidInput, match=r"^Unrecognized request format"):
        decode_request(b"{}", "0", model_name="m")


BAD_BINARY = [
    (b"", sized(4), "has 4 bytes of binary data, and 0 are left in the body"),
    (bytes(3), sized(4), "has 4 bytes of binary data, and 3 are left in the body"),
    (b"", sized(10**18), "has 10+ bytes of binary data, and 0 are left in the body"),
    (bytes(3), sized(3), r"has 3 bytes of binary data where its shape \[1\] of FP32 asks for 4"),
    (bytes(8), sized(8), "has 8 bytes of binary data where"),
    (bytes(4), sized(4, shape=[2]), "has 4 bytes of binary data where"),
    (bytes(4), sized(4, shape=[-1]), "has a negative dimension"),
    (bytes(4), sized(4, shape=[2**62, 2**62]), "has a shape that is too large"),
    (bytes(4), sized(4, datatype="FP8"), "has the unknown datatype 'FP8'"),
    (bytes(4), sized(-4), 'has a "binary_data_size" that is not a number of bytes: -4'),
    (bytes(4), sized(4.0), 'has a "binary_data_size" that is not a number of bytes: 4.0'),
    (bytes(4), sized("4"), "has a \"binary_data_size\" that is not a number of bytes: '4'"),
    (bytes(1), sized(True, datatype="BOOL"), 'has a "binary_data_size" that is not a number'),
    (bytes(4), sized(None), "has the parameter 'binary_data_size' that is not a string, number"),
    (bytes(4), tensor(...), 'has no "data"'),
    (bytes(4), sized(4) | {"data": [1.0]}, 'has both "data" and "binary_data_size"'),
    (b"\2", sized(1, datatype="BOOL"), "holds bytes other than 0 and 1, which BOOL does not have"),
    (b"\1", sized(1, datatype="BYTES"), "has binary data that ends inside element 0"),
    (b"\1\0\0\0", sized(4, datatype="BYTES"), "has binary data that ends inside element 0"),
    (b"\1\0\0\0ab", sized(6, datatype="BYTES"), "has binary data that ends inside element 1"),
    (b"\xff\xff\xff\xffa", sized(5, datatype="BYTES"), "has binary data that ends inside"),
    (bytes(8), sized(8, datatype="BYTES"), r"has 2 elements where its shape \[1\] asks for 1"),
    (b"", sized(0, datatype="BYTES"), r"has 0 elements where its shape \[1\] asks for 1"),
]


@pytest.mark.parametrize(("raw", "entry", "words"), BAD_BINARY)
def test_bad_binary_tensors_are_named(raw, entry, words):
    with pytest.raises(InvalidInput, match=f"^Input 'x' {words}"):
        decode_binary(raw, entry)


def test_trailing_binary_data():
    two = [tensor([1]) | {"name": "j"}, sized(4), tensor([1]) | {"name": "k"}]
    with pytest.raises(InvalidInput, match=r"^1 bytes are left over after the last .* input 'x'"):
        decode_binary(bytes(5), *two)
    with pytest.raises(InvalidInput, match=r"^4 bytes are .* JSON, where no input is binary"):
        decode_binary(bytes(4), tensor([1]))


def test_binary_and_json_inputs_mix_and_views_follow_each_other():
    a, b, c = sized(1, datatype="INT8"), tensor([7]) | {"name": "j"}, sized(2, datatype="INT16")
    request = decode_binary(b"\1\2\3", a, b, c | {"name": "c"})
    assert [tensor.as_numpy().tolist() for tensor in request.inputs] == [[1], [7], [0x0302]]


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


# What a model gets wrong is not the client's fault.

BAD_OUTPUTS = [
    (InferOutput("o", [1], "FP32"), "has no data"),
    (InferOutput("o", [1], "FP8", [1]), "has the unknown datatype 'FP8'"),
    (InferOutput("o", [2], "FP32", [1]), r"has 1 elements where its shape \[2\] asks for 2"),
    (InferOutput("o", [-1], "FP32", [1]), "has a negative dimension"),
    (InferOutput("o", ["1"], "FP32", [1]), "has a shape that is not a list of whole numbers"),
    (InferOutput("o", None, "FP32", [1]), "has a shape that is not a list of whole numbers"),
    (InferOutput("o", [1], "FP32", 5), "has data that is not a list: 5"),
    (InferOutput("o", [1], "FP32", ["a"]), "holds 'a' at index 0, which is out of range for FP32"),
    (InferOutput("o", [1], "INT8", [300]), "holds 300 at index 0, which is out of range for INT8"),
    (InferOutput("o", [1], "INT8", [1.5]), "holds 1.5 at index 0, which is out of range for INT8"),
    (InferOutput("o", [1], "FP32", np.zeros(1)), "is FP32, and the array is float64"),
    (InferOutput("o", [1], "FP32", np.zeros(2, "f4")), r"has the shape \[1\], and the array \[2\]"),
]


@pytest.mark.parametrize(("output", "words"), BAD_OUTPUTS)
@pytest.mark.parametrize("encode", [encode_json, encode_binary])
def test_bad_outputs_are_the_models_fault(output, words, encode):
    with pytest.raises(InferenceError, match=f"^Output 'o' {words}"):
        encode(output)


def test_output_bytes_that_are_not_utf8():
    output = InferOutput("o", [2], "BYTES")
    output.set_data_from_numpy(np.array([b"a", b"\xff"], object))
    assert encode_binary(output)[1] == [b"\1\0\0\0a\1\0\0\0\xff"]
    with pytest.raises(InvalidInput, match=r"^Output 'o' holds bytes that are not UTF-8"):
        encode_json(output)
    with pytest.raises(InvalidInput, match=r"^Output 'o' holds bytes that are not UTF-8"):
        encode_json(InferOutput("o", [1], "BYTES", [b"\xff"]))


def test_raw_outputs_are_checked():
    response = InferResponse("1", "m", [InferOutput("o", [1], "FP32")], raw_outputs=[b"abc"])
    with pytest.raises(InferenceError, match=r"^Output 'o' has 3 bytes of binary data"):
        response.to_rest()


@pytest.mark.parametrize(
    ("data", "written"),
    [
        ([np.float32(1), np.float32(2)], [1.0, 2.0]),
        ([np.array([1.0]), np.array([2.0])], [1.0, 2.0]),
        (((1, 2),), [1.0, 2.0]),
        ((1, np.float64(2)), [1.0, 2.0]),
        ([None, 2], [None, 2.0]),
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


# KServe's methods.


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
    with pytest.raises(fault, match=r"put '?x'? |'x' has "):
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
    assert struct.unpack(f"<{array.size}i", output._raw_data) == tuple(values)


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


def test_get_by_name():
    request = decode(tensor([1]), tensor([2]) | {"name": "y"})
    assert request.get_input_by_name("y").data == [2]
    assert request.get_input_by_name("z") is None
    response = InferResponse("1", "m", two_outputs())
    assert response.get_output_by_name("b").data == [2]
    assert response.get_output_by_name("z") is None


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
    assert decode(tensor([1])) == decode(tensor([1])) != decode(tensor([2]))
    assert InferResponse("1", "m", two_outputs()) == InferResponse("1", "m", two_outputs())
    assert InferResponse("1", "m", two_outputs()) != InferResponse("2", "m", two_outputs())
    assert InferResponse("1", "m", []) != InferRequest("m", [])


def test_repr_is_short():
    read = decode_binary(bytes(4), sized(4)).inputs[0]
    assert repr(read) == (
        "InferInput(name='x', shape=[1], datatype='FP32', data=<4 bytes>, parameters={})"
    )
    assert "inputs=[" in repr(decode(tensor([1])))
    assert "outputs=[InferOutput(" in repr(InferResponse("1", "m", two_outputs()))
    assert repr(RequestedOutput("a")) == "RequestedOutput(name='a', parameters=None)"


def test_attributes_are_settable():
    request = InferRequest("m", [], raw_inputs=None)
    request.parameters, request.id, request.inputs = {"binary_data_output": True}, "i", []
    assert request.use_binary_outputs
    read = InferInput("x", [1], "FP32", [1])
    read.parameters, read.shape = {"k": 1}, [1, 1]
    assert read.to_dict() == {
        "name": "x",
        "shape": [1, 1],
        "datatype": "FP32",
        "data": [1],
        "parameters": {"k": 1},
    }


def test_raw_inputs_and_from_grpc():
    inputs = [InferInput("x", [1], "INT8")]
    request = InferRequest("m", inputs, raw_inputs=[b"\5"], from_grpc=True)
    assert request.inputs[0].as_numpy().tolist() == [5]
    assert request.use_binary_outputs
    assert not InferRequest("m", [], from_grpc=True).use_binary_outputs


def test_to_dict():
    request = decode(tensor([1]), id="i", parameters={"k": 1})
    assert request.to_dict() == {
        "id": "i",
        "model_name": "m",
        "inputs": [request.inputs[0].to_dict()],
        "parameters": {"k": 1},
        "from_grpc": False,
    }
    response = InferResponse("1", "m", two_outputs())
    assert response.to_dict()["outputs"] == [output.to_dict() for output in response.outputs]


def test_request_to_rest():
    document = {
        "id": "i",
        "inputs": [tensor([1.0], parameters={"k": 1})],
        "outputs": [{"name": "o", "parameters": {"binary_data": True}}, {"name": "p"}],
        "parameters": {"p": 1},
    }
    written, length = InferRequest.from_rest("m", document).to_rest()
    assert length is None
    assert written == document | {"model_name": "m"}
    assert InferRequest.from_rest("m", written) == InferRequest.from_rest("m", document)


def test_request_to_rest_sends_the_numbers_of_a_list_as_they_are():
    def data(datatype, data):
        document, _ = InferRequest("m", [InferInput("x", [2], datatype, data)]).to_rest()
        return document["inputs"][0]["data"]

    assert data("FP32", [1.1, 2]) == [1.1, 2]
    assert data("FP32", [[0.1], [None]]) == [0.1, None]
    assert data("INT8", (1.0, np.int64(2))) == [1, 2]
    assert data("FP32", np.array([1.5, 0.1], np.float32)) == [1.5, float(np.float32(0.1))]
    for datatype, wrong in [
        ("INT8", [300, 1]),
        ("FP32", [1e39, 1]),
        ("FP32", [1]),
        ("FP16", [1, 2]),
    ]:
        with pytest.raises(InvalidInput, match=r"^Input 'x' "):
            data(datatype, wrong)


def test_request_to_rest_makes_an_id_and_keeps_binary_inputs_binary():
    request = decode_binary(b"\1\2", sized(2, datatype="INT8", shape=[2]))
    body, length = request.to_rest()
    assert len(orjson.loads(body[:length])["id"]) == 36
    again = InferRequest.from_bytes(body, length, "m")
    assert again.inputs == request.inputs
    with pytest.raises(InvalidInput, match=r"^Input 'x' has no data"):
        InferRequest("m", [InferInput("x", [1], "FP32")]).to_rest()


def test_response_to_rest_has_kserves_keys():
    response = InferResponse("1", "m", [InferOutput("o", [1], "INT8", [1])], parameters={"p": 1})
    assert response.to_rest() == (
        {
            "id": "1",
            "model_name": "m",
            "model_version": None,
            "outputs": [{"name": "o", "shape": [1], "datatype": "INT8", "data": [1]}],
            "parameters": {"p": 1},
        },
        None,
    )


def test_responses_are_read_back():
    outputs = [InferOutput("o", [2], "FP32", [1.0, 2.0], {}), InferOutput("b", [1], "BYTES", ["é"])]
    response = InferResponse("1", "m", outputs, model_version="2", parameters={"p": 1})
    again = InferResponse.from_rest(orjson.loads(orjson.dumps(response_document(response))))
    assert (again.id, again.model_name, again.model_version) == ("1", "m", "2")
    assert [output.data for output in again.outputs] == [[1.0, 2.0], ["é"]]
    response.use_binary_outputs = True
    body, length = response.to_rest()
    again = InferResponse.from_bytes(body, length)
    assert [output.as_numpy().tolist() for output in again.outputs] == [
        [1.0, 2.0],
        ["é".encode()],
    ]
    assert [output.parameters for output in again.outputs] == [{}, {}]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (5, "Expected the response to be a JSON object"),
        ({}, 'Expected "outputs" to be a list'),
        ({"outputs": [5]}, r"Expected outputs\[0\] to be a JSON object"),
        ({"outputs": [{"name": "o"}]}, "Output 'o' has no \"shape\""),
        (
            {"outputs": [{"name": "o", "shape": [1], "datatype": "FP32"}]},
            "Output 'o' has no \"data\"",
        ),
    ],
)
def test_bad_responses_are_not_the_clients_fault(document, words):
    with pytest.raises(InferenceError, match=f"^{words}"):
        InferResponse.from_rest(document)
    body = orjson.dumps(document)
    with pytest.raises(InferenceError, match=f"^{words}"):
        InferResponse.from_bytes(body, len(body))
    with pytest.raises(InvalidInput, match=f"^{words}"):  # what KServe raises
        InferResponse.from_bytes(body, len(body))


def test_bad_response_bodies():
    with pytest.raises(InferenceError, match=r"is 9, and the response has 2 bytes"):
        InferResponse.from_bytes(b"{}", 9)
    with pytest.raises(InferenceError, match=r"^Unrecognized response format"):
        InferResponse.from_bytes(b"{", 1)
    with pytest.raises(
        InferenceError, match=r"^2 bytes are left over after the JSON, where no output is binary"
    ):
        InferResponse.from_bytes(b'{"outputs":[]}ab', 14)


# KServe's helpers.


def test_as_dataframe():
    request = decode(
        tensor([1, 2], datatype="INT64", shape=[2, 1]),
        tensor(["a", "é"], datatype="BYTES", shape=[2]) | {"name": "t"},
    )
    assert request.as_dataframe().to_dict("list") == {"x": [1, 2], "t": ["a", "é"]}
    assert decode().as_dataframe().empty
    with pytest.raises(InvalidInput, match=r"^The inputs differ in length"):
        decode(tensor([1]), tensor([1, 2], shape=[2]) | {"name": "y"}).as_dataframe()


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


def test_generate_uuid():
    assert len({generate_uuid(), generate_uuid()}) == 2


# Without the optional packages.


def test_importing_imports_none_of_them():
    code = (
        "import sys, modelserve.tensors; "
        "print({'numpy', 'pandas', 'ml_dtypes'} & set(sys.modules) or 'none')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "none"


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


# Triton's own client, both ways.


BOTH_FORMS = [(*row, True) for row in DATATYPES] + [(*row, False) for row in IN_JSON]


def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype", "binary"), BOTH_FORMS)
def test_reads_what_tritonclient_sends(datatype, data, raw, dtype, binary):
    http = triton()
    sent = http.InferInput("x", [2], datatype)
    sent.set_data_from_numpy(np.array(data, dtype), binary_data=binary)
    body, length = http.InferenceServerClient.generate_request_body([sent])
    header = None if length is None else str(length)
    read = decode_request(bytes(body), header, model_name="m").inputs[0]
    assert read.is_binary == binary
    assert bytes(read._bytes()) == raw
    assert decode_request(bytes(body), header, model_name="m").use_binary_outputs


@pytest.mark.parametrize(("datatype", "data", "raw", "dtype", "binary"), BOTH_FORMS)
def test_tritonclient_reads_what_is_sent(datatype, data, raw, dtype, binary):
    http = triton()
    array = np.array(data, dtype)
    output = InferOutput("o", [2], datatype)
    output.set_data_from_numpy(array)
    response = InferResponse("1", "m", [output, output], use_binary_outputs=binary)
    pieces, length = encode_response(response)
    result = http.InferResult.from_response_body(b"".join(pieces), header_length=length)
    got = result.as_numpy("o").tolist()
    assert [v.decode() if isinstance(v, bytes) else v for v in got] == data
