"""What an annotation declares about a payload, and which library reads its classes.

pydantic's and msgspec's classes are known by their attributes, so that neither is imported.
"""

import types
from collections import abc
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from modelserve.models.signatures import UNKNOWN

__all__ = [
    "MSGSPEC",
    "PLAIN_CLASS",
    "PYDANTIC",
    "UNIONS",
    "are_bytes",
    "as_list",
    "bare",
    "element_of",
    "libraries_of",
    "passed_and_rest",
    "unnamed",
]

PYDANTIC: Final = "pydantic"
MSGSPEC: Final = "msgspec"
PLAIN_CLASS: Final = "dataclass or TypedDict"  # either library reads these

# Classes of these packages describe no document of V1, whatever they are made of.
_OTHERS: Final = frozenset(
    {"builtins", "cloudevents", "kserve", "modelserve", "starlette", "typing"}
)
_OF_PYDANTIC: Final = frozenset(
    {"annotated_types", "pydantic", "pydantic_core", "pydantic_extra_types"}
)
_LISTS: Final = (
    list,
    tuple,
    abc.Collection,
    abc.Iterable,
    abc.MutableSequence,
    abc.Sequence,
)
_ITERATORS: Final = (
    abc.AsyncGenerator,
    abc.AsyncIterable,
    abc.AsyncIterator,
    abc.Generator,
    abc.Iterable,
    abc.Iterator,
)
_JSON: Final = (bool, dict, float, int, list, set, str, tuple, types.NoneType)
_BYTES: Final = (bytes, bytearray, memoryview)
UNIONS: Final = (Union, types.UnionType)
_SAY_NOTHING: Final = (Any, object, UNKNOWN)


def libraries_of(annotation: Any) -> set[str]:
    """Return which kinds of classes an annotation contains: PYDANTIC, MSGSPEC, PLAIN_CLASS.

    Without any of them, an annotation declares nothing about a payload.
    """
    found: set[str] = set()
    _collect(annotation, found, [])
    return found


def unnamed(annotation: Any) -> Any:
    """Resolve a name made by `type X = ...`, which msgspec may not be able to read."""
    while hasattr(annotation, "__value__") and not isinstance(annotation, type):
        annotation = annotation.__value__
    return annotation


def bare(annotation: Any) -> Any:
    """Unwrap `Annotated` and type aliases."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        elif unnamed(annotation) is not annotation:
            annotation = unnamed(annotation)
        else:
            return annotation


def element_of(annotation: Any, *, iterates: bool = False) -> Any:
    """Return the type of the elements of a list, or, with `iterates`, of an iterator.

    UNKNOWN for any other annotation, and for one without an element type.
    """
    annotation = bare(annotation)
    if get_origin(annotation) in UNIONS:
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        return element_of(members[0], iterates=iterates) if len(members) == 1 else UNKNOWN
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin not in (_ITERATORS if iterates else _LISTS) or not arguments:
        return UNKNOWN
    if origin is tuple and arguments[1:] != (...,):
        return UNKNOWN
    return UNKNOWN if arguments[0] in _SAY_NOTHING else arguments[0]


def are_bytes(annotation: Any) -> bool:
    """Return whether an annotation is of bytes, or a union with them."""
    union = bare(annotation)
    members = get_args(union) if get_origin(union) in UNIONS else (union,)
    return any(isinstance(m, type) and issubclass(m, _BYTES) for m in map(bare, members))


def as_list(annotation: Any) -> Any:
    """Return the list that an annotation with an element type stands for, constraints included."""
    element: Any = element_of(annotation)
    return annotation if get_origin(bare(annotation)) is list else list[element]


def passed_and_rest(annotation: Any) -> tuple[tuple[type, ...], Any]:
    """Split a union into the classes whose objects a hook takes as they are, and the rest.

    `InferRequest | Item` takes V2's requests beside a declared document. The rest is UNKNOWN where
    nothing is declared.
    """
    union = bare(annotation)
    members = get_args(union) if get_origin(union) in UNIONS else (annotation,)
    passed = tuple(m for m in members if _is_taken_as_it_is(m))
    rest = tuple(m for m in members if m not in passed)
    if any(m in _SAY_NOTHING for m in members) or not any(map(libraries_of, rest)):
        return (), UNKNOWN
    return passed, Union[rest] if passed else annotation  # noqa: UP007 - made of a tuple


def _is_taken_as_it_is(member: Any) -> bool:
    return isinstance(member, type) and member not in _JSON and not libraries_of(member)


def _collect(annotation: Any, found: set[str], seen: list[Any]) -> None:
    if any(annotation is other for other in seen):
        return
    seen.append(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        for note in annotation.__metadata__:
            _note_library(note if isinstance(note, type) else type(note), found)
    parts = [*get_args(annotation)[: 1 if origin is Annotated else None]]
    if not isinstance(annotation, type):  # `type X = ...`, NewType
        named = ("__value__", "__supertype__")
        parts += [getattr(annotation, name) for name in named if hasattr(annotation, name)]
    kind = annotation if isinstance(annotation, type) and origin is None else origin
    if isinstance(kind, type):
        _collect_class(kind, found, seen)
    for part in parts:
        _collect(part, found, seen)


def _collect_class(kind: type, found: set[str], seen: list[Any]) -> None:
    if _note_library(kind, found) or _package(kind) in _OTHERS:
        return
    if is_dataclass(kind) or _is_typed_dict(kind):
        found.add(PLAIN_CLASS)
        for part in _types_of_fields(kind):
            _collect(part, found, seen)


def _note_library(kind: type, found: set[str]) -> bool:
    """Note which library a class belongs to; return whether it belongs to one."""
    package = _package(kind)
    if package in _OTHERS or (kind.__name__, package) in (
        ("BaseModel", PYDANTIC),
        ("Struct", MSGSPEC),
    ):
        return package not in _OTHERS
    if hasattr(kind, "__struct_fields__") or package == MSGSPEC:
        found.add(MSGSPEC)
    elif package in _OF_PYDANTIC or any(hasattr(kind, name) for name in _PYDANTIC_HAS):
        found.add(PYDANTIC)
    else:
        return False
    return True


_PYDANTIC_HAS: Final = ("__pydantic_validator__", "__get_pydantic_core_schema__")


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]  # of classes made by a program it may be None


def _is_typed_dict(kind: type) -> bool:
    return issubclass(kind, dict) and hasattr(kind, "__total__")


def _types_of_fields(kind: type) -> Iterator[Any]:
    """Yield the types of a class's fields, and of their defaults, such as pydantic's FieldInfo."""
    try:
        yield from get_type_hints(kind, include_extras=True).values()
    except Exception:  # an unknown name, which the library that reads the class reports
        yield from ()
    for field in getattr(kind, "__dataclass_fields__", {}).values():
        yield type(field.default)
