"""The document of the API, over HTTP: when it is made, and where it says that it is."""

import dataclasses
import functools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypedDict

import anyio
import msgspec
import pydantic
import pytest
from fastapi import Depends, FastAPI
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.routing import Mount

from modelserve import InferRequest, InferResponse, Model, ModelServer
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
    """Return the document; it is `valid_document_of` that takes its time."""
    response = await request(app, "GET", path, **scope)
    assert response.status == 200, response.body
    assert response.headers["content-type"] == "application/json"
    return response.json()


async def valid_document_of(app: Any, path: str = "/openapi.json", **scope: Any) -> Any:
    document = await document_of(app, path, **scope)
    validate(json.dumps(document))
    return document


@functools.cache
def validate(document: str) -> None:
    OpenAPIV31SpecValidator(json.loads(document)).validate()


async def test_it_has_the_names_of_the_models_filled_in() -> None:
    app = serve("m", "a b")
    app.add_model(echo_of_anything, "tensors", platform="onnx")
    document = await valid_document_of(app)
    assert document["openapi"] == "3.1.0"
    assert {"/v1/models/m:predict", "/v1/models/a%20b:predict"} < set(document["paths"])
    assert not any("{" in path for path in document["paths"])
    assert "servers" not in document
    assert not any("grpc" in path.lower() for path in document["paths"])


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


async def test_it_is_made_once_for_all_who_ask_at_the_same_time() -> None:
    reads = []

    class Counting(Model):
        @property
        def example(self) -> Any:
            reads.append(None)
            return {"instances": []}

        async def predict(self, payload: Any) -> Any: ...

    app = ModelServer([Counting("m")])
    reads.clear()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(document_of, app)
    assert len(reads) == 1


async def test_it_is_behind_the_token_and_says_so() -> None:
    app = serve("m", token="secret")
    assert (await request(app, "GET", "/openapi.json")).status == 401
    headers = {"authorization": "Bearer secret"}
    document = await valid_document_of(app, headers=headers)
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"}
    }
    predict = document["paths"]["/v1/models/m:predict"]["post"]
    assert predict["security"] == [{"bearer": []}]
    assert "401" in predict["responses"]
    ready = document["paths"]["/v1/models/m"]["get"]  # a probe's, without a token
    assert "security" not in ready and "401" not in ready["responses"]


async def test_an_empty_server_has_a_document() -> None:
    assert "/v1/models" in (await valid_document_of(ModelServer()))["paths"]


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


# --- below a mount ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root"),
    [("/ml/openapi.json", ""), ("/a%20b/ml/openapi.json", "/a b"), ("/ml/openapi.json", "/proxy")],
)
async def test_servers_has_the_path_below_which_it_is_found(path: str, root: str) -> None:
    host: Any = Starlette(routes=[Mount("/ml", app=serve("m"))])
    document = await document_of(host, path, root_path=root)
    assert document["servers"] == [{"url": f"{root.replace(' ', '%20')}/ml"}]
    assert "/v1/models/m:predict" in document["paths"]


async def test_two_mounts_of_one_application_have_a_document_each() -> None:
    app = serve("m")
    host: Any = Starlette(routes=[Mount("/a", app=app), Mount("/b", app=app)])
    for mount in ("/a", "/b", "/a"):
        document = await document_of(host, f"{mount}/openapi.json")
        assert document["servers"] == [{"url": mount}]


async def test_fastapis_document_has_it_as_the_guide_shows() -> None:
    guide = Path(__file__).parents[2] / "examples" / "guides" / "openapi.md"
    [program] = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(program, "guide", "exec"), found)  # noqa: S102
    host, models = found["app"], found["models"]

    class Double(pydantic.BaseModel):
        own: int

    @host.get("/double")
    def double() -> Double:
        return Double(own=1)

    document = await valid_document_of(host)
    assert {"/double", "/ml/v1/models/double:predict", "/ml/v2"} <= set(document["paths"])
    assert set(document["components"]["schemas"]) >= {"Double", "ml_Error"}
    assert document["info"]["title"] == "FastAPI"
    assert (await request(host, "GET", "/docs")).status == 200
    models.serving.registry.remove("double")
    assert "/ml/v1/models/double:predict" not in (await document_of(host))["paths"]


async def test_the_hosts_document_stays_as_it_was_and_keeps_its_own() -> None:
    host = FastAPI(dependencies=[Depends(lambda: None)])
    before = host.openapi()
    assert before["paths"] == {}
    app = serve("m", token="secret")
    merged = app.openapi(prefix="/ml", into=before)
    assert host.openapi()["paths"] == {}
    assert merged["components"]["securitySchemes"] == {
        "ml_bearer": {"type": "http", "scheme": "bearer"}
    }
    assert merged["paths"]["/ml/v1/models/m:predict"]["post"]["security"] == [{"ml_bearer": []}]
    both = serve("n").openapi(prefix="/other", into=merged)
    validate(json.dumps(both))


