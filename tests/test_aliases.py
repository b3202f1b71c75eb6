"""Paths of an application's own, which mean what built-in ones do."""

import logging
import pickle
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from modelserve import Limits, Model, ModelServer
from modelserve.routes import ROUTES
from modelserve.testing import exchange, request

pytestmark = pytest.mark.anyio

PREDICT = "/v1/models/m:predict"
NOT_FOUND = {"error": "Not Found"}


async def echo(payload: Any) -> Any:
    return payload


def serve(aliases: dict[str, str] | None = None, **options: Any) -> ModelServer:
    app = ModelServer(aliases=aliases, **options)
    app.add_model(echo, "m")
    return app


async def ask(app: Any, method: str, path: str, body: bytes = b"[1]", **options: Any) -> Any:
    response = await request(app, method, path, body=body, **options)
    return response.status, response.json() if response.body else None


class Tensors(Model):
    versions = ("1",)

    async def predict(self, payload: Any) -> Any:
        return {"version": getattr(payload, "model_version", None) or payload}


INFER = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}'
TEXT = b'{"text_input": "a"}'
MEANINGS: list[tuple[str, str, bytes, Any]] = [
    ("/v2/health/ready", "GET", b"", {"ready": True}),
    ("/v2/health/live", "GET", b"", {"live": True}),
    ("/", "GET", b"", {"status": "alive"}),
    ("/v1/models", "GET", b"", {"models": ["m", "t"]}),
    ("/v1/models/m", "GET", b"", {"name": "m", "ready": True}),
    ("/v2/models/t/versions/1/ready", "GET", b"", {"name": "t", "ready": True}),
    (PREDICT, "POST", b"[1]", [1]),
    (PREDICT, "PUT", b"[1]", [1]),
    ("/v1/models/%6D%3Apredict", "POST", b"[1]", [1]),
    ("/v2/models/t/versions/1/infer", "PUT", INFER, {"version": "1"}),
    ("/v2/models/m/generate", "POST", TEXT, None),
    ("/v2/repository/index", "PUT", b"", None),
]


@pytest.mark.parametrize(("means", "method", "body", "answer"), MEANINGS)
async def test_an_alias_means_what_a_built_in_path_does(
    means: str, method: str, body: bytes, answer: Any
) -> None:
    app = serve({"/own/path": means})
    app.add_model(Tensors("t"))
    for _ in range(2):  # remembered
        status, document = await ask(app, method, "/own/path", body)
        assert status == 200
        assert answer in (None, document)


async def test_methods_and_allow() -> None:
    app = serve({"/invocations": PREDICT, "/ping": "/v2/health/ready"})
    for path, allowed in (("/invocations", "POST, PUT"), ("/ping", "GET, HEAD")):
        response = await request(app, "DELETE", path)
        assert (response.status, response.headers["allow"]) == (405, allowed)
    assert (await ask(app, "HEAD", "/ping"))[0] == 200
    assert (await ask(app, "PUT", PREDICT))[0] == 405  # PUT is for aliases only


async def test_a_model_gets_a_path_where_it_is_registered() -> None:
    app = ModelServer()

    @app.model("a/b c", path="/predict")
    async def double(payload: Any) -> Any:
        return {"doubled": 2 * payload}

    @app.model("class", path="/class")
    class Named(Model):
        async def predict(self, payload: Any) -> Any:
            return self.name

    assert await ask(app, "POST", "/predict", b"2") == (200, {"doubled": 4})
    response = await request(app, "PUT", "/class", body=b"1")
    assert response.body == b"class"
    assert (await ask(app, "POST", "/v1/models/a%2Fb%20c:predict", b"2"))[0] == 200


