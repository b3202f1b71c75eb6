"""From method and path to an answer, wherever the application is mounted."""

from typing import Any
from urllib.parse import quote, unquote

import pytest

from modelserve import Model, ModelServer, routes
from modelserve.testing import request

pytestmark = pytest.mark.anyio


async def echo(payload: Any) -> Any:
    return payload


def serve(*names: str, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    for name in names or ("m",):
        app.add_model(echo, name)
    return app


async def ask(app: Any, method: str, path: str, **scope: Any) -> tuple[int, Any]:
    """Send a request; return the status and the document."""
    body = b"[1]" if method == "POST" else b""
    response = await request(app, method, path, body=body, **scope)
    assert response.headers["content-type"] == "application/json"
    return response.status, response.json() if response.body else None


NOT_FOUND = {"error": "Not Found"}
ALIVE = {"status": "alive"}
READY = {"name": "m", "ready": True}
UNKNOWN = {"error": "Model with name zz does not exist."}
NOT_ALLOWED = {"error": "Method Not Allowed"}

TABLE: list[tuple[str, str, int, Any]] = [
    ("GET", "/", 200, ALIVE),
    ("GET", "/v1/models", 200, {"models": ["m", "n"]}),
    ("GET", "/v1/models/m", 200, READY),
    ("GET", "/v1/models/zz", 404, UNKNOWN),
    ("POST", "/v1/models/m:predict", 200, [1]),
    ("POST", "/v1/models/m:explain", 501, {"error": "Model m does not implement explain."}),
    ("POST", "/v1/models/zz:predict", 404, UNKNOWN),
    ("POST", "/v1/models/zz:explain", 404, UNKNOWN),
    ("GET", "/v2/health/live", 200, {"live": True}),
    ("GET", "/v2/health/ready", 200, {"ready": True}),
    # a query does not matter
    ("GET", "/v1/models?a=/v1", 200, {"models": ["m", "n"]}),
    ("POST", "/v1/models/m:predict?a=b:explain", 200, [1]),
    # percent-encoding
    ("POST", "/v1/models/m%3Apredict", 200, [1]),
    ("POST", "/v1/models/m%3apredict", 200, [1]),
    ("POST", "/v1/models/%6d:predict", 200, [1]),
    ("POST", "/v1/models/%6D%3A%70redict", 200, [1]),
    ("GET", "/%76%31/models", 200, {"models": ["m", "n"]}),
    ("GET", "/v1%2Fmodels", 404, NOT_FOUND),
    ("GET", "/v1/models/m%253Apredict", 404, {"error": "Model with name m%3Apredict does not exist."}),
    ("GET", "/v1/models/z%7A", 404, UNKNOWN),
    ("GET", "/v1/models/%FF", 404, {"error": "Model with name \ufffd does not exist."}),
    ("GET", "/v1/models/%", 404, {"error": "Model with name % does not exist."}),
    ("GET", "/v1/models/%zz", 404, {"error": "Model with name %zz does not exist."}),
    ("GET", "/v1/models/%00", 404, {"error": "Model with name \0 does not exist."}),
    # a trailing slash is another path
    ("GET", "/v1/models/", 404, NOT_FOUND),
    ("GET", "/v1/models/m/", 404, NOT_FOUND),
    ("POST", "/v1/models/m:predict/", 404, NOT_FOUND),
    ("GET", "/v2/health/live/", 404, NOT_FOUND),
    ("GET", "//", 404, NOT_FOUND),
    ("GET", "//v1/models", 404, NOT_FOUND),
    ("GET", "/v1//models", 404, NOT_FOUND),
    ("GET", "/./v1/models", 404, NOT_FOUND),
    ("GET", "/x/../v1/models", 404, NOT_FOUND),
    # no such path
    ("GET", "/v1", 404, NOT_FOUND),
    ("GET", "/V1/models", 404, NOT_FOUND),
    ("GET", "/v1/models/m/versions", 404, NOT_FOUND),
    ("POST", "/v1/models/m:", 404, NOT_FOUND),
    ("POST", "/v1/models/m:Predict", 404, NOT_FOUND),
    ("POST", "/v1/models/m:predict:explain", 404, {"error": "Model with name m:predict does not exist."}),
    ("POST", "/v1/models/:predict", 404, {"error": "Model with name  does not exist."}),
    ("GET", "/nowhere", 404, NOT_FOUND),
    ("POST", "/nowhere", 404, NOT_FOUND),
    ("GET", "/v2/health", 404, NOT_FOUND),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status", "answer"), TABLE)
async def test_a_path_has_one_meaning(method: str, path: str, status: int, answer: Any) -> None:
    app = serve("m", "n")
    assert await ask(app, method, path) == (status, answer)
    assert await ask(app, method, path) == (status, answer)  # remembered


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/", "GET, HEAD"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/m", "GET, HEAD"),
        ("/v1/models/m:predict", "POST"),
        ("/v1/models/m:explain", "POST"),
        ("/v1/models/m%3Apredict", "POST"),
        ("/v2/health/live", "GET, HEAD"),
        ("/v2/health/ready", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_405_with_what_is_allowed(path: str, allow: str) -> None:
    app = serve()
    allowed = allow.split(", ")
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "X"):
        response = await request(app, method, path, body=b"[1]")
        assert (response.status == 405) == (method not in allowed), method
        if response.status == 405:
            assert response.headers["allow"] == allow
            assert method == "HEAD" or response.json() == NOT_ALLOWED


async def test_a_404_comes_before_a_405_and_before_a_400() -> None:
    assert (await ask(serve(), "DELETE", "/nowhere"))[0] == 404
    response = await request(serve(), "POST", "/v1/models/zz:predict", body=b"{")
    assert (response.status, response.json()) == (404, UNKNOWN)


async def test_a_503_comes_before_a_400() -> None:
    class Never(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        def load(self) -> bool:
            return False

    app = ModelServer([Never("m")])
    await request(app, "GET", "/")
    response = await request(app, "POST", "/v1/models/m:predict", body=b"{")
    assert response.status == 503
    assert response.json() == {"error": "Model with name m is not ready."}


@pytest.mark.parametrize(
    "name",
    ["a b", "ä", "a/b", "a%2Fb", "a?b", "a#b", "a+b", ".", "..", "~", "a@b", "v1", "predict"],
)
async def test_a_name_may_be_odd(name: str) -> None:
    app = serve(name)
    path = "/v1/models/" + quote(name, safe="")
    assert await ask(app, "GET", path) == (200, {"name": name, "ready": True})
    assert await ask(app, "POST", path + ":predict") == (200, [1])
    assert await ask(app, "POST", path + "%3Apredict") == (200, [1])


async def test_models_are_listed_in_the_order_of_registration() -> None:
    app = serve("z", "a", "m")
    assert (await ask(app, "GET", "/v1/models"))[1] == {"models": ["z", "a", "m"]}
    assert (await ask(ModelServer(), "GET", "/v1/models"))[1] == {"models": []}


async def test_a_model_that_is_registered_later_is_found() -> None:
    app = serve()
    assert (await ask(app, "POST", "/v1/models/n:predict"))[0] == 404
    app.add_model(echo, "n")
    assert (await ask(app, "POST", "/v1/models/n:predict"))[0] == 200


async def test_a_model_that_is_replaced_is_the_new_one() -> None:
    async def other(payload: Any) -> Any:
        return ["other"]

    app = serve()
    assert (await ask(app, "POST", "/v1/models/m:predict"))[1] == [1]
    app.add_model(other, "m")
    assert (await ask(app, "POST", "/v1/models/m:predict"))[1] == ["other"]


async def test_a_model_that_is_removed_is_unknown() -> None:
    app = serve()
    assert (await ask(app, "POST", "/v1/models/m:predict"))[0] == 200
    app.serving.registry.remove("m")
    assert (await ask(app, "POST", "/v1/models/m:predict"))[0] == 404


async def test_what_is_remembered_is_bounded() -> None:
    known = routes.Routes(serve().serving.registry)
    for number in range(200):
        scope = {"path": f"/{number}", "raw_path": b"/%d" % number, "method": "GET"}
        assert known.find(scope) is routes.NOT_FOUND
    assert len(known) == 0
    for number in range(5000):
        scope = {"path": "/", "raw_path": b"/", "root_path": f"/{number}", "method": "GET"}
        known.find(scope)
    assert 0 < len(known) <= 4096


async def test_a_long_path_is_found_and_not_remembered() -> None:
    known = routes.Routes(serve().serving.registry)
    for raw_path, remembered in (
        (b"/v2/models/m/versions/" + b"1" * 200, 1),
        (b"/v2/models/m/versions/" + b"1" * 16_000, 1),
        (b"/v2/models/%6d/versions/" + b"%31" * 200, 1),
    ):
        scope = {"path": unquote(raw_path.decode()), "raw_path": raw_path, "method": "GET"}
        assert known.find(scope).ref.name == "m"
        assert len(known) == remembered
    scope = {"path": "/", "raw_path": b"/", "root_path": "/" + "r" * 600, "method": "GET"}
    assert known.find(scope) is not routes.NOT_FOUND
    assert len(known) == 1


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", routes.ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_every_row_is_found_and_its_method_allowed(route: routes.Route) -> None:
    path = route.path.replace("{model}", "m").replace("{version}", "7")
    target = routes.match(path.split("/")[1:])
    assert target.endpoints[route.method] is route.endpoint
    assert target.codec is route.codec
    assert (target.verb, target.hook) == (route.verb, route.hook)
    assert target.ref == (
        "m" if "{model}" in route.path else "",
        "7" if "{version}" in route.path else None,
    )
    response = await request(serve(), "OPTIONS", path)
    assert response.status == 405
    assert set(response.headers["allow"].split(", ")) == set(target.endpoints)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/a:predict", "a"),
        ("/v1/models/a:b:predict", "a:b"),
        ("/v1/models/:predict", ""),
        ("/v2/models/a:b", "a:b"),
        ("/v1/models/a b", "a b"),
    ],
)
def test_how_a_path_names_a_model(path: str, name: str) -> None:
    assert routes.match(path.split("/")[1:]).ref.name == name


