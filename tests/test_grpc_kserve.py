"""KServe's own gRPC client, stub and messages against real servers, unmodified.

The servers are `modelserve --grpc-port`, and a program for KServe with another import.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpcserver import Server, served, until

from modelserve.tensors import InferRequest
from modelserve.tensors.grpc import messages

kserve = pytest.importorskip("kserve")
grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.grpc

json_format = pytest.importorskip("google.protobuf.json_format")
pb2 = pytest.importorskip("kserve.protocol.grpc.grpc_predict_v2_pb2")
pb2_grpc = pytest.importorskip("kserve.protocol.grpc.grpc_predict_v2_pb2_grpc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("grpc")) as server:
        yield server


@pytest.fixture
def call(server: Server) -> Callable[..., Any]:
    """Call a method of KServe's client in an event loop of its own."""

    def call_(method: str, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            client = kserve.InferenceGRPCClient(server.grpc, timeout=20)
            try:
                return await getattr(client, method)(*args, **kwargs)
            finally:
                await client.close()

        return asyncio.run(run())

    return call_


def test_health(call: Any) -> None:
    assert call("is_server_live")
    assert call("is_server_ready")
    assert call("is_model_ready", "echo")


@pytest.mark.parametrize("binary", [True, False])
def test_infer(call: Any, binary: bool) -> None:
    array = np.array([[1.5, -2.0]], np.float32)
    given = kserve.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(array, binary_data=binary)
    request = kserve.InferRequest("echo", [given], request_id="7", parameters={"p": "v"})
    response = call("infer", request)
    assert response.outputs[0].as_numpy().tolist() == array.tolist()
    assert (response.id, response.model_name) == ("7", "echo")


def test_errors(call: Any) -> None:
    given = kserve.InferInput("x", [1], "INT32", [1])
    with pytest.raises(grpc.RpcError) as failed:
        call("infer", kserve.InferRequest("none", [given]))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_generated_code_and_ours_live_in_one_process() -> None:
    kind = kserve.protocol.grpc.grpc_predict_v2_pb2.ModelInferRequest
    message = kind(model_name="m", id="7")
    message.inputs.add(name="x", datatype="INT32", shape=[1]).contents.int_contents.append(5)
    assert messages()["ModelInferRequest"].FromString(message.SerializeToString()).id == "7"
    assert InferRequest.from_grpc(message).inputs[0].data == [5]
    ours = InferRequest.from_grpc(message).to_grpc()
    assert kind.FromString(ours.SerializeToString()) == message


# --- a program for KServe -----------------------------------------------------------------------

PROGRAM = """
import asyncio
from pathlib import Path

import numpy as np
import pandas as pd

from modelserve.kserve import InferResponse, Model, ModelServer
from modelserve.kserve.errors import InvalidInput
from modelserve.kserve.protocol.grpc import grpc_predict_v2_pb2 as pb2
from modelserve.kserve.utils.utils import get_predict_response


class Table(Model):
    async def predict(self, request, headers=None):
        columns = {each.name: each.as_numpy().flatten() for each in request.inputs}
        if (request.parameters or {}).get("half"):
            columns["half"] = columns["FP32"].astype(np.float16)
        response = get_predict_response(request, pd.DataFrame(columns), self.name)
        response.parameters = request.parameters
        return response


class Gives(Model):
    async def predict(self, request, headers=None, response_headers=None):
        if request.id == "message":
            return pb2.ModelInferResponse(model_name="its own", id="1")
        entry = {"name": "o", "datatype": "FP32", "shape": [2]}
        if request.id == "contents":
            contents = {"fp32_contents": [1.5, 2.5]}
            return {"id": "9", "model_name": "m", "outputs": [{**entry, "contents": contents}]}
        if request.id == "data":
            return {"id": "9", "model_name": "m", "outputs": [{**entry, "data": [1.5, 2.5]}]}
        if request.id == "headers":
            response_headers["x-back"] = headers["x-there"]
            return InferResponse(request.id, self.name, [])
        if request.id == "refusal":
            raise InvalidInput("not like this")
        if request.id == "large":
            return get_predict_response(request, pd.DataFrame({"o": np.zeros(300_000)}), self.name)
        if request.id == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                Path(__file__).with_name("cancelled").touch()
        raise RuntimeError("secret")


def loaded(model):
    model.ready = True
    return model


if __name__ == "__main__":
    ModelServer().start([loaded(Table("table")), loaded(Gives("gives"))])
"""


class Program(Server):
    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)
        ports = ("--http_port", "0", "--grpc_port", "0")
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "program.py", *ports, *flags], cwd=folder, stderr=log
            )
        until(lambda: "Serving on" in self.log)
        self.grpc = f"127.0.0.1:{self._found(r'gRPC is served on [^ ]*?:([0-9]+)')}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("program")
    program = Program(folder, "--grpc_max_send_message_length", "1000000")
    yield program
    program.process.terminate()
    assert program.process.wait(40) == 0, program.log


@pytest.fixture
def stub(program: Program) -> Iterator[Any]:
    with grpc.insecure_channel(program.grpc) as channel:
        yield pb2_grpc.GRPCInferenceServiceStub(channel)


