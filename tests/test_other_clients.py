"""What the clients of TensorFlow Serving and of Triton ask for beyond V1's and V2's basics."""

from typing import Any

import anyio
import pytest

from modelserve import (
    Batching,
    InferOutput,
    InferResponse,
    InvalidInput,
    Limits,
    Model,
    ModelServer,
)
from modelserve.testing import exchange, lifespan, request

pytestmark = pytest.mark.anyio

INPUTS = [
    {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
    {"name": "text", "datatype": "bytes", "shape": [1]},
    {"name": "any", "datatype": "COMPLEX", "shape": None},
]
OUTPUTS = [{"name": "y", "datatype": "INT64", "shape": []}]


class Versioned(Model):
    versions = ("1", "2")
    platform = "numpy"

    async def preprocess(self, payload: Any) -> Any:
        return payload

    async def predict(self, payload: Any) -> Any:
        if payload == "bad":
            raise InvalidInput("bad")
        return payload

    async def explain(self, payload: Any) -> Any:
        return {"explained": payload}

    def get_input_types(self) -> Any:
        return INPUTS

    async def get_output_types(self) -> Any:
        return OUTPUTS


def serve(*models: Any, **options: Any) -> ModelServer:
    return ModelServer([Versioned("m"), *models], **options)


async def ask(app: Any, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
    response = await request(app, method, path, body=body)
    return response.status, response.json()


# --- TensorFlow Serving -------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(("verb", "answer"), [("predict", [1]), ("explain", {"explained": [1]})])
async def test_versions_on_v1(version: str, verb: str, answer: Any) -> None:
    path = f"/v1/models/m/versions/{version}"
    assert await ask(serve(), f"{path}:{verb}", "POST", b"[1]") == (200, answer)
    assert await ask(serve(), f"{path}%3A{verb}", "POST", b"[1]") == (200, answer)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/models/m/versions/3", "GET"),
        ("/v1/models/m/versions/3/metadata", "GET"),
        ("/v1/models/m/versions/3:predict", "POST"),
        ("/v2/models/m/versions/3/config", "GET"),
        ("/v2/models/m/versions/3/stats", "GET"),
    ],
)
async def test_a_version_that_is_not_there(path: str, method: str) -> None:
    missing = {"error": "Model with name m and version 3 does not exist."}
    assert await ask(serve(), path, method, b"{") == (404, missing)
    plain = ModelServer()
    plain.model("m")(lambda payload: payload)
    assert await ask(plain, path, method, b"{") == (404, missing)


async def test_the_status_of_a_version() -> None:
    loaded = anyio.Event()

    class Loading(Versioned):
        async def load(self) -> bool:
            await loaded.wait()
            self.ready = True
            return True

    class Broken(Versioned):
        def load(self) -> bool:
            raise RuntimeError("no disk")

    def status(state: str, code: str = "OK", message: str = "") -> Any:
        why = {"error_code": code, "error_message": message}
        return {"model_version_status": [{"version": "2", "state": state, "status": why}]}

    app = serve(Loading("loading"), Broken("broken"))
    async with lifespan(app):
        ended = app.serving.registry.get("broken").attempted
        assert ended is not None
        with anyio.fail_after(5):
            await ended.wait()
        path = "/v1/models/{}/versions/2"
        assert await ask(app, path.format("m")) == (200, status("AVAILABLE"))
        assert await ask(app, path.format("loading")) == (200, status("LOADING"))
        failed = status("END", "INTERNAL", "loading failed")
        assert await ask(app, path.format("broken")) == (200, failed)
        loaded.set()
        await app.serving.loading.finished()
        assert await ask(app, path.format("loading")) == (200, status("AVAILABLE"))


async def test_the_status_of_a_version_is_as_public_as_readiness() -> None:
    app = serve(token="secret")
    statuses = {
        path: (await ask(app, f"/v1/models/m{path}"))[0]
        for path in ("", "/versions/1", "/metadata", "/versions/1/metadata")
    }
    assert list(statuses.values()) == [200, 200, 401, 401]


@pytest.mark.parametrize(("path", "version"), [("", "2"), ("/versions/1", "1")])
async def test_the_signature_of_a_model(path: str, version: str) -> None:
    status, document = await ask(serve(), f"/v1/models/m{path}/metadata")
    assert status == 200
    assert document["model_spec"] == {"name": "m", "signature_name": "", "version": version}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    signature = signatures.pop("serving_default")
    assert signatures == {}
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
            "unknown_rank": False,
        },
        "name": "x",
    }
    assert signature["inputs"]["text"]["dtype"] == "DT_STRING"
    assert signature["inputs"]["any"] == {
        "dtype": "DT_INVALID",
        "tensor_shape": {"dim": [], "unknown_rank": True},
        "name": "any",
    }
    scalar = {"dim": [], "unknown_rank": False}
    assert signature["outputs"] == {"y": {"dtype": "DT_INT64", "tensor_shape": scalar, "name": "y"}}


async def test_the_signature_of_a_model_that_declares_nothing() -> None:
    app = ModelServer()
    app.model("f")(lambda payload: payload)
    _, document = await ask(app, "/v1/models/f/metadata")
    assert document["model_spec"]["version"] is None
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert (signature["inputs"], signature["outputs"]) == ({}, {})


# --- the version in V2's responses --------------------------------------------------------------

INFER = b'{"id": "7", "inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}'


class Tensors(Versioned):
    own: str | None = None
    response: Any = None

    async def predict(self, payload: Any) -> Any:
        output = InferOutput("y", [1], "INT8", [1])
        self.response = InferResponse(payload.id, self.name, [output], self.own)
        return self.response