@pytest.mark.parametrize(
    "path", ["/v1/models/a:b", "/v1/models/", "/v1/models/a/", "/v2/models//ready", "/x"]
)
def test_a_path_that_means_nothing(path: str) -> None:
    assert routes.match(path.split("/")[1:]) is routes.NOT_FOUND


# --- mounted ------------------------------------------------------------------------------------

# what the host says, and whether it says it with `raw_path`
MOUNTS: list[tuple[str, dict[str, Any], str]] = [
    # host, scope for `{}` below the mount, prefix given to ModelServer
    ("not mounted", {"path": "{}", "raw_path": "{}"}, ""),
    ("starlette", {"path": "/ml{}", "raw_path": "/ml{}", "root_path": "/ml", "app_root_path": ""}, ""),
    ("starlette, nested", {"path": "/a/b{}", "raw_path": "/a/b{}", "root_path": "/a/b", "app_root_path": ""}, ""),
    ("a slash at the end", {"path": "/ml{}", "raw_path": "/ml{}", "root_path": "/ml/"}, ""),
    ("uvicorn --root-path", {"path": "/ml{}", "raw_path": "/ml{}", "root_path": "/ml"}, ""),
    ("a proxy that strips", {"path": "{}", "raw_path": "{}", "root_path": "/proxy"}, ""),
    (
        "fastapi with root_path",
        {"path": "/ml{}", "raw_path": "/ml{}", "root_path": "/proxy/ml", "app_root_path": "/proxy"},
        "",
    ),
    (
        "starlette behind uvicorn --root-path",
        {
            "path": "/proxy/ml{}",
            "raw_path": "/proxy/ml{}",
            "root_path": "/proxy/ml",
            "app_root_path": "/proxy",
        },
        "",
    ),
    ("django, by hand", {"path": "/ml{}", "raw_path": "/ml{}", "root_path": ""}, "/ml"),
    ("prefix with a slash", {"path": "/ml{}", "raw_path": "/ml{}"}, "/ml/"),
    ("a deep prefix", {"path": "/a/b/c{}", "raw_path": "/a/b/c{}"}, "/a/b/c"),
    ("a prefix that is not there", {"path": "{}", "raw_path": "{}"}, "/ml"),
    ("an encoded mount", {"path": "/m l{}", "raw_path": "/m%20l{}", "root_path": "/m l"}, ""),
    ("a query in raw_path", {"path": "/ml{}", "raw_path": "/ml{}?a=b/c", "root_path": "/ml"}, ""),
]  # fmt: skip

