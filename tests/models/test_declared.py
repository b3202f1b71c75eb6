"""Declared payloads: which annotations count, what hooks are given, and what clients are told."""

import dataclasses
import datetime
import decimal
import enum
import json
import sys
import typing
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Generic, Literal, NewType, NotRequired, Required, TypeVar, Union

import msgspec
import numpy as np
import pydantic
import pytest
from starlette.datastructures import FormData
from typing_extensions import TypeAliasType, TypedDict

from modelserve import InferRequest, Limits, Model, ModelServer
from modelserve.models.declared import Form
from modelserve.models.hooks import plans_of
from modelserve.testing import Response, lifespan, request

T = TypeVar("T")
PREDICT = ("POST", "/v1/models/m:predict")


class Color(enum.Enum):
    RED = "red"


class Pydantic(pydantic.BaseModel):
    age: int
    name: str = "nobody"


class Struct(msgspec.Struct):
    age: int
    name: str = "nobody"


@dataclasses.dataclass
class Data:
    age: int
    name: str = "nobody"


@pydantic.dataclasses.dataclass
class PydanticData:
    age: int
    name: str = "nobody"


class Typed(TypedDict):
    age: Required[int]
    name: NotRequired[str]


ITEMS = [Pydantic, Struct, Data, PydanticData, Typed]


class PydanticBox(pydantic.BaseModel, Generic[T]):
    value: T


class StructBox(msgspec.Struct, Generic[T]):
    value: T


@dataclasses.dataclass
class DataBox(Generic[T]):
    value: T


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str]


