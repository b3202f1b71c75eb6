"""Message classes made of `.proto` files: what the files say, in a pool of their own."""

import gc
import weakref

import pytest

from modelserve.errors import InvalidInput
from modelserve.tensors.grpc import messages
from modelserve.wire.protobuf import load_messages, parsed

descriptor_pool = pytest.importorskip("google.protobuf.descriptor_pool")

# Field numbers that KServe's and Triton's files have: what is sent by one is read by the other.
FIELDS = {
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "ModelStreamInferResponse": {"error_message": 1, "infer_response": 2},
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_have_the_numbers_of_the_protocol(name: str) -> None:
    fields = messages()[name].DESCRIPTOR.fields  # type: ignore[attr-defined]
    assert {field.name: field.number for field in fields} == FIELDS[name]


def test_messages_are_not_in_the_pool_of_generated_code() -> None:
    ours = messages()["ModelInferRequest"].DESCRIPTOR.file.pool  # type: ignore[attr-defined]
    assert ours is not descriptor_pool.Default()


def test_maps_oneofs_nested_messages_and_enums_are_read() -> None:
    request = messages()["ModelInferRequest"]()
    request.parameters["flag"].bool_param = True
    request.inputs.add(name="x", shape=[1, -1]).contents.bytes_contents.append(b"\xff")
    read = messages()["ModelInferRequest"].FromString(request.SerializeToString())
    assert read.parameters["flag"].WhichOneof("parameter_choice") == "bool_param"
    assert (read.inputs[0].shape, read.inputs[0].contents.bytes_contents) == ([1, -1], [b"\xff"])
    health = load_messages("modelserve.protocols", "health.proto")["HealthCheckResponse"]
    assert health(status="NOT_SERVING").SerializeToString() == b"\x08\x02"


def test_messages_in_messages_are_attributes() -> None:
    request = messages()["ModelInferRequest"]
    tensor = request.InferInputTensor(name="x", shape=[1])  # type: ignore[attr-defined]
    assert list(request(inputs=[tensor]).inputs) == [tensor]
    assert request.__module__ == type(tensor).__module__ == "modelserve.tensors"


def test_classes_of_messages_in_messages_outlive_them() -> None:
    made = weakref.ref(type(messages()["ModelInferRequest"]().inputs.add()))
    gc.collect()
    assert made() is not None


METHODS = {
    "ServerLive": ("ServerLiveRequest", "ServerLiveResponse", False),
    "ModelInfer": ("ModelInferRequest", "ModelInferResponse", False),
    "ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse", True),
}


def test_services_are_read() -> None:
    file = messages()["ModelInferRequest"].DESCRIPTOR.file  # type: ignore[attr-defined]
    methods = file.services_by_name["GRPCInferenceService"].methods_by_name
    assert len(methods) == 12
    for name, (request, response, streams) in METHODS.items():
        method = methods[name]
        assert method.full_name == f"inference.GRPCInferenceService.{name}"
        assert (method.input_type.name, method.output_type.name) == (request, response)
        assert (method.client_streaming, method.server_streaming) == (streams, streams)
    health = load_messages("modelserve.protocols", "health.proto")["HealthCheckRequest"]
    watch = health.DESCRIPTOR.file.services_by_name["Health"].methods_by_name["Watch"]  # type: ignore[attr-defined]
    assert (watch.client_streaming, watch.server_streaming) == (False, True)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^The call's message is not a ModelReadyRequest\.$"):
        parsed(messages()["ModelReadyRequest"], data)