LITESTAR: list[tuple[str, dict[str, Any], str]] = [
    ("litestar", {"path": "{}/", "raw_path": "/ml{}", "root_path": ""}, ""),
    ("litestar, nested", {"path": "{}/", "raw_path": "/a/b{}", "root_path": ""}, ""),
    ("litestar, with a prefix", {"path": "{}/", "raw_path": "/ml{}", "root_path": ""}, "/ml"),
]

BELOW: list[tuple[str, str, str, int]] = [
    ("GET", "/v1/models", "/v1/models", 200),
    ("GET", "/v1/models/m", "/v1/models/m", 200),
    ("POST", "/v1/models/m:predict", "/v1/models/m:predict", 200),
    ("POST", "/v1/models/m:predict", "/v1/models/m%3Apredict", 200),
    ("GET", "/v2/health/live", "/v2/health/live", 200),
    ("GET", "/nowhere", "/nowhere", 404),
    ("GET", "/v1/models/zz", "/v1/models/zz", 404),
]


def scope_of(pattern: dict[str, Any], path: str, raw_path: str) -> dict[str, Any]:
    scope = {
        key: value.replace("{}", raw_path if key == "raw_path" else path)
        for key, value in pattern.items()
    }
    scope["raw_path"] = scope["raw_path"].encode()
    return scope


