"""ModelInfer over gRPC: the pipeline's answers in the form of gRPC."""

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
import pytest
from grpcweb import SERVICE, WEB, Answer, call, read
from starlette.responses import PlainTextResponse

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.errors import ServingError
from modelserve.tensors import InferOutput, InferRequest, InferResponse
from modelserve.tensors.grpc import messages
from modelserve.testing import exchange, request

pytest.importorskip("google.protobuf")
pytestmark = pytest.mark.anyio

INFER = f"{SERVICE}/ModelInfer"
CONTENTS = {"name": "x", "datatype": "INT32", "shape": [2], "contents": {"int_contents": [1, 2]}}
RAW = {"name": "x", "datatype": "INT32", "shape": [2]}


class Echo(Model):
    versions = ("1", "2")

    async def predict(self, payload: InferRequest) -> InferResponse:
        outputs = []
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            data = array if payload.use_binary_outputs else array.tolist()
            outputs.append(InferOutput(tensor.name, list(array.shape), tensor.datatype, data))
        version, parameters = payload.model_version, payload.parameters
        return InferResponse(payload.id, self.name, outputs, version, parameters=parameters)


def serve(predict: Any = None, **options: Any) -> ModelServer:
    if predict is None:
        return ModelServer([Echo("m")], **options)
    model = Model("m")
    vars(model).update(predict=predict)
    return ModelServer([model], **options)


def infer_request(*inputs: Any, **fields: Any) -> Any:
    fields = {"model_name": "m", "id": "7", "inputs": inputs or [CONTENTS], **fields}
    return messages()["ModelInferRequest"](**fields)


def response_in(answer: Answer) -> Any:
    assert (answer.code, answer.text) == (0, "")
    [message] = answer.messages
    return messages()["ModelInferResponse"].FromString(message)


async def infer(app: Any, *inputs: Any, **fields: Any) -> Any:
    return response_in(await call(app, INFER, infer_request(*inputs, **fields)))


async def test_contents_are_answered_with_contents() -> None:
    response = await infer(serve(), parameters={"p": {"int64_param": 5}}, model_version="2")
    assert (response.model_name, response.model_version, response.id) == ("m", "2", "7")
    assert response.outputs[0].contents.int_contents == [1, 2]
    assert response.parameters["p"].int64_param == 5
    assert not response.raw_output_contents


async def test_raw_contents_are_answered_with_raw_contents() -> None:
    raw = np.array([1, 2], np.int32).tobytes()
    response = await infer(serve(), RAW, raw_input_contents=[raw])
    assert list(response.raw_output_contents) == [raw]
    assert not response.outputs[0].HasField("contents")


async def test_a_client_chooses_outputs() -> None:
    async def predict(payload: InferRequest) -> InferResponse:
        outputs = [InferOutput(name, [1], "INT32", [index]) for index, name in enumerate("abc")]
        return InferResponse(payload.id, "m", outputs)

    response = await infer(serve(predict), outputs=[{"name": "c"}, {"name": "a"}])
    assert [output.name for output in response.outputs] == ["c", "a"]
    answer = await call(serve(predict), INFER, infer_request(outputs=[{"name": "d"}]))
    assert answer.code == 3


@pytest.mark.parametrize("value", ["text", {"predictions": [1]}, [1, 2]])
async def test_a_value_that_is_no_response_is_the_element_of_an_output(value: Any) -> None:
    async def predict(payload: InferRequest) -> Any:
        return value

    [output] = (await infer(serve(predict))).outputs
    assert (output.name, output.datatype, output.shape) == ("output", "BYTES", [1])
    assert len(output.contents.bytes_contents) == 1


async def test_a_document_and_a_message_are_responses() -> None:
    document = {"outputs": [{"name": "o", "datatype": "INT32", "shape": [1], "data": [3]}]}

    async def give_document(payload: InferRequest) -> Any:
        return document

    async def give_message(payload: InferRequest) -> Any:
        return InferResponse.from_rest({"model_name": "m", "id": "1", **document}).to_grpc()

    for predict in (give_document, give_message):
        assert (await infer(serve(predict))).outputs[0].contents.int_contents == [3]


async def test_a_stream_is_collected() -> None:
    async def predict(payload: InferRequest) -> AsyncIterator[InferResponse]:
        for number in range(3):
            yield InferResponse(payload.id, "m", [InferOutput("o", [1], "INT32", [number])])

    [output] = (await infer(serve(predict))).outputs
    assert (output.shape, output.contents.int_contents) == ([3], [0, 1, 2])


async def test_a_stream_without_items_is_a_response_without_outputs() -> None:
    async def predict(payload: InferRequest) -> AsyncIterator[InferResponse]:
        for _ in ():
            yield InferResponse(payload.id, "m", [])

    assert (await infer(serve(predict))).outputs == []


class Teapot(ServingError):
    status = 418


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InvalidInput("not %d\n"), 3, "not %d\n"),
        (Teapot("short and stout"), 9, "short and stout"),
        (ValueError("secret"), 13, "Internal Server Error"),
    ],
)
async def test_what_a_hook_raises_is_a_status(error: Exception, code: int, text: str) -> None:
    async def predict(payload: InferRequest) -> Any:
        raise error

    answer = await call(serve(predict), INFER, infer_request())
    assert (answer.code, answer.messages) == (code, [])
    assert text.rstrip(".") in answer.text
    assert answer.response.status == 200
    assert answer.response.body == b""


