"""The commonest check of a V1 payload."""

from typing import Any, Final, TypeVar, overload

from modelserve.errors import InvalidInput

__all__ = ["instances", "name_of_kind"]

T = TypeVar("T")

_NAMES: Final[dict[Any, str]] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
    type(None): "null",
}


@overload
def instances(payload: Any, *, at_least: int = 0) -> list[Any]: ...
@overload
def instances(payload: Any, of: type[T], *, at_least: int = 0) -> list[T]: ...
@overload
def instances(payload: Any, of: tuple[type, ...], *, at_least: int = 0) -> list[Any]: ...


def instances(payload: Any, of: Any = object, *, at_least: int = 0) -> list[Any]:
    """Return the `instances` of a V1 payload; raise InvalidInput, a 400, where there are none.

    Args:
        payload: As a hook is given it.
        of: What each instance must be, as with `isinstance`; `float` takes integers too, and only
            `bool` takes true and false.
        at_least: How many there must be.
    """
    if not isinstance(payload, dict):
        found = name_of_kind(payload)
        raise InvalidInput(f'Expected a JSON object with "instances", not {found}')
    if "instances" not in payload:
        raise InvalidInput('Expected "instances" in the request')
    items = payload["instances"]
    if not isinstance(items, list):
        raise InvalidInput('Expected "instances" to be a list')
    if len(items) < at_least:
        raise InvalidInput(f'Expected at least {at_least} in "instances", not {len(items)}')
    if of is not object:
        _check_each(items, of if isinstance(of, tuple) else (of,))
    return items


def name_of_kind(value: Any) -> str:
    """Name the JSON type of a value; for a hook's own objects, their class."""
    return _NAMES.get(type(value)) or f"a value of type {type(value).__name__}"


def _check_each(items: list[Any], kinds: tuple[type, ...]) -> None:
    taken = (*kinds, int) if float in kinds else kinds
    for index, item in enumerate(items):
        if not isinstance(item, taken) or (isinstance(item, bool) and bool not in kinds):
            expected = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise InvalidInput(f"Expected instances[{index}] to be {expected}")