async def ask_in(pattern: dict[str, Any], prefix: str, method: str, path: str, raw: str) -> int:
    app = serve(prefix=prefix)
    scope = scope_of(pattern, path, raw)
    return (await send_scope(app, method, scope))[0]


async def send_scope(app: ModelServer, method: str, scope: dict[str, Any]) -> tuple[int, bytes]:
    """Send a request whose scope says exactly this of its path."""
    scope = {"type": "http", "method": method, "headers": [], "query_string": b"", **scope}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"[1]", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(("method", "path", "raw_path", "status"), BELOW)
@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [pytest.param(pattern, prefix, id=name) for name, pattern, prefix in MOUNTS + LITESTAR],
)
async def test_a_path_below_a_mount(
    pattern: dict[str, Any], prefix: str, method: str, path: str, raw_path: str, status: int
) -> None:
    assert await ask_in(pattern, prefix, method, path, raw_path) == status


@pytest.mark.parametrize(
    ("scope", "prefix", "status"),
    [
        ({"path": "/ml", "raw_path": b"/ml", "root_path": "/ml"}, "", 200),
        ({"path": "/ml/", "raw_path": b"/ml/", "root_path": "/ml"}, "", 200),
        ({"path": "/ml", "raw_path": b"/ml"}, "/ml", 200),
        ({"path": "/ml/", "raw_path": b"/ml/"}, "/ml", 200),
        ({"path": "/", "raw_path": b"/"}, "/ml", 200),
        ({"path": "/", "raw_path": b"/", "root_path": "/proxy"}, "", 200),
        ({"path": "", "raw_path": b""}, "", 200),
        ({"path": "/"}, "", 200),
        # a name that begins like the mount is not below it
        ({"path": "/mlx/v1/models", "raw_path": b"/mlx/v1/models", "root_path": "/ml"}, "", 404),
        ({"path": "/mlx/v1/models", "raw_path": b"/mlx/v1/models"}, "/ml", 404),
        ({"path": "/ml/v1/models", "raw_path": b"/ml/v1/models"}, "", 404),
        (
            {"path": "/ml/ml/v1/models", "raw_path": b"/ml/ml/v1/models", "root_path": "/ml"},
            "",
            404,
        ),
        # of a slash at the end only the host's own is dropped
        ({"path": "/ml/v1/models/", "raw_path": b"/ml/v1/models/", "root_path": "/ml"}, "", 404),
        ({"path": "/foo/"}, "", 404),
        ({"path": "/foo/", "raw_path": b"/foo/"}, "", 404),
    ],
)
async def test_the_edges_of_a_mount(scope: dict[str, Any], prefix: str, status: int) -> None:
    assert (await send_scope(serve(prefix=prefix), "GET", scope))[0] == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models", 200),
        ("/v1/models/m", 200),
        ("/v1/models/m:predict", 405),
        ("/nowhere", 404),
        ("/v1/models/a b", 200),
        ("/v1/models/ä", 200),
        ("/v1/models/a%2Fb", 200),
        ("/v1/models/a?b", 200),
    ],
)
@pytest.mark.parametrize("raw_path", [{}, {"raw_path": None}, {"raw_path": b""}])
async def test_a_host_without_raw_path(path: str, status: int, raw_path: Any) -> None:
    app = serve("m", "a b", "ä", "a%2Fb", "a?b")
    assert (await send_scope(app, "GET", {"path": path, **raw_path}))[0] == status
    mounted = {"path": "/ml" + path, "root_path": "/ml", **raw_path}
    assert (await send_scope(app, "GET", mounted))[0] == status