async def test_what_is_wrong_with_a_request_is_a_status() -> None:
    app = serve()
    assert (await call(app, INFER, infer_request(model_name="other"))).code == 5
    assert (await call(app, INFER, infer_request({**RAW, "shape": [3]}))).code == 3
    assert (await call(app, INFER, b"\xff")).code == 3
    assert (await call(app, INFER)).code == 3
    assert (await call(app, f"{SERVICE}/Unknown", infer_request())).code == 12


async def test_limits_are_those_of_http() -> None:
    app = serve(limits=Limits(max_body_bytes=1000))
    raw = np.zeros(500, np.int32).tobytes()
    message = infer_request({**RAW, "shape": [500]}, raw_input_contents=[raw])
    assert (await call(app, INFER, message)).code == 8
    app = serve()
    app.serving.refuse_new()
    assert (await call(app, INFER, infer_request())).code == 14
    app = serve(token="t")
    assert (await call(app, INFER, infer_request())).code == 16
    assert (await call(app, INFER, infer_request(), authorization="Bearer t")).code == 0


async def test_a_full_queue_is_unavailable() -> None:
    entered, leave = anyio.Event(), anyio.Event()

    async def predict(payload: InferRequest) -> Any:
        entered.set()
        await leave.wait()
        return "done"

    app = serve(predict, limits=Limits(concurrency=1, queue=0))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(call, app, INFER, infer_request())
            await entered.wait()
            refused = await call(app, INFER, infer_request())
            leave.set()
    assert refused.code == 14


async def test_a_deadline_is_the_clients() -> None:
    cleaned = anyio.Event()

    async def predict(payload: InferRequest) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    answer = await call(serve(predict), INFER, infer_request(), grpc_timeout="50m")
    assert answer.code == 4
    with anyio.fail_after(10):
        await cleaned.wait()
    assert (await call(serve(), INFER, infer_request(), grpc_timeout="x")).code == 3


async def test_a_client_that_leaves_cancels_the_hook() -> None:
    entered, cleaned = anyio.Event(), anyio.Event()

    async def predict(payload: InferRequest) -> Any:
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    body = b"\0" + infer_request().ByteSize().to_bytes(4) + infer_request().SerializeToString()
    headers = {"content-type": WEB}
    async with exchange(serve(predict), "POST", INFER, body=body, headers=headers) as client:
        with anyio.fail_after(10):
            await entered.wait()
            client.hang_up()
            await cleaned.wait()


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_message_may_be_compressed(name: str, compress: Any) -> None:
    data = compress(infer_request().SerializeToString())
    headers = {"content-type": WEB, "grpc-encoding": name}
    body = b"\1" + len(data).to_bytes(4) + data
    response = await request(serve(), "POST", INFER, body=body, headers=headers)
    assert response_in(read(response)).id == "7"


async def test_a_compression_that_is_not_known_is_unimplemented() -> None:
    headers = {"content-type": WEB, "grpc-encoding": "snappy"}
    body = b"\1\0\0\0\1x"
    response = await request(serve(), "POST", INFER, body=body, headers=headers)
    assert read(response).code == 12
    assert "gzip" in response.headers["grpc-accept-encoding"]


async def test_a_compressed_message_counts_with_its_real_size() -> None:
    app = serve(limits=Limits(max_body_bytes=10_000))
    data = gzip.compress(bytes(1_000_000))
    headers = {"content-type": WEB, "grpc-encoding": "gzip"}
    body = b"\1" + len(data).to_bytes(4) + data
    assert read(await request(app, "POST", INFER, body=body, headers=headers)).code == 8


async def test_metadata_reaches_the_hook_and_its_own_goes_back() -> None:
    async def predict(payload: InferRequest, headers: Any, response_headers: Any) -> Any:
        response_headers["x-model"] = headers["x-client"]
        response_headers["grpc-status"] = "7"
        return "done"

    answer = await call(serve(predict), INFER, infer_request(), x_client="c", x_request_id="r1")
    assert (answer.code, len(answer.messages)) == (0, 1)
    assert answer.response.headers["x-model"] == "c"
    assert answer.response.headers["x-request-id"] == "r1"
    assert answer.response.headers["content-type"] == WEB


async def test_a_response_of_http_is_an_error() -> None:
    async def predict(payload: InferRequest) -> Any:
        return PlainTextResponse("no tensor")

    answer = await call(serve(predict), INFER, infer_request())
    assert (answer.code, answer.messages) == (13, [])
    assert "response of HTTP" in answer.text


async def test_requests_are_counted_as_those_of_grpc() -> None:
    app = serve()
    await infer(app)
    text = (await request(app, "GET", "/metrics")).body.decode()
    [line] = [row for row in text.splitlines() if 'protocol="grpc"' in row and "requests" in row]
    assert 'outcome="done"' in line
    assert 'model_name="m"' in line


async def test_other_methods_of_http_are_not_allowed() -> None:
    response = await request(serve(), "GET", INFER, headers={"content-type": WEB})
    assert response.headers["grpc-status"] == "12"