class PCat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class PDog(pydantic.BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


PPet = Annotated[PCat | PDog, pydantic.Field(discriminator="kind")]


def hook_for(annotation: Any, name: str = "payload", result: Any = None) -> Any:
    """Return a hook whose first parameter has an annotation; it keeps what it is given."""
    seen: list[Any] = []

    def predict(payload: Any) -> Any:
        seen.append(payload)
        return {"predictions": repr(payload)} if result is None else result

    def renamed(instances: Any) -> Any:
        return predict(instances)

    hook = renamed if name == "instances" else predict
    hook.__annotations__[name] = annotation
    hook.seen = seen  # type: ignore[attr-defined]
    return hook


def model_for(**attributes: Any) -> Model:
    model = Model("m")
    vars(model).update(attributes)
    return model


def declared_for(annotation: Any, name: str = "payload") -> Any:
    return plans_of(model_for(predict=hook_for(annotation, name)))["predict"].declared


async def post(hook: Any, document: Any, **attributes: Any) -> Response:
    app = ModelServer([model_for(predict=hook, **attributes)])
    return await request(app, *PREDICT, body=json.dumps(document).encode())


# --- what counts --------------------------------------------------------------------------------

Alias = TypeAliasType("Alias", list[Struct])
New = NewType("New", Struct)


@pytest.mark.parametrize(
    ("annotation", "document", "expected"),
    [
        *[(kind, {"age": 3}, kind(age=3)) for kind in ITEMS],
        *[(kind, {"age": 3, "name": "a", "more": 1}, kind(age=3, name="a")) for kind in ITEMS],
        *[(list[kind], [{"age": 3}], [kind(age=3)]) for kind in ITEMS],  # type: ignore[valid-type]
        *[(dict[str, kind], {"a": {"age": 3}}, {"a": kind(age=3)}) for kind in ITEMS],  # type: ignore[valid-type]
        *[(kind | None, None, None) for kind in ITEMS],
        *[(Annotated[kind, "a note"], {"age": 3}, kind(age=3)) for kind in ITEMS],
        (dict[int, list[Struct]], {"7": [{"age": 1}]}, {7: [Struct(1)]}),
        (dict[int, list[Pydantic]], {"7": [{"age": 1}]}, {7: [Pydantic(age=1)]}),
        (Sequence[Struct], [{"age": 1}], [Struct(1)]),
        (tuple[Data, int], [{"age": 1}, 2], (Data(1), 2)),
        (
            PydanticBox[Struct] if False else PydanticBox[int],
            {"value": 1},
            PydanticBox[int](value=1),
        ),
        (
            PydanticBox[Pydantic],
            {"value": {"age": 1}},
            PydanticBox[Pydantic](value=Pydantic(age=1)),
        ),
        (StructBox[list[Struct]], {"value": [{"age": 1}]}, StructBox([Struct(1)])),
        (DataBox[Data], {"value": {"age": 1}}, DataBox(Data(1))),
        (DataBox[Pydantic], {"value": {"age": 1}}, DataBox(Pydantic(age=1))),
        (Cat | Dog, {"type": "dog", "tricks": ["sit"]}, Dog(["sit"])),
        (list[Cat | Dog], [{"type": "cat", "lives": 9}], [Cat(9)]),
        (PPet, {"kind": "cat", "lives": 9}, PCat(kind="cat", lives=9)),
        (PCat | PDog, {"kind": "dog", "tricks": []}, PDog(kind="dog", tricks=[])),
        (InferRequest | Struct, {"age": 1}, Struct(1)),
        (Union[bytes, list[Data]], [{"age": 1}], [Data(1)]),  # noqa: UP007
        (Alias, [{"age": 1}], [Struct(1)]),
        (New, {"age": 1}, Struct(1)),
        (Annotated[list[int], msgspec.Meta(min_length=1)], [1], [1]),
        (Annotated[list[int], pydantic.Field(min_length=1)], [1], [1]),
        (Pydantic | dict, {"other": 1}, {"other": 1}),
    ],
)
def test_the_hook_is_given_what_it_has_declared(
    annotation: Any, document: Any, expected: Any
) -> None:
    value = declared_for(annotation).convert(document)
    assert value == expected
    assert type(value) is type(expected)


def scalars(base: Any) -> Any:
    fields = {
        "when": datetime.datetime,
        "day": datetime.date,
        "took": datetime.timedelta,
        "id": uuid.UUID,
        "price": decimal.Decimal,
        "color": Color,
        "pair": tuple[int, int],
        "some": set[int],
        "ratio": float,
    }
    if base is msgspec.Struct:
        return msgspec.defstruct("Scalars", list(fields.items()))
    if base is pydantic.BaseModel:
        return pydantic.create_model("Scalars", **{k: (v, ...) for k, v in fields.items()})
    if base == "strict":
        strict = pydantic.ConfigDict(strict=True)
        made = {k: (v, ...) for k, v in fields.items()}
        return pydantic.create_model("Strict", __config__=strict, **made)  # type: ignore[call-overload]
    return dataclasses.make_dataclass("Scalars", list(fields.items()))


@pytest.mark.parametrize("base", [msgspec.Struct, pydantic.BaseModel, "strict", object])
def test_scalars_are_read_as_json_has_them(base: Any) -> None:
    document = {
        "when": "2026-01-02T03:04:05Z",
        "day": "2026-01-02",
        "took": "PT90S",
        "id": "12345678-1234-5678-1234-567812345678",
        "price": "0.10",
        "color": "red",
        "pair": [1, 2],
        "some": [1, 1],
        "ratio": 1,
    }
    value = declared_for(scalars(base)).convert(document)
    assert value.when == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert (value.day, value.took) == (datetime.date(2026, 1, 2), datetime.timedelta(seconds=90))
    assert value.id == uuid.UUID("12345678-1234-5678-1234-567812345678")
    assert (str(value.price), value.color, value.pair) == ("0.10", Color.RED, (1, 2))
    assert (value.some, value.ratio) == ({1}, 1.0)


def test_bytes_are_as_each_library_has_them_in_json() -> None:
    class InBase64(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(val_json_bytes="base64")
        data: bytes

    class Raw(msgspec.Struct):
        data: bytes

    for kind in (InBase64, Raw):
        assert declared_for(kind).convert({"data": "Zm9v"}).data == b"foo"


def test_text_that_may_be_a_date_is_one_as_in_json() -> None:
    class Either(pydantic.BaseModel):
        value: datetime.date | str

    assert declared_for(Either).convert({"value": "2026-01-02"}).value == datetime.date(2026, 1, 2)


def test_a_validator_that_asks_is_told_that_this_is_json() -> None:
    class Asks(pydantic.BaseModel):
        value: str

        @pydantic.field_validator("value")
        @classmethod
        def ask(cls, value: str, info: pydantic.ValidationInfo) -> str:
            return info.mode

    assert declared_for(Asks).convert({"value": ""}).value == "json"


class Untyped:
    def __init__(self, age: int) -> None: ...


class Missing(np.ndarray[Any, Any]): ...


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        object,
        dict,
        dict[str, Any],
        list,
        list[Any],
        list[float],
        dict[str, list[float]],
        str,
        int | None,
        bytes,
        InferRequest,
        dict | InferRequest,
        dict[str, Any] | InferRequest | None,
        FormData,
        np.ndarray,
        Untyped,
        "NoSuchName",
        "list[NoSuchName]",
        7,
        TypeVar,
        T,
        pydantic.BaseModel,
        msgspec.Struct,
        Any | Struct,
        AsyncIterator[dict[str, Any]],
        Iterator[Any],
    ],
)
def test_what_says_nothing_changes_nothing(annotation: Any) -> None:
    plan = plans_of(model_for(predict=hook_for(annotation)))["predict"]
    assert plan.declared is None


