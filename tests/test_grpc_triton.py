"""Triton's own gRPC client against a real server, unmodified, on gRPC's own port."""

import queue
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from grpcserver import Server, served, until

from modelserve.tensors import InferRequest
from modelserve.tensors.grpc import messages

triton = pytest.importorskip("tritonclient.grpc")
np_to_triton_dtype = pytest.importorskip("tritonclient.utils").np_to_triton_dtype
grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.grpc


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("grpc")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def tensor(array: Any, name: str = "x") -> Any:
    found = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    found.set_data_from_numpy(array)
    return found


def number(value: int) -> Any:
    return tensor(np.array([value], np.int32))


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo", "2")
    assert client.get_server_metadata().name == "modelserve"
    about = client.get_model_metadata("echo")
    assert (list(about.versions), about.platform) == (["1", "2"], "numpy")
    assert list(about.inputs[0].shape) == [-1, 2]
    assert client.get_model_config("echo").config.name == "echo"
    assert client.get_inference_statistics("echo").model_stats[0].name == "echo"


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -2.0]], np.float32),
        np.array([1, 2**63 - 1], np.int64),
        np.array([True, False]),
        np.array([1, -1], np.float16),
        np.array([b"a", "ü".encode()], np.object_),
        np.zeros((0, 2), np.float32),
    ],
)
def test_infer(client: Any, array: Any) -> None:
    result = client.infer("echo", [tensor(array)], request_id="7", parameters={"p": 3})
    back = result.as_numpy("x")
    assert (back.dtype, back.shape, back.tolist()) == (array.dtype, array.shape, array.tolist())
    assert result.get_response().id == "7"


def test_large_tensors(client: Any) -> None:
    array = np.arange(5_000_000, dtype=np.float32)
    assert (client.infer("echo", [tensor(array)]).as_numpy("x") == array).all()


def test_errors(client: Any) -> None:
    for model, status, text in (
        ("none", "NOT_FOUND", "Model with name none does not exist."),
        ("refuses", "INVALID_ARGUMENT", "not like this: 100%, über"),
    ):
        with pytest.raises(triton.InferenceServerException) as failed:
            client.infer(model, [number(1)])
        assert (failed.value.status(), failed.value.message()) == (f"StatusCode.{status}", text)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(client: Any, compression: str) -> None:
    array = np.zeros(10_000, np.float32)
    result = client.infer("echo", [tensor(array)], compression_algorithm=compression)
    assert result.as_numpy("x").shape == (10_000,)


def test_async(client: Any) -> None:
    found: queue.Queue[Any] = queue.Queue()
    for value in range(5):
        client.async_infer(
            "echo", [number(value)], lambda result, error: found.put((result, error))
        )
    results = [found.get(timeout=20) for _ in range(5)]
    assert {int(result.as_numpy("x")[0]) for result, error in results if error is None} == {
        *range(5)
    }


def test_time_out(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException) as late:
        client.infer("count", [number(100_000)], client_timeout=0.3)
    assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_repository(client: Any) -> None:
    def ready() -> set[str]:
        index = client.get_model_repository_index().models
        return {row.name for row in index if row.state == "READY"}

    client.unload_model("refuses")
    assert "refuses" not in ready()
    client.load_model("refuses")
    assert "refuses" in ready()


class Stream:
    """A stream of Triton's client, read item by item."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.client = client
        self._found: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: self._found.put((result, error)), **options)

    def ask(self, model: str, value: int, **options: Any) -> None:
        self.client.async_stream_infer(model, [number(value)], **options)

    def read(self) -> Any:
        """Return a number, or an error."""
        result, error = self._found.get(timeout=30)
        return int(result.as_numpy("o")[0]) if error is None else error

    def result(self) -> Any:
        return self._found.get(timeout=30)[0]


def test_stream(client: Any) -> None:
    stream = Stream(client)
    stream.ask("count", 3, request_id="1")
    stream.ask("refuses", 0)
    stream.ask("none", 0)
    stream.ask("count", 2)
    assert [stream.read() for _ in range(3)] == [0, 1, 2]
    assert [stream.read().message() for _ in range(2)] == [
        "not like this: 100%, über",
        "Model with name none does not exist.",
    ]
    assert [stream.read(), stream.read()] == [0, 1]
    client.stop_stream()


def test_final_responses(client: Any) -> None:
    stream = Stream(client)
    stream.ask("count", 2, request_id="1", enable_empty_final_response=True)
    finals = [
        stream.result().get_response().parameters["triton_final_response"].bool_param
        for _ in range(3)
    ]
    assert finals == [False, False, True]
    client.stop_stream()


def test_full_duplex(client: Any) -> None:
    stream = Stream(client)
    for value, total in ((1, 1), (2, 3), (3, 6)):
        stream.ask("sum", value)
        assert stream.read() == total
    client.stop_stream()


def test_cancels_a_stream(server: Server, client: Any) -> None:
    (server.folder / "finally").unlink(missing_ok=True)
    stream = Stream(client)
    stream.ask("count", 100_000)
    assert stream.read() == 0
    client.stop_stream(cancel_requests=True)
    until((server.folder / "finally").exists)


def test_a_client_that_does_not_read_takes_no_memory(server: Server) -> None:
    """16 streams of 10,000 tensors of 256 KiB; each client reads one."""
    pb, stub = triton.service_pb2, triton.service_pb2_grpc
    with grpc.insecure_channel(server.grpc) as channel:
        service = stub.GRPCInferenceServiceStub(channel)
        before = server.megabytes
        calls = []
        for _ in range(16):
            request = pb.ModelInferRequest(model_name="large")
            request.inputs.add(name="x", datatype="INT32", shape=[1]).contents.int_contents.append(
                1
            )
            calls.append(service.ModelStreamInfer(iter([request])))
            assert next(calls[-1]).error_message == ""
        time.sleep(2)
        grown = server.megabytes - before
        made = int((server.folder / "made").read_text())
        for call in calls:
            call.cancel()
    assert grown < 150
    assert made < 200


def test_generated_code_and_ours_live_in_one_process() -> None:
    kind = triton.service_pb2.ModelInferRequest
    message = kind(model_name="m", id="7")
    message.inputs.add(name="x", datatype="INT32", shape=[1]).contents.int_contents.append(5)
    assert messages()["ModelInferRequest"].FromString(message.SerializeToString()).id == "7"
    assert InferRequest.from_grpc(message).inputs[0].data == [5]
    ours = InferRequest.from_grpc(message).to_grpc()
    assert kind.FromString(ours.SerializeToString()) == message
