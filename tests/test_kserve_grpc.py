"""KServe's modules of gRPC: messages, the stub, and a servicer in a program's own server."""

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from modelserve.kserve import (
    InferenceGRPCClient,
    InferInput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
)
from modelserve.kserve.errors import InferenceError, InvalidInput
from modelserve.kserve.inference_client import _options
from modelserve.kserve.protocol.infer_type import (
    InferOutput,
    deserialize_bytes_tensor,
    serialize_byte_tensor,
    to_http_parameters,
)
from modelserve.tensors.messages import generate_uuid
from modelserve.testing import request

grpc = pytest.importorskip("grpc")
pytest.importorskip("google.protobuf")

ROOT = Path(__file__).parent.parent
PATH = "modelserve.kserve.protocol.grpc"
pb2 = importlib.import_module(f"{PATH}.grpc_predict_v2_pb2")
pb2_grpc = importlib.import_module(f"{PATH}.grpc_predict_v2_pb2_grpc")
servicer = importlib.import_module(f"{PATH}.servicer")


# --- messages -----------------------------------------------------------------------------------


def test_messages_are_those_of_to_grpc() -> None:
    message = InferRequest("m", [InferInput("x", [1], "INT32", [5])], "7").to_grpc()
    contents = pb2.InferTensorContents(int_contents=[5])
    tensor = pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype="INT32", shape=[1], contents=contents
    )
    assert message == pb2.ModelInferRequest(model_name="m", id="7", inputs=[tensor])
    service = pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.methods_by_name["ModelInfer"].input_type is pb2.ModelInferRequest.DESCRIPTOR
    assert {"ModelInferRequest", "DESCRIPTOR"} <= set(dir(pb2))
    with pytest.raises(AttributeError, match="has no attribute 'ModelInfer'"):
        pb2.ModelInfer  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "package"), [("google.protobuf", "protobuf"), ("grpc", "grpcio")]
)
def test_what_needs_a_package_says_which(missing: str, package: str) -> None:
    code = (
        f"import importlib, sys; sys.modules[{missing!r}] = None\n"
        f"for name in ('grpc_predict_v2_pb2', 'grpc_predict_v2_pb2_grpc', 'servicer'):\n"
        f"    dir(importlib.import_module('{PATH}.' + name))\n"
        "from modelserve.kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb2_grpc\n"
        "pb2_grpc.add_GRPCInferenceServiceServicer_to_server(object(), None)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, timeout=30, cwd=ROOT
    )
    assert f"gRPC needs {package}: pip install 'modelserve[grpc]'." in ended.stderr.decode()


@pytest.mark.parametrize(
    "array",
    [
        np.array([[b"a", "\u00e9"], [b"", 7]], dtype=object),
        np.array([b"a", b"bc"]),
        np.array(["a", "bc"]),
        np.array([], dtype=object),
    ],
)
def test_bytes_as_tensors(array: Any) -> None:
    raw = b"".join(serialize_byte_tensor(array).ravel().tolist())
    flat = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
    assert deserialize_bytes_tensor(raw).tolist() == flat


def test_what_are_no_bytes() -> None:
    with pytest.raises(InferenceError, match="A tensor of float64 has no bytes or text"):
        serialize_byte_tensor(np.array([1.5]))
    with pytest.raises(InvalidInput, match="The tensor has binary data that ends inside element 0"):
        deserialize_bytes_tensor(b"\x09\0\0\0a")


def test_parameters_of_a_message() -> None:
    message = pb2.ModelInferRequest()
    message.parameters["a"].int64_param = 5
    assert to_http_parameters(message.parameters) == to_http_parameters({"a": 5}) == {"a": 5}
    assert to_http_parameters(pb2.ModelInferRequest().parameters) == {}


# --- a program's own server ---------------------------------------------------------------------


