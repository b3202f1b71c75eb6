"""The document of the API, over HTTP: when it is made, and where it says that it is."""

from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from modelserve import Model, ModelServer
from modelserve.testing import request

pytestmark = pytest.mark.anyio


async def echo(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


def serve(*names: str, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    for name in names:
        app.add_model(echo, name)
    return app


async def document_of(app: Any, path: str = "/openapi.json", **scope: Any) -> Any:
    response = await request(app, "GET", path, **scope)
    assert response.status == 200, response.body
    assert response.headers["content-type"] == "application/json"
    OpenAPIV31SpecValidator(response.json()).validate()
    return response.json()


async def test_it_has_the_names_of_the_models_filled_in() -> None:
    document = await document_of(serve("m", "a b"))
    assert document["openapi"] == "3.1.0"
    assert {"/v1/models/m:predict", "/v1/models/a%20b:predict"} < set(document["paths"])
    assert not any("{" in path for path in document["paths"])
    assert "servers" not in document


async def test_it_is_made_again_where_what_it_says_has_changed() -> None:
    app = serve("m")
    before = await document_of(app)
    assert await document_of(app) == before
    app.add_model(echo, "n")
    assert "/v1/models/n:predict" in (await document_of(app))["paths"]
    app.add_alias("/score", "/v1/models/m:predict")
    assert {"post", "put"} == set((await document_of(app))["paths"]["/score"])
    app.serving.registry.remove("n")
    assert "/v1/models/n:predict" not in (await document_of(app))["paths"]


async def test_it_is_behind_the_token_and_says_so() -> None:
    app = serve("m", token="secret")
    assert (await request(app, "GET", "/openapi.json")).status == 401
    headers = {"authorization": "Bearer secret"}
    document = await document_of(app, headers=headers)
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"}
    }
    predict = document["paths"]["/v1/models/m:predict"]["post"]
    assert predict["security"] == [{"bearer": []}]
    assert "401" in predict["responses"]
    ready = document["paths"]["/v1/models/m"]["get"]  # a probe's, without a token
    assert "security" not in ready and "401" not in ready["responses"]


async def test_an_empty_server_has_a_document() -> None:
    assert "/v1/models" in (await document_of(ModelServer()))["paths"]


async def test_wrong_methods() -> None:
    response = await request(ModelServer(), "POST", "/openapi.json")
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")


async def test_the_example_of_a_class_is_in_it() -> None:
    class Documented(Model):
        example = {"instances": [1]}  # noqa: RUF012

        async def predict(self, payload: dict[str, Any]) -> dict[str, Any]:
            return payload

    paths = (await document_of(ModelServer([Documented("m")])))["paths"]
    body = paths["/v1/models/m:predict"]["post"]["requestBody"]
    assert body["content"]["application/json"]["example"] == {"instances": [1]}
