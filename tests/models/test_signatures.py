"""Which type the annotation of a payload names, wherever the class is known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Optional, TypeVar

import pytest

from modelserve import Model
from modelserve.models.signatures import UNKNOWN, payload_type, return_type

if TYPE_CHECKING:
    from nowhere import Missing

T = TypeVar("T")


@dataclass
class Item:
    age: int


@dataclass
class Box(Generic[T]):
    value: T


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def plain(payload: Item) -> list[Item]:
    raise NotImplementedError


def text_in_text(payload: "list['Item']") -> "Item":  # noqa: UP037 - what is tested
    raise NotImplementedError


def generic(payload: Box[Item]) -> None: ...
def optional(payload: Optional[Item] = None) -> None: ...  # noqa: UP045 - as some write it
def noted(payload: Annotated[Item, "a note"]) -> None: ...
def with_missing_headers(payload: Item, headers: Missing) -> Missing: ...
def missing(payload: Missing) -> None: ...
def missing_inside(payload: list[Missing]) -> None: ...
def no_type(payload: 3 + None) -> None: ...  # type: ignore[valid-type]
def headers_alone(headers: Item) -> None: ...
def nothing(payload) -> None: ...  # type: ignore[no-untyped-def]
def keyword(*, payload: Item) -> None: ...


@logged
def decorated(instances: list[Item]) -> Item:
    raise NotImplementedError


class Called:
    def __call__(self, payload: Item) -> None: ...


class Method:
    @dataclass
    class Inner:
        age: int

    def predict(self, payload: Item) -> None: ...
    def inner(self, payload: Inner) -> None: ...

    @logged
    def decorated(self, payload: Item) -> None: ...

    @staticmethod
    def static(payload: Item) -> None: ...

    @classmethod
    def class_(cls, payload: Item) -> None: ...


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plain, ("payload", Item)),
        (text_in_text, ("payload", list[Item])),
        (generic, ("payload", Box[Item])),
        (optional, ("payload", Optional[Item])),  # noqa: UP045
        (noted, ("payload", Annotated[Item, "a note"])),
        (with_missing_headers, ("payload", Item)),
        (decorated, ("instances", list[Item])),
        (functools.partial(plain), ("payload", Item)),
        (functools.partial(lambda extra, payload: None, 1), ("payload", UNKNOWN)),
        (Called(), ("payload", Item)),
        (Method().predict, ("payload", Item)),
        (Method().inner, ("payload", Method.Inner)),
        (Method().decorated, ("payload", Item)),
        (Method.static, ("payload", Item)),
        (Method.class_, ("payload", Item)),
        (missing, ("payload", UNKNOWN)),
        (missing_inside, ("payload", UNKNOWN)),
        (no_type, ("payload", UNKNOWN)),
        (nothing, ("payload", UNKNOWN)),
        (headers_alone, ("", UNKNOWN)),
        (keyword, ("", UNKNOWN)),
        (print, ("", UNKNOWN)),
        (dict, ("", UNKNOWN)),
        (5, ("", UNKNOWN)),
    ],
)
def test_what_the_payload_is_annotated_with(function: Any, expected: tuple[str, Any]) -> None:
    assert payload_type(function) == expected


def test_a_class_of_the_function_around_is_found() -> None:
    @dataclass
    class Local:
        age: int

    def predict(payload: Local) -> list[Local]:
        raise NotImplementedError

    class Served(Model):
        def predict(self, payload: list[Local]) -> Any: ...

    assert payload_type(predict) == ("payload", Local)
    assert payload_type(Served("m").predict) == ("payload", list[Local])
    assert return_type(predict) == list[Local]

    def further_in() -> Any:
        return payload_type(predict)

    assert further_in() == ("payload", Local)


def test_a_name_that_cannot_be_found_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "modelserve")
    payload_type(missing)
    [record] = caplog.records
    assert "missing" in record.getMessage()
    assert "'Missing' is not defined" in record.getMessage()


def make() -> Any:
    @dataclass
    class Local:
        age: int

    def predict(payload: Local) -> None: ...
    def uses(payload: Local) -> Any:
        return Local

    return Local, predict, uses


def test_a_class_of_a_function_that_has_ended_is_found_where_the_hook_uses_it() -> None:
    local, predict, uses = make()
    assert payload_type(predict) == ("payload", UNKNOWN)
    assert payload_type(uses) == ("payload", local)


def test_a_class_of_a_function_of_the_same_name_is_another() -> None:
    _, predict, _ = make()

    def make_() -> Any:
        class Local: ...

        return Local, payload_type(predict)

    assert make_()[1] == ("payload", UNKNOWN)


def test_what_was_found_once_is_found_again_without_the_frames() -> None:
    def register() -> Any:
        class Local: ...

        def predict(payload: Local) -> None: ...

        payload_type(predict)
        return Local, predict

    local, predict = register()
    assert payload_type(predict) == ("payload", local)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plain, list[Item]),
        (text_in_text, Item),
        (decorated, Item),
        (generic, type(None)),
        (with_missing_headers, UNKNOWN),
        (lambda payload: None, UNKNOWN),
        (print, UNKNOWN),
        (5, UNKNOWN),
    ],
)
def test_what_a_hook_says_that_it_returns(function: Any, expected: Any) -> None:
    assert return_type(function) == expected
