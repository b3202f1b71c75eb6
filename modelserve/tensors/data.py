"""The data of one V2 tensor: its datatype, and its three forms. Pure.

The forms are a flat, row-major list of what JSON has; little-endian bytes (Triton's binary tensor
extension); and a numpy array. Every fact about a datatype is a row of `DATATYPES`. The standard
library does what it can (`struct`, `memoryview.cast`), so that numpy is imported only for arrays
and for BF16.

What does not fit raises `Misfit`, whose text is the end of a sentence that begins with the
tensor's name: only the caller knows that, and whose fault it is.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from reprlib import Repr
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DATATYPES", "Buffer", "Datatype", "Misfit", "NotJSON"]

Buffer: TypeAlias = bytes | bytearray | memoryview

# numpy before 2 has no more; and the product of a million dimensions would take hours.
_MAX_DIMENSIONS: Final = 32
_WHOLE: Final = "a whole number"
_LENGTH: Final = struct.Struct("<I")


class Misfit(ValueError):
    """Raised for data that does not fit its datatype or shape; the end of a sentence."""


class NotJSON(Misfit):
    """Raised for good data that JSON cannot carry: FP16, BF16, bytes that are not UTF-8."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the Open Inference Protocol.

    `size` is the bytes of an element, 0 where each element brings its length. `code` is `struct`'s
    letter, empty where it has none; `dtype` is numpy's name. `json` holds the types that an
    element may have in JSON and `words` says so to a client.
    """

    name: str
    size: int
    code: str
    dtype: str
    json: frozenset[type] = frozenset()
    words: str = ""


def _whole(name: str, size: int, code: str) -> Datatype:
    dtype = f"<{'u' if name.startswith('U') else 'i'}{size}"
    return Datatype(name, size, code, dtype, frozenset({int}), _WHOLE)


def _real(name: str, size: int, code: str) -> Datatype:
    # null is how JSON holds NaN, here in both directions: orjson writes it, numpy reads it so.
    json: frozenset[type] = frozenset({int, float, NoneType})
    return Datatype(name, size, code, f"<f{size}", json, "a number")


DATATYPES: Final = {
    row.name: row
    for row in (
        Datatype("BOOL", 1, "?", "?", frozenset({bool}), "true or false"),
        _whole("INT8", 1, "b"),
        _whole("INT16", 2, "h"),
        _whole("INT32", 4, "i"),
        _whole("INT64", 8, "q"),
        _whole("UINT8", 1, "B"),
        _whole("UINT16", 2, "H"),
        _whole("UINT32", 4, "I"),
        _whole("UINT64", 8, "Q"),
        Datatype("FP16", 2, "e", "<f2"),
        Datatype("BF16", 2, "", "bfloat16"),
        _real("FP32", 4, "f"),
        _real("FP64", 8, "d"),
        Datatype("BYTES", 0, "", "O", frozenset({str}), "a string"),
    )
}
_BY_DTYPE: Final = {row.dtype.lstrip("<").replace("?", "b1"): row for row in DATATYPES.values()}
_BYTES_KINDS: Final = frozenset("OSUTM")  # numpy's objects, bytes, strings and times


def find_datatype(name: str) -> Datatype:
    """Return the row of an upper-case name; raise Misfit for one that does not exist."""
    try:
        return DATATYPES[name]
    except KeyError:
        raise Misfit(f"has the unknown datatype {short(name)}") from None


def refuse_json(datatype: Datatype) -> None:
    """Raise NotJSON for the datatypes that only binary data carries."""
    if not datatype.json:
        raise NotJSON(f"is {datatype.name}, which goes as binary data only, not in JSON")


def count_elements(shape: Sequence[Any], datatype: Datatype) -> int:
    """Return how many elements a shape has, without allocating anything by its claim."""
    if any(type(size) is not int for size in shape):
        raise Misfit(f"has a shape that is not a list of whole numbers: {short(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise Misfit(f"has {len(shape)} dimensions, and {_MAX_DIMENSIONS} is the most there can be")
    if min(shape, default=0) < 0:
        raise Misfit(f"has a negative dimension in its shape {short(shape)}")
    # numpy refuses a shape by the product of its dimensions other than 0.
    if math.prod(size or 1 for size in shape) * (datatype.size or 8) > sys.maxsize:
        raise Misfit(f"has a shape that is too large: {short(shape)}")
    return math.prod(shape)


def check_count(count: int, shape: Sequence[int], datatype: Datatype) -> None:
    """Raise Misfit unless `shape` has `count` elements."""
    expected = count_elements(shape, datatype)
    if count != expected:
        raise Misfit(f"has {count} elements where its shape {short(shape)} asks for {expected}")


def flatten(data: Any) -> list[Any]:
    """Return nested data as one list, row-major; numpy arrays and scalars inside become plain.

    Raises Misfit where rows differ in length or in depth. The work is linear in the size of the
    data, and there is no recursion.
    """
    data = data.tolist() if hasattr(data, "tolist") else data
    if not isinstance(data, list | tuple):
        raise Misfit(f"has data that is not a list: {short(data)}")
    while data and not isinstance(data[0], str | bytes | int | float):
        if hasattr(data[0], "tolist"):
            data = [item.tolist() if hasattr(item, "tolist") else item for item in data]
        elif isinstance(data[0], list | tuple):
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


def check_json(values: list[Any], datatype: Datatype) -> None:
    """Raise Misfit unless each value, as JSON has it, is one that the datatype can hold.

    A million numbers take about 40 ms: one pass over the types, one through `struct` for ranges.
    """
    strange = set(map(type, values)) - datatype.json
    if strange:
        index, value = next((i, v) for i, v in enumerate(values) if type(v) in strange)
        raise Misfit(f"holds {short(value)} at index {index}, which is not {datatype.words}")
    if datatype.size:
        pack(values, datatype)
    else:
        _check_text(values)


def _check_text(values: list[str]) -> None:
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raise Misfit("holds text with surrogates, which is not Unicode") from None


def check_bytes(raw: memoryview, shape: Sequence[int], datatype: Datatype) -> None:
    """Raise Misfit unless the bytes are exactly the elements that the shape asks for."""
    if not datatype.size:
        return check_count(sum(1 for _ in _spans(raw)), shape, datatype)
    if len(raw) != (expected := count_elements(shape, datatype) * datatype.size):
        raise Misfit(
            f"has {len(raw)} bytes of binary data where its shape {short(shape)} "
            f"of {datatype.name} asks for {expected}"
        )
    # numpy takes the byte 2 for a bool that is neither True nor False.
    if datatype.code == "?" and raw.tobytes().strip(b"\0\1"):
        raise Misfit("holds bytes other than 0 and 1, which BOOL does not have")


def pack(values: list[Any], datatype: Datatype) -> bytes:
    """Return flat values as little-endian bytes; raise Misfit for one that does not fit."""
    if not datatype.size:
        return _pack_elements(values)
    if not datatype.code:
        return to_array(values, [len(values)], datatype).tobytes()
    try:
        return _pack_numbers(values, datatype)
    except (struct.error, OverflowError):
        values = [_substitute(value, datatype) for value in values]
    try:
        return _pack_numbers(values, datatype)
    except (struct.error, OverflowError):
        at = _find_misfit(values, datatype)
    words = f"holds {short(values[at])} at index {at}, which is out of range for {datatype.name}"
    raise Misfit(words)


def _pack_numbers(values: list[Any], datatype: Datatype) -> bytes:
    return struct.pack(f"<{len(values)}{datatype.code}", *values)


def _substitute(value: Any, datatype: Datatype) -> Any:
    """Return what `struct` takes for the two values that it does not take as they are."""
    if value is None and float in datatype.json:
        return math.nan
    if isinstance(value, float) and datatype.words == _WHOLE and value.is_integer():
        return int(value)
    return value


def _find_misfit(values: list[Any], datatype: Datatype) -> int:
    """Return the index of a value that cannot be packed, by halving: no loop over a million."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _pack_numbers(values[low:middle], datatype)
            low = middle
        except (struct.error, OverflowError):
            high = middle
    return low


