"""The data of one V2 tensor: its datatype, and its three forms. Pure.

The forms are a flat, row-major list of JSON values; little-endian bytes (Triton's binary tensor
extension); and a numpy array. Each fact about a datatype is a row of `DATATYPES`. The standard
library (`struct`, `memoryview.cast`) converts between lists and bytes, so that numpy is imported
only for arrays and for BF16.

Data that does not fit raises `Misfit`. The caller knows the tensor's name and whose error it is.
"""

from __future__ import annotations

import math
import operator
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from modelserve.tensors.elements import (
    LISTS,
    Misfit,
    NotJSON,
    WrongArray,
    booleans,
    find_missing,
    flatten,
    is_array,
    is_regular,
    list_elements,
    short,
    text_of,
)
from modelserve.tensors.strings import count_strings, join_strings, split_strings
from modelserve.wire.values import is_missing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BUFFERS",
    "DATATYPES",
    "Buffer",
    "Datatype",
    "check_array",
    "check_bytes",
    "check_count",
    "check_json",
    "find_datatype",
    "find_dtype",
    "name_datatype",
    "need",
    "pack_array",
    "plain_shape",
    "to_array",
    "to_bytes",
    "to_json",
    "to_json_as_given",
    "to_text",
    "to_values",
    "unpack",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

# Tuples, since `isinstance` with a union written in place would make the union at each call.
BUFFERS: Final = (bytes, bytearray, memoryview)
_INTEGER: Final[frozenset[type]] = frozenset({int})
# JSON has null for NaN, in both directions: orjson writes it, numpy reads it so.
_NUMBER: Final[frozenset[type]] = frozenset({int, float, NoneType})

