"""JSON, read and written. Pure."""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any, Final

import orjson

from modelserve.errors import InvalidInput, NestedTooDeep

__all__ = ["JSON_OPTIONS", "error_document", "parse_json", "to_builtin", "to_json"]

JSON_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
# Words in the errors of orjson for values that the standard library can write.
_ONLY_ORJSON_REFUSES: Final = ("ecursion", "endian", "64-bit")


def parse_json(body: bytes | bytearray) -> Any:
    """Parse a JSON body. Raises InvalidInput with the parser's message."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"Unrecognized request format: {exc}") from None


def to_json(value: Any) -> bytes:
    """Write compact JSON: NaN as null, numpy, dataclasses and datetimes included.

    orjson writes 254 levels of nesting, integers of 64 bits, and no numpy array of foreign byte
    order; other such values go to the standard library's writer.

    Raises TypeError for a value that JSON cannot hold, NestedTooDeep for one too deep.
    """
    try:
        return orjson.dumps(value, to_builtin, JSON_OPTIONS)
    except orjson.JSONEncodeError as exc:
        if not any(word in str(exc) for word in _ONLY_ORJSON_REFUSES):
            raise
    try:
        try:
            return _dumps(value)
        except ValueError:  # NaN or an infinity
            return _dumps(_with_nulls(value))
    except RecursionError:
        raise NestedTooDeep("The value is nested too deep to be written as JSON.") from None


def error_document(sentence: str) -> bytes:
    """Write `{"error": sentence}`; a lone surrogate becomes `?`."""
    return orjson.dumps({"error": sentence.encode("utf-8", "replace").decode()})


def to_builtin(value: Any) -> Any:
    """Convert what orjson does not know: tensors and arrays of other libraries.

    Raises TypeError for anything else.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _dumps(value: Any) -> bytes:
    return json.dumps(
        value, default=_to_plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _to_plain(value: Any) -> Any:
    """Convert what the standard library does not know and orjson does: dataclasses, dates."""
    if hasattr(value, "tolist"):
        return _with_nulls(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if not field.name.startswith("_")]
        return _with_nulls({name: getattr(value, name) for name in names})
    return orjson.loads(orjson.dumps(value, to_builtin, JSON_OPTIONS))


def _with_nulls(value: Any) -> Any:
    """Return a copy in which no number is NaN or infinite: those are null in JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return value