async def direct(payload: dict[str, Any]) -> Any:
    return payload


async def declared(payload: Struct) -> Any:
    return {"predictions": [payload.age]}


def test_only_a_declared_payload_is_off_the_direct_path() -> None:
    assert plans_of(model_for(predict=direct))["predict"].is_direct
    assert not plans_of(model_for(predict=declared))["predict"].is_direct


def test_the_first_hook_counts_alone() -> None:
    first = model_for(preprocess=hook_for(Struct), predict=hook_for(Pydantic))
    assert plans_of(first)["predict"].declared.type is Struct  # type: ignore[union-attr]
    second = model_for(preprocess=hook_for(dict), predict=hook_for(Pydantic))
    assert plans_of(second)["predict"].declared is None
    explain = model_for(predict=hook_for(dict), explain=hook_for(Data))
    assert plans_of(explain)["explain"].declared.type is Data  # type: ignore[union-attr]
    assert plans_of(explain)["predict"].declared is None


# --- instances, and iterators of them -------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "instances", "expected"),
    [
        *[(list[kind], [{"age": 1}], [kind(age=1)]) for kind in ITEMS],  # type: ignore[valid-type]
        (list[float], [1, 2.5], [1.0, 2.5]),
        (list[list[int]], [[1], []], [[1], []]),
        (list[str], ["a"], ["a"]),
        (list[dict[str, Any]], [{"a": 1}], [{"a": 1}]),
        (Sequence[Struct], [{"age": 1}], [Struct(1)]),
        (list[Struct] | None, [], []),
        (tuple[Struct, ...], [{"age": 1}], [Struct(1)]),
        (Annotated[list[Struct], msgspec.Meta(min_length=1)], [{"age": 1}], [Struct(1)]),
        (Alias, [{"age": 1}], [Struct(1)]),
    ],
)
def test_a_parameter_called_instances_is_given_them_alone(
    annotation: Any, instances: Any, expected: Any
) -> None:
    found = declared_for(annotation, "instances")
    assert found.form is Form.INSTANCES
    assert found.convert({"instances": instances, "parameters": {}}) == expected


@pytest.mark.parametrize("annotation", [list, list[Any], Any, dict, "list[NoSuchName]", Sequence])
def test_instances_of_no_declared_type_are_a_payload_like_any(annotation: Any) -> None:
    assert declared_for(annotation, "instances") is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("result", "body"),
    [
        ([1, 2], {"predictions": [1, 2]}),
        ((1, 2), {"predictions": [1, 2]}),
        ([], {"predictions": []}),
        (np.array([1, 2]), {"predictions": [1, 2]}),
        ([Struct(1)], {"predictions": [{"age": 1, "name": "nobody"}]}),
        ({"predictions": [1], "more": 2}, {"predictions": [1], "more": 2}),
        ({"other": 1}, {"other": 1}),
        (np.float64(1.5), 1.5),
        (5, 5),
    ],
)
async def test_a_list_becomes_the_predictions(result: Any, body: Any) -> None:
    response = await post(hook_for(list[Struct], "instances", result), {"instances": []})
    assert (response.status, response.json()) == (200, body)