class Echo(Model):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        what = payload.parameters and payload.parameters.get("give")
        if what == "message":
            return pb2.ModelInferResponse(model_name="its own")
        if what == "document":
            outputs = [{"name": "o", "datatype": "INT32", "shape": [1], "data": [3]}]
            return {"id": "9", "model_name": "m", "outputs": outputs}
        if what == "contents":
            contents = {"fp32_contents": [1.5]}
            outputs = [{"name": "o", "datatype": "FP32", "shape": [1], "contents": contents}]
            return {"id": "9", "model_name": "m", "outputs": outputs}
        if what == "headers":
            return InferResponse(None, self.name, [], parameters=dict(headers))
        if what == "refusal":
            raise InvalidInput("not like this: 100%, \u00fc")
        if what == "failure":
            raise RuntimeError("secret")
        outputs = [InferOutput(t.name, t.shape, t.datatype, t.data) for t in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


class Waits(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started, self.ended = anyio.Event(), anyio.Event()

    async def predict(self, payload: Any) -> Any:
        self.started.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()


class Streams(Model):
    async def predict(self, payload: Any) -> AsyncIterator[Any]:
        for number in (1, 2):
            yield InferResponse(payload.id, self.name, [InferOutput("o", [1], "INT32", [number])])


@asynccontextmanager
async def stub_of(server: ModelServer) -> AsyncIterator[tuple[Any, str]]:
    """Serve with a server of grpcio's, and yield a stub for it, and where it is."""
    port_of = grpc.aio.server()
    pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        servicer.InferenceServicer(server.dataplane, server.model_repository_extension), port_of
    )
    port = port_of.add_insecure_port("127.0.0.1:0")
    await port_of.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield pb2_grpc.GRPCInferenceServiceStub(channel), f"127.0.0.1:{port}"
    finally:
        await port_of.stop(None)


def request_for(give: str = "", **members: Any) -> Any:
    message = pb2.ModelInferRequest(model_name="echo", **members)
    if give:
        message.parameters["give"].string_param = give
    return message


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # as grpcio


@pytest.fixture
def server() -> ModelServer:
    server = ModelServer()
    server.register_model(Echo("echo"))
    server.register_model(Streams("streams"))
    return server


@pytest.mark.anyio
async def test_methods_that_run_no_model(server: ModelServer) -> None:
    async with server.lifespan(), stub_of(server) as (stub, _):
        await server.ready()
        assert (await stub.ServerLive(pb2.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb2.ServerReadyRequest())).ready
        assert (await stub.ServerMetadata(pb2.ServerMetadataRequest())).name == "modelserve"
        assert (await stub.ModelReady(pb2.ModelReadyRequest(name="echo"))).ready
        about = await stub.ModelMetadata(pb2.ModelMetadataRequest(name="echo"))
        assert (about.name, list(about.inputs[0].shape)) == ("echo", [-1, 2])
        unload = pb2.RepositoryModelUnloadRequest(model_name="echo")
        assert (await stub.RepositoryModelUnload(unload)).isUnloaded
        with pytest.raises(grpc.RpcError) as failed:
            await stub.ModelReady(pb2.ModelReadyRequest(name="echo"))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        load = pb2.RepositoryModelLoadRequest(model_name="echo")
        assert (await stub.RepositoryModelLoad(load)).isLoaded
        assert (await stub.ModelReady(pb2.ModelReadyRequest(name="echo"))).ready
        with pytest.raises(grpc.RpcError) as failed:
            await stub.RepositoryIndex(pb2.RepositoryIndexRequest())
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


class Annotated(Model):
    def predict(
        self, payload: dict[str, Any] | InferRequest | pb2.ModelInferRequest, headers: Any = None
    ) -> dict[str, Any] | InferResponse | pb2.ModelInferResponse:
        if isinstance(payload, dict):
            return {"predictions": payload["instances"]}
        return pb2.ModelInferResponse(id=payload.id)


class OfNoModule(Annotated):
    """Of a class as other generators of code make them."""

    kind = type("Payload", (), {"__module__": None})

    async def predict(self, payload: kind) -> Any:  # type: ignore[override, valid-type]
        return {"predictions": [1]}


@pytest.mark.anyio
async def test_hooks_may_be_annotated_with_messages(server: ModelServer) -> None:
    server.register_model(Annotated("annotated"))
    server.register_model(OfNoModule("none"))
    for name, answer in (("annotated", b'{"predictions":[1]}'), ("none", b'{"predictions":[1]}')):
        path, body = f"/v1/models/{name}:predict", b'{"instances":[1]}'
        assert (await request(server, "POST", path, body=body)).body == answer
    async with stub_of(server) as (stub, _):
        message = pb2.ModelInferRequest(model_name="annotated", id="7")
        assert (await stub.ModelInfer(message)).id == "7"


@pytest.mark.anyio
async def test_infer(server: ModelServer) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2]}
    plain = request_for(id="7", inputs=[{**tensor, "contents": {"fp32_contents": [1.5, 2]}}])
    raw = request_for(inputs=[tensor], raw_input_contents=[bytes(8)])
    async with stub_of(server) as (stub, _):
        answer = await stub.ModelInfer(plain)
        assert (answer.id, answer.model_name) == ("7", "echo")
        assert list(answer.outputs[0].contents.fp32_contents) == [1.5, 2]
        assert list((await stub.ModelInfer(raw)).raw_output_contents) == [bytes(8)]
        assert (await stub.ModelInfer(request_for("message"))).model_name == "its own"
        answer = await stub.ModelInfer(request_for("document"))
        assert (answer.id, list(answer.outputs[0].contents.int_contents)) == ("9", [3])
        answer = await stub.ModelInfer(request_for("contents"))
        assert list(answer.outputs[0].contents.fp32_contents) == [1.5]
        answer = await stub.ModelInfer(pb2.ModelInferRequest(model_name="streams"))
        assert list(answer.outputs[0].contents.int_contents) == [1, 2]
        metadata = (("x-there", "there"), ("data-bin", b"\xff"), ("x-request-id", "abc"))
        answer = await stub.ModelInfer(request_for("headers"), metadata=metadata)
        found = {key: value.string_param for key, value in answer.parameters.items()}
        assert (found["x-there"], found["data-bin"]) == ("there", "/w==")
        assert found["x-request-id"] == "abc"


