"""Triton's own Python client against a real server: what it sends is what it reads back.

It sends no content type at all, and asks for binary outputs unless it is asked for JSON.
"""

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import uvicorn

from modelserve import Model, ModelServer
from modelserve.tensors import InferOutput, InferRequest, InferResponse
from modelserve.version import __version__

client_module = pytest.importorskip("tritonclient.http")
utils = pytest.importorskip("tritonclient.utils")

pytestmark = pytest.mark.slow

INPUTS = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


class Echo(Model):
    versions = ("1", "2")
    platform = "numpy"

    async def predict(self, payload: InferRequest) -> InferResponse:
        outputs = []
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            outputs.append(InferOutput(tensor.name, list(array.shape), tensor.datatype, array))
        version = payload.model_version
        return InferResponse(payload.id, self.name, outputs, version, parameters=payload.parameters)

    def get_input_types(self) -> Any:
        return INPUTS

    def get_output_types(self) -> Any:
        return INPUTS


class Rows(Model):
    async def predict(self, payload: InferRequest) -> AsyncIterator[InferResponse]:
        for row in payload.inputs[0].as_numpy():
            yield InferResponse(payload.id, self.name, [InferOutput("o", [1], "FP32", [row.sum()])])


class SeesHeaders(Model):
    async def predict(self, payload: InferRequest, headers: Any) -> InferResponse:
        seen = InferOutput("o", [len(headers)], "BYTES", list(headers))
        return InferResponse(payload.id, self.name, [seen])


class Broken(Echo):
    def load(self) -> bool:
        return False


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = ModelServer(
        [Echo("echo"), Rows("rows"), SeesHeaders("headers"), Broken("broken")], control=True
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with client_module.InferenceServerClient(url) as client:
        yield client


def entry(array: Any, *, name: str = "x", binary: bool = True) -> Any:
    datatype = utils.np_to_triton_dtype(array.dtype)
    tensor = client_module.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


ARRAYS = [
    np.array([True, False]),
    np.array([-128, 127], np.int8),
    np.array([[-32768], [1]], np.int16),
    np.array([-(2**31), 1], np.int32),
    np.array([-(2**63), 2**63 - 1], np.int64),
    np.array([0, 255], np.uint8),
    np.array([0, 65535], np.uint16),
    np.array([0, 2**32 - 1], np.uint32),
    np.array([0, 2**64 - 1], np.uint64),
    np.array([1.5, -2], np.float32),
    np.array([1.5, -2], np.float64),
    np.array([b"a", "é".encode()], np.object_),
    np.zeros((0, 3), np.float32),
    np.arange(100_000, dtype=np.float32).reshape(10, 100, 100),
]
BINARY_ONLY = [np.array([1.5, -2], np.float16), np.array([b"\xff\x00", b""], np.object_)]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_arrays_come_back(
    client: Any, array: Any, binary_input: bool, binary_output: bool | None
) -> None:
    outputs = binary_output is not None and [
        client_module.InferRequestedOutput("x", binary_data=binary_output)
    ]
    result = client.infer(
        "echo", [entry(array, binary=binary_input)], outputs=outputs or None, request_id="7"
    )
    found = result.as_numpy("x")
    if array.dtype == object and binary_output is False:
        found = np.array([text.encode() for text in found], np.object_)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert (found == array).all()
    assert result.get_response()["id"] == "7"
    described = result.get_output("x")
    assert ("data" in described) == (binary_output is False)


@pytest.mark.parametrize("array", BINARY_ONLY, ids=["FP16", "BYTES"])
def test_what_only_binary_data_carries(client: Any, array: Any) -> None:
    found = client.infer("echo", [entry(array)]).as_numpy("x")
    assert (found == array).all()
    as_json = [client_module.InferRequestedOutput("x", binary_data=False)]
    with pytest.raises(utils.InferenceServerException) as raised:
        client.infer("echo", [entry(array)], outputs=as_json)
    assert raised.value.status() == "400"


def test_bfloat16(client: Any) -> None:
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    found = client.infer("echo", [entry(array)]).as_numpy("x")
    assert found.astype(np.float32).tolist() == [1.5, -2]


def test_several_inputs_and_parameters(client: Any) -> None:
    inputs = [
        entry(np.array([1], np.int8), name="a"),
        entry(np.array([2], np.int8), name="b", binary=False),
        entry(np.array([b"c"], np.object_), name="c"),
    ]
    result = client.infer("echo", inputs, parameters={"a": 1, "b": "x"}, priority=3, timeout=5)
    assert [int(result.as_numpy(name)[0]) for name in "ab"] == [1, 2]
    assert result.as_numpy("c")[0] == b"c"
    assert result.get_response()["parameters"]["b"] == "x"


def test_a_version(client: Any) -> None:
    result = client.infer("echo", [entry(np.zeros(1, np.int8))], model_version="2")
    assert result.get_response()["model_version"] == "2"
    with pytest.raises(utils.InferenceServerException, match="version 3") as raised:
        client.infer("echo", [entry(np.zeros(1, np.int8))], model_version="3")
    assert raised.value.status() == "404"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_requests(client: Any, coding: str, binary: bool) -> None:
    sent = client_module.InferInput("x", [2], "FP32")
    sent.set_data_from_numpy(np.array([1, 2], np.float32), binary_data=binary)
    result = client.infer("echo", [sent], request_compression_algorithm=coding)
    assert result.as_numpy("x").tolist() == [1, 2]


def test_requests_at_the_same_time(url: str) -> None:
    with client_module.InferenceServerClient(url, concurrency=8) as client:
        arrays = [np.full((3, 4), number, np.float64) for number in range(40)]
        waiting = [client.async_infer("echo", [entry(array)]) for array in arrays]
        for array, result in zip(arrays, waiting, strict=True):
            assert (result.get_result().as_numpy("x") == array).all()


@pytest.mark.parametrize("binary", [True, False])
def test_a_stream_is_collected(client: Any, binary: bool) -> None:
    outputs = [client_module.InferRequestedOutput("o", binary_data=binary)]
    array = np.array([[1, 2], [3, 4]], np.float32)
    result = client.infer("rows", [entry(array)], outputs=outputs)
    assert result.as_numpy("o").tolist() == [3, 7]


def test_it_sends_no_content_type(client: Any) -> None:
    for binary in (True, False):
        result = client.infer("headers", [entry(np.zeros(1, np.int8), binary=binary)])
        assert b"content-type" not in result.as_numpy("o").tolist()


def test_errors(client: Any) -> None:
    tensor = client_module.InferInput("x", [3], "FP32")
    tensor.set_data_from_numpy(np.zeros(3, np.float32))
    tensor.set_shape([4])
    unknown = [client_module.InferRequestedOutput("zz")]
    good = entry(np.zeros(1, np.int8))
    for arguments, status, words in [
        (("echo", [tensor]), "400", "'x'"),
        (("echo", [good], "", unknown), "400", "Unexpected inference output 'zz'"),
        (("zz", [good]), "404", "Model with name zz does not exist."),
        (("broken", [good]), "503", "Model with name broken is not ready."),
    ]:
        with pytest.raises(utils.InferenceServerException) as raised:
            client.infer(*arguments)
        assert raised.value.status() == status
        assert words in raised.value.message()


def test_metadata_and_health(client: Any) -> None:
    assert client.is_server_live()
    assert not client.is_server_ready()  # one model is broken
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "2")
    assert not client.is_model_ready("echo", "3")
    assert not client.is_model_ready("broken")
    assert not client.is_model_ready("zz")
    assert client.get_server_metadata()["version"] == __version__
    assert client.get_model_metadata("echo", "2") == {
        "name": "echo",
        "versions": ["1", "2"],
        "platform": "numpy",
        "inputs": INPUTS,
        "outputs": INPUTS,
    }