def _pack_elements(values: Iterable[Any]) -> bytes:
    elements = as_elements(values)
    return b"".join(chain.from_iterable((_LENGTH.pack(len(item)), item) for item in elements))


def as_elements(values: Iterable[Any]) -> list[bytes]:
    """Return what a model may put into BYTES (bytes, str, or anything with a `str`) as bytes."""
    return [item if isinstance(item, bytes) else str(item).encode() for item in values]


def as_text(values: Iterable[Any]) -> list[str]:
    """Return the elements of BYTES as JSON has them; raise NotJSON where they are not UTF-8."""
    try:
        return [str(item, "utf-8") if isinstance(item, bytes) else str(item) for item in values]
    except UnicodeDecodeError:
        words = "holds bytes that are not UTF-8: they can be binary data, but not text"
        raise NotJSON(words) from None


def unpack(raw: Buffer, datatype: Datatype) -> list[Any]:
    """Return little-endian bytes as a flat list of what JSON has, BYTES as `str`.

    Raises NotJSON for BYTES that are not UTF-8.
    """
    if not datatype.size:
        return as_text(split_elements(raw))
    if not datatype.code:
        values: list[Any] = to_array(raw, [-1], datatype).astype("f4").tolist()
        return values
    if sys.byteorder == "little" and datatype.code != "e" and len(raw):
        view: Any = memoryview(raw).cast("B")  # twice as fast as struct; no "e", nothing empty
        numbers: list[Any] = view.cast(datatype.code).tolist()
        return numbers
    return list(struct.unpack(f"<{len(raw) // datatype.size}{datatype.code}", raw))


