"""V2's JSON documents: every one that is refused, and whose error that is."""

import numpy as np
import orjson
import pytest
from bodies import decode, decode_binary, encode_binary, encode_json, sized, tensor

from modelserve.errors import InferenceError, InvalidInput
from modelserve.tensors import InferOutput, InferResponse, decode_request

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
    (b'{"inputs":[],"outputs":[{"name":"a"},{"name":"a"}]}', "^Duplicate output 'a'\\.$"),
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
    (tensor([1, [2]], shape=[2]), r"holds \[2\] at index 1, not a number"),
    (tensor(["a"]), "holds 'a' at index 0, not a number"),
    (tensor([True]), "holds True at index 0, not a number"),
    (tensor([{}]), "holds {} at index 0, not a number"),
    (tensor([1e39]), r"holds 1e\+39 at index 0, which is out of range for FP32"),
    (tensor([None, 0, -1e39], shape=[3]), "holds -1e.39 at index 2, which is out of range"),
    (tensor([1.5], datatype="INT32"), "holds 1.5 at index 0, not an integer"),
    (tensor([1.0], datatype="INT32"), "holds 1.0 at index 0, not an integer"),
    (tensor([None], datatype="INT32"), "holds None at index 0, not an integer"),
    (tensor([0, True], datatype="INT64", shape=[2]), "holds True at index 1, not an integer"),
    (tensor(["1"], datatype="UINT8"), "holds '1' at index 0, not an integer"),
    (tensor([1], datatype="BOOL"), "holds 1 at index 0, not true or false"),
    (tensor(["true"], datatype="BOOL"), "holds 'true' at index 0, not true or false"),
    (tensor([None], datatype="BOOL"), "holds None at index 0, not true or false"),
    (tensor([1], datatype="BYTES"), "holds 1 at index 0, not a string"),
    (tensor([[97]], datatype="BYTES"), "holds 97 at index 0, not a string"),
    (tensor([1], parameters=[]), 'has "parameters" that are not an object'),
    (tensor([1], parameters={"a": {}}), "has the parameter 'a' that is not a string, number"),
    (tensor([1], parameters={"binary_data_size": 4}), 'has both "data" and "binary_data_size"'),
    (sized(4), "is binary data, and the header inference-header-content-length is missing"),
]


@pytest.mark.parametrize(("entry", "words"), BAD_TENSORS)
def test_bad_tensors_are_named(entry, words):
    with pytest.raises(InvalidInput, match=f"^Input 'x' {words}"):
        decode(entry)


def test_duplicate_inputs():
    with pytest.raises(InvalidInput, match=r"^Duplicate input 'x'\.$"):
        decode(tensor([1]), tensor([1]) | {"name": "y"}, tensor([1]))


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


def test_raw_outputs_are_checked():
    response = InferResponse("1", "m", [InferOutput("o", [1], "FP32")], raw_outputs=[b"abc"])
    with pytest.raises(InferenceError, match=r"^Output 'o' has 3 bytes of binary data"):
        response.to_rest()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (5, "Expected the response to be a JSON object"),
        ({"outputs": [], "parameters": []}, 'The response has "parameters" that are not an object'),
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


@pytest.mark.parametrize(
    ("contents", "datatype", "data"),
    [
        ({"fp32_contents": [1.5, 2.5]}, "FP32", [1.5, 2.5]),
        ({"bytes_contents": [b"a", b"\xff"]}, "BYTES", [b"a", b"\xff"]),
        ({}, "INT64", []),
    ],
)
def test_an_output_may_be_in_the_form_of_grpc(contents, datatype, data):
    entry = {"name": "o", "datatype": datatype, "shape": [len(data)], "contents": contents}
    assert InferResponse.from_rest({"outputs": [entry]}).outputs[0].data == data
