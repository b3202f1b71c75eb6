"""The Open Inference Protocol over the wire: infer in JSON and binary, streams, everything around."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote

import anyio
import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelserve import InvalidInput, Limits, Model, ModelServer, ServerSentEvent
from modelserve.tensors import InferOutput, InferRequest, InferResponse
from modelserve.testing import Response, exchange, request

pytestmark = pytest.mark.anyio

INFER = "/v2/models/m/infer"
STREAM = "/v2/models/m/infer_stream"
LENGTH = "inference-header-content-length"
SSE = {"accept": "text/event-stream"}
NDJSON = {"accept": "application/x-ndjson"}


class Echo(Model):
    """Return the inputs as outputs of the same names."""

    async def predict(self, payload: InferRequest) -> InferResponse:
        outputs = []
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            outputs.append(InferOutput(tensor.name, list(array.shape), tensor.datatype, array))
        return InferResponse(payload.id, self.name, outputs, payload.model_version)


class Rows(Model):
    """Yield a response for each number of the first input."""

    async def predict(self, payload: InferRequest) -> AsyncIterator[InferResponse]:
        for number in payload.inputs[0].data:
            if number < 0:
                raise InvalidInput("no negative numbers")
            yield InferResponse(payload.id, "m", [InferOutput("o", [1, 1], "INT32", [number])])


def serve(predict: Any, **settings: Any) -> ModelServer:
    model = predict if isinstance(predict, Model) else Model("m")
    vars(model).update(settings)
    if model is not predict:
        vars(model).update(predict=predict)
    return ModelServer([model], control=True)


def tensor(data: Any = (1, 2), shape: Any = (2,), datatype: str = "INT32", **more: Any) -> Any:
    return {"name": "x", "shape": shape, "datatype": datatype, "data": data, **more}


def document(*tensors: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": list(tensors), **more}


async def infer(app: Any, body: Any, path: str = INFER, **headers: str) -> Response:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return await request(app, "POST", path, body=raw, headers=headers)


async def infer_binary(
    app: Any, head: Any, raw: bytes, *, length: str | None = None, path: str = INFER
) -> Response:
    start = orjson.dumps(head)
    headers = {LENGTH: str(len(start)) if length is None else length}
    return await request(app, "POST", path, body=start + raw, headers=headers)


def sized(size: Any, shape: Any = (2,), datatype: str = "INT32") -> Any:
    entry = tensor(None, shape, datatype, parameters={"binary_data_size": size})
    return {key: value for key, value in entry.items() if value is not None}


def events(response: Response) -> list[Any]:
    return [orjson.loads(chunk.partition(b"data: ")[2]) for chunk in response.chunks]


# --- infer --------------------------------------------------------------------------------------


async def test_the_bytes_of_an_answer() -> None:
    response = await infer(serve(Echo("m")), document(tensor([1, 2], [1, 2]), id="7"))
    assert response.headers["content-type"] == "application/json"
    assert response.body == (
        b'{"model_name":"m","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"x","shape":[1,2],"datatype":"INT32","parameters":null,"data":[1,2]}]}'
    )


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/octet-stream", "text/plain", "image/png"]
)
async def test_without_the_length_header_the_body_is_json(content_type: str) -> None:
    body = document(tensor())
    response = await infer(serve(Echo("m")), body, **{"content-type": content_type})
    assert (response.status, response.json()["outputs"][0]["data"]) == (200, [1, 2])


async def test_an_id_is_made_where_there_is_none() -> None:
    app = serve(Echo("m"))
    ids = {(await infer(app, document(tensor()))).json()["id"] for _ in range(2)}
    assert len(ids) == 2


DATATYPES = [
    ("BOOL", [True, False], "?"),
    ("INT8", [-128, 127], "i1"),
    ("INT16", [-32768, 1], "<i2"),
    ("INT32", [-(2**31), 1], "<i4"),
    ("INT64", [-(2**63), 2**63 - 1], "<i8"),
    ("UINT8", [0, 255], "u1"),
    ("UINT16", [1, 65535], "<u2"),
    ("UINT32", [1, 2**32 - 1], "<u4"),
    ("UINT64", [1, 2**64 - 1], "<u8"),
    ("FP16", [1.5, -2.0], "<f2"),
    ("BF16", [1.5, -2.0], ml_dtypes.bfloat16),
    ("FP32", [1.5, -2.0], "<f4"),
    ("FP64", [1.5, -2.0], "<f8"),
    ("BYTES", ["a", "é"], None),
]
IN_JSON = [row for row in DATATYPES if row[0] not in ("FP16", "BF16")]


def raw_of(values: list[Any], dtype: Any) -> bytes:
    if dtype is not None:
        return np.array(values, dtype).tobytes()
    elements = [value.encode() for value in values]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


@pytest.mark.parametrize(("datatype", "values", "dtype"), IN_JSON)
async def test_json_both_ways(datatype: str, values: Any, dtype: Any) -> None:
    for data in (values, [values]):
        response = await infer(serve(Echo("m")), document(tensor(data, [1, 2], datatype.lower())))
        (output,) = response.json()["outputs"]
        assert output == tensor(values, [1, 2], datatype, parameters=None)


@pytest.mark.parametrize(("datatype", "values", "dtype"), DATATYPES)
async def test_binary_both_ways(datatype: str, values: Any, dtype: Any) -> None:
    raw = raw_of(values, dtype)
    head = document(sized(len(raw), [2], datatype), parameters={"binary_data_output": True})
    response = await infer_binary(serve(Echo("m")), head, raw)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    (output,) = orjson.loads(response.body[:length])["outputs"]
    assert output == sized(len(raw), [2], datatype)
    assert response.body[length:] == raw
    assert response.headers["content-length"] == str(len(response.body))


@pytest.mark.parametrize(("datatype", "values", "dtype"), IN_JSON)
async def test_from_one_form_to_the_other(datatype: str, values: Any, dtype: Any) -> None:
    raw = raw_of(values, dtype)
    response = await infer_binary(serve(Echo("m")), document(sized(len(raw), [2], datatype)), raw)
    assert response.json()["outputs"][0]["data"] == values
    body = document(tensor(values, [2], datatype), parameters={"binary_data_output": True})
    response = await infer(serve(Echo("m")), body)
    assert response.body[int(response.headers[LENGTH]) :] == raw


async def test_several_tensors_in_mixed_forms() -> None:
    head = document(sized(8) | {"name": "a"}, tensor([3, 4]) | {"name": "b"}, sized(2, [2], "INT8"))
    raw = raw_of([1, 2], "<i4") + raw_of([5, 6], "i1")
    response = await infer_binary(serve(Echo("m")), head, raw)
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    assert outputs == {"a": [1, 2], "b": [3, 4], "x": [5, 6]}


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_small_floats_do_not_go_in_json(datatype: str) -> None:
    response = await infer(serve(Echo("m")), document(tensor([1.5], [1], datatype)))
    assert (response.status, "'x'" in response.json()["error"]) == (400, True)
    response = await infer_binary(serve(Echo("m")), document(sized(2, [1], datatype)), b"\0\0")
    assert (response.status, "'x'" in response.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("parameters", "outputs", "sent"),
    [
        ({}, None, [("a", False), ("b", False)]),
        ({"binary_data_output": True}, None, [("a", True), ("b", True)]),
        ({"binary_data_output": True}, [], [("a", True), ("b", True)]),
        ({}, [("b", None)], [("b", False)]),
        ({}, [("b", True), ("a", False)], [("b", True), ("a", False)]),
        ({"binary_data_output": True}, [("a", None), ("b", True)], [("a", False), ("b", True)]),
        ({"binary_data_output": True}, [("a", False)], [("a", False)]),
    ],
)
async def test_requested_outputs(parameters: Any, outputs: Any, sent: Any) -> None:
    body = document(tensor() | {"name": "a"}, tensor() | {"name": "b"}, parameters=parameters)
    if outputs is not None:
        body["outputs"] = [
            {"name": name} | ({} if binary is None else {"parameters": {"binary_data": binary}})
            for name, binary in outputs
        ]
    response = await infer(serve(Echo("m")), body)
    length = int(response.headers.get(LENGTH, len(response.body)))
    answer = orjson.loads(response.body[:length])
    assert [(output["name"], "data" not in output) for output in answer["outputs"]] == sent
    assert (LENGTH in response.headers) == any(binary for _, binary in sent)


async def test_own_headers_go_with_both_forms() -> None:
    async def predict(payload: Any, response_headers: Any) -> Any:
        response_headers["x-own"] = "1"
        return InferResponse("1", "m", [InferOutput("o", [1], "INT8", [1])])

    for parameters in ({}, {"binary_data_output": True}):
        response = await infer(serve(predict), document(parameters=parameters))
        assert (response.status, response.headers["x-own"]) == (200, "1")


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"outputs": []}, b'{"outputs":[]}'),
        ({"a": np.float32(1.5)}, b'{"a":1.5}'),
        ("text", b"text"),
        (None, b"null"),
    ],
)
async def test_a_hook_may_return_what_it_likes(value: Any, body: bytes) -> None:
    async def predict(payload: Any) -> Any:
        return value

    assert (await infer(serve(predict), document())).body == body


# --- what is wrong with a request ---------------------------------------------------------------

BAD = [
    # the shape
    (tensor(shape=[3]), "shape"),
    (tensor(shape=[]), "shape"),
    (tensor(shape=[-1]), "negative"),
    (tensor(shape=[2, -1]), "negative"),
    (tensor(shape=[-2, -1]), "negative"),
    (tensor([], shape=[0, -1]), "negative"),
    (tensor(shape=["2"]), "shape"),
    (tensor(shape=[2.0]), "shape"),
    (tensor(shape=[True, 2]), "shape"),
    (tensor(shape=[None]), "shape"),
    (tensor(shape=2), "shape"),
    (tensor(shape=None), "shape"),
    (tensor([], shape=[2**62, 2**62, 0]), "too large"),
    (tensor([], shape=[1] * 100), "dimensions"),
    # the datatype
    (tensor(datatype="INT31"), "INT31"),
    (tensor(datatype=""), "datatype"),
    (tensor() | {"datatype": 5}, "datatype"),
    (tensor() | {"datatype": None}, "datatype"),
    # the data
    (tensor(None), "data"),
    (tensor(5), "list"),
    (tensor("ab"), "list"),
    (tensor({"a": 1}), "list"),
    (tensor([1]), "1 elements"),
    (tensor([[1], [2, 3]]), "lengths"),
    (tensor([1, [2]]), "x"),
    (tensor([[1], 2]), "x"),
    (tensor([1, "2"]), "not an integer"),
    (tensor([1, None]), "not an integer"),
    (tensor([1, True]), "not an integer"),
    (tensor([1, 1.5]), "not an integer"),
    (tensor([1, {}]), "not an integer"),
    (tensor([1, 2**31]), "out of range"),
    (tensor([1, 256], datatype="UINT8"), "out of range"),
    (tensor([1, -1], datatype="UINT64"), "out of range"),
    (tensor([0, 1], datatype="BOOL"), "true or false"),
    (tensor([1e39, 1], datatype="FP32"), "out of range"),
    (tensor([1, "1"], datatype="FP64"), "number"),
    (tensor(["a", 5], datatype="BYTES"), "string"),
    (tensor([1.0, 2.0], datatype="FP16"), "binary"),
    # the parameters
    (tensor(parameters=5), "parameters"),
    (tensor(parameters={"a": [1]}), "'a'"),
    (tensor(parameters={"binary_data_size": 8}), "both"),
    (tensor(None, parameters={"binary_data_size": 8}), "header"),
]


@pytest.mark.parametrize(("entry", "word"), BAD)
async def test_a_bad_tensor_is_named(entry: Any, word: str) -> None:
    response = await infer(serve(Echo("m")), document(entry))
    assert response.status == 400
    error = response.json()["error"]
    assert "'x'" in error
    assert word in error


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "Unrecognized request format"),
        (b"{", "Unrecognized request format"),
        (b"\xff", "Unrecognized request format"),
        (b'{"inputs":[NaN]}', "Unrecognized request format"),
        (b"[" * 2000, "Unrecognized request format"),
        ([], "object"),
        (None, "object"),
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": 5}, 'Expected "inputs" to be a list'),
        ({"inputs": {"name": "x"}}, 'Expected "inputs" to be a list'),
        ({"inputs": [5]}, "inputs[0]"),
        ({"inputs": [tensor(), {}]}, "inputs[1]"),
        ({"inputs": [tensor() | {"name": 5}]}, "inputs[0]"),
        ({"inputs": [tensor(), tensor()]}, "'x'"),
        (document(id=5), '"id"'),
        (document(parameters=[]), "parameters"),
        (document(parameters={"a": {}}), "'a'"),
        (document(parameters={"binary_data_output": "yes"}), "binary_data_output"),
        (document(outputs=5), '"outputs"'),
        (document(outputs=[5]), "outputs[0]"),
        (document(outputs=[{}]), "outputs[0]"),
        (document(outputs=[{"name": "y"}, {"name": "y"}]), "'y'"),
        (document(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "'y'"),
        (document(tensor(), outputs=[{"name": "y"}]), "Unexpected inference output 'y'"),
    ],
)
async def test_a_bad_document(body: Any, word: str) -> None:
    response = await infer(serve(Echo("m")), body)
    assert (response.status, word in response.json()["error"]) == (400, True)


async def test_an_unknown_output_has_kserves_message() -> None:
    response = await infer(serve(Echo("m")), document(tensor(), outputs=[{"name": "y"}]))
    assert response.json() == {"error": "Unexpected inference output 'y' for model 'm'"}


@pytest.mark.parametrize(
    ("entry", "raw", "word"),
    [
        (sized(8), bytes(7), "7 are left"),
        (sized(8), b"", "0 are left"),
        (sized(7), bytes(7), "7 bytes"),
        (sized(12), bytes(12), "12 bytes"),
        (sized(0), b"", "0 bytes"),
        (sized(-8), bytes(8), "-8"),
        (sized("8"), bytes(8), "'8'"),
        (sized(8.0), bytes(8), "8.0"),
        (sized(True), bytes(8), "True"),
        (sized(2**63), bytes(8), "left"),
        (sized(8, [-2]), bytes(8), "negative"),
        (sized(2, [2], "BOOL"), b"\0\2", "BOOL"),
        (sized(8, [1], "BYTES"), b"\xff\0\0\0abcd", "element 0"),
        (sized(3, [1], "BYTES"), b"\1\0\0", "element 0"),
        (sized(5, [2], "BYTES"), b"\1\0\0\0a", "1 elements"),
        (sized(8, [2], "WORD"), bytes(8), "WORD"),
        (tensor(parameters={"binary_data_size": 8}), bytes(8), "both"),
    ],
)
async def test_bad_binary_data_is_named(entry: Any, raw: bytes, word: str) -> None:
    response = await infer_binary(serve(Echo("m")), document(entry), raw)
    assert response.status == 400
    assert "'x'" in response.json()["error"]
    assert word in response.json()["error"]


@pytest.mark.parametrize(
    "length",
    ["", " ", "x", "-1", "+5", "5.0", "0x5", "9" * 30, "1000000", "0", "3", "²", "1_0", "5, 5"],
)
async def test_a_bad_length_header(length: str) -> None:
    response = await infer_binary(serve(Echo("m")), document(sized(8)), bytes(8), length=length)
    assert response.status == 400


async def test_a_hook_may_write_to_the_arrays_of_its_inputs() -> None:
    class Doubling(Echo):
        def preprocess(self, payload: InferRequest) -> InferRequest:
            array = payload.inputs[0].as_numpy()
            array *= 2
            return payload

    response = await infer_binary(serve(Doubling("m")), document(sized(8)), b"\1\0\0\0\2\0\0\0")
    assert response.json()["outputs"][0]["data"] == [2, 4]


async def test_bytes_left_over() -> None:
    response = await infer_binary(serve(Echo("m")), document(sized(8)), bytes(9))
    assert (response.status, "1 bytes are left over" in response.json()["error"]) == (400, True)
    response = await infer_binary(serve(Echo("m")), document(tensor()), bytes(1))
    assert response.status == 400


async def test_what_is_wrong_with_a_response_is_the_models_fault() -> None:
    async def predict(payload: Any) -> Any:
        return InferResponse("1", "m", [InferOutput("o", [3], "INT32", [1])])

    response = await infer(serve(predict), document(tensor()))
    assert (response.status, "'o'" in response.json()["error"]) == (500, True)


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [("1", "2"), (1, 2)])
async def test_versions(versions: Any) -> None:
    app = serve(Echo("m"), versions=versions)
    for path, version in (("", None), ("/versions/2", "2")):
        response = await infer(app, document(tensor()), f"/v2/models/m{path}/infer")
        assert (response.status, response.json()["model_version"]) == (200, version)
    for path in ("infer", "infer_stream", "generate", "generate_stream"):
        response = await infer(app, document(tensor()), f"/v2/models/m/versions/3/{path}")
        assert (response.status, "version 3" in response.json()["error"]) == (404, True)
    for path, status in (("2", 200), ("2/ready", 200), ("3", 404), ("3/ready", 404)):
        assert (await request(app, "GET", f"/v2/models/m/versions/{path}")).status == status


async def test_a_model_without_versions_has_none() -> None:
    app = serve(Echo("m"))
    assert (await infer(app, document(), "/v2/models/m/versions/1/infer")).status == 404
    assert (await request(app, "GET", "/v2/models/m/versions/1")).status == 404


# --- streams ------------------------------------------------------------------------------------


def numbers(*values: int) -> Any:
    return document(tensor(values, [len(values)]), id="7")


def shown(answer: Any) -> Any:
    (output,) = answer["outputs"]
    return (answer["id"], output["name"], output["shape"], output["data"])


async def test_infer_stream_is_an_event_a_response() -> None:
    response = await infer(serve(Rows("m")), numbers(1, 2), STREAM)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.chunks[0] == (
        b'data: {"model_name":"m","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"o","shape":[1,1],"datatype":"INT32","parameters":null,"data":[1]}]}\n\n'
    )
    assert shown(events(response)[1]) == ("7", "o", [1, 1], [2])


@pytest.mark.parametrize("accept", ["application/json", "image/png", "application/x-ndjson"])
async def test_infer_stream_ignores_accept(accept: str) -> None:
    response = await infer(serve(Rows("m")), numbers(1), STREAM, accept=accept)
    assert response.headers["content-type"] == "text/event-stream"


async def test_infer_stream_of_a_value_is_one_event() -> None:
    (event,) = events(await infer(serve(Echo("m")), numbers(1, 2), STREAM))
    assert shown(event) == ("7", "x", [2], [1, 2])


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        (SSE, "text/event-stream"),
        (NDJSON, "application/x-ndjson"),
        ({"accept": "application/jsonl"}, "application/jsonl"),
        ({"accept": "application/json;q=0.1, text/event-stream"}, "text/event-stream"),
    ],
)
async def test_infer_streams_where_accept_asks_for_it(headers: Any, content_type: str) -> None:
    response = await infer(serve(Rows("m")), numbers(1, 2), **headers)
    assert response.headers["content-type"] == content_type
    assert len(response.chunks) == 2


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/*", "a/b, */*"])
async def test_infer_collects_a_stream(accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    response = await infer(serve(Rows("m")), numbers(1, 2, 3), **headers)
    assert response.headers["content-type"] == "application/json"
    assert response.body == (
        b'{"model_name":"m","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"o","shape":[3,1],"datatype":"INT32","parameters":null,"data":[1,2,3]}]}'
    )


@pytest.mark.parametrize("accept", ["image/png", "text/plain", "*/*;q=0"])
async def test_nothing_acceptable_is_406_before_any_hook_runs(accept: str) -> None:
    ran = []

    def preprocess(payload: Any) -> Any:
        ran.append(payload)

    response = await infer(serve(Rows("m"), preprocess=preprocess), numbers(1), accept=accept)
    assert (response.status, ran) == (406, [])
    for path in (STREAM, "/v2/models/m/generate"):
        response = await infer(serve(Rows("m")), numbers(1), path, accept=accept)
        assert response.status != 406


@pytest.mark.parametrize(("headers", "body"), [({}, None), (SSE, b""), (NDJSON, b"")])
async def test_an_empty_stream(headers: Any, body: bytes | None) -> None:
    response = await infer(serve(Rows("m")), numbers(), **headers)
    assert response.status == 200
    if body is None:
        assert response.json() == {
            "model_name": "m",
            "model_version": None,
            "id": "7",
            "parameters": None,
            "outputs": [],
        }
    else:
        assert response.body == body


async def test_outputs_are_put_together_by_name() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield InferResponse(
            "7",
            "m",
            [InferOutput("a", [2, 1], "INT8", [1, 2]), InferOutput("b", [], "FP32", [0.5])],
        )
        yield {"outputs": [tensor([3], [1, 1], "INT8", name="a")]}
        yield InferResponse("8", "m", [InferOutput("b", [1], "FP32", [1.5])])

    answer = (await infer(serve(predict), document())).json()
    assert answer["id"] == "7"
    found = {output["name"]: (output["shape"], output["data"]) for output in answer["outputs"]}
    assert found == {"a": ([3, 1], [1, 2, 3]), "b": ([2], [0.5, 1.5])}


@pytest.mark.parametrize(
    "second", [("INT8", [2], [1, 2]), ("INT32", [1, 1], [1]), ("INT32", [1, 2], [1, 2])]
)
async def test_outputs_that_do_not_fit_together(second: Any) -> None:
    datatype, shape, data = second

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield InferResponse("7", "m", [InferOutput("o", [1], "INT32", [1])])
        yield InferResponse("7", "m", [InferOutput("o", shape, datatype, data)])

    response = await infer(serve(predict), document())
    assert (response.status, "'o'" in response.json()["error"]) == (500, True)


@pytest.mark.slow
async def test_many_items_are_put_together_in_little_time() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        for number in range(20_000):
            yield {"outputs": [tensor([number], [1])]}

    response = await infer(serve(predict), document())
    (output,) = response.json()["outputs"]
    assert (output["shape"], output["data"][-1]) == ([20_000], 19_999)


@pytest.mark.parametrize(
    ("item", "output"),
    [
        ("text", ("output", [1], "BYTES", ["text"])),
        (b"bytes", ("output", [1], "BYTES", ["bytes"])),
        ({"n": 1}, ("output", [1], "BYTES", ['{"n":1}'])),
        (ServerSentEvent("x", event="e"), ("output", [1], "BYTES", ["x"])),
        (InferResponse("1", "m", [InferOutput("o", [], "FP32", [1])]), ("o", [], "FP32", [1.0])),
    ],
)
async def test_items_of_many_kinds(item: Any, output: Any) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield item

    for response in (
        await infer(serve(predict), document()),
        await infer(serve(predict), document(), **NDJSON),
        await infer(serve(predict), document(), STREAM),
    ):
        text = response.body if response.body[:1] == b"{" else response.body.split(b"data: ")[1]
        answer = orjson.loads(text)
        (found,) = answer["outputs"]
        assert tuple(found[key] for key in ("name", "shape", "datatype", "data")) == output
        assert answer["model_name"] == "m"


async def test_events_keep_their_fields() -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield ServerSentEvent({"outputs": []}, event="token", id="7", retry=5)

    response = await infer(serve(predict), document(), STREAM)
    assert response.body == b'event: token\nid: 7\nretry: 5\ndata: {"outputs":[]}\n\n'


async def test_requested_outputs_of_a_stream() -> None:
    body = numbers(1) | {"outputs": [{"name": "o", "parameters": {"binary_data": True}}]}
    (event,) = events(await infer(serve(Rows("m")), body, STREAM))
    assert shown(event) == ("7", "o", [1, 1], [1])  # as JSON: nothing else fits in an event
    body["outputs"] = [{"name": "zz"}]
    response = await infer(serve(Rows("m")), body, STREAM)
    assert (response.status, "'zz'" in response.json()["error"]) == (400, True)


@pytest.mark.parametrize(("path", "headers"), [(STREAM, {}), (INFER, SSE), (INFER, NDJSON)])
async def test_failures_of_a_stream(path: str, headers: Any) -> None:
    response = await infer(serve(Rows("m")), numbers(-1), path, **headers)
    assert (response.status, response.json()) == (400, {"error": "no negative numbers"})
    response = await infer(serve(Rows("m")), numbers(1, -1), path, **headers)
    assert response.status == 200
    assert len(response.chunks) == 2
    record = b'{"error":"no negative numbers"}\n'
    assert response.chunks[1] == (
        record if headers == NDJSON else b"event: error\ndata: " + record + b"\n"
    )


async def test_a_failure_while_collecting_is_a_status() -> None:
    response = await infer(serve(Rows("m")), numbers(1, 2, -1))
    assert (response.status, response.json()) == (400, {"error": "no negative numbers"})


@pytest.mark.parametrize(("path", "headers"), [(STREAM, {}), (INFER, NDJSON), (INFER, {})])
async def test_a_client_that_leaves_ends_the_stream(path: str, headers: Any) -> None:
    waiting, closed = anyio.Event(), anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield "one"
            waiting.set()
            await anyio.sleep_forever()
        finally:
            closed.set()

    app = serve(predict)
    body = orjson.dumps(document())
    async with exchange(app, "POST", path, body=body, headers=headers) as client:
        await waiting.wait()
        if path == STREAM or headers:
            assert (await client.head()).status == 200
            assert b'"one"' in (await client.chunk() or b"")
    assert closed.is_set()


async def test_a_client_that_leaves_ends_a_call() -> None:
    began, ended = anyio.Event(), anyio.Event()

    async def predict(payload: Any) -> Any:
        try:
            began.set()
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with exchange(serve(predict), "POST", INFER, body=orjson.dumps(document())):
        await began.wait()
    assert ended.is_set()


# --- nothing that a client alone can cause is a 500 ---------------------------------------------


async def look_at_everything(payload: Any) -> Any:
    """Use a request in every way that a model may."""
    if not isinstance(payload, InferRequest):
        return payload["text_input"]
    found = []
    for entry in payload.inputs:
        array = entry.as_numpy()
        if entry.datatype == "BYTES":
            entry.as_string()
        found.append(InferOutput(entry.name, list(array.shape), entry.datatype, entry.data))
    return InferResponse(payload.id, "m", found, parameters=payload.parameters)


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "a"]),
    SCALARS | st.integers(0, 9),
    max_size=2,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "datatype": st.sampled_from([row[0] for row in DATATYPES]) | VALUES,
        "data": st.lists(SCALARS | st.integers(0, 3), max_size=4) | VALUES,
        "parameters": PARAMETERS | VALUES,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(ENTRIES, max_size=2) | VALUES},
    optional={
        "id": st.text(max_size=3) | VALUES,
        "parameters": PARAMETERS | VALUES,
        "outputs": st.lists(ENTRIES, max_size=2) | VALUES,
        "text_input": st.text(max_size=3) | VALUES,
    },
)
HEADS = DOCUMENTS.map(lambda head: json.dumps(head).encode())
BODIES = st.binary(max_size=30) | HEADS | st.builds(bytes.__add__, HEADS, st.binary(max_size=16))
LENGTHS = st.none() | st.integers(-1, 400).map(str) | st.text(max_size=4)
ACCEPTS = st.sampled_from(["*/*", "text/event-stream", "application/x-ndjson", "image/png"])
VERBS = ["infer", "infer_stream", "generate", "generate_stream"]


@pytest.mark.slow
@given(body=BODIES, length=LENGTHS, accept=ACCEPTS)
@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_garbage_is_no_fault_of_ours(
    verb: str, body: bytes, length: str | None, accept: str, anyio_backend: str
) -> None:
    headers = {"accept": accept}
    if length is not None:
        headers[LENGTH] = length.encode().decode("latin-1")
    app = serve(look_at_everything)
    response = await request(app, "POST", f"/v2/models/m/{verb}", body=body, headers=headers)
    assert response.status in (200, 400)
    if response.status == 400:
        assert list(response.json()) == ["error"]


@pytest.mark.slow
@given(
    parts=st.lists(
        st.sampled_from(["v2", "models", "m", "versions", "1", "repository"]) | st.text(max_size=4),
        max_size=6,
    ),
    body=st.binary(max_size=5),
)
@settings(max_examples=150, derandomize=True, deadline=None)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_odd_paths_are_no_fault_of_ours(
    method: str, parts: list[str], body: bytes, anyio_backend: str
) -> None:
    app = serve(look_at_everything)
    response = await request(app, method, "/v2/" + "/".join(map(quote, parts)), body=body)
    assert response.status in (200, 400, 404, 405)


# --- a large request, in a process of its own ---------------------------------------------------

SERVER = """
from modelserve import Limits, Model, ModelServer
from modelserve.tensors import InferOutput, InferResponse


