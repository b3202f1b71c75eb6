"""Models that send their payloads on over gRPC: to a real server, and to one that misbehaves."""

import asyncio
import contextlib
import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import grpc
import numpy as np
import pytest
from grpcserver import Server, served, until

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.models.predictor import PredictorConfig
from modelserve.models.remote import disconnect
from modelserve.models.remote.grpc import _address_of
from modelserve.tensors import InferInput, InferRequest, InferResponse
from modelserve.tensors.grpc import messages
from modelserve.testing import Response, exchange, lifespan, request

pytestmark = pytest.mark.anyio

PREDICTOR = """
import json
from pathlib import Path

import anyio
import numpy as np

from modelserve import InferenceError, Model, ModelServer
from modelserve.tensors import InferOutput, InferResponse

HERE = Path(__file__).parent


class Echo(Model):
    versions = ("1",)

    async def predict(self, payload, response_headers):
        response_headers["x-seed"] = "7"
        outputs = [
            InferOutput(x.name, x.shape, x.datatype, x.as_numpy()) for x in payload.inputs
        ]
        version = payload.model_version
        return InferResponse(payload.id, self.name, outputs, version, parameters=payload.parameters)


class Headers(Model):
    async def predict(self, payload, headers):
        text = json.dumps(dict(headers))
        return InferResponse(payload.id, self.name, [InferOutput("o", [1], "BYTES", [text])])


class Refuses(Model):
    async def predict(self, payload):
        raise InferenceError(payload.parameters["reason"], payload.parameters["status"])


class Hangs(Model):
    async def predict(self, payload):
        try:
            (HERE / f"began-{payload.id}").touch()
            await anyio.sleep_forever()
        finally:
            (HERE / f"ended-{payload.id}").touch()


app = ModelServer([Echo("echo"), Headers("headers"), Refuses("refuses"), Hangs("hangs")])
"""
TENSOR = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}
UNREACHABLE = (503, {"error": "The predictor cannot be reached."})


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Keep one event loop for all tests: grpcio still has to tell it of calls that are cancelled."""
    yield


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("predictor"), PREDICTOR) as server:
        yield server


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """What files of the predictor know this test by."""
    return str(request.node.name)


def transformer(name: str, host: str, *, cls: type[Model] = Model, **settings: Any) -> ModelServer:
    app = ModelServer()
    app.add_model(cls(name), predictor_host=host, protocol="grpc-v2", **settings)
    return app


async def ask(app: ModelServer, path: str, payload: Any, **headers: str) -> Response:
    fields = {key.replace("_", "-"): text for key, text in headers.items()}
    async with lifespan(app):
        return await request(app, "POST", path, json=payload, headers=fields)


async def infer(app: ModelServer, name: str, **settings: Any) -> Response:
    return await ask(app, f"/v2/models/{name}/infer", {"inputs": [TENSOR], **settings})


def said(response: Response) -> tuple[int, Any]:
    return response.status, response.json()


@contextlib.asynccontextmanager
async def answering(
    answer: Callable[[Any, Any], Any], credentials: Any = None, address: str = "127.0.0.1:0"
) -> AsyncIterator[str]:
    """Serve every method with a function of the message's bytes and of grpc's context."""
    handler = grpc.unary_unary_rpc_method_handler(answer)

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return handler

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def aborting(code: str, sentence: str, *metadata: tuple[str, str]) -> Callable[[Any, Any], Any]:
    async def answer(body: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode[code], sentence, metadata)

    return answer


# --- what goes and comes ------------------------------------------------------------------------


async def test_json(predictor: Server) -> None:
    response = await infer(transformer("echo", predictor.grpc), "echo", id="7")
    assert response.body == (
        b'{"model_name":"echo","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"x","shape":[2],"datatype":"INT32","parameters":null,"data":[1,2]}]}'
    )


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP16"])
async def test_binary(predictor: Server, datatype: str, binary_output: bool) -> None:
    array = np.arange(6, dtype=np.float16 if datatype == "FP16" else np.float32).reshape(2, 3)
    tensor = InferInput("x", [2, 3], datatype)
    tensor.set_data_from_numpy(array)
    sent = InferRequest("echo", [tensor], "7", parameters={"binary_data_output": binary_output})
    body, length = sent.to_rest()
    app = transformer("echo", predictor.grpc)
    headers = {"inference-header-content-length": str(length)}
    async with lifespan(app):
        response = await request(app, "POST", "/v2/models/echo/infer", body=body, headers=headers)
    if datatype == "FP16" and not binary_output:
        assert response.status == 400  # it has no form in JSON
        return
    if binary_output:
        length = int(response.headers["inference-header-content-length"])
        result = InferResponse.from_bytes(response.body, length)
    else:
        result = InferResponse.from_rest(response.json())
    assert (result.outputs[0].as_numpy() == array).all()


async def test_hooks_see_v2s_types_on_v1(predictor: Server) -> None:
    class Bridging(Model):
        def preprocess(self, payload: Any) -> Any:
            numbers = payload["instances"]
            return InferRequest("", [InferInput("x", [len(numbers)], "FP32", numbers)])

        def postprocess(self, result: Any) -> Any:
            assert isinstance(result, InferResponse)
            return {"predictions": result.outputs[0].as_numpy().tolist()}

    app = transformer("echo", predictor.grpc, cls=Bridging)
    response = await ask(app, "/v1/models/echo:predict", {"instances": [1, 2.5]})
    assert response.json() == {"predictions": [1.0, 2.5]}


class Sending(Model):
    """It sends on what a test puts there."""

    payload: Any = None

    def preprocess(self, payload: Any) -> Any:
        return self.payload


def written(name: str) -> Any:
    return InferRequest(name, [InferInput("x", [1], "INT32", [5])], "7")


@pytest.mark.parametrize(
    "payload",
    [
        written("echo"),
        written("echo").to_grpc(),
        written("").to_grpc(),
        {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [5]}]},
    ],
    ids=["request", "message", "message without a name", "document"],
)
async def test_what_may_be_sent(predictor: Server, payload: Any) -> None:
    app = transformer("echo", predictor.grpc, cls=Sending)
    app.serving.registry.get("echo").model.payload = payload
    response = await ask(app, "/v1/models/echo:predict", {})
    assert (response.status, response.json()["outputs"][0]["data"]) == (200, [5])


async def test_a_request_may_name_another_model(predictor: Server) -> None:
    app = transformer("front", predictor.grpc, cls=Sending)
    app.serving.registry.get("front").model.payload = written("echo")
    response = await ask(app, "/v1/models/front:predict", {})
    assert (response.status, response.json()["model_name"]) == (200, "echo")


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        ({"instances": [1]}, "the instances of V1"),
        ({"text_input": "a"}, "a payload of type dict"),
        ([1], "a payload of type list"),
    ],
)
async def test_what_is_not_v2_is_refused(predictor: Server, payload: Any, what: str) -> None:
    app = transformer("echo", predictor.grpc)
    sentence = f"The predictor speaks V2 over gRPC: it takes an InferRequest, and not {what}."
    assert said(await ask(app, "/v1/models/echo:predict", payload)) == (400, {"error": sentence})


async def test_a_version_is_asked_for(predictor: Server) -> None:
    app = transformer("echo", predictor.grpc, versions=["1", "2"])
    async with lifespan(app):
        for version, status in (("1", 200), ("2", 404)):
            path = f"/v2/models/echo/versions/{version}/infer"
            response = await request(app, "POST", path, json={"inputs": [TENSOR]})
            assert response.status == status


async def test_what_goes_along(predictor: Server) -> None:
    app = transformer("headers", predictor.grpc)
    async with lifespan(app):
        response = await request(
            app,
            "POST",
            "/v2/models/headers/infer",
            json={"inputs": [TENSOR]},
            headers={
                "x-request-id": "7",
                "traceparent": "00-1",
                "authorization": "Bearer t",
                "tracestate": "caf\u00e9",  # gRPC takes no such value
                "x-own": "1",
                "accept": "application/json",
            },
        )
    seen = json.loads(response.json()["outputs"][0]["data"][0])
    wanted = {"x-request-id": "7", "traceparent": "00-1", "authorization": "Bearer t"}
    assert {name: seen.get(name) for name in wanted} == wanted
    assert {"tracestate", "x-own", "accept"} & {*seen} == set()
    assert "grpc-timeout" in seen or "x-request-timeout-seconds" in seen


@pytest.mark.parametrize("copies", [True, False])
async def test_response_headers_are_copied_where_the_model_says_so(
    predictor: Server, copies: bool
) -> None:
    app = transformer("echo", predictor.grpc, return_response_headers=copies)
    response = await infer(app, "echo")
    assert (response.status, response.headers.get("x-seed")) == (200, "7" if copies else None)


async def test_a_model_outside_of_a_server_calls_its_predictor(predictor: Server) -> None:
    model = Model("echo")
    model.predictor_config = PredictorConfig(predictor.grpc, "grpc-v2")
    response = await model.predict(written("echo"))
    assert response.outputs[0].data == [5]
    with pytest.raises(InvalidInput):
        await model.predict({"instances": []})
    await disconnect(model)


async def test_a_registered_model_can_be_pickled(predictor: Server) -> None:
    app = transformer("echo", predictor.grpc)
    assert (await infer(app, "echo")).status == 200
    other = ModelServer([pickle.loads(pickle.dumps(app.serving.registry.get("echo").model))])
    assert (await infer(other, "echo")).status == 200


async def test_many_at_a_time_on_one_channel(predictor: Server) -> None:
    app = transformer("echo", predictor.grpc)
    answers: list[Any] = []

    async def one(number: int) -> None:
        tensor = {"name": "x", "shape": [1], "datatype": "INT32", "data": [number]}
        path = "/v2/models/echo/infer"
        response = await request(app, "POST", path, json={"inputs": [tensor]})
        answers.append(response.json()["outputs"][0]["data"][0])

    async with lifespan(app):
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(one, number)
        (caller,) = app.serving.registry.get("echo").model._remote._callers.values()
        assert [len(each._lines) for each in caller.values()] == [1]
    assert sorted(answers) == list(range(60))


# --- what ends a call ---------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_the_predictors_call(predictor: Server, key: str) -> None:
    app = transformer("hangs", predictor.grpc)
    document = {"id": key, "inputs": [TENSOR]}
    async with lifespan(app):
        async with exchange(app, "POST", "/v2/models/hangs/infer", json=document):
            await happened(predictor, f"began-{key}")
        await happened(predictor, f"ended-{key}")


async def happened(predictor: Server, name: str) -> None:
    await anyio.to_thread.run_sync(until, (predictor.folder / name).exists)


async def test_a_predictor_that_is_late(predictor: Server, key: str) -> None:
    app = transformer("hangs", predictor.grpc, timeout=0.2)
    sentence = "The predictor did not answer within 0.2 s."
    assert said(await infer(app, "hangs", id=key)) == (504, {"error": sentence})
    await happened(predictor, f"ended-{key}")


async def test_a_predictor_without_deadlines_that_is_late() -> None:
    async def hang(body: Any, context: Any) -> None:
        await asyncio.sleep(60)

    sentence = "The predictor did not answer within 0.1 s."
    async with answering(hang) as host:
        app = transformer("m", host, timeout=0.1)
        assert said(await infer(app, "m")) == (504, {"error": sentence})


async def test_our_clients_time_limit_goes_along(predictor: Server, key: str) -> None:
    app = transformer("hangs", predictor.grpc)
    document = {"id": key, "inputs": [TENSOR]}
    limit = {"x_request_timeout_seconds": "0.2"}
    response = await ask(app, "/v2/models/hangs/infer", document, **limit)
    sentence = "timeout: the request took longer than 0.2 s"
    assert said(response) == (504, {"error": sentence})
    await happened(predictor, f"ended-{key}")


async def test_a_limit_of_the_predictors_own_is_told_as_it_says() -> None:
    async with answering(aborting("DEADLINE_EXCEEDED", "it took over 1 s")) as host:
        limit = {"x_request_timeout_seconds": "100"}
        response = await ask(transformer("m", host), "/v2/models/m/infer", {"inputs": []}, **limit)
    assert said(response) == (504, {"error": "it took over 1 s"})


async def test_the_predictor_is_told_our_clients_time_limit() -> None:
    left: list[Any] = []

    async def answer(body: Any, context: Any) -> bytes:
        left.append(context.time_remaining())
        return b""

    async with answering(answer) as host:
        app = transformer("m", host, timeout=500)
        await ask(app, "/v2/models/m/infer", {"inputs": []}, x_request_timeout_seconds="100")
        await ask(app, "/v2/models/m/infer", {"inputs": []}, x_request_timeout_seconds="1000")
        await ask(
            transformer("m", host, timeout=float("inf")), "/v2/models/m/infer", {"inputs": []}
        )
    assert [round(seconds, -2) for seconds in left[:2]] == [100, 500]
    assert left[2] is None


async def test_the_servers_own_deadline_holds(predictor: Server, key: str) -> None:
    app = transformer("hangs", predictor.grpc, limits=Limits(timeout=0.2))
    assert (await infer(app, "hangs", id=key)).status == 504
    await happened(predictor, f"ended-{key}")


async def test_a_model_that_is_taken_out_under_its_requests(predictor: Server, key: str) -> None:
    app = transformer("hangs", predictor.grpc)
    document = {"id": key, "inputs": [TENSOR]}
    async with lifespan(app):
        async with exchange(app, "POST", "/v2/models/hangs/infer", json=document) as client:
            await happened(predictor, f"began-{key}")
            await disconnect(app.serving.registry.get("hangs").model)
            assert (await client.head()).status == 502
        await happened(predictor, f"ended-{key}")


# --- what the predictor answers -----------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 501, 503, 504])
async def test_the_predictors_status_comes_through(predictor: Server, status: int) -> None:
    app = transformer("refuses", predictor.grpc)
    parameters = {"status": status, "reason": "100% no: \u00fc"}
    response = await infer(app, "refuses", parameters=parameters)
    assert said(response) == (status, {"error": "100% no: \u00fc"})


async def test_a_model_that_the_predictor_does_not_have(predictor: Server) -> None:
    sentence = "Model with name none does not exist."
    response = await infer(transformer("none", predictor.grpc), "none")
    assert said(response) == (404, {"error": sentence})


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("CANCELLED", 503),
        ("UNKNOWN", 500),
        ("INVALID_ARGUMENT", 400),
        ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409),
        ("PERMISSION_DENIED", 403),
        ("RESOURCE_EXHAUSTED", 413),
        ("FAILED_PRECONDITION", 400),
        ("ABORTED", 409),
        ("OUT_OF_RANGE", 400),
        ("UNIMPLEMENTED", 501),
        ("INTERNAL", 500),
        ("UNAVAILABLE", 503),
        ("DATA_LOSS", 500),
        ("UNAUTHENTICATED", 401),
        ("DEADLINE_EXCEEDED", 504),
    ],
)
async def test_the_status_of_each_code(code: str, status: int) -> None:
    async with answering(aborting(code, "so it is")) as host:
        assert said(await infer(transformer("m", host), "m")) == (status, {"error": "so it is"})
    async with answering(aborting(code, "")) as host:
        sentence = f"The predictor answered with status {code}."
        assert said(await infer(transformer("m", host), "m")) == (status, {"error": sentence})


@pytest.mark.parametrize(
    ("code", "sentence", "answer"),
    [
        ("UNAVAILABLE", "ipv4:10.0.0.1:80: Connection reset by peer", UNREACHABLE),
        ("UNAVAILABLE", "Received http2 header with status: 503", UNREACHABLE),
        (
            "UNKNOWN",
            "Stream removed",
            (502, {"error": "The answer of the predictor was cut short."}),
        ),
        (
            "UNIMPLEMENTED",
            "Received http2 header with status: 404",
            (502, {"error": "The answer of the predictor cannot be read."}),
        ),
    ],
)
async def test_what_grpcio_says_is_not_shown(code: str, sentence: str, answer: Any) -> None:
    async with answering(aborting(code, sentence)) as host:
        assert said(await infer(transformer("m", host), "m")) == answer


async def test_headers_of_an_error_that_a_client_acts_on() -> None:
    metadata = (("retry-after", "7"), ("x-inside", "1"))
    async with answering(aborting("UNAVAILABLE", "later", *metadata)) as host:
        response = await infer(transformer("m", host), "m")
    assert (response.status, response.headers["retry-after"]) == (503, "7")
    assert "x-inside" not in response.headers


async def test_the_predictors_place_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    places: list[str] = []

    async def tell(body: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"nothing at {places[0]}")

    async with answering(tell) as host:
        places.append(host)
        response = await infer(transformer("m", host), "m")
    sentence = "The predictor answered with status NOT_FOUND."
    assert said(response) == (404, {"error": sentence})


def response_of(**fields: Any) -> bytes:
    return bytes(messages()["ModelInferResponse"](model_name="m", **fields).SerializeToString())


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff",
        response_of(outputs=[{"name": "o", "datatype": "INT32", "shape": [2]}]),
        response_of(raw_output_contents=[b"abcd"]),
    ],
    ids=["no message", "no data", "no tensor"],
)
async def test_an_answer_that_cannot_be_read(body: bytes) -> None:
    async def answer(given: Any, context: Any) -> bytes:
        return body

    sentence = "The answer of the predictor cannot be read."
    async with answering(answer) as host:
        assert said(await infer(transformer("m", host), "m")) == (502, {"error": sentence})


# --- connections --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_refused(caplog: pytest.LogCaptureFixture) -> None:
    host = f"127.0.0.1:{free_port()}"
    response = await infer(transformer("m", host), "m")
    assert said(response) == UNREACHABLE
    assert "refused" in caplog.text


async def test_what_does_not_speak_grpc() -> None:
    answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answer_http, "127.0.0.1", 0)
    async with server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert said(await infer(transformer("m", host), "m")) == UNREACHABLE


async def test_a_server_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        assert said(await infer(transformer("m", host, timeout=0.1), "m")) == UNREACHABLE


async def test_a_client_that_leaves_while_we_connect(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = transformer("m", f"127.0.0.1:{listener.getsockname()[1]}")
        document = {"inputs": [TENSOR]}
        async with lifespan(app):
            async with exchange(app, "POST", "/v2/models/m/infer", json=document):
                connection, _ = await anyio.to_thread.run_sync(listener.accept)
            with anyio.fail_after(10):
                await app.serving.registry.get("m").gate.emptied()
        connection.close()


async def test_a_model_that_is_taken_out_while_we_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = transformer("m", f"127.0.0.1:{listener.getsockname()[1]}")
        document = {"inputs": [TENSOR]}
        async with (
            lifespan(app),
            exchange(app, "POST", "/v2/models/m/infer", json=document) as client,
        ):
            connection, _ = await anyio.to_thread.run_sync(listener.accept)
            await disconnect(app.serving.registry.get("m").model)
            assert (await client.head()).status == 503
        connection.close()


@pytest.mark.parametrize("retries", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
async def test_connections_are_tried_again_as_often_as_the_model_says(retries: int) -> None:
    tries: list[None] = []

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                tries.append(None)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        app = transformer("m", f"127.0.0.1:{listener.getsockname()[1]}", retries=retries)
        assert said(await infer(app, "m")) == UNREACHABLE
    assert len(tries) == retries + 1


async def test_a_predictor_that_comes_back_is_called_at_once() -> None:
    async def answer(body: Any, context: Any) -> bytes:
        return response_of()

    async with answering(answer) as host:
        pass
    app = transformer("m", host)
    async with lifespan(app):
        for _ in range(3):
            response = await request(app, "POST", "/v2/models/m/infer", json={"inputs": []})
            assert said(response) == UNREACHABLE
        async with answering(answer, address=host):
            response = await request(app, "POST", "/v2/models/m/infer", json={"inputs": []})
            assert response.status == 200


@pytest.mark.slow
async def test_a_predictor_that_dies_during_a_call(tmp_path: Path) -> None:
    server = Server(tmp_path, PREDICTOR)
    try:
        app = transformer("hangs", server.grpc)
        document = {"id": "7", "inputs": [TENSOR]}
        async with (
            lifespan(app),
            exchange(app, "POST", "/v2/models/hangs/infer", json=document) as client,
        ):
            await happened(server, "began-7")
            server.process.kill()
            assert (await client.head()).status == 503
    finally:
        server.process.kill()
        server.process.wait()


# --- TLS ----------------------------------------------------------------------------------------


def credentials_of(certificate: Path) -> Any:
    pair = certificate.with_name("key.pem").read_bytes(), certificate.read_bytes()
    return grpc.ssl_server_credentials([pair])


async def test_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(body: Any, context: Any) -> bytes:
        return response_of()

    async with answering(answer, credentials_of(certificate)) as host:
        assert said(await infer(transformer("m", host), "m")) == UNREACHABLE
        assert said(await infer(transformer("m", host, use_ssl=True), "m")) == UNREACHABLE
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert (await infer(transformer("m", host, use_ssl=True), "m")).status == 200
        assert (await infer(transformer("m", f"https://{host}"), "m")).status == 200


async def test_tls_is_not_given_up(predictor: Server) -> None:
    app = transformer("echo", predictor.grpc, use_ssl=True)
    assert said(await infer(app, "echo")) == UNREACHABLE


# --- readiness ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_probes_ask_the_predictor(ready: bool, status: int) -> None:
    asked: list[str] = []

    async def answer(body: bytes, context: Any) -> bytes:
        asked.append(messages()["ModelReadyRequest"].FromString(body).name)
        return bytes(messages()["ModelReadyResponse"](ready=ready).SerializeToString())

    async with answering(answer) as host:
        app = transformer("m", host, predictor_health_check=True)
        async with lifespan(app):
            for path in ("/v2/health/ready", "/v1/models/m", "/v2/models/m/ready"):
                assert (await request(app, "GET", path)).status == status
    assert asked == ["m"] * 3


async def test_a_predictor_without_the_model_is_not_ready(predictor: Server) -> None:
    for name, status in (("echo", 200), ("none", 503)):
        app = transformer(name, predictor.grpc, predictor_health_check=True)
        async with lifespan(app):
            assert (await request(app, "GET", f"/v1/models/{name}")).status == status


async def test_a_predictor_that_is_away_is_not_ready() -> None:
    app = transformer("m", f"127.0.0.1:{free_port()}", predictor_health_check=True)
    async with lifespan(app):
        assert (await request(app, "GET", "/v2/health/ready")).status == 503


# --- what it needs ------------------------------------------------------------------------------


async def test_without_grpcio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    sentence = "A predictor over gRPC needs grpcio: pip install 'modelserve[grpc]'."
    assert said(await infer(transformer("m", "there"), "m")) == (501, {"error": sentence})
    app = transformer("m", "there", predictor_health_check=True)
    async with lifespan(app):
        assert (await request(app, "GET", "/v1/models/m")).status == 503


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used() -> None:
    code = (
        "import sys\n"
        "from modelserve import Model, ModelServer\n"
        "app = ModelServer()\n"
        "app.add_model(Model('m'), predictor_host='there', protocol='grpc-v2')\n"
        "late = ('grpc', 'google.protobuf', 'httpx', 'modelserve.models.remote.grpc')\n"
        "assert [name for name in late if name in sys.modules] == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# --- where to -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "use_ssl", "target", "secure"),
    [
        ("predictor", False, "predictor:80", False),
        ("predictor", True, "predictor:443", True),
        ("predictor:8081", True, "predictor:8081", True),
        ("http://predictor", True, "predictor:80", False),
        ("https://predictor:9000/", False, "predictor:9000", True),
        ("HTTPS://predictor", False, "predictor:443", True),
        ("[::1]:8081", False, "[::1]:8081", False),
        ("[::1]", False, "[::1]:80", False),
        (" predictor:1 ", False, "predictor:1", False),
        ("dns:///predictor:8081", True, "dns:///predictor:8081", True),
        ("unix:/run/predictor.sock", False, "unix:/run/predictor.sock", False),
        ("ipv4:10.0.0.1:81,10.0.0.2:81", False, "ipv4:10.0.0.1:81,10.0.0.2:81", False),
    ],
)
def test_where_a_predictor_is(host: str, use_ssl: bool, target: str, secure: bool) -> None:
    config = PredictorConfig(host, "grpc-v2", predictor_use_ssl=use_ssl)
    assert _address_of(config) == (target, secure)


@pytest.mark.parametrize("host", ["predictor/path", "http://predictor:80/path", "ftp://predictor"])
def test_where_no_predictor_can_be(host: str) -> None:
    with pytest.raises(ValueError, match="gRPC needs HOST"):
        _address_of(PredictorConfig(host, "grpc-v2"))