@pytest.mark.anyio
async def test_the_last_hook_s_list_becomes_the_predictions() -> None:
    def postprocess(result: Any) -> Any:
        return [*result, 3]

    hook = hook_for(list[Struct], "instances", [1, 2])
    response = await post(hook, {"instances": []}, postprocess=postprocess)
    assert response.json() == {"predictions": [1, 2, 3]}
    assert (await post(hook_for(list[Struct], result=[1]), [])).json() == [1]


@pytest.mark.anyio
async def test_streams_of_declared_hooks_are_as_always() -> None:
    async def predict(instances: list[Struct]) -> AsyncIterator[Any]:
        for item in instances:
            yield {"age": item.age}

    app = ModelServer([model_for(predict=predict)])
    payload = {"instances": [{"age": 1}, {"age": 2}]}
    streamed = await request(app, *PREDICT, json=payload)
    assert streamed.body == b'{"age":1}\n{"age":2}\n'
    payload["instances"][1] = {"age": "x"}
    refused = await request(app, *PREDICT, json=payload)
    assert refused.status == 400
    assert refused.json() == {"error": "instances[1].age: Expected `int`, got `str`"}


@pytest.mark.parametrize("annotation", [AsyncIterator[Struct], Iterator[Struct]])
def test_an_iterator_keeps_the_type_of_its_instances(annotation: Any) -> None:
    found = declared_for(annotation)
    assert (found.form, found.type) == (Form.ITERATOR, Struct)
    whole = {"instances": 5}
    assert found.convert(whole) is whole
    assert found.convert_instance({"age": 1}, 7) == Struct(1)
    with pytest.raises(ValueError, match=r"^instances\[7\]\.age: Expected `int`, got `str`$"):
        found.convert_instance({"age": ""}, 7)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "name", "document", "sentence"),
    [
        (Struct, "payload", {"age": "x"}, "age: Expected `int`, got `str`"),
        (Struct, "payload", {}, "age: Field required"),
        (Struct, "payload", [], "payload: Expected `object`, got `array`"),
        (Struct, "payload", None, "payload: Expected `object`, got `null`"),
        (list[Struct], "payload", [{"age": 1}, 5], "[1]: Expected `object`, got `int`"),
        (dict[str, Struct], "payload", {"k": {"age": ""}}, "[...].age: Expected `int`, got `str`"),
        (dict[int, Struct], "payload", {"k": {"age": 1}}, "payload: Invalid key: Expected `int`, got `str`"),
        (list[Cat | Dog], "payload", [{"type": "cow"}], "[0].type: Invalid value"),
        (list[Color], "instances", ["blue"], "instances[0]: Invalid enum value"),
        (list[Data], "instances", [{"age": 1}, {"age": "x"}], "instances[1].age: Expected `int`, got `str`"),
        (list[Typed], "instances", [{"name": ""}], "instances[0].age: Field required"),
        (list[float], "instances", [1, "x"], "instances[1]: Expected `float`, got `str`"),
        (
            list[Pydantic], "instances", [{"age": 1}, {"age": "x"}],
            "instances[1].age: Input should be a valid integer, unable to parse string as an integer",
        ),
        (list[Pydantic], "instances", [{"age": 1}, {}], "instances[1].age: Field required"),
        (list[Pydantic], "instances", [5], "instances[0]: Input should be an object"),
        (Pydantic, "payload", 5, "payload: Input should be an object"),
        (Pydantic, "payload", {"name": 5}, "age: Field required; name: Input should be a valid string"),
        (dict[str, Pydantic], "payload", {"k": {"age": None}}, "[...].age: Input should be a valid integer"),
        (
            dict[int, Pydantic], "payload", {"k": {"age": 1}},
            "payload: Invalid key: Input should be a valid integer, unable to parse string as an integer",
        ),
        (list[PPet], "payload", [{"kind": "cat", "lives": "x"}],
         "[0].lives: Input should be a valid integer, unable to parse string as an integer"),
        (list[PPet], "payload", [{"kind": "cow"}],
         "[0]: Input tag found using 'kind' does not match any of the expected tags: 'cat', 'dog'"),
        (list[PydanticData], "instances", [{"age": []}], "instances[0].age: Input should be a valid integer"),
    ],
)  # fmt: skip
@pytest.mark.anyio
async def test_the_place_and_what_was_wrong_are_said(
    annotation: Any, name: str, document: Any, sentence: str
) -> None:
    hook = hook_for(annotation, name)
    payload = {"instances": document} if name == "instances" else document
    response = await post(hook, payload)
    expected = sentence.replace("Invalid enum value", "Invalid value")
    assert (response.status, response.json()) == (400, {"error": expected})
    assert hook.seen == []


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, 'Expected "instances" in the request'),
        ([], 'Expected a JSON object with "instances", not a list'),
        ({"instances": {}}, 'Expected "instances" to be a list'),
    ],
)
@pytest.mark.anyio
async def test_instances_must_be_there(document: Any, sentence: str) -> None:
    response = await post(hook_for(list[Struct], "instances"), document)
    assert (response.status, response.json()) == (400, {"error": sentence})


