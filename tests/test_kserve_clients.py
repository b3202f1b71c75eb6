"""Clients and programs of others against our server on a socket: KServe's SDK and Triton's client.

Each test needs one of them, and is skipped without: pip install kserve 'tritonclient[http]'.
"""

import contextlib
import inspect
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_kserve import NAMES

from modelserve import kserve as ours_sdk

ROOT = Path(__file__).parent.parent
EXAMPLE = next((ROOT / "examples").glob("*_migration"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

SERVED = """
from modelserve import Model, ModelServer
from modelserve.errors import InferenceError
from modelserve.tensors import InferOutput, InferResponse

class Echo(Model):
    versions = ["1"]

    def get_input_types(self):
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]

    def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, dict):
            response_headers["x-model"] = "echo"
            return {"predictions": payload["instances"]}
        outputs = []
        for tensor in payload.inputs:
            outputs.append(InferOutput(tensor.name, tensor.shape, tensor.datatype))
            outputs[-1].set_data_from_numpy(tensor.as_numpy())
        return InferResponse(payload.id, self.name, outputs)

    def explain(self, payload):
        return {"explanations": payload["instances"]}

class Failing(Model):
    def predict(self, payload):
        raise InferenceError("out of paper", status=507)

class Unready(Model):
    def predict(self, payload):
        raise NotImplementedError

    def load(self):
        return False

app = ModelServer([Echo("echo"), Failing("failing")])
unready = ModelServer([Unready("unready")])
"""
IN_DIRECTORY = """
from modelserve import Model

class Late(Model):
    def predict(self, payload):
        return {"predictions": "late"}
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def serving(*command: str, cwd: Path, base: str = "") -> Iterator[str]:
    """Run a server until the block ends; yield its address, which a line of its log tells."""
    log = cwd / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, env=environment(), stderr=stderr
        )
    try:
        while not (base or (found := re.search(r"Serving on http://\S+:(\d+)", log.read_text()))):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield base or f"http://127.0.0.1:{found[1]}"  # type: ignore[index]
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "models").mkdir()
    (folder / "served.py").write_text(SERVED)
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> Iterator[str]:
    """A server with models of a program and a directory that is empty at first."""
    flags = ("--model-dir", "models", "--port", "0")
    with serving("-m", "modelserve", "served.py", *flags, cwd=folder) as base:
        yield base


@pytest.fixture(scope="module")
def unready(folder: Path) -> Iterator[str]:
    (folder / "unready").mkdir()
    target = ("../served.py:unready", "--port", "0")
    with serving("-m", "modelserve", *target, cwd=folder / "unready") as base:
        yield base


# --- KServe's client ----------------------------------------------------------------------------


def rest_client(protocol: str) -> Any:
    kserve = pytest.importorskip("kserve")
    return kserve.InferenceRESTClient(kserve.RESTConfig(protocol=protocol, retries=0))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_kserves_client_on_v1(base: str, unready: str) -> None:
    async with rest_client("v1") as client:
        assert await client.is_server_live(base)
        assert await client.is_model_ready(base, "echo")
        assert not await client.is_model_ready(unready, "unready")
        headers: dict[str, str] = {}
        data = {"instances": [[1, "a", None]]}
        result = await client.infer(base, data, "echo", response_headers=headers)
        assert result == {"predictions": [[1, "a", None]]}
        assert headers["x-model"] == "echo"
        assert await client.explain(base, "echo", data) == {"explanations": [[1, "a", None]]}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_errors_as_kserves_client_reads_them(base: str, unready: str) -> None:
    httpx = pytest.importorskip("httpx")
    async with rest_client("v1") as client:
        for url, model, data, words in (
            (base, "zz", {}, "Model with name zz does not exist., '404 Not Found'"),
            (base, "failing", {}, "out of paper, '507 Insufficient Storage'"),
            (
                base,
                "echo",
                {"instances": 5},
                "Expected \"instances\" to be a list, '400 Bad Request'",
            ),
            (unready, "unready", {}, "Model with name unready is not ready., '503"),
        ):
            with pytest.raises(httpx.HTTPStatusError) as caught:
                await client.infer(url, data, model)
            assert str(caught.value).startswith(words)


ARRAYS = [
    np.array([[True], [False]]),
    np.array([[-128, 127]], np.int8),
    np.array([1, 2**31 - 1], np.int32),
    np.array([-(2**63), 1], np.int64),
    np.array([255], np.uint8),
    np.array([2**64 - 1], np.uint64),
    np.array([1.5, -2], np.float16),
    np.array([[[1.5], [0.1]]], np.float32),
    np.array([0.1, 1e300]),
    np.array([b"a", "é".encode(), b""], object),
    np.zeros((0, 2), np.float32),
]
# FP16 goes as binary data only.
IN_JSON = [array for array in ARRAYS if array.dtype != np.float16]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
async def test_kserves_client_on_v2(base: str, binary: bool, binary_output: bool) -> None:
    kserve = pytest.importorskip("kserve")
    codec = pytest.importorskip("kserve.utils.numpy_codec")
    async with rest_client("v2") as client:
        assert await client.is_server_live(base)
        assert await client.is_server_ready(base)
        assert await client.is_model_ready(base, "echo")
        for array in ARRAYS if binary and binary_output else IN_JSON:
            if binary and not array.size:
                continue  # the client forgets the length header
            tensor = kserve.InferInput("x", list(array.shape), codec.from_np_dtype(array.dtype))
            tensor.set_data_from_numpy(array, binary_data=binary)
            parameters = {"binary_data_output": True} if binary_output else None
            request = kserve.InferRequest("echo", [tensor], "id-1", parameters=parameters)
            response = await client.infer(base, request, "echo")
            assert (response.id, response.model_name) == ("id-1", "echo")
            found = response.outputs[0].as_numpy()
            if array.dtype == object:  # the client makes text of binary outputs, too
                array = np.array([item.decode() for item in array], object)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tolist() == array.tolist()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_server_that_is_not_ready_as_kserves_client_sees_it(unready: str) -> None:
    httpx = pytest.importorskip("httpx")
    async with rest_client("v2") as client:
        assert await client.is_server_live(unready)
        assert not await client.is_model_ready(unready, "unready")
        with pytest.raises(httpx.HTTPStatusError, match=r"Server is not ready\., '503"):
            await client.is_server_ready(unready)


# --- Triton's client ----------------------------------------------------------------------------


@pytest.fixture
def triton(base: str) -> Iterator[Any]:
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(base.removeprefix("http://")) as client:
        yield client


def test_tritons_client_asks_about_the_server(triton: Any, base: str) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("echo")
    assert triton.is_model_ready("echo", "1")
    assert not triton.is_model_ready("zz")
    assert not triton.is_model_ready("echo", "2")
    assert triton.get_server_metadata()["name"] == "modelserve"
    metadata = triton.get_model_metadata("echo")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_tritons_client_infers(triton: Any, binary: bool, binary_output: bool) -> None:
    http = pytest.importorskip("tritonclient.http")
    utils = pytest.importorskip("tritonclient.utils")
    for array in ARRAYS if binary and binary_output else IN_JSON:
        tensor = http.InferInput("x", list(array.shape), utils.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=binary)
        outputs = [http.InferRequestedOutput("x", binary_data=binary_output)]
        for options in ({"outputs": outputs}, {"model_version": "1", "outputs": outputs}):
            result = triton.infer("echo", [tensor], request_id="7", **options)
            found = result.as_numpy("x")
            expected = array
            if array.dtype == object and not binary_output:
                expected = np.array([item.decode() for item in array], object)
            assert result.get_response()["id"] == "7"
            assert (found.shape, found.tolist()) == (expected.shape, expected.tolist())


def test_errors_as_tritons_client_reads_them(triton: Any) -> None:
    http = pytest.importorskip("tritonclient.http")
    utils = pytest.importorskip("tritonclient.utils")
    tensor = http.InferInput("x", [1], "INT8")
    tensor.set_data_from_numpy(np.array([1], np.int8))
    outputs = [http.InferRequestedOutput("y")]
    for model, options, words in (
        ("zz", {}, "Model with name zz does not exist."),
        ("failing", {}, "out of paper"),
        ("echo", {"outputs": outputs}, "Unexpected inference output 'y' for model 'echo'"),
    ):
        with pytest.raises(utils.InferenceServerException, match=words):
            triton.infer(model, [tensor], **options)
    for verb in (triton.load_model, triton.unload_model):
        with pytest.raises(utils.InferenceServerException, match="zz does not exist"):
            verb("zz")


def test_tritons_client_loads_and_unloads(triton: Any, folder: Path) -> None:
    utils = pytest.importorskip("tritonclient.utils")

    def states() -> dict[str, str]:
        return {row["name"]: row["state"] for row in triton.get_model_repository_index()}

    assert states() == {"echo": "READY", "failing": "READY"}
    (folder / "models" / "late").mkdir()
    (folder / "models" / "late" / "model.py").write_text(IN_DIRECTORY)
    assert states() == {"echo": "READY", "failing": "READY", "late": "UNAVAILABLE"}
    assert not triton.is_model_ready("late")
    triton.load_model("late")
    assert triton.is_model_ready("late")
    assert states()["late"] == "READY"
    (folder / "models" / "late" / "model.py").write_text("1 / 0")
    with pytest.raises(utils.InferenceServerException, match="late is not ready"):
        triton.load_model("late")
    assert triton.is_model_ready("late")
    triton.unload_model("late")
    assert not triton.is_model_ready("late")
    assert states()["late"] == "UNAVAILABLE"


# --- the same program on both -------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(base: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    wanted = urllib.request.Request(base + path, body, headers)
    try:
        with urllib.request.urlopen(wanted, timeout=10) as response:
            return Answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, dict(exc.headers), exc.read())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The example's two programs, each on its server."""
    pytest.importorskip("kserve")
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--model_name", "flowers", "--enable_grpc", "false")
    before = (str(EXAMPLE / "before.py"), "--http_port", str(port), *flags)
    after = (str(EXAMPLE / "after.py"), "--http_port", "0", *flags)
    folders = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    with (
        serving(*before, cwd=folders[0], base=f"http://127.0.0.1:{port}") as theirs,
        serving(*after, cwd=folders[1]) as ours,
    ):
        while True:
            with contextlib.suppress(OSError):
                ask(theirs, "/", None, {})
                break
            time.sleep(0.1)
        yield theirs, ours


JSON = {"content-type": "application/json"}
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 5.0, 2.0]]
FLAT = [*ROWS[0], *ROWS[1]]
V1 = json.dumps({"instances": ROWS}).encode()