# numpy before 2 allows no more, and the product of a million dimensions would take hours.
_MAX_DIMENSIONS: Final = 32
_MEBIBYTE: Final = 1 << 20
# If some number does not fit, so many are converted at a time to find it.
_PART: Final = 1 << 12
# How many surplus elements are counted for an error.
_SURPLUS: Final = 1000


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the Open Inference Protocol.

    `size` is the bytes of an element, 0 if each element is preceded by its length. `code` is
    `struct`'s letter, empty if it has none; `dtype` is numpy's name. `json` holds the types that an
    element may have in JSON, none if JSON cannot carry the datatype; `noun` names them in errors.
    """

    name: str
    size: int
    code: str
    dtype: str
    json: frozenset[type] = frozenset()
    noun: str = ""


def _integer(name: str, size: int, code: str) -> Datatype:
    dtype = f"<{'u' if name.startswith('U') else 'i'}{size}"
    return Datatype(name, size, code, dtype, _INTEGER, "an integer")


def _float(name: str, size: int, code: str) -> Datatype:
    return Datatype(name, size, code, f"<f{size}", _NUMBER, "a number")


DATATYPES: Final = {
    row.name: row
    for row in (
        Datatype("BOOL", 1, "?", "?", frozenset({bool}), "true or false"),
        _integer("INT8", 1, "b"),
        _integer("INT16", 2, "h"),
        _integer("INT32", 4, "i"),
        _integer("INT64", 8, "q"),
        _integer("UINT8", 1, "B"),
        _integer("UINT16", 2, "H"),
        _integer("UINT32", 4, "I"),
        _integer("UINT64", 8, "Q"),
        Datatype("FP16", 2, "e", "<f2"),
        Datatype("BF16", 2, "", "bfloat16"),
        _float("FP32", 4, "f"),
        _float("FP64", 8, "d"),
        Datatype("BYTES", 0, "", "O", frozenset({str, NoneType}), "a string"),
    )
}
_BY_DTYPE: Final = {row.dtype.lstrip("<").replace("?", "b1"): row for row in DATATYPES.values()}
_WITH_NULL: Final = frozenset({"BOOL", "BYTES"})
_BYTES_KINDS: Final = frozenset("OSUTM")  # numpy's objects, bytes, strings and times


def find_datatype(name: str) -> Datatype:
    """Return the row of an upper-case name; raise Misfit for one that does not exist."""
    row = DATATYPES.get(name)
    if row is None:
        raise Misfit(f"has the unknown datatype {short(name)}")
    return row


# Checks of data from outside.


def check_json(data: Any, shape: Sequence[Any], datatype: Datatype) -> list[Any]:
    """Return the data of a JSON document as a flat list; raise Misfit if it does not fit."""
    _refuse_binary_only(datatype)
    values = flatten(data)
    check_count(len(values), shape, datatype)
    if not datatype.json.issuperset(map(type, values)):
        raise _wrong_type(values, datatype)
    if datatype.size:
        _pack(values, datatype)  # checks the ranges, much faster than a loop
    else:
        _check_unicode(values)
    return values


def check_bytes(raw: Buffer, shape: Sequence[Any], datatype: Datatype) -> None:
    """Raise Misfit unless the bytes are exactly the elements of the shape."""
    if not datatype.size:
        most = _count_elements(shape, datatype) + _SURPLUS
        count = count_strings(memoryview(raw), most)
        if count > most:
            raise Misfit(f"has more than {most} elements where its shape {short(shape)} has fewer")
        return check_count(count, shape, datatype)
    if len(raw) != (expected := _count_elements(shape, datatype) * datatype.size):
        raise Misfit(
            f"has {len(raw)} bytes of binary data where its shape {short(shape)} "
            f"of {datatype.name} asks for {expected}"
        )
    # numpy takes the byte 2 for a bool that is neither True nor False.
    if datatype.code == "?":
        view = memoryview(raw)
        for start in range(0, len(view), _MEBIBYTE):
            if bytes(view[start : start + _MEBIBYTE]).strip(b"\0\1"):
                raise Misfit("holds bytes other than 0 and 1, which BOOL does not have")
    return None


def check_array(array: NDArray[Any], shape: Iterable[Any], datatype: str) -> None:
    """Raise WrongArray unless the array has exactly this shape and the datatype of this name.

    Objects may be elements of any datatype.
    """
    if array.dtype.kind != "O" and name_datatype(array.dtype) != datatype:
        raise WrongArray(f"is {datatype}, and the array is {array.dtype}")
    if list(array.shape) != list(shape):
        raise WrongArray(f"has the shape {list(shape)}, and the array {list(array.shape)}")


def plain_shape(shape: Iterable[Any]) -> list[int]:
    """Return a model's shape, which may contain numpy's integers, as a list of int."""
    try:
        return list(map(operator.index, shape))
    except TypeError:
        raise Misfit(f"has a shape that is not a list of whole numbers: {shape}") from None


def _refuse_binary_only(datatype: Datatype) -> None:
    if not datatype.json:
        raise NotJSON(f"is {datatype.name}, which goes as binary data only, not in JSON")


def _check_unicode(values: list[str | None]) -> None:
    try:
        "".join(filter(None, values)).encode()
    except UnicodeEncodeError:
        raise Misfit("holds text with surrogates, which is not Unicode") from None


def check_count(count: int, shape: Sequence[Any], datatype: Datatype) -> None:
    """Raise Misfit unless the number of elements is that of the shape."""
    expected = _count_elements(shape, datatype)
    if count != expected:
        raise Misfit(f"has {count} elements where its shape {short(shape)} asks for {expected}")


def _count_elements(shape: Sequence[Any], datatype: Datatype) -> int:
    """Return the number of elements of a shape, without allocating anything."""
    if not _INTEGER.issuperset(map(type, shape)):
        raise Misfit(f"has a shape that is not a list of whole numbers: {short(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise Misfit(f"has {len(shape)} dimensions, and {_MAX_DIMENSIONS} is the most there can be")
    if shape and min(shape) < 0:
        raise Misfit(f"has a negative dimension in its shape {short(shape)}")
    count: int = math.prod(shape)
    # numpy refuses a shape by the product of its nonzero dimensions.
    if (count or math.prod(filter(None, shape))) * (datatype.size or 8) > sys.maxsize:
        raise Misfit(f"has a shape that is too large: {short(shape)}")
    return count


def _wrong_type(values: list[Any], datatype: Datatype) -> Misfit:
    index = operator.indexOf(map(datatype.json.__contains__, map(type, values)), False)
    return Misfit(f"holds {short(values[index])} at index {index}, not {datatype.noun}")


# From any form to one of the three.


def to_json(form: Any, shape: Sequence[Any], datatype: Datatype) -> list[Any]:
    """Return data in any form as a flat list for JSON, each number as the datatype holds it.

    Raises Misfit where the data does not fit, NotJSON where it cannot be JSON.
    """
    _refuse_binary_only(datatype)
    if isinstance(form, BUFFERS) or datatype.name not in _WITH_NULL:
        return unpack(to_bytes(form, shape, datatype), datatype)
    if is_array(form):
        check_array(form, shape, datatype.name)
    values = list_elements(form)
    check_count(len(values), shape, datatype)
    return to_values(values, datatype)


def to_values(elements: list[Any], datatype: Datatype) -> list[Any]:
    """Return elements as JSON values; raise Misfit for one that is not of the datatype."""
    if not datatype.size:
        return to_text(elements)
    if datatype.name in _WITH_NULL:
        return booleans(elements)
    return unpack(_pack(elements, datatype), datatype)


def to_json_as_given(form: Any, shape: Sequence[Any], datatype: Datatype) -> list[Any]:
    """Return data as `to_json` does, but do not round the numbers of a list (KServe's rule)."""
    if datatype.size and isinstance(form, LISTS):
        values = flatten(form)
        if datatype.json.issuperset(map(type, values)):
            _refuse_binary_only(datatype)
            check_count(len(values), shape, datatype)
            _pack(values, datatype)
            return values
    return to_json(form, shape, datatype)


def to_bytes(form: Any, shape: Sequence[Any], datatype: Datatype) -> Buffer:
    """Return data in any form as little-endian bytes; raise Misfit where it does not fit.

    Binary data is checked, not copied. A missing value fits floating point only.
    """
    if isinstance(form, BUFFERS):
        check_bytes(form, shape, datatype)
        return form
    if is_array(form):
        check_array(form, shape, datatype.name)
        return pack_array(form, datatype)
    values = flatten(form)
    check_count(len(values), shape, datatype)
    return _pack(values, datatype)


def to_array(
    form: Any, shape: Sequence[Any], datatype: Datatype, *, is_checked: bool = False
) -> NDArray[Any]:
    """Return data in any form as an array; bytes and arrays are viewed, not copied.

    BYTES become objects: `bytes` if they came in binary, else as they are (from JSON `str` and
    None, KServe's rule). A list that `check_json` has returned `is_checked`. Raises Misfit if data
    and shape or datatype disagree, ImportError without numpy.
    """
    numpy = need("numpy")
    raw = isinstance(form, BUFFERS)
    if not datatype.size:
        elements = split_strings(memoryview(form)) if raw else flatten(form)
        form, raw = numpy.array(elements, dtype=object), False
    dtype = find_dtype(datatype)
    try:
        if datatype.size and not (raw or is_checked or (is_array(form) and is_regular(form))):
            form = list_elements(form)
            # numpy would take 0.3 for true, 1.9 for the integer 1, and "2" for a number.
            if not datatype.json.issuperset(map(type, form)):
                form, raw = bytearray(_pack(form, datatype)), True
        array = numpy.frombuffer(form, dtype) if raw else numpy.asarray(form, dtype)
        shaped: NDArray[Any] = array.reshape(shape)
    except (ValueError, TypeError, OverflowError):
        words = f"has data that does not fit its shape {short(shape)} of {datatype.name}"
        raise Misfit(words) from None
    return shaped


def to_text(form: Any) -> list[str | None]:
    """Return the elements of BYTES in any form as text, None for missing ones.

    Raises NotJSON if they are not UTF-8.
    """
    elements = split_strings(memoryview(form)) if isinstance(form, BUFFERS) else list_elements(form)
    try:
        return [item if type(item) is str else text_of(item) for item in elements]
    except UnicodeDecodeError:
        words = "holds bytes that are not UTF-8: they can be binary data, but not text"
        raise NotJSON(words) from None


# Bytes.


def unpack(raw: Buffer, datatype: Datatype) -> list[Any]:
    """Return little-endian bytes as a flat list of JSON values, BYTES as `str`.

    Raises NotJSON for BYTES that are not UTF-8.
    """
    if not datatype.size:
        return to_text(raw)
    if not datatype.code:
        values: list[Any] = to_array(raw, [-1], datatype).astype("f4").tolist()
        return values
    if sys.byteorder == "little" and datatype.code != "e" and len(raw):
        view: Any = memoryview(raw).cast("B")  # faster than struct; takes no "e", nothing empty
        numbers: list[Any] = view.cast(datatype.code).tolist()
        return numbers
    return list(struct.unpack(f"<{len(raw) // datatype.size}{datatype.code}", raw))


def _pack(values: list[Any], datatype: Datatype) -> bytes:
    """Return a flat list as little-endian bytes; raise Misfit for a value that does not fit."""
    if datatype.name in _WITH_NULL:
        if datatype.size:
            values = booleans(values)
        if (at := find_missing(values)) is not None:
            raise Misfit(f"holds a missing value at index {at}, which binary data cannot hold")
        return bytes(values) if datatype.size else join_strings(values)
    try:
        return _pack_numbers(values, datatype)
    except (struct.error, OverflowError):
        parts = range(0, len(values), _PART)
        return b"".join(_pack_part(values[at : at + _PART], at, datatype) for at in parts)


def _pack_numbers(values: list[Any], datatype: Datatype) -> bytes:
    if datatype.code:
        return struct.pack(f"<{len(values)}{datatype.code}", *values)
    floats = struct.pack(f"<{len(values)}f", *values)  # BF16 is the upper half of FP32
    rounded: bytes = need("numpy").frombuffer(floats, "<f4").astype(find_dtype(datatype)).tobytes()
    return rounded


def _pack_part(values: list[Any], at: int, datatype: Datatype) -> bytes:
    """Return some of the elements as bytes, from index `at` on.

    Elements are not checked one by one unless one of them does not fit.
    """
    for replaced in (_itself, _nan_for_null, _substitute):
        values = replaced(values, datatype)
        with suppress(struct.error, OverflowError):
            return _pack_numbers(values, datatype)
    raise _misfit(values, at, datatype)


def _itself(values: list[Any], datatype: Datatype) -> list[Any]:
    return values


def _nan_for_null(values: list[Any], datatype: Datatype) -> list[Any]:
    if datatype.json == _INTEGER:
        return values
    return [math.nan if value is None else value for value in values]


def _substitute(values: list[Any], datatype: Datatype) -> list[Any]:
    """Return NaN for a missing value, an int for a whole float, any other value as it is."""
    if datatype.json != _INTEGER:
        return [math.nan if is_missing(value) else value for value in values]
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]