async def test_two_mounts_of_one_application() -> None:
    app = serve()
    for mount in ("/a", "/b"):
        for path, status in (("/v1/models/m", 200), ("/nowhere", 404)):
            scope = {"path": mount + path, "raw_path": (mount + path).encode(), "root_path": mount}
            assert (await send_scope(app, "GET", scope))[0] == status
    scope = {"path": "/a/v1/models", "raw_path": b"/a/v1/models", "root_path": "/b"}
    assert (await send_scope(app, "GET", scope))[0] == 404


async def test_a_slash_in_a_name_survives_a_mount() -> None:
    app = serve("a/b")
    scope = {
        "path": "/ml/v1/models/a/b",
        "raw_path": b"/ml/v1/models/a%2Fb",
        "root_path": "/ml",
    }
    status, body = await send_scope(app, "GET", scope)
    assert (status, b'"a/b"' in body) == (200, True)


# --- middleware that rewrites the path ----------------------------------------------------------


def rewriting(app: Any, paths: dict[str, str]) -> Any:
    """Return the application behind middleware that rewrites `path` alone."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in paths:
            scope = {**scope, "path": paths[scope["path"]]}
        await app(scope, receive, send)

    return middleware


async def test_middleware_that_rewrites_the_path_alone_is_believed() -> None:
    paths = {"/invocations": "/v1/models/m:predict", "/ping": "/v2/health/ready", "/v1/models": "/"}
    app = rewriting(serve("m", "a/b"), paths)
    for _ in range(2):  # remembered
        assert await ask(app, "POST", "/invocations") == (200, [1])
        assert await ask(app, "GET", "/ping") == (200, {"ready": True})
        assert await ask(app, "GET", "/v1/models") == (200, ALIVE)
        assert await ask(app, "GET", "/other") == (404, NOT_FOUND)
        assert (await ask(app, "GET", "/v1/models/a%2Fb"))[0] == 200


async def test_one_path_may_be_rewritten_to_several() -> None:
    app = serve("m", "n")
    for _ in range(3):
        for name in ("m", "n", "zz"):
            scope = {"path": f"/v1/models/{name}", "raw_path": b"/model"}
            status, body = await send_scope(app, "GET", scope)
            assert (status, name in body.decode()) == (404 if name == "zz" else 200, True)
    assert (await send_scope(app, "GET", {"path": "/model", "raw_path": b"/model"}))[0] == 404


async def test_a_rewritten_path_below_a_mount() -> None:
    app = serve()
    for path in ("/ml/v1/models/m", "/v1/models/m"):
        scope = {"path": path, "raw_path": b"/ml/ping", "root_path": "/ml", "app_root_path": ""}
        assert (await send_scope(app, "GET", scope))[0] == 200
