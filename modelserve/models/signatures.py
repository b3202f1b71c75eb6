"""The parameters of a hook, and the types that its annotations name.

Annotations may be text (`from __future__ import annotations`), and may name local classes of the
function around the hook: the frames that are active at registration are searched as well.
"""

import functools
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Final, get_type_hints
from weakref import WeakKeyDictionary

__all__ = [
    "HEADERS",
    "POSITIONAL",
    "UNKNOWN",
    "layers_of",
    "payload_annotation",
    "payload_type",
    "return_type",
]

HEADERS: Final = ("headers", "response_headers")
POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
UNKNOWN: Final[Any] = object()  # no annotation, or one that cannot be resolved

logger = logging.getLogger("modelserve")

# What text was resolved to: the frames of the first registration may be gone at the next one
# (`reconfigure`).
_resolved: "WeakKeyDictionary[Any, dict[str, Any]]" = WeakKeyDictionary()

# From Python 3.14 on, a signature evaluates the annotations unless told otherwise.
_AS_WRITTEN: Final[dict[str, Any]] = {}
if sys.version_info >= (3, 14):
    from annotationlib import Format

    _AS_WRITTEN["annotation_format"] = Format.FORWARDREF


def layers_of(function: Any) -> Iterator[tuple[Any, list[inspect.Parameter]]]:
    """Yield a callable and each function that it wraps (`__wrapped__`), with their parameters."""
    is_bound = inspect.ismethod(function)
    is_outermost = True
    while function is not None:
        try:
            signature = inspect.signature(function, follow_wrapped=False, **_AS_WRITTEN)
        except (TypeError, ValueError):  # some builtins have none
            return
        parameters = list(signature.parameters.values())
        yield function, parameters if is_outermost or not is_bound else _without_self(parameters)
        is_outermost = False
        function = getattr(function, "__wrapped__", None)


def payload_type(function: Any) -> tuple[str, Any]:
    """Return the name and the annotation of the parameter that takes the payload.

    The annotation is UNKNOWN if there is none, or if a name in it cannot be found.
    """
    for layer, parameters in layers_of(function):
        positional = [p for p in parameters if p.kind in POSITIONAL]
        if positional and positional[0].name not in HEADERS:
            name, annotation = positional[0].name, positional[0].annotation
            return name, _resolve(annotation, name, layer, function)
    return "", UNKNOWN


def payload_annotation(function: Any) -> Any:
    """Return the annotation of the parameter that takes the payload, as it is written."""
    for _, parameters in layers_of(function):
        positional = [p for p in parameters if p.kind in POSITIONAL]
        if positional and positional[0].name not in HEADERS:
            return positional[0].annotation
    return inspect.Parameter.empty


def return_type(function: Any) -> Any:
    """Return the annotation of what a hook returns; UNKNOWN as in `payload_type`."""
    innermost = None
    for layer, _ in layers_of(function):
        innermost = layer
    if innermost is None:
        return UNKNOWN
    signature = inspect.signature(innermost, follow_wrapped=False, **_AS_WRITTEN)
    return _resolve(signature.return_annotation, "return", innermost, function)


def _resolve(annotation: Any, name: str, layer: Any, function: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return UNKNOWN
    layer = _function_of(layer)
    known = _resolved.get(layer, {})
    if name in known:
        return known[name]

    def holder() -> None: ...

    holder.__annotations__ = {name: annotation}
    names = getattr(layer, "__globals__", {})
    try:
        hints = get_type_hints(holder, names, _locals_of(layer, function), include_extras=True)
    except Exception as exc:  # a name that only a type checker knows, or not a type
        where = getattr(layer, "__qualname__", repr(layer))
        logger.info("An annotation of %s is ignored, since it cannot be read: %s", where, exc)
        return UNKNOWN
    if inspect.isfunction(layer):
        _resolved.setdefault(layer, {})[name] = hints[name]
    return hints[name]


def _function_of(layer: Any) -> Any:
    """Return the function below partials, methods and objects that can be called."""
    while isinstance(layer, functools.partial):
        layer = layer.func
    if not inspect.isroutine(layer) and not inspect.isclass(layer):
        layer = getattr(layer, "__call__", layer)  # noqa: B004 - to inspect, not to test
    return getattr(layer, "__func__", layer)


def _locals_of(layer: Any, function: Any) -> dict[str, Any]:
    """Return the names around a function: in the frames that define it, its class, its closure."""
    names: dict[str, Any] = {}
    around = getattr(layer, "__qualname__", "").split(".<locals>.")[:-1]
    paths = {".<locals>.".join(around[: n + 1]) for n in range(len(around))}
    frame: FrameType | None = sys._getframe(1)
    while paths and frame is not None:
        if frame.f_code.co_qualname in paths and frame.f_globals is layer.__globals__:
            names = {**frame.f_locals, **names}  # the innermost counts
        frame = frame.f_back
    for kind in reversed(type(getattr(function, "__self__", None)).__mro__):
        if kind.__module__ == getattr(layer, "__module__", None):
            names |= vars(kind)
    code, cells = getattr(layer, "__code__", None), getattr(layer, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), cells or (), strict=False):
        with suppress(ValueError):  # not filled yet
            names[name] = cell.cell_contents
    return names


def _without_self(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    has_self = parameters and parameters[0].kind in POSITIONAL
    return parameters[1:] if has_self else parameters
