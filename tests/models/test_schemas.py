"""The JSON Schemas of what a model has declared."""

import dataclasses
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import numpy as np
import pydantic
import pytest

from modelserve import Model
from modelserve.models.hooks import plans_of
from modelserve.models.schemas import input_schema, output_schema


class Struct(msgspec.Struct):
    age: int


class Inner(pydantic.BaseModel):
    age: int


class Outer(pydantic.BaseModel):
    inner: Inner


@dataclasses.dataclass
class Data:
    age: int


@dataclasses.dataclass
class OnDisk:
    """msgspec does not know paths."""

    path: pathlib.Path


AGE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def payload_of_struct(payload: Struct) -> Struct: ...  # type: ignore[empty-body]
def payload_of_outer(payload: Outer) -> Outer: ...  # type: ignore[empty-body]
def payload_on_disk(payload: OnDisk) -> None: ...
def list_of_data(payload: list[Data]) -> list[Data]: ...  # type: ignore[empty-body]
def instances_of_struct(instances: list[Struct]) -> list[Outer]: ...  # type: ignore[empty-body]
def instances_of_numbers(instances: list[float]) -> list[float]: ...  # type: ignore[empty-body]
def iterates(payload: AsyncIterator[Struct]) -> AsyncIterator[Data]: ...  # type: ignore[empty-body]
def yields(payload: dict[str, Any]) -> Iterator[Outer]: ...  # type: ignore[empty-body]
def says_nothing(payload: dict[str, Any]) -> dict[str, Any]: ...  # type: ignore[empty-body]
def says_arrays(payload: np.ndarray) -> np.ndarray: ...  # type: ignore[empty-body, type-arg]


def schemas(function: Any, **attributes: Any) -> tuple[Any, Any]:
    model = Model("m")
    vars(model).update(predict=function, **attributes)
    plan = plans_of(model)["predict"]
    return input_schema(model, plan), output_schema(model, plan)


def resolved(schema: Any, whole: Any = None) -> Any:
    """Put what is referred to in its place; drop titles, which the libraries choose."""
    whole = whole or schema
    if isinstance(schema, list):
        return [resolved(part, whole) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole)
    hidden = ("$defs", "title", "description")
    return {key: resolved(value, whole) for key, value in schema.items() if key not in hidden}


def of(name: str, item: Any) -> Any:
    listed = {name: {"type": "array", "items": item}}
    return {"type": "object", "properties": listed, "required": [name]}


OUTER = {"type": "object", "properties": {"inner": AGE}, "required": ["inner"]}


@pytest.mark.parametrize(
    ("function", "taken", "given"),
    [
        (payload_of_struct, AGE, AGE),
        (payload_of_outer, OUTER, OUTER),
        (list_of_data, {"type": "array", "items": AGE}, {"type": "array", "items": AGE}),
        (instances_of_struct, of("instances", AGE), of("predictions", OUTER)),
        (
            instances_of_numbers,
            of("instances", {"type": "number"}),
            of("predictions", {"type": "number"}),
        ),
        (iterates, of("instances", AGE), of("predictions", AGE)),
        (yields, None, of("predictions", OUTER)),
        (says_nothing, None, None),
        (says_arrays, None, None),
        (lambda payload: None, None, None),
    ],
)
def test_what_is_declared_has_a_schema_that_stands_on_its_own(
    function: Any, taken: Any, given: Any
) -> None:
    found = schemas(function)
    assert (resolved(found[0]), resolved(found[1])) == (taken, given)


def test_a_type_that_msgspec_does_not_know_has_pydantics_schema() -> None:
    properties = schemas(payload_on_disk)[0]["properties"]
    assert properties["path"] | {"title": "Path"} == {
        "format": "path",
        "title": "Path",
        "type": "string",
    }


def test_a_schema_that_is_given_is_the_schema() -> None:
    taken, given = {"type": "object", "minProperties": 1}, {"type": "array"}
    assert schemas(says_nothing, input_schema=taken, output_schema=given) == (taken, given)
    found = schemas(says_nothing, input_schema=Struct, output_schema=list[Data])
    assert (resolved(found[0]), resolved(found[1])) == (AGE, {"type": "array", "items": AGE})


def test_an_annotation_beats_a_schema_of_the_input() -> None:
    assert resolved(schemas(payload_of_struct, input_schema=Outer)[0]) == AGE
    assert resolved(schemas(payload_of_struct, output_schema=Outer)[1]) == OUTER


class Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    size: int = pydantic.Field(alias="theSize")


class Answer(pydantic.BaseModel):
    score: float = pydantic.Field(alias="theScore")
    part: Part

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> float:
        return 2 * self.score


def test_the_schema_of_an_answer_has_the_names_that_are_written() -> None:
    def predict(payload: Answer) -> Answer: ...  # type: ignore[empty-body]

    taken, given = map(resolved, schemas(predict))
    written = Answer(theScore=0.5, part=Part(theSize=1)).model_dump()
    assert sorted(given["properties"]) == sorted(given["required"]) == sorted(written)
    assert list(given["properties"]["part"]["properties"]) == list(written["part"]) == ["theSize"]
    assert taken["required"] == ["theScore", "part"]


def test_a_class_without_a_schema_has_none() -> None:
    class Odd(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        array: np.ndarray  # type: ignore[type-arg]

    def predict(payload: Odd) -> Odd: ...  # type: ignore[empty-body]

    assert schemas(predict) == (None, None)
