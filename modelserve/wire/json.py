"""JSON, read and written. Pure."""

import json
from typing import Any, Final

import orjson

from modelserve.errors import InvalidInput, NestedTooDeep
from modelserve.wire.values import JSON_OPTIONS, to_builtin, to_plain

__all__ = ["detail_text", "error_document", "parse_json", "plain_detail", "to_json"]

# Parts of orjson's error texts: for values that the standard library can write, and for values
# whose contents orjson does not pass to `to_builtin`.
_ONLY_ORJSON_REFUSES: Final = ("ecursion", "endian", "64-bit")
_NOT_ASKED_FOR: Final = ("Dict key", "datetime64", "tzinfo")
_MOST_LEVELS: Final = 200  # of a detail: every writer and reader of JSON has room for more


def parse_json(body: bytes | bytearray) -> Any:
    """Parse a JSON body. Raises InvalidInput with the parser's message."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"Unrecognized request format: {exc}") from None


def to_json(value: Any) -> bytes:
    """Write compact JSON: NaN as null, and other libraries' values as in `values`.

    orjson writes at most 254 levels of nesting and integers of 64 bits, and no numpy array of
    foreign byte order; values beyond that are written by the standard library. Keys that orjson
    does not know, numpy's for example, are made text in a second pass.

    Raises TypeError for a value that JSON cannot hold, NestedTooDeep for one too deep.
    """
    try:
        return orjson.dumps(value, to_builtin, JSON_OPTIONS)
    except orjson.JSONEncodeError as exc:
        problem = str(exc)
        is_writable = any(words in problem for words in _ONLY_ORJSON_REFUSES)
        if not is_writable and not any(words in problem for words in _NOT_ASKED_FOR):
            if isinstance(exc.__cause__, TypeError):
                raise exc.__cause__ from None  # its text says what to do
            raise
    try:
        if is_writable:
            try:
                return _dumps(value)
            except (TypeError, ValueError):
                pass  # a key, NaN or an infinity
        return _dumps(to_plain(value))
    except RecursionError:
        raise NestedTooDeep("The value is nested too deep to be written as JSON.") from None


def error_document(detail: Any) -> bytes:
    """Write `{"error": detail}`, text or a document, as `plain_detail` has it."""
    return to_json({"error": plain_detail(detail)})


def detail_text(detail: Any) -> str:
    """Return the detail of an error as text; a document is its JSON. Never raises."""
    plain = plain_detail(detail)
    return plain if isinstance(plain, str) else to_json(plain).decode()


def plain_detail(detail: Any) -> Any:
    """Return the detail of an error in the types of JSON, whatever a model has put into it.

    A detail that JSON cannot hold is its text, in which a lone surrogate becomes `?`. Never raises:
    an error that cannot be written would be no answer at all.
    """
    if not isinstance(detail, str):
        try:
            plain = json.loads(to_json(detail))
            if to_json(plain) and not _is_deeper(plain, _MOST_LEVELS):
                return plain
        except Exception:  # noqa: S110 - values have methods of their own, which raise anything
            pass
        try:
            detail = str(detail)
        except Exception:
            detail = type(detail).__name__
    return detail.encode("utf-8", "replace").decode()


def _is_deeper(plain: Any, levels: int) -> bool:
    layer = [plain]
    for _ in range(levels):
        layer = [
            item
            for value in layer
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(layer)


def _dumps(value: Any) -> bytes:
    return json.dumps(
        value, default=to_plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
