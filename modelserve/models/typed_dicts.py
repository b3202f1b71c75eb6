"""`typing.TypedDict` for pydantic, which below Python 3.12 reads only typing_extensions' own."""

import sys
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["readable"]


def readable(annotation: Any) -> Any:
    """Make the TypedDicts of an annotation readable by pydantic, except those inside of classes."""
    return annotation if sys.version_info >= (3, 12) else _rewritten(annotation, ())


def _rewritten(annotation: Any, around: tuple[Any, ...]) -> Any:
    if annotation in around:  # it contains itself
        return annotation
    if is_typeddict(annotation) and type(annotation).__module__ == "typing":
        return _remade(annotation, (*around, annotation))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *notes = arguments
        return Annotated[_rewritten(inner, around), *notes]
    if origin is None or origin is type or not any(map(_is_type, arguments)):
        return annotation
    parts = tuple(_rewritten(argument, around) for argument in arguments)
    if parts == arguments:
        return annotation
    return Union[parts] if origin in (Union, types.UnionType) else origin[parts]  # noqa: UP007


def _remade(kind: Any, around: tuple[Any, ...]) -> Any:
    import typing_extensions

    extensions: Any = typing_extensions  # comes with pydantic
    fields = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) in (extensions.Required, extensions.NotRequired):
            [hint] = get_args(hint)
        needed = extensions.Required if name in kind.__required_keys__ else extensions.NotRequired
        fields[name] = needed[_rewritten(hint, around)]
    return extensions.TypedDict(kind.__name__, fields)


def _is_type(argument: Any) -> bool:
    return isinstance(argument, type) or get_origin(argument) is not None