def test_the_repository(client: Any) -> None:
    def states() -> dict[str, str]:
        return {row["name"]: row["state"] for row in client.get_model_repository_index()}

    assert states()["rows"] == "READY"
    assert states()["broken"] == "UNAVAILABLE"
    client.unload_model("rows")
    assert states()["rows"] == "UNAVAILABLE"
    assert not client.is_model_ready("rows")
    client.load_model("rows")
    assert client.is_model_ready("rows")
    with pytest.raises(utils.InferenceServerException) as raised:
        client.load_model("broken")
    assert raised.value.status() == "503"
    with pytest.raises(utils.InferenceServerException) as raised:
        client.unload_model("zz")
    assert raised.value.status() == "404"


def test_the_configuration(client: Any) -> None:
    config = client.get_model_config("echo")
    assert (config["name"], config["max_batch_size"]) == ("echo", 0)
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_config("echo", "2") == config
    with pytest.raises(utils.InferenceServerException, match="version 3"):
        client.get_model_config("echo", "3")


def test_the_statistics(client: Any) -> None:
    def figures(*arguments: str) -> Any:
        rows = client.get_inference_statistics(*arguments)["model_stats"]
        return next(row for row in rows if row["name"] == "echo")

    before = figures("echo")
    client.infer("echo", [entry(np.zeros(1, np.int8))])
    after = figures("echo", "2")
    assert after["inference_count"] == before["inference_count"] + 1
    infer = after["inference_stats"]["compute_infer"]
    assert infer["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert figures()["inference_stats"] == after["inference_stats"]