@pytest.mark.anyio
async def test_bytes_and_v2_are_refused_unless_they_are_declared() -> None:
    app = ModelServer([model_for(predict=hook_for(Struct))])
    image = await request(app, *PREDICT, body=b"\xff\xd8", headers={"content-type": "image/jpeg"})
    assert (image.status, image.json()["error"]) == (400, "Expected a JSON document, not bytes")
    infer = {"inputs": [{"name": "a", "shape": [1], "datatype": "INT32", "data": [1]}]}
    v2 = await request(app, "POST", "/v2/models/m/infer", json=infer)
    assert v2.status == 400
    assert "no V2 request" in v2.json()["error"]

    both = hook_for(Struct | InferRequest | bytes)
    app = ModelServer([model_for(predict=both)])
    await request(app, *PREDICT, body=b"\xff\xd8", headers={"content-type": "image/jpeg"})
    await request(app, "POST", "/v2/models/m/infer", json=infer)
    await request(app, *PREDICT, json={"age": 1})
    assert [type(payload) for payload in both.seen] == [bytes, InferRequest, Struct]


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("kind", [Struct, Pydantic])
@pytest.mark.anyio
async def test_what_is_nested_deep_is_a_400(kind: Any) -> None:
    assert (await post(hook_for(kind), {"age": deep(600)})).status == 400
    assert (await post(hook_for(kind), deep(900))).status == 400


@pytest.mark.anyio
async def test_a_million_mistakes_are_one_sentence() -> None:
    response = await post(hook_for(list[Pydantic], "instances"), {"instances": [{}] * 100_000})
    assert response.json() == {"error": "instances[0].age: Field required"}

    class Inside(pydantic.BaseModel):
        items: list[Pydantic]

    response = await post(hook_for(Inside), {"items": [{}] * 10})
    assert response.json()["error"] == (
        "items[0].age: Field required; items[1].age: Field required; items[2].age: Field required; "
        "and 7 more"
    )
    response = await post(hook_for(Inside), {"items": [{}] * 10_001})
    assert response.json() == {"error": "payload: 10001 values are not as declared"}


# --- what cannot be served ------------------------------------------------------------------------


class WithArray(msgspec.Struct):
    array: np.ndarray


@dataclasses.dataclass
class DataWithArray:
    array: np.ndarray


@dataclasses.dataclass
class Mixed:
    a: Struct
    b: Pydantic


@pytest.mark.parametrize("annotation", [WithArray, DataWithArray, Mixed, dict | Struct])
def test_what_cannot_be_made_of_json_is_a_type_error(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"^The payload of predict of model 'm' ") as caught:
        declared_for(annotation)
    assert "\n" not in str(caught.value)


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("annotation", [Data, Typed, list[Data], dict[str, Typed]])
def test_without_either_library_both_are_named(
    annotation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "msgspec", "pydantic")
    with pytest.raises(
        TypeError, match=r"msgspec.*pydantic.*: pip install 'modelserve\[inputs\]'$"
    ):
        declared_for(annotation)


@pytest.mark.parametrize("kind", [Data, Typed])
def test_without_msgspec_pydantic_reads_plain_classes(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "msgspec")
    assert declared_for(kind).convert({"age": "3"}) == kind(age=3)


class Base(typing.TypedDict):
    age: int


class Standard(Base, total=False):
    inner: list[Base] | None
    notes: Annotated[dict[str, Base], "a note"]
    limit: Required[typing.Annotated[int, "a note"]]
    later: "Standard"


