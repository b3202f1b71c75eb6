"""Integers that are written as floats, in declared payloads."""

from typing import Annotated, Any

import msgspec
import pydantic
import pytest

from modelserve.errors import NotAsDeclared
from modelserve.models.validators import validator_of


class Struct(msgspec.Struct):
    rooms: int
    area: float = 0
    name: str | None = None


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    rooms: int
    area: float = 0
    name: str | None = None


@pytest.mark.parametrize("kind", [Struct, Strict])
@pytest.mark.parametrize("rooms", [1.0, -0.0, 1e3, -(2.0**62), 2.0**63])
def test_a_whole_float_is_an_integer(kind: Any, rooms: float) -> None:
    [made] = validator_of(list[kind], "It")([{"rooms": rooms, "area": 2.0}], "")
    assert (made.rooms, type(made.rooms), type(made.area)) == (int(rooms), int, float)


@pytest.mark.parametrize("kind", [Struct, Strict])
@pytest.mark.parametrize(
    ("mistake", "place"),
    [
        ({"rooms": 1.5}, "rooms"),
        ({"rooms": 1e300}, "rooms"),
        ({"rooms": 2.0**64}, "rooms"),  # orjson reads integers of more than 64 bits as floats
        ({"rooms": -(2.0**63)}, "rooms"),  # of one that was lower, it may be
        ({"rooms": "1"}, "rooms"),
        ({"rooms": True}, "rooms"),
        ({"rooms": 1.0, "name": 2.0}, "rooms|name"),
    ],
)
def test_what_is_no_integer_is_refused(kind: Any, mistake: Any, place: str) -> None:
    with pytest.raises(NotAsDeclared, match=place) as caught:
        validator_of(kind, "It")(mistake, "")
    assert "got `int`" not in str(caught.value)  # of a float it says that it is one


def test_limits_hold_for_them() -> None:
    validate = validator_of(Annotated[int, msgspec.Meta(ge=2)], "It")
    assert validate(2.0, "") == 2
    with pytest.raises(NotAsDeclared):
        validate(1.0, "")


def test_a_document_that_nests_too_deep_is_refused_as_it_was() -> None:
    deep: Any = 1.0
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(NotAsDeclared, match=r"rooms: Expected `int`, got `float`"):
        validator_of(Struct, "It")({"rooms": 1.5, "more": deep}, "")
