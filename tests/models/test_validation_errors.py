"""What a client is told of a payload that is not as declared: the place, and never a value."""

import copy
import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired

import msgspec
import pydantic
import pydantic.v1
import pytest
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from modelserve import InvalidInput, Model, ModelServer
from modelserve.models.hooks import plans_of
from modelserve.models.validation_errors import as_mistake
from modelserve.testing import request

PREDICT = ("POST", "/v1/models/m:predict")
TEXT = "Canary-7Q3xZ"
NUMBER = 77341
CANARIES = (TEXT.lower(), str(NUMBER), TEXT.lower()[:8])


class Color(enum.Enum):
    RED = "red"


class Typed(TypedDict):
    a: int
    b: NotRequired[dict[str, float]]


@dataclasses.dataclass
class Data:
    n: int
    when: datetime.datetime | None = None


class Cat(msgspec.Struct, tag="cat"):
    lives: Annotated[int, msgspec.Meta(le=9)]


class Dog(msgspec.Struct, tag="dog", forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-z]+$", max_length=5)]


class Struct(msgspec.Struct, forbid_unknown_fields=True):
    n: int
    pets: list[Cat | Dog]
    by_day: dict[datetime.date, list[decimal.Decimal]]
    color: Color
    literal: Literal["x", "y"]
    blob: bytes
    id: uuid.UUID
    data: Data
    typed: Typed
    pair: tuple[int, str]
    either: int | list[float] | None = None

    def __post_init__(self) -> None:
        if self.n > 9 or self.pair[1] != "p":
            raise ValueError(f"n is {self.n}, the pair {self.pair!r}: {self.pair[1][:10]!r}")


class PCat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, pydantic.Field(le=9)]