def as_dict(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


CONTENTS = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [1, -2]),
    "INT32": ("int_contents", [1, -2]),
    "INT64": ("int64_contents", [1 << 60, -2]),
    "UINT8": ("uint_contents", [1, 255]),
    "UINT64": ("uint64_contents", [1, (1 << 64) - 1]),
    "FP32": ("fp32_contents", [1.5, -2.25]),
    "FP64": ("fp64_contents", [0.1, 1e300]),
    "BYTES": ("bytes_contents", [b"a", "\u00e9".encode()]),
}


def test_every_datatype_comes_back_in_its_field(stub: Any) -> None:
    inputs = [
        {"name": datatype, "datatype": datatype, "shape": [2], "contents": {field: values}}
        for datatype, (field, values) in CONTENTS.items()
    ]
    request = pb2.ModelInferRequest(model_name="table", id="123", inputs=inputs)
    request.parameters["flag"].bool_param = True
    answer = stub.ModelInfer(request, timeout=20)
    outputs = pb2.ModelInferResponse(outputs=inputs).outputs
    assert list(answer.outputs) == list(outputs)
    assert as_dict(answer) == {
        "model_name": "table",
        "id": "123",
        "parameters": {"flag": {"bool_param": True}},
        "outputs": [as_dict(output) for output in outputs],
    }


ARRAYS = {
    "FP16": np.array([1.5, -2], np.float16),
    "FP32": np.array([1.5, -2], np.float32),
    "INT64": np.array([1 << 60, -2], np.int64),
    "BOOL": np.array([True, False]),
}


def test_raw_inputs_have_raw_outputs_with_their_sizes(stub: Any) -> None:
    entries = [{"name": name, "datatype": name, "shape": [2]} for name in ARRAYS]
    raws = [array.tobytes() for array in ARRAYS.values()]
    request = pb2.ModelInferRequest(model_name="table", inputs=entries, raw_input_contents=raws)
    answer = stub.ModelInfer(request, timeout=20)
    assert list(answer.raw_output_contents) == raws
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        (name, name, [2]) for name in ARRAYS
    ]
    sizes = [output.parameters["binary_data_size"].int64_param for output in answer.outputs]
    assert sizes == [len(raw) for raw in raws]
    response = kserve.InferResponse.from_grpc(answer)
    for output, array in zip(response.outputs, ARRAYS.values(), strict=True):
        assert np.array_equal(output.as_numpy(), array)


def test_half_floats_make_all_outputs_raw(stub: Any) -> None:
    contents = {"fp32_contents": [1.5, -2]}
    entry = {"name": "FP32", "datatype": "FP32", "shape": [2], "contents": contents}
    request = pb2.ModelInferRequest(model_name="table", inputs=[entry])
    request.parameters["half"].bool_param = True
    answer = stub.ModelInfer(request, timeout=20)
    assert list(answer.raw_output_contents) == [ARRAYS["FP32"].tobytes(), ARRAYS["FP16"].tobytes()]
    assert [output.datatype for output in answer.outputs] == ["FP32", "FP16"]


X = {"name": "x", "datatype": "FP32", "shape": [2]}
WRONG = [
    pb2.ModelInferRequest(
        model_name="table", inputs=[X, {**X, "name": "y"}], raw_input_contents=[bytes(8)]
    ),
    pb2.ModelInferRequest(
        model_name="table",
        inputs=[{**X, "contents": {"fp32_contents": [1, 2]}}],
        raw_input_contents=[bytes(8)],
    ),
    pb2.ModelInferRequest(model_name="gives", id="refusal"),
]


@pytest.mark.parametrize("request_", WRONG)
def test_wrong_requests(stub: Any, request_: Any) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(request_, timeout=20)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_model_may_give(stub: Any) -> None:
    def give(name: str, **call: Any) -> Any:
        return stub.ModelInfer(
            pb2.ModelInferRequest(model_name="gives", id=name), timeout=20, **call
        )

    assert as_dict(give("message")) == {"model_name": "its own", "id": "1"}
    output = {
        "name": "o",
        "datatype": "FP32",
        "shape": ["2"],
        "contents": {"fp32_contents": [1.5, 2.5]},
    }
    document = {"model_name": "m", "id": "9", "outputs": [output]}
    assert as_dict(give("contents")) == as_dict(give("data")) == document
    request = pb2.ModelInferRequest(model_name="gives", id="headers")
    _, call = stub.ModelInfer.with_call(request, metadata=(("x-there", "there"),), timeout=20)
    assert dict(call.trailing_metadata())["x-back"] == "there"
    for name, code, words in (
        ("large", grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
        ("failure", grpc.StatusCode.INTERNAL, "Internal Server Error"),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            give(name)
        assert failed.value.code() is code
        assert words in failed.value.details()


def test_a_time_out_of_the_client_cancels_the_model(program: Program) -> None:
    async def infer() -> Any:
        async with kserve.InferenceGRPCClient(program.grpc, timeout=0.3, retries=2) as client:
            await client.infer(kserve.InferRequest("gives", [], request_id="wait"))

    with pytest.raises(grpc.RpcError) as failed:
        asyncio.run(infer())
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until((program.folder / "cancelled").exists)
