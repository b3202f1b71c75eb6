"""Errors for values that JSON does not have: the type, and what to return instead. Pure."""

import inspect
from collections.abc import AsyncIterable, Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

__all__ = ["unwritable", "unwritable_key"]

_DEFAULT: Final = "Return what JSON has: dict, list, str, numbers, True, False or None."
_KEYS: Final = "Use text, numbers, dates or enums as keys."


def unwritable(value: Any) -> TypeError:
    """Return the error for a value."""
    remedy = next((remedy for applies, remedy in _REMEDIES if applies(value)), _DEFAULT)
    return TypeError(f"Type is not JSON serializable: {_name(value)}. {remedy}")


def unwritable_key(key: Any) -> TypeError:
    """Return the error for a key of a dict."""
    return TypeError(f"Dict key is not JSON serializable: {_name(key)}. {_KEYS}")


def _name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__name__ if kind.__module__ == "builtins" else f"{kind.__name__} of {kind.__module__}"
    )


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(hasattr(type(value), name) for name in names)


# The first that applies counts.
_REMEDIES: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (
        _is(bytes, bytearray, memoryview),
        "Return bytes alone, not inside of another value, or base64.b64encode(value).decode().",
    ),
    (_is(AbstractSet), "Return list(value)."),
    (_is(complex), "Return [value.real, value.imag]."),
    (_is(BaseException), "Return str(value), or raise it."),
    (_is(type), "Return an instance of it, or its __name__."),
    (inspect.isawaitable, "Await it."),
    (_is(AsyncIterable), "Return it alone to stream it, or [item async for item in value]."),
    (_has("save", "tobytes"), "Save it to an io.BytesIO and return its bytes, alone."),  # images
    (_has("read"), "Return what value.read() returns, alone if it is bytes."),
    (_is(Iterator), "Return it alone to stream it, or list(value)."),
    (inspect.isroutine, "Return what it returns."),
    (_has("to_dict"), "Return value.to_dict()."),
    (_has("dict"), "Return value.dict()."),
    (lambda value: hasattr(value, "__dict__"), "Return a dict of what is in it: vars(value)."),
)
