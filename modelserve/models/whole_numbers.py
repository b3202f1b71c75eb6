"""Whole numbers that clients write as `1.0`, where a model has declared integers. Pure.

In JSON Schema `1.0` is an integer, and some languages write integers so; msgspec, and pydantic's
strict models, take only `1`. https://json-schema.org/draft/2020-12/json-schema-core#section-4.2.2
"""

import re
from collections.abc import Callable
from typing import Any, Final

from modelserve.errors import NotAsDeclared

__all__ = ["taking_whole_floats"]

Validate = Callable[[Any, str], Any]

# The texts of msgspec and pydantic for a float where an integer was declared.
_IS_NO_INTEGER: Final = re.compile(r": Expected `[^`]*\bint\b[^`]*`, got `float`|a valid integer")
# A number with too many digits was rounded by the parser: that float is not what was sent.
_LOWEST: Final = -(2.0**63)
_HIGHEST: Final = 2.0**64


def taking_whole_floats(validate: Validate) -> Validate:
    """Return a validator that takes whole floats of 64 bits where integers are declared.

    If an integer is missing, all whole floats of that document become integers: what takes a float
    takes those too.
    """

    def taking(document: Any, place: str) -> Any:
        try:
            return validate(document, place)
        except NotAsDeclared as exc:
            if _IS_NO_INTEGER.search(str(exc)) is None:
                raise
            try:
                return validate(_whole(document), place)
            except (NotAsDeclared, RecursionError):
                raise exc from None

    return taking


def _whole(value: Any) -> Any:
    if isinstance(value, float):
        is_whole = value.is_integer() and _LOWEST < value < _HIGHEST
        return int(value) if is_whole else value
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value