async def test_a_model_may_be_registered_after_its_path() -> None:
    app = ModelServer(aliases={"/later": "/v1/models/n:predict"})
    missing = {"error": "Model with name n does not exist."}
    assert await ask(app, "POST", "/later") == (404, missing)
    app.add_model(echo, "n")
    assert await ask(app, "POST", "/later") == (200, [1])
    app.serving.registry.remove("n")
    assert await ask(app, "POST", "/later") == (404, missing)


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/own path", "/own%20path", 200),
        ("/own%20path", "/own%20path", 200),
        ("/%C3%A4", "/ä", 200),
        ("/ä", "/%C3%A4", 200),
        ("/a%2Fb", "/a%2Fb", 200),
        ("/a%2Fb", "/a/b", 404),
        ("/a/b", "/a%2Fb", 404),
        ("/a", "/a/", 404),
        ("/a/", "/a/", 200),
        ("/a/", "/a", 404),
        ("/a", "/A", 404),
        ("/a", "/a?b=c", 200),
        ("/endpoints/1/deployedModels/2:predict", "/endpoints/1/deployedModels/2%3Apredict", 200),
    ],
)
async def test_how_an_alias_is_written(path: str, sent: str, status: int) -> None:
    assert (await ask(serve({path: "/"}), "GET", sent, b""))[0] == status


@pytest.mark.parametrize(
    ("path", "means", "sentence"),
    [
        ("predict", PREDICT, "The path 'predict' must be text that begins with '/'"),
        ("", PREDICT, "The path '' must be text that begins with '/'"),
        (None, PREDICT, "The path None must be text that begins with '/'"),
        ("/p", "v1/models/m", "The path 'v1/models/m' must be text that begins with '/'"),
        ("/p/{x}", PREDICT, "The path '/p/{x}' may not have parameters, a query or a fragment"),
        ("/p?x=1", PREDICT, "The path '/p?x=1' may not have parameters, a query or a fragment"),
        ("/p#x", PREDICT, "The path '/p#x' may not have parameters, a query or a fragment"),
        ("/p", "/v1/models/{model}", "The path '/v1/models/{model}' may not have parameters"),
        ("/", PREDICT, "The path '/' is built in and cannot be given another meaning"),
        ("/v1/models", PREDICT, "The path '/v1/models' is built in"),
        ("/v1/models/x:predict", PREDICT, "The path '/v1/models/x:predict' is built in"),
        ("/v1/models/x%3Apredict", PREDICT, "The path '/v1/models/x%3Apredict' is built in"),
        ("/v2/models/x/infer", PREDICT, "The path '/v2/models/x/infer' is built in"),
        ("/metrics", "/", "The path '/metrics' is built in"),
        ("/p", "/nowhere", "The path '/p' cannot mean '/nowhere', which is no built-in path"),
        ("/p", "/v1/models/", "The path '/p' cannot mean '/v1/models/', which is no built-in path"),
        (
            "/p",
            "/openai/v1/no",
            "The path '/p' cannot mean '/openai/v1/no', which is no built-in path",
        ),
        ("/openai/v1/models", "/", "The path '/openai/v1/models' is built in"),
        ("/p", "/old", "The path '/p' cannot mean '/old', which is no built-in path"),
        ("/old", "/", "The path '/old' means '/v1/models/m:predict' already, not '/'"),
        ("/%6Fld", "/", "The path '/%6Fld' means '/v1/models/m:predict' already, not '/'"),
        ("/old", "/v2/models/m/infer", "The path '/old' means '/v1/models/m:predict' already"),
    ],
)
def test_what_is_no_alias(path: Any, means: str, sentence: str) -> None:
    app = serve({"/old": PREDICT})
    with pytest.raises(ValueError) as caught:
        app.add_alias(path, means)
    assert str(caught.value).startswith(sentence)


async def test_a_path_beside_openais() -> None:
    app = serve({"/openai/v1/mine": PREDICT})
    assert await ask(app, "POST", "/openai/v1/mine") == (200, [1])
    status, document = await ask(app, "POST", "/openai/v1/yours")
    assert status == 404
    assert document["error"]["message"]


def test_an_application_is_not_made_with_what_is_no_alias() -> None:
    with pytest.raises(ValueError, match="The path '/metrics' is built in"):
        ModelServer(aliases={"/p": PREDICT, "/metrics": PREDICT})