ERRORS = [
    (request_for("refusal"), "INVALID_ARGUMENT", "not like this: 100%, \u00fc"),
    (request_for("failure"), "INTERNAL", "Internal Server Error"),
    (
        request_for(model_version="9"),
        "NOT_FOUND",
        "Model with name echo and version 9 does not exist.",
    ),
    (pb2.ModelInferRequest(model_name="none"), "NOT_FOUND", "Model with name none does not exist."),
    (
        request_for(inputs=[{"name": "x", "datatype": "INT32", "shape": [1]}]),
        "INVALID_ARGUMENT",
        "Input 'x'",
    ),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("message", "code", "sentence"), ERRORS)
async def test_errors_have_a_status_and_a_sentence(
    server: ModelServer, message: Any, code: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stub_of(server) as (stub, _):
        with pytest.raises(grpc.RpcError) as failed:
            await stub.ModelInfer(message)
    assert failed.value.code().name == code
    assert failed.value.details().startswith(sentence)
    failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(failures) == (code == "INTERNAL")


@pytest.mark.anyio
async def test_a_token_is_asked_for() -> None:
    server = ModelServer(token="t0ken")
    server.register_model(Echo("echo"))
    async with stub_of(server) as (stub, _):
        assert (await stub.ServerLive(pb2.ServerLiveRequest())).live
        with pytest.raises(grpc.RpcError) as failed:
            await stub.ModelInfer(request_for())
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await stub.ModelInfer(request_for(), metadata=(("authorization", "Bearer t0ken"),))


@pytest.mark.anyio
async def test_a_client_that_cancels_cancels_the_model(server: ModelServer) -> None:
    model = Waits("waits")
    server.register_model(model)
    with anyio.fail_after(20):
        async with stub_of(server) as (stub, _):
            call = stub.ModelInfer(pb2.ModelInferRequest(model_name="waits"))
            await model.started.wait()
            call.cancel()
            await model.ended.wait()


@pytest.mark.anyio
async def test_calls_are_in_the_metrics_and_end_with_the_server(server: ModelServer) -> None:
    async with server.lifespan(), stub_of(server) as (stub, _):
        await server.ready()
        await stub.ModelInfer(request_for())
        exposed = (await request(server, "GET", "/metrics")).body.decode()
        assert 'protocol="call"' in exposed
        server.serving.refuse_new()
        with pytest.raises(grpc.RpcError) as failed:
            await stub.ModelInfer(request_for())
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not (await stub.ServerReady(pb2.ServerReadyRequest())).ready


@pytest.mark.anyio
async def test_the_client(server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kserve.trace")
    server.register_model(Waits("waits"))
    array = InferInput("x", [2], "FP32")
    array.set_data_from_numpy(np.array([1.5, 2], np.float32))
    async with stub_of(server) as (_, url), InferenceGRPCClient(url, verbose=True) as client:
        assert await client.is_server_live()
        assert await client.is_model_ready("echo")
        response = await client.infer(InferRequest("echo", [array], "7"), headers=(("a", "b"),))
        assert (response.id, response.outputs[0].as_numpy().tolist()) == ("7", [1.5, 2])
        assert "ModelInfer has answered" in caplog.text
        with pytest.raises(grpc.RpcError) as failed:
            await client.infer(InferRequest("waits", []), timeout=0.05)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.RpcError) as failed:
            await client.is_model_ready("none")
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(InvalidInput, match="Expected an InferRequest, not dict"):
            await client.infer({})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "retries", "options"),
    [
        (None, 1, {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}),
        ([("grpc.enable_retries", 0)], 3, {"grpc.enable_retries": 0}),
        (
            [("grpc.service_config", "{}")],
            3,
            {"grpc.enable_retries": 1, "grpc.service_config": "{}"},
        ),
    ],
)
def test_the_options_of_a_channel(given: Any, retries: int, options: dict[str, Any]) -> None:
    assert dict(_options(given, retries)) == options
    policy = json.loads(dict(_options([], 4))["grpc.service_config"])["methodConfig"][0]
    assert policy["retryPolicy"]["maxAttempts"] == 4


@pytest.mark.anyio
async def test_the_planes_of_a_server(server: ModelServer) -> None:
    models, repository = server.dataplane, server.model_repository_extension
    async with server.lifespan():
        await server.ready()
        assert await models.live() == {"status": "alive"}
        assert models.model_registry is server.registered_models
        assert isinstance(models.get_model_from_registry("echo"), Echo)
        payload = InferRequest("echo", [InferInput("x", [1], "INT32", [5])], generate_uuid())
        response, headers = await models.infer("echo", payload)
        assert (response.outputs[0].data, headers) == ([5], {})
        assert [row["name"] for row in await repository.index()] == ["echo", "streams"]