@pytest.mark.parametrize(
    ("own", "path", "version"),
    [(None, "", None), (None, "/versions/2", "2"), ("9", "/versions/2", "9"), ("9", "", "9")],
)
async def test_the_version_is_filled_where_the_path_names_it(
    own: str | None, path: str, version: str | None
) -> None:
    model = Tensors("t")
    model.own = own
    app = ModelServer([model])
    status, document = await ask(app, f"/v2/models/t{path}/infer", "POST", INFER)
    assert (status, document["model_version"], document["id"]) == (200, version, "7")
    assert model.response.model_version == own  # it is the model's


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_the_version_is_filled_in_streams(accept: str) -> None:
    class Stream(Versioned):
        async def predict(self, payload: Any) -> Any:
            yield InferResponse("7", "s", [InferOutput("y", [1], "INT8", [1])])

    app = ModelServer([Stream("s")])
    path = "/v2/models/s/versions/1/infer"
    response = await request(app, "POST", path, body=INFER, headers={"accept": accept})
    assert response.json()["model_version"] == "1"


# --- Triton -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/versions/1"])
async def test_the_configuration_of_a_model(path: str) -> None:
    status, document = await ask(serve(), f"/v2/models/m{path}/config")
    assert status == 200
    assert (document["name"], document["platform"]) == ("m", "numpy")
    assert document["max_batch_size"] == 0
    found = {row["name"]: (row["data_type"], row["dims"]) for row in document["input"]}
    assert found == {
        "x": ("TYPE_FP32", [-1, 2]),
        "text": ("TYPE_STRING", [1]),
        "any": ("TYPE_INVALID", [-1]),
    }
    assert [row["data_type"] for row in document["output"]] == ["TYPE_INT64"]


async def test_statistics() -> None:
    app = serve()
    for body in (b"1", b"2", b'"bad"'):
        await request(app, "POST", "/v1/models/m:predict", body=body)
    await request(app, "POST", "/v1/models/m/versions/1:explain", body=b"3")
    status, document = await ask(app, "/v2/models/m/stats")
    assert (status, len(document["model_stats"])) == (200, 1)
    row = document["model_stats"][0]
    assert (row["name"], row["version"]) == ("m", "2")
    assert row["inference_count"] == row["execution_count"] == 3
    stats = row["inference_stats"]
    assert {name: stats[name]["count"] for name in stats} == {
        "success": 3,
        "fail": 1,
        "queue": 3,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 3,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    nanoseconds = {name: stats[name]["ns"] for name in stats}
    assert 0 < nanoseconds["compute_infer"] < nanoseconds["success"] + nanoseconds["fail"] < 60e9
    assert nanoseconds["fail"] > 0
    assert nanoseconds["queue"] == 0
    assert all(type(number) is int for number in nanoseconds.values())
    _, document = await ask(app, "/v2/models/m/versions/1/stats")
    assert document["model_stats"][0]["version"] == "1"


async def test_statistics_count_the_wait_for_a_slot() -> None:
    go = anyio.Event()

    class One(Model):
        limits = Limits(concurrency=1)

        async def predict(self, payload: Any) -> Any:
            await go.wait()
            return payload

    app = ModelServer([One("one")])
    async with (
        exchange(app, "POST", "/v1/models/one:predict", body=b"1") as first,
        exchange(app, "POST", "/v1/models/one:predict", body=b"2") as second,
    ):
        await anyio.wait_all_tasks_blocked()
        assert app.serving.statistics().models["one"].waiting == 1
        go.set()
        for client in (first, second):
            assert (await client.head()).status == 200
            assert await client.chunk() is not None
            await client.ended()
    row = (await ask(app, "/v2/models/one/stats"))[1]["model_stats"][0]
    assert row["version"] == "1"  # perf_analyzer wants a number
    queue, success = row["inference_stats"]["queue"], row["inference_stats"]["success"]
    assert (queue["count"], success["count"]) == (2, 2)
    assert 0 < queue["ns"] < success["ns"]


async def test_statistics_count_a_batch_as_one_execution() -> None:
    async def predict(payload: Any) -> Any:
        return {"predictions": payload["instances"]}

    app = ModelServer()
    app.add_model(predict, "b", batching=Batching(max_size=2, max_wait=10))

    async def one() -> None:
        response = await request(app, "POST", "/v1/models/b:predict", body=b'{"instances": [1]}')
        assert response.status == 200

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(one)
    row = (await ask(app, "/v2/models/b/stats"))[1]["model_stats"][0]
    assert (row["inference_count"], row["execution_count"]) == (2, 1)


async def test_statistics_of_all_models() -> None:
    app = serve(Versioned("n"))
    await request(app, "POST", "/v1/models/n:predict", body=b"1")
    _, document = await ask(app, "/v2/models/stats")
    counts = {row["name"]: row["inference_count"] for row in document["model_stats"]}
    assert counts == {"m": 0, "n": 1}
    app.add_model(Versioned("stats"))
    assert (await ask(app, "/v2/models/stats"))[1]["platform"] == "numpy"  # its metadata
    _, document = await ask(app, "/v2/models/stats/stats")
    assert [row["name"] for row in document["model_stats"]] == ["stats"]


async def test_statistics_and_signatures_ask_for_the_token() -> None:
    app = serve(token="secret")
    for path in ("/v2/models/stats", "/v2/models/m/stats", "/v2/models/m/config"):
        assert (await ask(app, path))[0] == 401