def test_a_path_that_is_taken_registers_no_model() -> None:
    app = serve({"/p": PREDICT})
    with pytest.raises(ValueError, match="means '/v1/models/m:predict' already"):
        app.model("n", path="/p")(echo)
    assert app.serving.registry.names == ["m"]
    app.model("m", path="/p")(echo)  # once more, as where a notebook's cell is run again


@pytest.mark.parametrize(
    ("means", "status"),
    [("/v2/health/ready", 200), ("/v1/models/m", 200), ("/v1/models", 401), (PREDICT, 401)],
)
async def test_an_alias_is_as_public_as_what_it_means(means: str, status: int) -> None:
    app = serve({"/p": means}, token="secret")
    method = "POST" if means == PREDICT else "GET"
    assert (await ask(app, method, "/p"))[0] == status
    assert (await ask(app, method, "/p", headers={"authorization": "Bearer secret"}))[0] == 200


async def test_a_drain_refuses_an_alias_as_it_refuses_what_it_means() -> None:
    app = serve({"/alive": "/v2/health/live", "/ping": "/v2/health/ready", "/p": PREDICT})
    app.serving.refuse_new()
    statuses = {path: (await ask(app, "GET", path))[0] for path in ("/alive", "/ping", "/p")}
    assert statuses == {"/alive": 200, "/ping": 503, "/p": 405}
    assert (await ask(app, "POST", "/p"))[0] == 503


async def test_an_alias_counts_and_logs_as_the_model_it_means(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = serve({"/p": PREDICT})
    with caplog.at_level(logging.INFO, "modelserve.access"):
        await ask(app, "PUT", "/p")
        await ask(app, "POST", PREDICT)
    lines = [(r.protocol, r.verb, r.model) for r in caplog.records]  # type: ignore[attr-defined]
    assert lines == [("v1", "predict", "m")] * 2
    metrics = await request(app, "GET", "/metrics")
    line = 'modelserve_requests_total{model_name="m",outcome="done",protocol="v1",status="200"'
    assert line + ',verb="predict"} 2.0' in metrics.body.decode()


async def test_an_alias_is_limited_as_the_model_it_means() -> None:
    go = anyio.Event()

    class One(Model):
        limits = Limits(concurrency=1, queue=0)

        async def predict(self, payload: Any) -> Any:
            yield "first"
            await go.wait()

    app = ModelServer([One("m")], aliases={"/p": PREDICT})
    async with exchange(app, "POST", "/p", body=b"1") as running:
        assert (await running.head()).status == 200
        assert await running.chunk() == b"first"
        assert app.serving.statistics().models["m"].running == 1
        for path in ("/p", PREDICT):
            assert (await ask(app, "POST", path))[0] == 503
        go.set()
        assert await running.chunk() is None


async def test_an_alias_below_a_mount() -> None:
    models = serve({"/p": PREDICT})
    host = Starlette(routes=[Mount("/ml", app=models)])
    assert await ask(host, "POST", "/ml/p") == (200, [1])
    assert (await request(host, "POST", "/p", body=b"[1]")).status == 404
    prefixed = serve({"/p": PREDICT}, prefix="/ml")
    assert await ask(prefixed, "POST", "/ml/p") == (200, [1])


async def test_aliases_are_rows_of_the_table() -> None:
    app = serve({"/p": PREDICT, "/ping": "/v2/health/ready"})
    rows = app._routes.rows[len(ROUTES) :]
    assert [(row.method, row.path, row.means, row.verb, row.ref.name) for row in rows] == [
        ("POST", "/p", PREDICT, "predict", "m"),
        ("PUT", "/p", PREDICT, "predict", "m"),
        ("GET", "/ping", "/v2/health/ready", "", ""),
    ]
    built_in = {(row.method, row.path): row for row in ROUTES}
    ping = built_in["GET", "/v2/health/ready"]
    assert (rows[2].endpoint, rows[2].public) == (ping.endpoint, True)


async def test_aliases_survive_a_pickle() -> None:
    app = pickle.loads(pickle.dumps(serve({"/p": PREDICT})))
    assert await ask(app, "POST", "/p") == (200, [1])
    assert await ask(app, "POST", "/q") == (404, NOT_FOUND)
