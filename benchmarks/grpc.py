"""ModelInfer over gRPC, calls a second: beside a bare servicer of grpcio's and KServe's server.

    python -m benchmarks.grpc [SECONDS] [ROUNDS]

Every server runs in a process of its own, on asyncio's event loop, and echoes what it is sent: 8
floats in the field of their datatype, the same as raw bytes, and a raw tensor of 1 MiB. The servers
take turns, and a ratio is that of one round. The client is grpcio's, with 16 calls at a time on one
channel, and reads bytes. The bare servicer has KServe's generated code, so that `kserve` has to be
in the environment, beside `modelserve[grpc]` and numpy.
"""

import asyncio
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.accounts import cpu_seconds

__all__ = ["main"]

_AT_A_TIME: Final = 16
_SERVICE: Final = "/inference.GRPCInferenceService"
_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

_BARE = """
import asyncio, sys
import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb, grpc_predict_v2_pb2_grpc as pb_grpc

class Servicer(pb_grpc.GRPCInferenceServiceServicer):
    async def ModelInfer(self, request, context):
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        for tensor in request.inputs:
            output = response.outputs.add(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
            )
            if tensor.HasField("contents"):
                output.contents.CopyFrom(tensor.contents)
        response.raw_output_contents.extend(request.raw_input_contents)
        return response

    async def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=True)

async def main():
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""

# The same program for both: KServe's names are the only difference.
_MODELS = """
import logging
from PACKAGE import InferOutput, InferResponse, Model, ModelServer

class Contents(Model):
    async def predict(self, payload, headers=None):
        outputs = [InferOutput(t.name, t.shape, t.datatype, t.data) for t in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)

class Raw(Model):
    async def predict(self, payload, headers=None):
        outputs = []
        for tensor in payload.inputs:
            output = InferOutput(tensor.name, tensor.shape, tensor.datatype)
            output.set_data_from_numpy(tensor.as_numpy(), binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)

models = [Contents("contents"), Raw("raw")]
for model in models:
    model.ready = True
"""
_KSERVE = (
    _MODELS.replace("PACKAGE", "kserve")
    + """
if __name__ == "__main__":
    logging.disable(logging.INFO)  # a line for each call
    ModelServer(event_loop="asyncio", enable_latency_logging=False).start(models)
"""
)
_OURS = _MODELS.replace("PACKAGE", "modelserve.kserve") + "app = ModelServer()\n"
_OURS += "for model in models:\n    app.register_model(model)\n"


def _command(kind: str, path: Path, port: int, http: int) -> list[str]:
    if kind == "bare":
        return [sys.executable, str(path), str(port)]
    if kind == "kserve":
        ports = ["--http_port", str(http), "--grpc_port", str(port)]
        limits = ("--grpc_max_send_message_length", "--grpc_max_receive_message_length")
        return [sys.executable, str(path), *ports, *(w for f in limits for w in (f, str(1 << 24)))]
    flags = ["--port", str(http), "--grpc-port", str(port), "--loop", "asyncio"]
    return [sys.executable, "-m", "modelserve", str(path), *flags, "--log-level", "warning"]


_PROGRAMS: Final = {"bare": _BARE, "kserve": _KSERVE, "modelserve": _OURS}


@contextmanager
def _serving(kind: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Run one server, and end it; yield its port and its process."""
    path = folder / f"{kind}_server.py"
    path.write_text(_PROGRAMS[kind])
    port, http = _free_ports()
    process = subprocess.Popen(_command(kind, path, port, http), stdout=subprocess.DEVNULL)
    try:
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def _free_ports() -> list[int]:
    """Return two ports below those that clients' sockets are given."""
    found: list[int] = []
    while len(found) < 2:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("0.0.0.0", port)):
            found.append(port)
    return found


def _works() -> dict[str, bytes]:
    """Return the calls, as bytes, by name."""
    import numpy as np

    from modelserve.tensors import InferInput, InferRequest

    small = np.arange(8, dtype=np.float32)
    large = np.zeros(1 << 18, np.float32)
    inputs = {
        "contents, 8 floats": ("contents", InferInput("x", [8], "FP32", small.tolist())),
        "raw, 8 floats": ("raw", InferInput("x", [8], "FP32", small)),
        "raw, 1 MiB": ("raw", InferInput("x", [1 << 18], "FP32", large)),
    }
    return {
        name: InferRequest(model, [tensor], "1").to_grpc().SerializeToString()
        for name, (model, tensor) in inputs.items()
    }


async def _measure(port: int, pid: int, calls: dict[str, bytes], seconds: float) -> dict[str, Any]:
    """Return, by name, the calls a second and the server's CPU time of one, in microseconds."""
    import grpc

    found = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) as channel:
        await _until_ready(channel)
        infer = channel.unary_unary(f"{_SERVICE}/ModelInfer")
        for name, call in calls.items():
            await _repeat(infer, call, seconds / 4)
            used = cpu_seconds(pid)
            count, taken = await _repeat(infer, call, seconds)
            found[name] = (count / taken, (cpu_seconds(pid) - used) / count * 1e6)
    return found


async def _until_ready(channel: Any) -> None:
    ready = channel.unary_unary(f"{_SERVICE}/ServerReady")
    await ready(b"", wait_for_ready=True, timeout=60)
    while not await ready(b""):  # noqa: ASYNC110 - an empty message is `false`
        await asyncio.sleep(0.05)


async def _repeat(infer: Any, call: bytes, seconds: float) -> tuple[int, float]:
    """Call for some seconds, so many at a time; return the count, and the seconds."""
    count, began = 0, time.perf_counter()

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() - began < seconds:
            await infer(call)
            count += 1

    await asyncio.gather(*(caller() for _ in range(_AT_A_TIME)))
    return count, time.perf_counter() - began


def main(seconds: float = 3.0, rounds: int = 3) -> str:
    """Measure all servers in turn; return a table."""
    calls = _works()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for kind in _PROGRAMS:
                with _serving(kind, Path(folder)) as (port, pid):
                    rates = asyncio.run(_measure(port, pid, calls, seconds))
                for name, figures in rates.items():
                    found.setdefault((name, kind), []).append(figures)
    lines = ["| | server | calls/s | of bare | CPU us |", "|---|---|---|---|---|"]
    for (name, kind), figures in sorted(found.items(), key=lambda item: item[0][0]):
        bare = found[name, "bare"]
        ratio = statistics.median(f[0] / b[0] for f, b in zip(figures, bare, strict=True))
        rate, cpu = (statistics.median(values) for values in zip(*figures, strict=True))
        lines.append(f"| {name} | {kind} | {rate:.0f} | {ratio:.2f} | {cpu:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    numbers = [float(word) for word in sys.argv[1:]]
    print(main(*numbers[:1], *map(int, numbers[1:2])))
