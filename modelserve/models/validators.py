"""Convert JSON to the types that a model has declared, with pydantic or msgspec.

A library is imported only if a model declares one of its classes; a dataclass or TypedDict is read
by msgspec if that is installed, else by pydantic. The document has been parsed from JSON already,
but is read by the rules of JSON: a date is text, for example.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Final, TypeAlias, get_origin

import orjson

from modelserve.errors import NotAsDeclared
from modelserve.models.annotations import MSGSPEC, PYDANTIC, bare, libraries_of
from modelserve.models.typed_dicts import readable
from modelserve.models.validation_errors import as_mistake, names_in
from modelserve.models.whole_numbers import taking_whole_floats
from modelserve.wire.values import JSON_OPTIONS, to_builtin

__all__ = ["Validate", "library_for", "validator_of"]

# From a document and its place in the request ("" for all of it) to what the hook takes.
Validate: TypeAlias = Callable[[Any, str], Any]

_MANY: Final = 1000  # errors, which pydantic finds more slowly than valid values
_TOO_DEEP: Final = "The request is nested too deep."


def validator_of(annotation: Any, label: str) -> Validate:
    """Return a function that makes a document into what an annotation says.

    It raises NotAsDeclared, which names the place. Raises TypeError, in one sentence that begins
    with the label, for a type that cannot be read from JSON or needs a library that is missing.
    """
    library = library_for(annotation, label)
    makers = {MSGSPEC: _of_msgspec, PYDANTIC: _of_pydantic}
    try:
        return taking_whole_floats(makers[library](annotation))
    except Exception as exc:
        if library == MSGSPEC and MSGSPEC not in libraries_of(annotation) and _has(PYDANTIC):
            return taking_whole_floats(_checked(_of_pydantic, annotation, label))
        raise TypeError(_cannot(label, exc)) from exc


def library_for(annotation: Any, label: str) -> str:
    """Return the library that reads an annotation. Raises TypeError where there is none."""
    found = libraries_of(annotation)
    if {MSGSPEC, PYDANTIC} <= found:
        raise TypeError(
            f"{label} mixes classes of pydantic and msgspec, which cannot read each other's"
        )
    for library in (MSGSPEC, PYDANTIC):
        if library in found:
            return library
    for library in (MSGSPEC, PYDANTIC):
        if _has(library):
            return library
    raise TypeError(
        f"{label} is validated by msgspec or pydantic, and neither is installed: "
        "pip install 'modelserve[inputs]'"
    )


def _has(library: str) -> bool:
    return find_spec(library) is not None


def _checked(make: Callable[[Any], Validate], annotation: Any, label: str) -> Validate:
    try:
        return make(annotation)
    except Exception as exc:
        raise TypeError(_cannot(label, exc)) from exc


def _cannot(label: str, exc: Exception) -> str:
    reason = str(exc).strip().partition("\n")[0]
    return f"{label} cannot be read from JSON: {reason}"


# --- msgspec ------------------------------------------------------------------------------------


def _of_msgspec(annotation: Any) -> Validate:
    import msgspec

    convert, error = msgspec.convert, msgspec.ValidationError
    info = msgspec.inspect.type_info(annotation)
    for node in _nodes(info):
        if isinstance(node, msgspec.inspect.CustomType):
            raise TypeError(f"msgspec does not know {node.cls.__name__}")
    names = {*_names_of(info)}
    try:
        convert(None, annotation)  # some types are refused only here
    except error:
        pass

    def validate(document: Any, place: str) -> Any:
        try:
            return convert(document, annotation, str_keys=True)
        except error as exc:
            raise _refused(exc, document, place, names) from exc
        except RecursionError:
            raise NotAsDeclared(_TOO_DEEP) from None

    return validate


def _nodes(info: Any) -> Iterator[Any]:
    """Yield all parts of a type as msgspec describes it, fields included, each once."""
    waiting, seen = [info], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple | list):
            waiting += node
        elif hasattr(node, "__struct_fields__") and id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += [getattr(node, name) for name in node.__struct_fields__]


def _names_of(info: Any) -> Iterator[str]:
    for node in _nodes(info):
        if hasattr(node, "encode_name"):
            yield from (node.name, node.encode_name)


# --- pydantic -----------------------------------------------------------------------------------


def _of_pydantic(annotation: Any) -> Validate:
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(_failing_fast(readable(annotation)))
    schema = adapter.core_schema
    names = {*names_in(schema)}
    from_objects = adapter.validate_python if _is_read_alike(schema) else None
    from_json = adapter.validate_json

    def validate(document: Any, place: str) -> Any:
        try:
            if from_objects is not None:
                try:
                    return from_objects(document)
                except ValidationError as exc:
                    if exc.error_count() > _MANY:
                        raise
            return from_json(
                orjson.dumps(document, to_builtin, JSON_OPTIONS)
            )  # the same in the terms of JSON
        except ValidationError as exc:
            raise _refused(exc, document, place, names) from exc
        except (RecursionError, orjson.JSONEncodeError):
            raise NotAsDeclared(_TOO_DEEP) from None

    return validate


def _failing_fast(annotation: Any) -> Any:
    """Let a list end at its first bad element, as pydantic 2.8 can: a client may send a million."""
    import pydantic

    fail_fast: Any = getattr(pydantic, "FailFast", None)
    if fail_fast is None or get_origin(bare(annotation)) is not list:
        return annotation
    return Annotated[annotation, fail_fast()]


# The kinds of pydantic's core schemas that read objects as they read JSON.
_ALIKE: Final = frozenset(
    {
        "any", "bool", "dataclass", "dataclass-args", "dataclass-field", "date", "datetime",
        "decimal", "default", "definition-ref", "definitions", "dict", "enum", "float", "frozenset",
        "function-after", "function-before", "int", "list", "literal", "model", "model-field",
        "model-fields", "none", "nullable", "set", "str", "tagged-union", "time", "timedelta",
        "tuple", "typed-dict", "typed-dict-field", "uuid",
    }
)  # fmt: skip
_NOT_SCHEMAS: Final = frozenset(
    {
        "cls",
        "config",
        "default",
        "discriminator",
        "expected",
        "function",
        "members",
        "metadata",
        "serialization",
    }
)
_SCALARS: Final = frozenset({"bool", "float", "int", "none", "str"})


def _is_read_alike(schema: Any) -> bool:
    """Return whether pydantic reads a parsed document as it would read its JSON.

    Reading the document is faster. The result differs for strict models, and for unions in which
    text may be a date.
    """
    if isinstance(schema, list | tuple):
        return all(map(_is_read_alike, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("strict") or (schema.get("config") or {}).get("strict"):
        return False
    kind = schema.get("type")
    if kind == "union":
        return all(_kind_of(choice) in _SCALARS for choice in schema["choices"])
    if kind not in _ALIKE:
        return False
    if kind in ("function-after", "function-before") and schema["function"]["type"] != "no-info":
        return False  # it may ask whether it reads JSON or Python objects
    inner = (schema[key] for key in schema if key not in _NOT_SCHEMAS)
    return all(_is_read_alike([*v.values()] if _is_table(v) else v) for v in inner)


def _is_table(value: Any) -> bool:
    """Return whether a dict holds schemas by name: those of fields, or of a union's members."""
    return isinstance(value, dict) and not isinstance(value.get("type"), str)


def _kind_of(choice: Any) -> Any:
    schema = choice[0] if isinstance(choice, tuple) else choice
    return None if schema.get("strict") else schema["type"]


def _refused(exc: Exception, document: Any, place: str, names: set[str]) -> NotAsDeclared:
    mistake = as_mistake(exc, document, document=document, place=place, names=names)
    assert mistake is not None
    return mistake