class Plain(Base, total=False):
    """One that does not contain itself, which pydantic reads in Python 3.11 too."""

    inner: list[Base] | None
    notes: Annotated[dict[str, Base], "a note"]
    limit: Required[typing.Annotated[int, "a note"]]


@pytest.mark.parametrize("library", ["msgspec", "pydantic"])
@pytest.mark.parametrize(
    "wrap", [lambda kind: kind, lambda kind: list[kind], lambda kind: kind | None]
)
def test_the_standard_library_s_typed_dict_is_read_by_both(
    library: str, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "pydantic":
        hide(monkeypatch, "msgspec")
    found = declared_for(wrap(Standard if library == "msgspec" else Plain))
    document: Any = {"age": 1, "limit": 2, "inner": [{"age": 3}], "notes": {"a": {"age": 4}}}
    listed = wrap(Standard) == list[Standard]
    assert found.convert([document] if listed else document) in (document, [document])
    for key in ("age", "limit"):
        wrong = {name: value for name, value in document.items() if name != key}
        with pytest.raises(ValueError, match=rf"{key}: Field required$"):
            found.convert([wrong] if listed else wrong)
    with pytest.raises(ValueError, match=r"inner\[0\].age"):
        wrong = document | {"inner": [{"age": "x"}]}
        found.convert([wrong] if listed else wrong)


def test_constraints_of_pydantic_in_a_dataclass_are_pydantics() -> None:
    @dataclasses.dataclass
    class Small:
        age: Annotated[int, pydantic.Field(lt=5)]

    @dataclasses.dataclass
    class Positive:
        age: pydantic.PositiveInt

    @dataclasses.dataclass
    class Defaulted:
        age: int = pydantic.Field(5, lt=5)

    for kind in (Small, Positive, Defaulted):
        with pytest.raises(ValueError, match=r"^age: Input should be "):
            declared_for(kind).convert({"age": 5 if kind is not Positive else -1})


# --- input_schema -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.anyio
async def test_an_input_schema_of_a_class_is_enforced(kind: Any) -> None:
    hook = hook_for(Any)
    good = await post(hook, {"age": 1, "more": 2}, input_schema=kind)
    assert (good.status, hook.seen) == (200, [{"age": 1, "more": 2}])
    bad = await post(hook, {"age": "x"}, input_schema=kind)
    assert (bad.status, bad.json()["error"].partition(":")[0]) == (400, "age")
    assert len(hook.seen) == 1


@pytest.mark.anyio
async def test_an_input_schema_says_nothing_of_v2_and_is_less_than_an_annotation() -> None:
    hook = hook_for(Any)
    app = ModelServer([model_for(predict=hook, input_schema=Struct)])
    infer = {"inputs": [{"name": "a", "shape": [1], "datatype": "INT32", "data": [1]}]}
    await request(app, "POST", "/v2/models/m/infer", json=infer)
    assert isinstance(hook.seen[0], InferRequest)
    annotated = hook_for(Struct)
    assert (await post(annotated, {"age": 1}, input_schema=Cat)).status == 200
    assert annotated.seen == [Struct(1)]


@pytest.mark.anyio
async def test_an_input_schema_that_is_a_dict_documents_only() -> None:
    schema = {"type": "object", "required": ["age"]}
    assert (await post(hook_for(Any), {}, input_schema=schema)).status == 200


@pytest.mark.anyio
async def test_a_verb_that_the_model_lacks_is_501_with_a_schema_too() -> None:
    app = ModelServer([model_for(predict=hook_for(Any), input_schema=Struct)])
    assert (await request(app, "POST", "/v1/models/m:explain", json={})).status == 501


@pytest.mark.parametrize("schema", [5, "Struct", int, list[int]])
def test_an_input_schema_of_another_kind_is_a_type_error(schema: Any) -> None:
    with pytest.raises(TypeError, match=r"^The input_schema of model 'm' must be a JSON Schema"):
        ModelServer([model_for(predict=hook_for(Any), input_schema=schema)])


# --- where models are registered ------------------------------------------------------------------


@pytest.mark.anyio
async def test_functions_objects_and_classes_may_declare() -> None:
    app = ModelServer()

    @app.model("function")
    def function(instances: list[Struct]) -> list[int]:
        return [item.age for item in instances]

    @app.model("class")
    class Registered(Model):
        async def predict(self, payload: Pydantic) -> Pydantic:
            return payload

    class Object:
        input_schema = Struct

        def predict(self, payload: Any) -> Any:
            return payload

    app.add_model(Object(), "object")
    async with lifespan(app):
        answers = [
            await request(app, "POST", f"/v1/models/{name}:predict", json=payload)
            for name in ("function", "class", "object")
            for payload in ({"instances": [{"age": 1}], "age": 2}, {})
        ]
    assert [answer.status for answer in answers] == [200, 400] * 3
    assert answers[0].json() == {"predictions": [1]}
    assert answers[2].json() == {"age": 2, "name": "nobody"}


@pytest.mark.parametrize("kind", [Struct, Pydantic, Data])
def test_an_object_of_the_type_is_taken_as_it_is(kind: Any) -> None:
    item = kind(age=1)
    assert declared_for(kind).convert(item) is item
    assert declared_for(list[kind], "instances").convert({"instances": [item]}) == [item]
    with pytest.raises(ValueError, match=r"^Expected a JSON document"):
        declared_for(kind).convert(object())


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"5", b'{"age": 1}', b"[", b"\x00", b""])
@pytest.mark.parametrize(
    ("annotation", "is_bytes"),
    [
        (bytes, True),
        (Annotated[memoryview, "a note"], True),
        (bytes | Struct, True),
        (Pydantic | InferRequest | bytes, True),
        (dict | None, False),
        (Any, False),
        (list[bytes], False),
    ],
)
async def test_octets_are_bytes_for_a_hook_that_takes_bytes(
    annotation: Any, is_bytes: bool, body: bytes
) -> None:
    hook = hook_for(annotation)
    app = ModelServer([model_for(predict=hook)])
    octets = {"content-type": "application/octet-stream; version=1"}
    await request(app, *PREDICT, body=body, headers=octets)
    assert not is_bytes or hook.seen == [body]
    if body == b"5":
        await request(app, *PREDICT, body=body)
        assert hook.seen[1:] in ([5], [])  # without a type, it is the JSON that it may be
        assert is_bytes or hook.seen in ([5, 5], [])


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [*ITEMS, typing.TypedDict("Own", {"age": int})])
async def test_a_body_that_is_no_json_is_refused_for_every_kind_of_class(kind: Any) -> None:
    app = ModelServer([model_for(predict=hook_for(kind))])
    answer = await request(app, *PREDICT, body=b"x", headers={"content-type": "text/plain"})
    assert (answer.status, answer.json()) == (
        400,
        {"error": "Expected a JSON document, not bytes"},
    )