def _misfit(values: list[Any], at: int, datatype: Datatype) -> Misfit:
    """Return the error for the first value that cannot be packed."""
    index = next(n for n, value in enumerate(values) if not _fits(value, datatype))
    sentence = f"holds {short(values[index])} at index {at + index}"
    if is_missing(values[index]):
        return Misfit(f"{sentence}, and {datatype.name} has no missing values")
    return Misfit(f"{sentence}, which is out of range for {datatype.name}")


def _fits(value: Any, datatype: Datatype) -> bool:
    try:
        _pack_numbers([value], datatype)
    except (struct.error, OverflowError):
        return False
    return True


# Arrays.


def pack_array(array: NDArray[Any], datatype: Datatype) -> bytes:
    """Return a copy of an array of the datatype as little-endian bytes, row-major.

    Raises Misfit for a missing value unless the datatype is floating point.
    """
    if datatype.size and is_regular(array):
        return array.astype(find_dtype(datatype), copy=False).tobytes()
    return _pack(list_elements(array), datatype)


def name_datatype(dtype: Any) -> str | None:
    """Return the datatype that holds a numpy dtype, or None if there is none."""
    if dtype.kind in _BYTES_KINDS:
        return "BYTES"
    # The name is not asked of most: numpy makes it anew each time.
    row = _BY_DTYPE.get(f"{dtype.kind}{dtype.itemsize}") or _BY_DTYPE.get(dtype.name)
    return row.name if row else None


def find_dtype(datatype: Datatype) -> Any:
    """Return numpy's dtype of a datatype; BF16's is `ml_dtypes.bfloat16`."""
    if datatype.dtype == "bfloat16":
        return need("numpy").dtype(need("ml_dtypes").bfloat16)
    return need("numpy").dtype(datatype.dtype)


def need(module: str) -> Any:
    """Import an optional module; raise ImportError with the command that installs it."""
    if (found := sys.modules.get(module)) is not None:
        return found
    try:
        return import_module(module)
    except ImportError:
        package = "pandas" if module == "pandas" else "'modelserve[tensors]'"
        raise ImportError(f"This needs {module}: pip install {package}") from None