async def test_a_document_may_be_changed_by_who_has_asked_for_it() -> None:
    app = serve("m")
    before = app.openapi()
    app.openapi()["components"]["schemas"]["Error"].clear()
    app.openapi()["paths"]["/v1/models/m:predict"]["post"]["responses"]["200"].clear()
    assert app.openapi() == before


# --- what models declare ------------------------------------------------------------------------


class Struct(msgspec.Struct):
    rooms: int
    inner: "Struct | None" = None


class Pydantic(pydantic.BaseModel):
    rooms: int
    inner: "Pydantic | None" = None


@dataclasses.dataclass
class Data:
    rooms: int


class Typed(TypedDict):
    rooms: int


def body_of(document: dict[str, Any], name: str) -> Any:
    return document["paths"][f"/v1/models/{name}:predict"]["post"]["requestBody"]["content"]


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


@pytest.mark.parametrize("kind", [Struct, Pydantic, Data, Typed])
async def test_declared_payloads_have_their_schemas(kind: Any) -> None:
    async def alone(payload: kind) -> None: ...

    async def several(instances: list[kind]) -> list[kind]: ...  # type: ignore[valid-type]

    async def rows(payload: AsyncIterator[kind]) -> AsyncIterator[str]:  # type: ignore[valid-type]
        yield ""

    app = ModelServer()
    for hook in (alone, several, rows):
        app.add_model(hook, hook.__name__)
    document = await valid_document_of(app)
    whole = resolved(document, body_of(document, "alone")["application/json"]["schema"])
    assert whole["required"] == ["rooms"]
    rooms = whole["properties"]["rooms"]
    assert (rooms["type"], rooms["minimum"], rooms["maximum"]) == ("integer", -(2**63), 2**64 - 1)
    listed = body_of(document, "several")["application/json"]["schema"]
    assert listed["required"] == ["instances"]
    assert resolved(document, listed["properties"]["instances"]["items"]) == whole
    assert set(body_of(document, "rows")) == {"application/json", "application/x-ndjson"}
    answer = document["paths"]["/v1/models/several:predict"]["post"]["responses"]["200"]
    answer = answer["content"]["application/json"]["schema"]["properties"]["predictions"]
    assert resolved(document, answer["items"]) == whole
    assert "/v2/models/alone/infer" not in document["paths"]


async def test_classes_of_one_name_are_told_apart() -> None:
    def declare(field: str) -> Any:
        return msgspec.defstruct("Item", [(field, int)])

    one, other = declare("a"), declare("b")

    async def first(payload: one) -> None: ...

    async def second(payload: other) -> None: ...

    async def third(payload: one | None) -> None: ...

    app = ModelServer()
    for hook in (first, second, third):
        app.add_model(hook, hook.__name__)
    schemas = (await document_of(app))["components"]["schemas"]
    assert [*schemas["Item"]["properties"], *schemas["Item_2"]["properties"]] == ["a", "b"]
    assert "Item_3" not in schemas


@pytest.mark.parametrize(
    ("annotation", "types", "kind"),
    [
        (bytes, {"application/octet-stream"}, "bytes"),
        (Struct | bytes, {"application/json", "application/octet-stream"}, "json"),
        (FormData, {"multipart/form-data"}, "form"),
        (AsyncIterator[bytes], {"application/octet-stream"}, "bytes"),
        (AsyncIterator[Any], {"application/json", "application/x-ndjson"}, "rows"),
        (Any, {"application/json"}, "json"),
        (dict[str, Any] | InferRequest, {"application/json"}, "json"),
    ],
)
async def test_the_types_that_a_body_may_have(annotation: Any, types: set[str], kind: str) -> None:
    async def hook(payload: Any) -> Any: ...

    hook.__annotations__["payload"] = annotation
    app = ModelServer()
    app.add_model(hook, "m")
    document = await document_of(app)
    assert set(body_of(document, "m")) == types
    predict = document["paths"]["/v1/models/m:predict"]["post"]
    assert predict["x-modelserve"] == {
        "verb": "predict",
        "streams": False,
        "input": kind,
        "websocket": True,
    }


async def test_a_model_of_tensors_alone_takes_nothing_over_v1() -> None:
    class Tensors(Model):
        versions = ("1",)

        async def predict(self, payload: InferRequest) -> InferResponse: ...

    app = ModelServer([Tensors("t"), Tensors("a b/{c}?#%~1")])
    document = await valid_document_of(app)
    paths = document["paths"]
    assert "/v1/models/t:predict" not in paths
    assert {"/v2/models/t/infer", "/v2/models/t/versions/1/infer_stream"} < set(paths)
    assert "/v2/models/a%20b%2F%7Bc%7D%3F%23%25~1/versions/1/infer" in paths


