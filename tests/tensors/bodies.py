"""V2 tensors and messages as bodies, for the tests of this folder."""

import json

import ml_dtypes
import orjson

from modelserve.tensors import InferOutput, InferResponse, decode_request, encode_response

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


def encode_json(*outputs, **more):
    (body,), length = encode_response(InferResponse("1", "m", list(outputs), **more))
    assert length is None
    return body


def encode_binary(*outputs, **more):
    more = {"use_binary_outputs": True, **more}
    (head, *raws), length = encode_response(InferResponse("1", "m", list(outputs), **more))
    assert length == len(head)
    return orjson.loads(head), [bytes(raw) for raw in raws]


def two_outputs():
    return [InferOutput("a", [1], "INT8", [1]), InferOutput("b", [1], "INT8", [2])]
