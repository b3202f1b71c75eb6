"""V2's messages of gRPC: read into requests and responses, and written from them."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modelserve.errors import InvalidInput, InvalidOutput
from modelserve.tensors import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from modelserve.tensors.grpc import is_message, messages

pytest.importorskip("google.protobuf")

# Of each datatype: its field, values at its bounds, and what numpy has for it.
DATATYPES: dict[str, tuple[str | None, list[Any], Any]] = {
    "BOOL": ("bool_contents", [True, False], np.bool_),
    "INT8": ("int_contents", [-128, 127], np.int8),
    "INT16": ("int_contents", [-32768, 32767], np.int16),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1], np.int32),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1], np.int64),
    "UINT8": ("uint_contents", [0, 255], np.uint8),
    "UINT16": ("uint_contents", [0, 65535], np.uint16),
    "UINT32": ("uint_contents", [0, 2**32 - 1], np.uint32),
    "UINT64": ("uint64_contents", [0, 2**64 - 1], np.uint64),
    "FP16": (None, [-1.5, 65504.0], np.float16),
    "BF16": (None, [-1.5, 256.0], ml_dtypes.bfloat16),
    "FP32": ("fp32_contents", [-1.5, 0.25], np.float32),
    "FP64": ("fp64_contents", [-1.5, 0.1], np.float64),
    "BYTES": ("bytes_contents", [b"a\xff", b""], np.object_),
}
WITH_FIELDS = [name for name, (field, *_) in DATATYPES.items() if field]


def call(**fields: Any) -> Any:
    return messages()["ModelInferRequest"](model_name="m", **fields)


def tensor(datatype: str, *, shape: Any = (2,), **contents: Any) -> dict[str, Any]:
    found = {"contents": contents} if contents else {}
    return {"name": "x", "datatype": datatype, "shape": list(shape), **found}


def raw_of(datatype: str, values: list[Any], dtype: Any) -> bytes:
    if datatype == "BYTES":
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return np.array(values, dtype).tobytes()


@pytest.mark.parametrize("datatype", WITH_FIELDS)
def test_contents_are_read_and_written(datatype: str) -> None:
    field, values, dtype = DATATYPES[datatype]
    request = InferRequest.from_grpc(call(inputs=[tensor(datatype, **{str(field): values})]))
    assert request.inputs[0].data == values
    array = request.inputs[0].as_numpy()
    assert (array.dtype, array.tolist()) == (np.dtype(dtype), values)
    output = InferOutput("x", [2], datatype, values)
    message = InferResponse("7", "m", [output]).to_grpc()
    assert list(getattr(message.outputs[0].contents, str(field))) == values
    assert (message.id, message.model_name, message.raw_output_contents) == ("7", "m", [])
    assert InferResponse.from_grpc(message).outputs[0].data == values


@pytest.mark.parametrize("count", [0, 15, 17, 32, 5_000, 600_000])  # lengths of 1 to 4 bytes
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_floats_of_any_number_are_written(datatype: str, count: int) -> None:
    values = [0.5, -math.inf, math.inf, 1e-40 if datatype == "FP64" else 2.0**-149]
    values = (values * (count // 4 + 1))[:count]
    message = InferResponse("7", "m", [InferOutput("x", [count], datatype, values)]).to_grpc()
    read = type(message).FromString(message.SerializeToString()).outputs[0]
    assert list(getattr(read.contents, f"{datatype.lower()}_contents")) == values


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_contents_are_read_and_written(datatype: str) -> None:
    _, values, dtype = DATATYPES[datatype]
    raw = raw_of(datatype, values, dtype)
    request = InferRequest.from_grpc(call(inputs=[tensor(datatype)], raw_input_contents=[raw]))
    array = request.inputs[0].as_numpy()
    assert (array.dtype, array.tolist()) == (np.dtype(dtype), values)
    assert request.use_binary_outputs
    message = InferResponse("7", "m", [InferOutput("x", [2], datatype, array)]).to_grpc()
    assert list(message.raw_output_contents) == [raw]
    assert not message.outputs[0].HasField("contents")
    assert InferResponse.from_grpc(message).outputs[0].as_numpy().tolist() == values


def test_an_array_of_raw_contents_can_be_written_to() -> None:
    raw = np.array([1, 2], np.int32).tobytes()
    request = InferRequest.from_grpc(call(inputs=[tensor("INT32")], raw_input_contents=[raw]))
    array = request.inputs[0].as_numpy()
    array += 1
    assert array.tolist() == [2, 3]


PARAMETERS = {"a": True, "b": -5, "c": "text", "d": 0.5, "e": 2**64 - 1}


def test_parameters_go_both_ways() -> None:
    given = InferInput("x", [1], "INT32", [3], parameters={"k": 1})
    request = InferRequest(
        "m", [given], "7", parameters=dict(PARAMETERS), request_outputs=[RequestedOutput("o", {"top": 2})]
    )  # fmt: skip
    read = InferRequest.from_grpc(request.to_grpc())
    assert (read.parameters, read.inputs[0].parameters) == (PARAMETERS, {"k": 1})
    assert read.request_outputs is not None
    assert [(out.name, out.parameters) for out in read.request_outputs] == [("o", {"top": 2})]
    assert (read.id, read.model_name, read.from_grpc) == ("7", "m", True)


def test_raw_contents_have_their_size_as_a_parameter() -> None:
    output = InferOutput("x", [2], "INT32", [3, 4], parameters={"k": "v", "binary_data_size": 1})
    as_field, as_bytes = (
        InferResponse("7", "m", [output], use_binary_outputs=raw).to_grpc().outputs[0].parameters
        for raw in (False, True)
    )
    assert sorted(as_field) == ["k"]
    assert sorted(as_bytes) == ["binary_data_size", "k"]
    assert as_bytes["binary_data_size"].int64_param == 8


def test_parameters_that_no_field_takes_go_as_text() -> None:
    response = InferResponse("7", "m", [], parameters={"big": 2**70, "none": None, "list": [1]})
    read = InferResponse.from_grpc(response.to_grpc()).parameters
    assert read == {"big": str(2**70), "none": "None", "list": "[1]"}


def test_messages_are_known_by_name() -> None:
    assert is_message(call(), "ModelInferRequest")
    assert not is_message(call(), "ModelInferResponse")
    assert not is_message({}, "ModelInferRequest")


def test_all_tensors_are_raw_where_one_is() -> None:
    outputs = [InferOutput("a", [1], "INT32", [5]), InferOutput("b", [1], "FP16", np.ones(1, "e"))]
    message = InferResponse("7", "m", outputs).to_grpc()
    assert list(message.raw_output_contents) == [b"\x05\0\0\0", b"\x00\x3c"]


def test_elements_of_other_types_are_written_where_they_fit() -> None:
    for datatype, values, field, written in (
        ("FP32", [1, None, 0.5], "fp32_contents", [1.0, float("nan"), 0.5]),
        ("FP64", [1, 2.5], "fp64_contents", [1.0, 2.5]),
        ("INT32", [1.0, np.int64(2)], "int_contents", [1, 2]),
        ("BYTES", ["ü", b"b"], "bytes_contents", ["ü".encode(), b"b"]),
        ("BOOL", [1, 0], "bool_contents", [True, False]),
    ):
        output = InferOutput("o", [len(values)], datatype, values)
        [entry] = InferResponse("7", "m", [output]).to_grpc().outputs
        assert repr(list(getattr(entry.contents, field))) == repr(written)


SHARED = {"shared_memory_region": {"string_param": "r"}}
REFUSED = {
    "Input 'x' has 2 elements where its shape [3] asks for 3.": call(
        inputs=[tensor("INT32", shape=[3], int_contents=[1, 2])]
    ),
    "Input 'x' has 3 bytes of binary data where its shape [2] of INT32 asks for 8.": call(
        inputs=[tensor("INT32")], raw_input_contents=[b"abc"]
    ),
    "There are 2 raw contents, where there are 1 inputs.": call(
        inputs=[tensor("INT32")], raw_input_contents=[b"", b""]
    ),
    "Input 'x' has contents, and the message has raw contents.": call(
        inputs=[tensor("INT32", int_contents=[1, 2])], raw_input_contents=[b"12345678"]
    ),
    "Input 'x' is FP16, which goes as raw contents only.": call(
        inputs=[tensor("FP16", fp32_contents=[1, 2])]
    ),
    "Input 'x' has the unknown datatype 'INT7'.": call(inputs=[tensor("INT7", int_contents=[1])]),
    "Duplicate input 'x'.": call(inputs=[tensor("INT32", int_contents=[1, 2])] * 2),
    "Duplicate output 'o'.": call(outputs=[{"name": "o"}] * 2),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_request_that_does_not_fit_is_refused(sentence: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        InferRequest.from_grpc(REFUSED[sentence])
    assert str(refused.value) == sentence


def test_numbers_over_the_datatype_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Input 'x' "):
        InferRequest.from_grpc(call(inputs=[tensor("UINT8", uint_contents=[1, 256])]))


def test_shared_memory_is_refused() -> None:
    for fields in (
        {"inputs": [{**tensor("INT32", int_contents=[1, 2]), "parameters": SHARED}]},
        {"outputs": [{"name": "x", "parameters": SHARED}]},
    ):
        with pytest.raises(InvalidInput, match=r"^(Input|Output) 'x' .*shared memory"):
            InferRequest.from_grpc(call(**fields))


def test_an_output_that_does_not_fit_is_refused() -> None:
    for output in (
        InferOutput("o", [2], "INT32", [1]),
        InferOutput("o", [1], "INT8", [300]),
        InferOutput("o", [1], "INT32", [2**31]),
        InferOutput("o", [1], "UINT64", [-1]),
        InferOutput("o", [1], "FP32", [1e39]),
        InferOutput("o", [1], "INT32", ["1"]),
        InferOutput("o", [1], "BYTES", [None]),
    ):
        with pytest.raises(InvalidOutput, match=r"^Output 'o' "):
            InferResponse("7", "m", [output]).to_grpc()


def test_parameters_may_be_messages():
    parameter = messages()["InferParameter"]
    given = {"a": parameter(string_param="v"), "b": parameter(int64_param=5)}
    request, response = (
        InferRequest("m", [], parameters=given),
        InferResponse("1", "m", [], parameters=given),
    )
    for made in (request, response):
        assert made.parameters == {"a": "v", "b": 5}
        assert made.to_grpc().parameters["a"].string_param == "v"
