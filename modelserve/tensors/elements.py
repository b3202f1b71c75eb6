"""The elements of a tensor as a list, from lists and arrays, and missing values. Pure.

A missing value is None, NaN, pandas' NA or NaT, numpy's NaT, or a masked element of an array.
Floating point holds it as NaN; BOOL and BYTES have null for it in JSON. Other datatypes cannot hold
it, and it is never replaced by a value.

Data that does not fit raises `Misfit`. The caller knows the tensor's name and whose error it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from itertools import chain, islice
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final

from modelserve.wire.values import is_missing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LISTS",
    "Misfit",
    "NotJSON",
    "WrongArray",
    "booleans",
    "find_missing",
    "flatten",
    "is_array",
    "is_regular",
    "list_elements",
    "short",
    "text_of",
]

LISTS: Final = (list, tuple)  # a tuple: `isinstance` with a union would make the union at each call
_SCALARS: Final = (str, bytes, int, float)
_BOOLEAN: Final[frozenset[type]] = frozenset({bool})
_NEVER_MISSING: Final[frozenset[type]] = frozenset({str, bytes, bool, int})


class _Short(Repr):
    """Writes values cut in length and in depth; without sorting, which is slow for many keys."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if not x or level <= 0:
            return "{...}" if x else "{}"
        pairs = islice(x.items(), self.maxdict)
        parts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in pairs]
        return "{" + ", ".join([*parts, "..."] if len(x) > self.maxdict else parts) + "}"


_SHORT: Final = _Short()
_SHORT.maxlist = _SHORT.maxtuple = 8
_SHORT.maxstring = 60


class Misfit(ValueError):
    """Raised for data that does not fit its datatype or shape.

    Its text completes a sentence that begins with the tensor's name.
    """


class NotJSON(Misfit):
    """Raised for good data that JSON cannot carry: FP16, BF16, bytes that are not UTF-8."""


class WrongArray(Misfit):
    """Raised for an array of another datatype or shape than the tensor that it is set on.

    This is the program's error, for inputs as well as outputs.
    """


def is_array(value: Any) -> bool:
    """Return whether a value is a numpy array, without importing numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_regular(array: NDArray[Any]) -> bool:
    """Return whether all elements are values of the dtype: none is masked, and none an object."""
    return array.dtype.kind != "O" and not hasattr(array, "mask")


# Lists.


def list_elements(data: Any) -> list[Any]:
    """Return the elements of a list or an array, row-major; None for a masked one.

    Raises Misfit as `flatten`.
    """
    if not is_array(data):
        return flatten(data)
    array = data.reshape(-1)
    elements: list[Any] = _times(array) if array.dtype.kind == "M" else array.tolist()
    return elements


def _times(array: NDArray[Any]) -> list[Any]:
    """Return numpy's times as Python's, or as text if those cannot hold them."""
    times: list[Any] = array.astype(object).tolist()
    if int in set(map(type, times)):  # nanoseconds, or out of Python's range
        return list(map(_time, array))
    return times


def _time(value: Any) -> Any:
    if is_missing(value):
        return None
    micros = value.astype("M8[us]")
    time = micros.item()
    return time if isinstance(time, date) and micros == value else str(value).replace("T", " ")


def flatten(data: Any) -> list[Any]:
    """Return nested data as one list, row-major; numpy arrays and scalars inside become plain.

    Raises Misfit if rows differ in length or in depth. The work is linear in the size of the data,
    without recursion.
    """
    if not isinstance(data, LISTS):
        data = data.tolist() if hasattr(data, "tolist") else data
        if not isinstance(data, LISTS):
            raise Misfit(f"has data that is not a list: {short(data)}")
    while data and not isinstance(data[0], _SCALARS):
        if hasattr(data[0], "tolist"):
            data = [item.tolist() if hasattr(item, "tolist") else item for item in data]
        elif isinstance(data[0], LISTS):
            data = _join_rows(data)
        else:
            break
    return data if isinstance(data, list) else list(data)


def _join_rows(rows: Sequence[Any]) -> list[Any]:
    if not set(map(type, rows)) <= {list, tuple}:
        raise Misfit("has values beside lists in its data")
    if len(set(map(len, rows))) > 1:
        raise Misfit("has rows of different lengths in its data")
    return list(chain.from_iterable(rows))


# Elements.


def find_missing(values: Sequence[Any]) -> int | None:
    """Return the index of the first value that is missing, or None."""
    if _NEVER_MISSING.issuperset(map(type, values)):
        return None
    return next((index for index, value in enumerate(values) if is_missing(value)), None)


def booleans(values: list[Any]) -> list[bool | None]:
    """Return the elements of BOOL, None for a missing one; the only numbers allowed are 0 and 1."""
    if _BOOLEAN.issuperset(map(type, values)):
        return values
    return [_boolean(value, index) for index, value in enumerate(values)]


def _boolean(value: Any, index: int) -> bool | None:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if type(plain) in (bool, int) and plain in (0, 1):
        return bool(plain)
    if is_missing(plain):
        return None
    raise Misfit(f"holds {short(plain)} at index {index}, not true or false")


def text_of(element: Any) -> str | None:
    """Return an element of BYTES as text, None for a missing one.

    Raises UnicodeDecodeError for bytes that are not UTF-8.
    """
    if isinstance(element, bytes):
        return element.decode()
    return None if is_missing(element) else str(element)


def short(value: Any) -> str:
    """Return a value for an error's text, cut in length and in depth."""
    return _SHORT.repr(value)