def split_elements(raw: Buffer) -> list[bytes]:
    """Return the elements of BYTES in binary form, each `<u32 length><bytes>`."""
    view = memoryview(raw)
    return [bytes(view[start:end]) for start, end in _spans(view)]


def _spans(raw: memoryview) -> Iterator[tuple[int, int]]:
    end, index = 0, 0
    while end < len(raw):
        start = end + _LENGTH.size
        if start <= len(raw):
            end = start + _LENGTH.unpack_from(raw, end)[0]
        if start > len(raw) or end > len(raw):
            raise Misfit(f"has binary data that ends inside element {index}")
        yield start, end
        index += 1


def to_array(data: Any, shape: Sequence[int], datatype: Datatype) -> NDArray[Any]:
    """Return values, bytes or an array as an array; bytes are viewed, not copied.

    BYTES become objects: of type `bytes` where they came in binary, else as they are (from JSON
    `str`, KServe's rule). Raises Misfit where data and shape or datatype disagree, ImportError
    without numpy.
    """
    numpy = need("numpy")
    raw = isinstance(data, bytes | bytearray | memoryview)
    if not datatype.size:
        elements = split_elements(data) if raw else flatten(data)
        data, raw = numpy.array(elements, dtype=object), False
    dtype = find_dtype(datatype)
    try:
        array = numpy.frombuffer(data, dtype) if raw else numpy.asarray(data, dtype)
        shaped: NDArray[Any] = array.reshape(shape)
    except (ValueError, TypeError, OverflowError):
        words = f"has data that does not fit its shape {short(shape)} of {datatype.name}"
        raise Misfit(words) from None
    return shaped


def array_bytes(array: NDArray[Any], datatype: Datatype) -> bytes:
    """Return a copy of an array of the datatype as little-endian bytes, row-major."""
    if datatype.size:
        return array.astype(find_dtype(datatype), copy=False).tobytes()
    objects = array.astype(object) if array.dtype.kind == "M" else array
    return _pack_elements(objects.reshape(-1).tolist())


def name_datatype(dtype: Any) -> str | None:
    """Return the datatype that holds a numpy dtype, or None where there is none."""
    if dtype.kind in _BYTES_KINDS:
        return "BYTES"
    key = "bfloat16" if dtype.name == "bfloat16" else f"{dtype.kind}{dtype.itemsize}"
    row = _BY_DTYPE.get(key)
    return row.name if row else None


def find_dtype(datatype: Datatype) -> Any:
    """Return numpy's dtype of a datatype; BF16's is `ml_dtypes.bfloat16`."""
    if datatype.dtype == "bfloat16":
        return need("numpy").dtype(need("ml_dtypes").bfloat16)
    return need("numpy").dtype(datatype.dtype)


def need(module: str) -> Any:
    """Import an optional module; raise ImportError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError:
        package = "pandas" if module == "pandas" else "'modelserve[tensors]'"
        raise ImportError(f"This needs {module}: pip install {package}") from None


def is_array(value: Any) -> bool:
    """Say whether a value is a numpy array, without importing numpy for it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def short(value: Any) -> str:
    """Return a client's value for a sentence, cut in length and in depth."""
    return _SHORT.repr(value)


_SHORT: Final = Repr()
_SHORT.maxlist = _SHORT.maxtuple = 8
_SHORT.maxstring = 60
