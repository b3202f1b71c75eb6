"""KServe's own gRPC client against a real server, unmodified, on gRPC's own port."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from grpcserver import Server, served

from modelserve.tensors import InferRequest
from modelserve.tensors.grpc import messages

kserve = pytest.importorskip("kserve")
grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.grpc


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