def v2(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP64", "data": FLAT} | changes
    return json.dumps({"id": "7", "inputs": [tensor]}).encode()


def binary() -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP64"}
    document = {
        "id": "7",
        "inputs": [tensor | {"parameters": {"binary_data_size": 64}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    length = {"inference-header-content-length": str(len(head))}
    return head + struct.pack("<8d", *FLAT), length | {"content-type": "application/octet-stream"}


PREDICT, EXPLAIN, INFER = (
    "/v1/models/flowers:predict",
    "/v1/models/flowers:explain",
    "/v2/models/flowers/infer",
)


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/", None, {}),
        ("/v1/models", None, {}),
        ("/v1/models/flowers", None, {}),
        ("/v1/models/zz", None, {}),
        ("/v2/health/live", None, {}),
        ("/v2/health/ready", None, {}),
        ("/v2/models", None, {}),
        ("/v2/models/flowers", None, {}),
        ("/v2/models/flowers/ready", None, {}),
        ("/v2/models/zz/ready", None, {}),
        (PREDICT, V1, JSON),
        (PREDICT, json.dumps({"inputs": ROWS}).encode(), JSON),
        (PREDICT, b"{", JSON),
        (PREDICT, b"", JSON),
        (PREDICT, b'{"instances": [[1, 2]]}', JSON),
        ("/v1/models/zz:predict", V1, JSON),
        (EXPLAIN, V1, JSON),
        (INFER, v2(), JSON),
        (INFER, v2(data=ROWS), JSON),
        (INFER, v2(datatype="fp32"), JSON),
        (INFER, *binary()),
        ("/v2/models/zz/infer", v2(), JSON),
        ("/v2/repository/models/flowers/load", b"{}", JSON),
        ("/v2/repository/models/zz/unload", b"{}", JSON),
    ],
)
def test_answers_are_those_of_kserve(
    both: tuple[str, str], path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    theirs, ours = (ask(base, path, body, headers) for base in both)
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    for name in ("content-type", "x-farthest", "inference-header-content-length"):
        if name in theirs.headers:
            assert ours.headers[name] == theirs.headers[name]


@pytest.mark.parametrize(
    ("path", "body", "headers", "theirs", "ours"),
    [
        (PREDICT, V1, {"content-type": "application/json; charset=utf-8"}, 500, 200),
        (PREDICT, V1, {"content-type": "application/x-www-form-urlencoded"}, 500, 200),
        (PREDICT, b'{"instances": [["a", 1, 1, 1]]}', JSON, 500, 400),
        (PREDICT, None, {}, 404, 405),
        (INFER, v2(shape=[3, 4]), JSON, 500, 400),
        (INFER, v2(data=None), JSON, 422, 400),
        ("/v2/models/zz/infer", b"{", JSON, 422, 404),
        ("/v2/models/flowers/versions/1", None, {}, 501, 404),
        ("/v2/repository/models/zz/load", b"{}", JSON, 503, 404),
        ("/v2/repository/index", b"{}", JSON, 404, 200),
        ("/nowhere", None, {}, 404, 404),
    ],
)
def test_what_differs_is_what_the_example_says(
    both: tuple[str, str],
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    theirs: int,
    ours: int,
) -> None:
    answers = [ask(base, path, body, headers) for base in both]
    assert [answer.status for answer in answers] == [theirs, ours]
    assert answers[0].body != answers[1].body


def test_explain_does_not_reflect_what_it_was_sent(both: tuple[str, str]) -> None:
    sent = JSON | {"authorization": "Bearer secret"}
    theirs, ours = (ask(base, EXPLAIN, V1, sent) for base in both)
    assert theirs.headers["authorization"] == "Bearer secret"
    assert "authorization" not in ours.headers
    assert theirs.body == ours.body


# --- KServe's own classes -----------------------------------------------------------------------


def test_kserves_types_read_ours_and_ours_read_theirs() -> None:
    theirs = pytest.importorskip("kserve")
    ours = ours_sdk

    def made(sdk: Any) -> Any:
        tensor = sdk.InferInput("x", [2, 2], "INT32", parameters={"p": 1})
        tensor.set_data_from_numpy(np.arange(4, dtype=np.int32).reshape(2, 2))
        return sdk.InferRequest("m", [tensor, sdk.InferInput("t", [1], "BYTES", ["é"])], "7")

    for writer, reader in ((theirs, ours), (ours, theirs)):
        body, length = made(writer).to_rest()
        read = reader.InferRequest.from_bytes(body, length, "m")
        assert (read.id, [tensor.name for tensor in read.inputs]) == ("7", ["x", "t"])
        assert read.inputs[0].as_numpy().tolist() == [[0, 1], [2, 3]]
        assert read.inputs[1].as_numpy().tolist() == ["é"]


# KServe has them in their modules only.
NOT_AT_KSERVES_TOP = {"InferenceVerb", "RequestedOutput", "errors"}


def test_the_names_are_where_kserve_has_them() -> None:
    pytest.importorskip("kserve")
    paths = {path.removeprefix("modelserve."): set(names.split()) for path, names in NAMES.items()}
    paths["kserve"] -= NOT_AT_KSERVES_TOP
    code = "".join(f"from {path} import {', '.join(names)}\n" for path, names in paths.items())
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_the_arguments_are_those_of_kserve() -> None:
    pytest.importorskip("kserve")
    code = (
        "import inspect, json, kserve, kserve.model_server as m\n"
        "flags = [a.option_strings for a in m.parser._actions]\n"
        "parameters = list(inspect.signature(kserve.ModelServer).parameters)\n"
        "print(json.dumps([sum(flags, []), parameters]))\n"
    )
    run = [sys.executable, "-W", "ignore", "-c", code]
    output = subprocess.run(run, check=True, timeout=60, capture_output=True, text=True).stdout
    flags, parameters = json.loads(output.splitlines()[-1])
    ours = [
        flag for action in ours_sdk.model_server.parser._actions for flag in action.option_strings
    ]
    assert sorted(ours) == sorted(flags)
    own = list(inspect.signature(ours_sdk.ModelServer).parameters)
    assert own == [*parameters, "options"]


def test_get_predict_input_and_response_agree() -> None:
    pytest.importorskip("kserve")
    pytest.importorskip("pandas")
    from kserve.utils import utils as theirs

    ours = ours_sdk.utils
    for payload in ({"instances": [[1, 2], [3, 4]]}, {"inputs": ["a", "b"]}, {"instances": []}):
        one, other = theirs.get_predict_input(payload), ours.get_predict_input(payload)
        assert type(one) is type(other)
        assert np.array_equal(one, other)
        assert theirs.get_predict_response(payload, one, "m") == ours.get_predict_response(
            payload, other, "m"
        )
