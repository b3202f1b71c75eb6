"""KServe's own transformer before our predictor, and ours before KServe's, over gRPC."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from grpcserver import until

kserve = pytest.importorskip("kserve")
grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.grpc

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