class PDog(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["dog"]
    name: Annotated[str, pydantic.Field(pattern="^[a-z]+$", max_length=5)]


class Model_(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    n: int
    pets: list[Annotated[PCat | PDog, pydantic.Field(discriminator="kind")]]
    loose: list[PCat | PDog | int]
    by_day: dict[datetime.date, list[decimal.Decimal]]
    color: Color
    literal: Literal["x", "y"]
    blob: pydantic.Base64Bytes
    id: uuid.UUID
    url: pydantic.HttpUrl
    data: Data
    typed: Typed
    pair: tuple[int, str]
    name: str
    code: str = pydantic.Field(alias="the code")
    nested: pydantic.Json[list[int]]
    either: int | list[float] | None = None

    @pydantic.field_validator("name")
    @classmethod
    def check_name(cls, value: str, info: pydantic.ValidationInfo) -> str:
        if value != "ok":
            raise ValueError(f"{value.upper()} does not go with {info.data}")
        return value

    @pydantic.field_validator("code")
    @classmethod
    def check_code(cls, value: str) -> str:
        if value != "ok":
            raise PydanticCustomError("code", "{value} is no code", {"value": value})
        return value

    @pydantic.model_validator(mode="before")
    @classmethod
    def look(cls, document: Any) -> Any:
        assert not isinstance(document, dict) or TEXT not in document, f"{document} is wrong"
        return document


SHARED = {
    "n": 1,
    "by_day": {"2026-01-02": ["1.5", 2]},
    "color": "red",
    "literal": "x",
    "blob": "Zm9v",
    "id": "12345678-1234-5678-1234-567812345678",
    "data": {"n": 1, "when": "2026-01-02T03:04:05Z"},
    "typed": {"a": 1, "b": {"k": 1.5}},
    "pair": [1, "p"],
    "either": [1.5],
}
OF_MSGSPEC = SHARED | {
    "pets": [{"type": "cat", "lives": 9}, {"type": "dog", "name": "rex"}],
}
OF_PYDANTIC = SHARED | {
    "pets": [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": "rex"}],
    "loose": [{"kind": "cat", "lives": 9}, 5],
    "url": "https://example.org/",
    "name": "ok",
    "the code": "ok",
    "nested": "[1, 2]",
}
KINDS = [(Struct, OF_MSGSPEC), (Model_, OF_PYDANTIC)]
ODD = [
    TEXT,
    NUMBER,
    NUMBER + 0.5,
    -NUMBER,
    [TEXT],
    {TEXT: TEXT},
    {TEXT: NUMBER},
    [[NUMBER]],
    f'["{TEXT}"]',
    f"2026-{NUMBER}-{TEXT}",
    TEXT * 1000,
    f"a - at `${TEXT}`",
    {f"a` - at `${TEXT}": 1},
    [{"kind": TEXT, "type": TEXT, "name": TEXT}],
    {"kind": "dog", "type": "dog", "name": TEXT, TEXT: NUMBER},
    None,
]


def mutants(document: Any) -> Iterator[Any]:
    """Yield copies of a document with something odd in each place of it."""
    for path in places(document):
        for odd in ODD:
            yield changed(document, path, odd)
        for key in (TEXT, f"a` - at `${TEXT}"):
            yield changed(document, path, None, key=key)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value if isinstance(value, dict | list) else ()
    items = children.items() if isinstance(children, dict) else enumerate(children)
    for key, child in items:
        yield from places(child, (*path, key))


def changed(document: Any, path: tuple[Any, ...], odd: Any, key: Any = None) -> Any:
    """Put something into a place, or add it to the object that is there under a key."""
    if not path:
        return odd if key is None else {**document, key: odd}
    whole = copy.deepcopy(document)
    at = whole
    for part in path[:-1]:
        at = at[part]
    if key is None:
        at[path[-1]] = odd
    elif isinstance(at[path[-1]], dict):
        at[path[-1]][key] = odd
    elif isinstance(at, dict):  # the key itself is odd
        at[key] = at.pop(path[-1])
    return whole


def refusal(convert: Any, document: Any) -> str | None:
    try:
        convert(document)
    except InvalidInput as exc:
        return str(exc)
    return None


def declared_of(annotation: Any, name: str = "payload") -> Any:
    def predict(payload: Any) -> Any: ...
    def of_instances(instances: Any) -> Any: ...

    hook: Any = of_instances if name == "instances" else predict
    hook.__annotations__[name] = annotation
    model = Model("m")
    vars(model).update(predict=hook)
    return plans_of(model)["predict"].declared


@pytest.mark.parametrize(("kind", "document"), KINDS)
def test_no_value_of_the_request_is_in_any_answer(kind: Any, document: Any) -> None:
    payload, instances = declared_of(kind), declared_of(list[kind], "instances")
    assert refusal(payload.convert, document) is None
    refused = 0
    for mutant in mutants(document):
        said = [
            refusal(payload.convert, mutant),
            refusal(instances.convert, {"instances": [document, mutant]}),
        ]
        for sentence in filter(None, said):
            refused += 1
            assert not any(canary in sentence.lower() for canary in CANARIES), (mutant, sentence)
            assert len(sentence) < 1000
    assert refused > 500


@pytest.mark.parametrize(("kind", "document"), KINDS)
def test_nor_in_that_of_a_preprocess_that_validates(kind: Any, document: Any) -> None:
    refused = 0
    for mutant in mutants(document):
        try:
            if kind is Struct:
                msgspec.convert(mutant, Struct, str_keys=True)
            else:
                Model_.model_validate(mutant)
        except Exception as exc:
            mistake = as_mistake(exc, {"instances": [mutant]})
            assert mistake is not None, exc
            refused += 1
            assert not any(canary in str(mistake).lower() for canary in CANARIES), (mutant, mistake)
    assert refused > 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("must be even", True),
        ("n must be even", True),  # a declared name
        ("must not be 3", False),
        ("must not be three, which it is", True),
        ("the note says 'hello there'", False),
        ("the note says HELLO THERE", False),
        ("the note begins with 'hello th'", False),
        ("the short one is ab!", False),
    ],
)
@pytest.mark.parametrize("library", ["pydantic", "msgspec"])
def test_an_author_s_text_is_told_where_it_holds_no_value(
    library: str, text: str, told: bool
) -> None:
    class Raises(pydantic.BaseModel):
        n: int
        note: str
        short: str

        @pydantic.model_validator(mode="after")
        def check(self) -> Any:
            raise ValueError(text)

    class RaisesToo(msgspec.Struct):
        n: int
        note: str
        short: str

        def __post_init__(self) -> None:
            raise ValueError(text)

    kind: Any = Raises if library == "pydantic" else RaisesToo
    document = {"n": 3, "note": "hello there", "short": "ab!"}
    said = refusal(declared_of(list[kind]).convert, [document])
    assert said == "[0]: " + (text if told else "Value is not valid")


def test_a_long_text_of_an_author_is_not_told() -> None:
    class Raises(msgspec.Struct):
        n: int

        def __post_init__(self) -> None:
            raise ValueError("long " * 1_000_000)

    assert refusal(declared_of(Raises).convert, {"n": 5}) == "payload: Value is not valid"


def test_an_invalid_input_of_a_validator_is_told_as_it_is() -> None:
    class Raises(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            raise InvalidInput(f"{value} is not for us")

    assert refusal(declared_of(Raises).convert, {"n": 5}) == "n: 5 is not for us"


def test_a_request_too_large_to_be_looked_through_is_told_less() -> None:
    class Raises(pydantic.BaseModel):
        words: list[str]

        @pydantic.model_validator(mode="after")
        def check(self) -> Any:
            raise ValueError("must be even")

    convert = declared_of(list[Raises], "instances").convert
    large = {"words": ["word"] * 50_000}
    assert refusal(convert, {"instances": [large]}) == "instances[0]: Value is not valid"
    small = {"instances": [{"words": []}, large]}
    assert refusal(convert, small) == "instances[0]: must be even"


# --- validation in preprocess, and in other hooks --------------------------------------------------


class Item(pydantic.BaseModel):
    age: int
    inner: dict[str, "Item"] = {}


class Row(msgspec.Struct):
    age: int


class Old(pydantic.v1.BaseModel):
    age: int


def with_model_validate(payload: Any) -> Any:
    return [Item.model_validate(item) for item in payload["instances"]]


def with_adapter(payload: Any) -> Any:
    return pydantic.TypeAdapter(list[Item]).validate_python(payload["instances"])


def with_constructor(payload: Any) -> Any:
    return [Item(**item) for item in payload["instances"]]


def with_convert(payload: Any) -> Any:
    return msgspec.convert(payload["instances"], list[Row])


def with_old_pydantic(payload: Any) -> Any:
    return [Old(**item) for item in payload["instances"]]


async def in_a_group(payload: Any) -> Any:
    try:
        return with_convert(payload)
    except Exception as exc:
        raise ExceptionGroup("of a task group", [exc]) from None


INTEGER = "Input should be a valid integer, unable to parse string as an integer"


@pytest.mark.parametrize(
    ("preprocess", "sentence"),
    [
        (with_model_validate, f"age: {INTEGER}"),
        (with_adapter, f"[1].age: {INTEGER}"),
        (with_constructor, f"age: {INTEGER}"),
        (with_convert, "[1].age: Expected `int`, got `str`"),
        (with_old_pydantic, "payload: value is not a valid integer"),
        (in_a_group, "[1].age: Expected `int`, got `str`"),
    ],
)
@pytest.mark.anyio
async def test_what_preprocess_finds_wrong_is_a_400_and_what_others_find_a_500(
    preprocess: Any, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    payload = {"instances": [{"age": 1}, {"age": TEXT}]}
    model = Model("m")
    vars(model).update(preprocess=preprocess, predict=lambda payload: 1)
    refused = await request(ModelServer([model]), *PREDICT, json=payload)
    assert (refused.status, refused.json()) == (400, {"error": sentence})
    assert not caplog.records

    other = Model("m")
    vars(other).update(predict=preprocess)
    failed = await request(ModelServer([other]), *PREDICT, json=payload)
    assert (failed.status, failed.json()) == (500, {"error": "Internal Server Error"})
    [record] = caplog.records
    assert "InvalidInput" in record.getMessage()


@pytest.mark.anyio
async def test_keys_that_no_model_declares_are_not_told() -> None:
    model = Model("m")
    vars(model).update(preprocess=Item.model_validate, predict=lambda payload: 1)
    payload = {"age": 1, "inner": {TEXT: {"age": TEXT}}}
    refused = await request(ModelServer([model]), *PREDICT, json=payload)
    assert refused.status == 400
    assert TEXT.encode() not in refused.body


@pytest.mark.anyio
async def test_debugging_shows_the_text_of_the_exception() -> None:
    for hook in ("preprocess", "predict"):
        model = Model("m")
        vars(model).update({"predict": lambda payload: 1, hook: Item.model_validate})
        app = ModelServer([model], debug=True)
        shown = (await request(app, *PREDICT, json={"age": TEXT})).json()["error"]
        assert TEXT in shown
        assert "1 validation error for Item" in shown


@pytest.mark.anyio
async def test_an_exception_of_a_validator_that_is_no_error_of_validation_is_a_500() -> None:
    class Raises(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            raise KeyError(value)

    def predict(payload: Raises) -> Any: ...

    model = Model("m")
    vars(model).update(predict=predict)
    assert (await request(ModelServer([model]), *PREDICT, json={"n": 1})).status == 500


def test_other_exceptions_are_no_mistake_of_a_client() -> None:
    class ValidationError(Exception):
        pass

    for exc in (ValueError("x"), KeyError("x"), ValidationError("x"), msgspec.DecodeError("x")):
        assert as_mistake(exc, {}) is None
    try:
        msgspec.json.decode(b'"' + json.dumps(TEXT).encode())
    except msgspec.DecodeError as exc:
        assert as_mistake(exc, {}) is None