async def test_a_verb_that_a_model_lacks_is_not_in_it() -> None:
    class Explains(Model):
        async def explain(self, payload: Any) -> Any: ...

    class Chats(Model):
        async def chat(self, request: Any) -> AsyncIterator[str]:
            yield ""

    class Embeds(Model):
        async def embed(self, request: Any) -> Any: ...

    app = ModelServer([Explains("e"), Chats("c"), Embeds("f")])
    document = await valid_document_of(app)
    running = {
        path: operation["x-modelserve"]["verb"]
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if "x-modelserve" in operation
    }
    assert running == {
        "/v1/models/e:explain": "explain",
        **dict.fromkeys(("/v1/chat/completions", "/openai/v1/chat/completions"), "chat"),
        **dict.fromkeys(("/v1/embeddings", "/openai/v1/embeddings"), "embed"),
    }
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    [named] = [
        part
        for part in chat["requestBody"]["content"]["application/json"]["schema"]["allOf"]
        if "properties" in part
    ]
    assert named["properties"]["model"]["enum"] == ["c"]


async def test_a_schema_that_nobody_checks_is_told_and_not_promised() -> None:
    class Documented(Model):
        input_schema = {"type": "object", "required": ["x"], "description": "One x."}  # noqa: RUF012
        output_schema = {"type": "array"}  # noqa: RUF012

        async def predict(self, payload: Any) -> Any: ...

    document = await document_of(ModelServer([Documented("m")]))
    predict = document["paths"]["/v1/models/m:predict"]["post"]
    assert "One x." in predict["description"]
    assert "required" not in str(predict["requestBody"]["content"])


@pytest.mark.parametrize(
    "example", [{"instances": [b"x"]}, {"instances": [{1, 2}]}, {(1, 2): 3}, "\ud800", [object()]]
)
async def test_an_example_that_is_no_json_is_left_out(example: Any, caplog: Any) -> None:
    class Odd(Model):
        input_schema = {(1,): 2}  # noqa: RUF012

        async def predict(self, payload: Any) -> Any: ...

    odd = Odd("odd")
    odd.example = example
    app = serve("m")
    app.add_model(odd)
    document = await document_of(app)
    assert "example" not in body_of(document, "odd")["application/json"]
    assert "The example of model 'odd' is not in the document" in caplog.text


@pytest.mark.parametrize("kind", [pydantic.BaseModel, msgspec.Struct])
async def test_a_set_is_a_list_and_a_tuple_one_of_its_length(kind: Any) -> None:
    class Many(kind):  # type: ignore[misc]
        many: set[int]
        pair: tuple[int, str] = (1, "a")
        uniqueItems: bool = True

    async def hook(payload: Many) -> Any: ...

    app = ModelServer()
    app.add_model(hook, "m")
    assert (await request(app, "POST", "/v1/models/m:predict", json={"many": [1, 1]})).status == 200
    document = await document_of(app)
    fields = document["components"]["schemas"]["Many"]["properties"]
    assert set(fields) == {"many", "pair", "uniqueItems"}
    assert (fields["pair"]["maxItems"], fields["pair"].get("items")) == (2, None)
    assert "uniqueItems" not in fields["many"]


async def test_defaults_that_are_none_of_their_type_are_left_out() -> None:
    class Loose(pydantic.BaseModel):
        text: str = None  # type: ignore[assignment]
        most: float = float("inf")
        either: int | None = None
        number: int = 3

    async def hook(payload: Loose) -> Any: ...

    app = ModelServer()
    app.add_model(hook, "m")
    document = await valid_document_of(app)
    fields = document["components"]["schemas"]["Loose"]["properties"]
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    assert defaults == {"either": None, "number": 3}


@pytest.mark.parametrize(
    ("attributes", "verbs"),
    [
        ({}, {"predict"}),
        ({"platform": "onnx"}, {"predict", "infer", "infer_stream"}),
        ({"example": {"text_input": "a"}}, {"predict", "generate", "generate_stream"}),
        (
            {"example": {"inputs": [{"name": "x", "shape": [0], "datatype": "FP32", "data": []}]}},
            {"infer", "infer_stream"},
        ),
        ({"example": {"inputs": [{"columnar": 1}]}}, {"predict"}),
    ],
)
async def test_what_speaks_for_a_verb(attributes: dict[str, Any], verbs: set[str]) -> None:
    app = ModelServer()
    app.add_model(echo_of_anything, "m", **attributes)
    document = await document_of(app)
    found = {
        operation["x-modelserve"]["verb"]
        for methods in document["paths"].values()
        for operation in methods.values()
        if "x-modelserve" in operation
    }
    assert found == verbs


async def echo_of_anything(payload):  # type: ignore[no-untyped-def]
    return payload
