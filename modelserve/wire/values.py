"""Convert what models return to JSON's types: dict, list, str, numbers, true, false, null. Pure.

Values of other libraries are recognized by their methods and names; no library is imported.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import orjson

from modelserve.wire.unwritable import unwritable, unwritable_key

__all__ = ["JSON_OPTIONS", "is_missing", "to_builtin", "to_plain"]

JSON_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY

_MISSING: Final = frozenset({"NAType", "NaTType"})  # pandas'
# Methods that turn tables, columns and tensors into lists: polars', pyarrow's, and most others'.
_TO_LIST: Final = ("to_dicts", "to_pylist", "tolist", "to_list")
# pandas' values that have a text and no `isoformat`.
_TEXTS: Final = frozenset({"Period", "Interval"})


def is_missing(value: Any) -> bool:
    """Return whether a value means a missing one: None, NaN, pandas' NA and NaT, numpy's NaT."""
    if value is None or type(value).__name__ in _MISSING:
        return True
    if isinstance(value, float) or getattr(value, "shape", None) == ():
        return bool(value != value)  # noqa: PLR0124 (NaN and NaT differ from themselves)
    return False


def to_builtin(value: Any) -> Any:
    """Convert one value that orjson does not know; values inside of it may need further calls.

    Raises TypeError for a value that JSON does not have.
    """
    kind = type(value)
    if kind.__module__ == "numpy" and value.dtype.kind in "mM":
        return _time_of_numpy(value)
    for name in _TO_LIST:
        if hasattr(kind, name):
            plain = getattr(value, name)()
            return float(plain) if type(plain) is kind else plain  # numpy's longdouble
    if kind.__name__ in _MISSING:
        return None
    for types, convert in _CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    for names, convert in _BY_METHOD:
        if all(hasattr(kind, name) for name in names):
            return convert(value)
    if kind.__name__ in _TEXTS and kind.__module__.partition(".")[0] == "pandas":
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise unwritable(value)


def to_plain(value: Any) -> Any:
    """Convert a value and everything inside; keys become text, NaN and infinities null.

    Raises TypeError for a value that JSON does not have, RecursionError for deep nesting.
    """
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, dict):
        return {_key(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if not field.name.startswith("_")]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, orjson.Fragment):
        return orjson.loads(orjson.dumps(value))
    return to_plain(to_builtin(value))


def _key(key: Any) -> str:
    """Return a key as text, in the way that orjson writes the keys that it knows."""
    if type(key) is str:
        return key
    with suppress(orjson.JSONEncodeError):
        [text] = orjson.loads(orjson.dumps({key: None}, None, JSON_OPTIONS))
        return str(text)
    try:
        plain = to_plain(key)
    except TypeError:
        raise unwritable_key(key) from None
    if isinstance(plain, dict | list) or isinstance(key, tuple):
        raise unwritable_key(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _time_of_numpy(value: Any) -> Any:
    """Convert numpy's times, one or an array; `tolist` would make nanoseconds plain numbers."""
    if value.shape:
        return [_time_of_numpy(item) for item in value]
    if is_missing(value):
        return None
    if value.dtype.kind == "m":
        return _duration(value.astype("m8[us]").item())
    try:
        return orjson.loads(orjson.dumps(value, None, JSON_OPTIONS))
    except orjson.JSONEncodeError:
        return str(value)


def _duration(value: timedelta) -> str:
    """Return a duration in ISO 8601, as pandas writes it."""
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06}" if value.microseconds else ""
    return f"P{value.days}DT{hours}H{minutes}M{seconds}{fraction}S"


def _of_pydantic(value: Any) -> Any:
    try:
        return value.model_dump(mode="json")
    except ValueError:  # a field of a type that pydantic does not know
        return value.model_dump()


def _of_msgspec(value: Any) -> Any:
    """Return a Struct as msgspec writes it: renamed, tagged, without defaults if it omits them."""
    return sys.modules["msgspec"].to_builtins(value, enc_hook=to_builtin)


_CONVERSIONS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (tuple, list),  # a subclass, as the others here
    (float, float),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, _duration),
    (Decimal, str),
    (Mapping, dict),
)
_BY_METHOD: Final[tuple[tuple[tuple[str, ...], Callable[[Any], Any]], ...]] = (
    (("__struct_fields__", "__struct_config__"), _of_msgspec),
    (("model_dump",), _of_pydantic),
    (("__fields__", "json"), lambda value: json.loads(value.json())),  # pydantic 1
    (("to_dict", "columns"), lambda value: value.to_dict("records")),  # a table of pandas'
    (("numpy", "shape"), lambda value: value.numpy()),  # TensorFlow's tensors
    (("as_py",), lambda value: value.as_py()),  # pyarrow's scalars
)
