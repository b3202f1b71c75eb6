"""Documents about the server and its models, and the repository over HTTP."""

from typing import Any

import anyio
import pytest

from modelserve import Model, ModelServer
from modelserve.testing import Response, lifespan, request
from modelserve.version import __version__

pytestmark = pytest.mark.anyio


READY = {"name": "m", "version": "", "state": "READY", "reason": ""}
UNREADY = {"name": "no", "version": "", "state": "UNAVAILABLE", "reason": ""}


class Echo(Model):
    async def predict(self, payload: Any) -> Any:
        return payload


async def ask(app: Any, body: bytes = b"{}") -> Response:
    return await request(app, "POST", "/v1/models/m:predict", body=body)


def serve(model: Model, **settings: Any) -> ModelServer:
    vars(model).update(settings)
    return ModelServer([model], control=True)


async def test_metadata_of_the_server() -> None:
    assert (await request(serve(Echo("m")), "GET", "/v2")).json() == {
        "name": "modelserve",
        "version": __version__,
        "extensions": [
            "model_repository_extension",
            "binary_tensor_data",
            "generate",
            "model_configuration",
            "statistics",
        ],
    }


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_metadata_of_a_model(kind: str) -> None:
    inputs = [{"name": "x", "datatype": "INT32", "shape": [-1, 2]}]

    async def asynchronous() -> Any:
        return inputs

    hook = asynchronous if kind == "async" else lambda: inputs
    app = serve(
        Echo("m"), get_input_types=hook, get_output_types=hook, platform="p", versions=["1"]
    )
    expected = {"name": "m", "versions": ["1"], "platform": "p"}
    assert (await request(app, "GET", "/v2/models/m")).json() == expected | {
        "inputs": inputs,
        "outputs": inputs,
    }
    assert (await request(serve(Echo("m")), "GET", "/v2/models/m")).body == (
        b'{"name":"m","versions":null,"platform":"","inputs":[],"outputs":[]}'
    )


async def test_health() -> None:
    loaded = anyio.Event()

    class Loading(Echo):
        async def load(self) -> bool:
            await loaded.wait()
            self.ready = True
            return True

    app = serve(Loading("m"))
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v1/models/m")
    async with lifespan(app):
        assert [(await request(app, "GET", path)).status for path in paths] == [200, 503, 503, 503]
        response = await ask(app, b"nonsense")
        assert (response.status, response.json()["error"]) == (
            503,
            "Model with name m is not ready. It is loading.",
        )
        loaded.set()
        await anyio.wait_all_tasks_blocked()
        assert [(await request(app, "GET", path)).status for path in paths] == [200] * 4
        assert (await request(app, "GET", "/v2/models/m/ready")).json() == {
            "name": "m",
            "ready": True,
        }
        response = await request(app, "GET", "/v2/models/zz/ready")
        assert (response.status, response.json()["error"]) == (
            404,
            "Model with name zz does not exist.",
        )


async def test_repository() -> None:
    class Loaded(Echo):
        loads = 0

        async def load(self) -> bool:
            self.loads += 1
            self.ready = True
            return True

    model = Loaded("m")
    app = serve(model)

    async def post(path: str, body: bytes = b"") -> Response:
        return await request(app, "POST", f"/v2/repository/{path}", body=body)

    async def state() -> str:
        (row,) = (await post("index")).json()
        assert (row["name"], row["version"], row["reason"]) == ("m", "", "")
        return str(row["state"])

    async with lifespan(app):
        await anyio.wait_all_tasks_blocked()
        assert await state() == "READY"
        assert (await post("models/m/unload")).json() == {"name": "m", "unload": True}
        assert await state() == "UNAVAILABLE"
        assert (await ask(app)).status == 404
        assert (await post("models/m/unload")).status == 404
        assert (await post("models/m/load", b"{}")).json() == {"name": "m", "load": True}
        assert await state() == "READY"
        assert (await ask(app)).status == 200
        assert (await post("models/m/load", b"nonsense")).status == 200
        assert model.loads == 3
        for verb in ("load", "unload"):
            assert (await post(f"models/zz/{verb}")).status == 404


async def test_a_load_that_fails() -> None:
    class Broken(Echo):
        def load(self) -> bool:
            raise RuntimeError("no disk")

    app = serve(Broken("m"))
    async with lifespan(app):
        response = await request(app, "POST", "/v2/repository/models/m/load")
        assert response.status == 503
        assert b"no disk" not in response.body
        (row,) = (await request(app, "POST", "/v2/repository/index")).json()
        assert (row["state"], row["reason"]) == ("UNAVAILABLE", "loading failed")


# --- the repository index -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"", [READY, UNREADY]),
        (b"{}", [READY, UNREADY]),
        (b'{"ready":false}', [READY, UNREADY]),
        (b'{"ready": true}', [READY]),
        (b'{"ready":true,"more":1}', [READY]),
    ],
)
async def test_an_index_may_be_of_what_is_ready(body: bytes, rows: list[Any]) -> None:
    class Unready(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        def load(self) -> bool:
            return False

    app = ModelServer([Echo("m"), Unready("no")])
    async with app.lifespan():
        while app.serving.registry.get("no").loading:  # noqa: ASYNC110 - its own task says so
            await anyio.sleep(0.001)
        response = await request(app, "POST", "/v2/repository/index", body=body)
    assert (response.status, response.json()) == (200, rows)


@pytest.mark.parametrize("body", [b"[]", b"1", b'{"ready":1}', b'{"ready":null}'])
async def test_an_index_refuses_other_documents(body: bytes) -> None:
    response = await request(ModelServer(), "POST", "/v2/repository/index", body=body)
    assert response.status == 400
    assert response.json() == {"error": 'Expected a JSON object whose "ready" is a boolean'}


async def test_an_index_refuses_what_is_not_json() -> None:
    response = await request(ModelServer(), "POST", "/v2/repository/index", body=b"{")
    assert (response.status, list(response.json())) == (400, ["error"])
