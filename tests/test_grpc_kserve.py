"""KServe's own gRPC client, transformer and predictor against ours, unmodified."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from grpcserver import Server, served, until

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


# --- transformers -------------------------------------------------------------------------------

PROGRAM = """
import argparse
import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve import errors, model_server


class Double(Model):
    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        array = payload.inputs[0].as_numpy()
        if array[0] < 0:
            raise errors.InvalidInput(f"not for {headers['x-request-id']}")
        output = InferOutput("y", list(array.shape), "FP32")
        output.set_data_from_numpy(array * 2, binary_data=False)
        return InferResponse(payload.id, self.name, [output])


class Bridge(Model):
    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    async def preprocess(self, payload, headers=None):
        numbers = payload["instances"]
        tensor = InferInput("x", [len(numbers)], "FP32")
        tensor.set_data_from_numpy(np.array(numbers, np.float32), binary_data=False)
        return InferRequest(self.name, [tensor], "7")

    async def postprocess(self, result, headers=None, response_headers=None):
        return {"predictions": result.outputs[0].as_numpy().tolist()}


if __name__ == "__main__":
    args, _ = argparse.ArgumentParser(parents=[model_server.parser]).parse_known_args()
    kind = Bridge if args.predictor_host else Double
    ModelServer().start([kind("m")])
"""
PAIRS = [("kserve", "modelserve.kserve"), ("modelserve.kserve", "kserve")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(folder: Path, library: str, *flags: str) -> Iterator[tuple[str, str]]:
    """Run the program on a library; give its addresses for HTTP and for gRPC."""
    path = folder / f"{library.replace('.', '_')}_{len(flags)}.py"
    path.write_text(PROGRAM.replace("from kserve", f"from {library}"))
    http, over_grpc = free_port(), free_port()
    ports = ("--http_port", str(http), "--grpc_port", str(over_grpc))
    with path.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([sys.executable, path, *ports, *flags], stdout=log, stderr=log)
    base = f"http://127.0.0.1:{http}"
    try:
        until(lambda: process.poll() is not None or is_answered(base), 60)
        yield base, f"127.0.0.1:{over_grpc}"
    finally:
        process.terminate()
        process.wait(40)


def is_answered(base: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(base, trust_env=False).is_success
    return False


@pytest.mark.parametrize(("predicts", "transforms"), PAIRS)
def test_a_transformer_before_a_predictor(tmp_path: Path, predicts: str, transforms: str) -> None:
    with running(tmp_path, predicts) as (_, host):
        until(lambda: asyncio.run(is_ready(host)))
        flags = ("--predictor_host", host, "--predictor_protocol", "grpc-v2")
        with running(tmp_path, transforms, *flags, "--enable_predictor_health_check") as (base, _):
            assert httpx.get(f"{base}/v2/health/ready", trust_env=False).json() == {"ready": True}
            assert call_v1(base, [1.5, 2]).json() == {"predictions": [3.0, 4.0]}
            refused = call_v1(base, [-1.0])
            assert "not for 7" in refused.json()["error"]
            assert refused.status_code == (400 if transforms != "kserve" else 500)


async def is_ready(host: str) -> bool:
    client = kserve.InferenceGRPCClient(host, timeout=20, retries=0)
    try:
        return bool(await client.is_model_ready("m"))
    except grpc.RpcError:
        return False
    finally:
        await client.close()


def call_v1(base: str, instances: list[float]) -> httpx.Response:
    headers = {"x-request-id": "7"}
    return httpx.post(
        f"{base}/v1/models/m:predict",
        json={"instances": instances},
        headers=headers,
        trust_env=False,
    )