class Echo(Model):
    async def predict(self, payload):
        tensor = payload.inputs[0]
        array = tensor.as_numpy()
        output = InferOutput("o", list(array.shape), tensor.datatype, array)
        return InferResponse(payload.id, "m", [output], use_binary_outputs=True)


served = ModelServer([Echo("m")], limits=Limits(max_body_bytes=1 << 30))


async def bare(scope, receive, send):
    assert scope["type"] == "http"
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@contextlib.contextmanager
def started(app: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Run an application of SERVER; return its port and process id."""
    (folder / "large.py").write_text(SERVER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno())]
        process = subprocess.Popen(
            [*command, "--lifespan", "off", "--log-level", "error", f"large:{app}"],
            cwd=folder,
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            yield listener.getsockname()[1], process.pid
        finally:
            process.terminate()
            process.wait()


def memory(pid: int, key: str) -> int:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if key in x)
    return int(line.split()[1]) << 10


def send_and_read(port: int, head: bytes, raw: bytes) -> float:
    """Post a tensor, check that it comes back, and return the seconds that this took."""
    began = perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        length = len(head) + len(raw)
        fields = f"content-length: {length}\r\n{LENGTH}: {len(head)}\r\nconnection: close"
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\n{fields}\r\n\r\n".encode())
        connection.sendall(head)
        connection.sendall(raw)
        answer = connection.makefile("rb")
        assert b" 200 " in answer.readline()
        while answer.readline() != b"\r\n":
            pass
        body = answer.read()
    seconds = perf_counter() - began
    assert memoryview(body)[-len(raw) :] == raw
    return seconds


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_tensor_costs_little(tmp_path: Path) -> None:
    raw = os.urandom(1 << 20) * 100
    head = orjson.dumps(document(sized(len(raw), [len(raw) // 4], "FP32")))
    small = orjson.dumps(document(sized(4, [1], "FP32")))
    seconds, peaks = {}, {}
    for app in ("bare", "served"):
        with started(app, tmp_path) as (port, pid):
            send_and_read(port, small, bytes(4))
            before = memory(pid, "VmRSS")
            seconds[app] = min(send_and_read(port, head, raw) for _ in range(3))
            peaks[app] = (memory(pid, "VmHWM") - before) / len(raw)
    assert peaks["served"] < 4, peaks
    assert seconds["served"] < 2 * seconds["bare"], seconds


# --- how large a body may be --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "path", "headers", "status"),
    [
        (Limits(), "/v2/models/m/infer", {"inference-header-content-length": "2"}, 400),
        (Limits(), "/v2/models/m/infer", {}, 413),
        (Limits(), "/v2/models/m/infer", {"inference-header-content-length": "99000000"}, 413),
        (Limits(), "/v1/models/m:predict", {"inference-header-content-length": "2"}, 413),
        (
            Limits(max_body_bytes=64 << 20),
            "/v2/models/m/infer",
            {"inference-header-content-length": "2"},
            413,
        ),
    ],
)
@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream"])
async def test_binary_tensors_may_be_larger_unless_a_limit_is_set(
    limits: Limits, path: str, headers: dict[str, str], status: int, content_type: str | None
) -> None:
    """The length is all that is looked at: the body that it announces is never sent."""
    app = ModelServer([Echo("m")], limits=limits)
    headers = headers | {"content-length": str(100_000_000)}
    if content_type is not None:
        headers["content-type"] = content_type
    response = await request(app, "POST", path, body=b"{}", headers=headers)
    assert response.status == status


@pytest.mark.parametrize("length", ["9999", "99000000"])
@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
async def test_a_length_header_larger_than_the_body_means_json(
    length: str, content_type: str
) -> None:
    app = ModelServer([Echo("m")])
    headers = {"content-type": content_type, "inference-header-content-length": length}
    body = orjson.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [7]}]})
    response = await request(app, "POST", "/v2/models/m/infer", body=body, headers=headers)
    assert (response.status, response.json()["outputs"][0]["data"]) == (200, [7])