@pytest.mark.anyio
async def test_octets_are_bytes_whatever_json_they_would_be() -> None:
    hook = hook_for(bytes)
    app = ModelServer([model_for(predict=hook, limits=Limits(max_json_values=10))])
    octets = {"content-type": "application/octet-stream"}
    body = json.dumps([1] * 100_000).encode()
    assert (await request(app, *PREDICT, body=body, headers=octets)).status == 200
    assert hook.seen == [body]


@pytest.mark.anyio
async def test_what_is_declared_may_be_given_where_a_model_is_registered() -> None:
    app = ModelServer()

    @app.model("m", example={"age": 1}, input_schema=Struct, output_schema={"type": "object"})
    def predict(payload: Any) -> Any:
        return payload

    assert (await request(app, *PREDICT, json={"age": 1})).json() == {"age": 1}
    assert (await request(app, *PREDICT, json={"age": "x"})).status == 400


@pytest.mark.anyio
async def test_cloudevents_and_generate_are_documents_too() -> None:
    class Prompt(msgspec.Struct):
        text_input: str

    async def predict(payload: Prompt) -> str:
        return payload.text_input.upper()

    app = ModelServer([model_for(predict=predict)])
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "a", "ce-type": "b"}
    answer = await request(app, *PREDICT, json={"text_input": "a"}, headers=event)
    assert (answer.status, answer.body) == (200, b"A")
    refused = await request(app, *PREDICT, json={"text_input": 5}, headers=event)
    assert refused.status == 400
    generated = await request(app, "POST", "/v2/models/m/generate", json={"text_input": "a"})
    assert generated.json()["text_output"] == "A"
