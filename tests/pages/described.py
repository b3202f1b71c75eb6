"""Models of every kind, which take whatever their documents say and answer as these say."""

import dataclasses
import datetime
import enum
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
from starlette.datastructures import FormData

from modelserve import (
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Model,
    ModelServer,
)


class House(msgspec.Struct):
    rooms: int
    area: float
    name: str | None = None


class Cat(msgspec.Struct, tag="cat", forbid_unknown_fields=True):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    good: bool


class Color(enum.Enum):
    RED = "red"


class Varied(msgspec.Struct, rename="camel"):
    a_pair: tuple[int, str]
    many: set[int]
    pet: Cat | Dog
    color: Color
    either: Literal["a", "b"] | None
    number: uuid.UUID
    day: datetime.date
    few: Annotated[int, msgspec.Meta(ge=0, le=10)] = 3
    name: Annotated[str, msgspec.Meta(min_length=2, max_length=3)] = "ab"


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    rooms: int = pydantic.Field(ge=1)
    area: float
    tags: list[str] = []
    inner: "Strict | None" = None


class Lenient(pydantic.BaseModel):
    rooms: int
    area: float


@dataclasses.dataclass
class Point:
    x: int
    weights: dict[str, float]


class Row(TypedDict):
    x: float
    y: list[int]


def anything(payload: Any) -> Any:
    """Answer with the payload; bytes and forms, which JSON does not have, are told apart."""
    if isinstance(payload, bytes):
        return {"bytes": len(payload)}
    return {"fields": [*payload]} if isinstance(payload, FormData) else {"predictions": payload}


async def streamed(payload: Any) -> AsyncIterator[Any]:
    yield anything(payload)
    yield {"item": 2}


async def words(payload: Any) -> AsyncIterator[str]:
    yield "one "
    yield "two"


def structs(instances: list[House]) -> list[float]:
    return [house.area for house in instances]


async def strict(payload: Strict) -> Strict:
    return payload


async def varied(payload: Varied) -> Varied:
    return payload


async def lenient(payload: Lenient) -> Lenient:
    return payload


def point(payload: Point) -> Point:
    return payload


def rows(instances: list[Row]) -> list[Row]:
    return instances


def either(payload: House | bytes) -> dict[str, Any]:
    return {"is_house": isinstance(payload, House)}


async def one_by_one(payload: AsyncIterator[House]) -> AsyncIterator[float]:
    async for house in payload:
        yield house.area


def pieces(payload: Iterator[bytes]) -> Iterator[bytes]:
    for piece in payload:
        if not isinstance(piece, bytes):
            raise InvalidInput("Expected bytes")
        yield piece


def size(payload: bytes) -> dict[str, int]:
    if not isinstance(payload, bytes):
        raise InvalidInput("Expected bytes")
    return {"size": len(payload)}


def fields(payload: FormData) -> dict[str, Any]:
    return {"fields": [*payload]}


class Checked(Model):
    input_schema = House
    example = {"instances": [], "rooms": 3, "area": 70.5}  # noqa: RUF012

    def predict(self, payload: Any) -> Any:
        return {"predictions": [payload["rooms"]]}


class Explained(Model):
    def explain(self, payload: Any) -> Any:
        return anything(payload)


class Tensors(Model):
    versions = ("1", "b c")

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "FP32", "shape": [-1]}]

    async def predict(self, payload: InferRequest) -> InferResponse:
        outputs = [InferOutput(t.name, t.shape, t.datatype, t.data) for t in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)


class Language(Model):
    example = {"text_input": "Hello"}  # noqa: RUF012

    async def predict(self, payload: Any) -> AsyncIterator[str]:
        yield "Hello"

    async def chat(self, request: Any) -> AsyncIterator[str]:
        yield "Hello"

    async def complete(self, request: Any) -> str:
        return "Hello"

    async def embed(self, request: Any) -> list[list[float]]:
        texts = request["input"]
        return [[0.1, 0.2]] * (1 if isinstance(texts, str) else len(texts))


class Embedding(Model):
    async def embed(self, request: Any) -> list[list[float]]:
        texts = request["input"]
        return [[0.1]] * (1 if isinstance(texts, str) else len(texts))


FUNCTIONS = {
    "anything": anything,
    "streamed": streamed,
    "words": words,
    "structs": structs,
    "strict": strict,
    "varied": varied,
    "lenient": lenient,
    "point": point,
    "rows": rows,
    "either": either,
    "one_by_one": one_by_one,
    "pieces": pieces,
    "size": size,
    "fields": fields,
    "a b/{é}?#": anything,
}

app = ModelServer(
    [Checked("checked"), Explained("explained"), Tensors("tensors")],
    aliases={"/score": "/v1/models/anything:predict"},
)
for _model in (Language("language"), Embedding("embedding")):
    app.add_model(_model)
for _name, _function in FUNCTIONS.items():
    app.add_model(_function, _name)

guarded = ModelServer(
    [Tensors("tensors"), Language("language")], token="secret", prefix="/below", control=False
)
guarded.add_model(structs, "structs")
