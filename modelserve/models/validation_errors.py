"""The ValidationErrors of pydantic and msgspec as a 400: the place and what was wrong.

The answer never holds a value of the request, nor a key that the model has not declared, although
the texts of both libraries, and those of the author's validators, may. Neither is imported here.
"""

import re
import sys
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple, get_args

from modelserve.errors import NotAsDeclared, single_cause

__all__ = ["as_mistake", "names_in"]

_MOST_PLACES: Final = 3  # of the errors that pydantic lists
_MOST_LISTED: Final = 10_000  # pydantic takes 6 us to list one, and lists all or none
_MOST_SAID: Final = 500  # letters of an author's text
_MOST_TEXT: Final = 1 << 16  # letters of a request that an author's text is compared with
_WINDOW: Final = 8  # letters in a row that an author's text may not share with a request
_NOT_SAID: Final = "Value is not valid"

# For these types, pydantic's text is the author's own or contains a part of the input.
_AUTHORS: Final = frozenset({"value_error", "assertion_error"})
_CUT_SHORT: Final = frozenset(
    {
        "bytes_invalid_encoding",
        "get_attribute_error",
        "iteration_error",
        "json_invalid",
        "mapping_type",
        "uuid_parsing",
    }
)
# msgspec's texts that name types only, and no values.
_OF_TYPES: Final = re.compile(
    r"Expected `[^`]*`.*|Invalid [A-Za-z0-9 ]+ string"
    r"|Invalid RFC3339 encoded \w+|Invalid UUID|Invalid ISO8601 duration"
)
_MISSING: Final = re.compile(r"Object missing required field `([^`]*)`")
_PLACE: Final = re.compile(r" - at `(key` in `)?\$([^`]*)`$")


def as_mistake(
    exc: BaseException,
    payload: Any,
    *,
    document: Any = None,
    place: str = "",
    names: Collection[str] = (),
) -> NotAsDeclared | None:
    """Return the 400 for a ValidationError of either library; None for any other exception.

    Args:
        payload: The request's payload, which must not be shown.
        document: The validated document, if known, in which the place is looked up.
        place: The place of the document in the request; empty for the whole request.
        names: The names that the model has declared, if known.
    """
    exc = single_cause(exc)
    if _is_error_of("pydantic_core", exc) or _is_error_of("pydantic.v1", exc):
        seen = _Seen(payload, document, place, {*(names or _names_of_models(exc))})
        sentence = _of_pydantic(exc, seen)
    elif _is_error_of("msgspec", exc):
        seen = _Seen(payload, document, place, {*(names or _names_of_structs())})
        sentence = _of_msgspec(exc, seen)
    else:
        return None
    mistake = NotAsDeclared(sentence)
    mistake.__cause__ = exc
    return mistake


class _Seen(NamedTuple):
    """The arguments of `as_mistake`."""

    payload: Any
    document: Any
    place: str
    names: set[str]


def _is_error_of(module: str, exc: BaseException) -> bool:
    kind = getattr(sys.modules.get(module), "ValidationError", None)
    return kind is not None and isinstance(exc, kind)


def _sentence(place: str, text: str) -> str:
    return f"{place or 'payload'}: {text}"


# --- pydantic -----------------------------------------------------------------------------------


def names_in(schema: Any) -> Iterator[str]:
    """Yield the names and aliases of all fields in one of pydantic's core schemas."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list | tuple):
            waiting += node
        elif isinstance(node, dict):
            if isinstance(node.get("fields"), dict):
                yield from node["fields"]
            if str(node.get("type", "")).endswith("-field"):
                yield from _texts([node.get("name"), node.get("validation_alias")])
            waiting += [v for key, v in node.items() if key not in ("metadata", "serialization")]


def _of_pydantic(exc: Any, seen: _Seen) -> str:
    count = exc.error_count() if hasattr(exc, "error_count") else 0
    if count > _MOST_LISTED:
        return _sentence(seen.place, f"{count} values are not as declared")
    try:
        errors = exc.errors(include_url=False)
    except TypeError:  # pydantic 1
        errors = exc.errors()
    said = [_of_one(error, seen) for error in errors[:_MOST_PLACES]]
    more = len(errors) - len(said)
    return "; ".join(dict.fromkeys(said)) + (f"; and {more} more" if more > 0 else "")


def _of_one(error: Any, seen: _Seen) -> str:
    location = list(error["loc"])
    text = _text_of_pydantic(error, seen)
    if location[-1:] == ["[key]"]:
        location, text = location[:-2], f"Invalid key: {text}"
    return _sentence(_place_of_pydantic(location, error["type"], seen), text)


def _place_of_pydantic(location: list[Any], kind: str, seen: _Seen) -> str:
    """Return a location as a place; parts not in the document are labels of a union's members."""
    place, at = seen.place, seen.document
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        is_known = part in seen.names or (is_last and kind in ("missing", "value_error.missing"))
        if isinstance(part, int):
            place += f"[{part}]"
            at = at[part] if isinstance(at, list) and part < len(at) else None
        elif isinstance(at, dict) and part in at:
            place += _dotted(part, place) if is_known else "[...]"
            at = at[part]
        elif is_known and (is_last or at is None):
            place += _dotted(part, place)
    return place


def _text_of_pydantic(error: Any, seen: _Seen) -> str:
    kind, text, context = error["type"], str(error["msg"]), error.get("ctx") or {}
    if kind == "union_tag_invalid":
        return (
            f"Input tag found using {context['discriminator']} does not match any of the expected "
            f"tags: {context['expected_tags']}"
        )
    if kind in _CUT_SHORT:
        return re.split("[,:]", text)[0]
    reason = getattr(context.get("error"), "reason", None)
    if isinstance(reason, str):  # an InvalidInput, whose text is for the client
        return reason
    if kind in _AUTHORS or kind not in _known_types():
        return _without_values(text, seen, error.get("input"), error["loc"])
    return text


def _known_types() -> Collection[str]:
    """Return the types whose texts are pydantic's own."""
    module: Any = sys.modules.get("pydantic_core.core_schema")
    return get_args(module.ErrorType) if module else ()


def _names_of_models(exc: Any) -> Iterator[str]:
    """Yield the models named in the title of an error, such as `list[Item]`."""
    words = set(re.findall(r"\w+", getattr(exc, "title", "")))
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None) if words else None
    waiting = [] if base is None else [base]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if words & {kind.__name__, kind.model_config.get("title")}:
            yield from names_in(vars(kind).get("__pydantic_core_schema__"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _dotted(name: str, place: str) -> str:
    if not name.isidentifier():
        return f'["{name}"]'
    return f".{name}" if place else name


# --- msgspec ------------------------------------------------------------------------------------


def _of_msgspec(exc: BaseException, seen: _Seen) -> str:
    text, path, prefix = str(exc), "", ""
    found = _PLACE.search(text)
    if found is not None and _is_own_place(found[2], seen):
        text, path = text[: found.start()], found[2]
        prefix = "Invalid key: " if found[1] else ""
    missing = _MISSING.fullmatch(text)
    if exc.__cause__ is None and missing is not None:
        path, text = path + _dotted(missing[1], seen.place + path), "Field required"
    elif exc.__cause__ is None and text.startswith(("Invalid value", "Invalid enum value")):
        text = "Invalid value"
    elif exc.__cause__ is None and text.startswith("Object contains unknown field"):
        text = "Object contains an unknown field"
    elif exc.__cause__ is not None or not _OF_TYPES.fullmatch(text):
        text = _without_values(text, seen, None, re.findall(r"\w+", path))
    return _sentence((seen.place + path).removeprefix("."), prefix + text)


def _is_own_place(path: str, seen: _Seen) -> bool:
    """Return whether msgspec wrote a place, rather than a client's text that looks like one."""
    if all(name in seen.names for name in re.findall(r"[^.\[\]0-9][^.\[\]]*", path)):
        return True
    leaves = _leaves(seen.payload, ())
    return leaves is not None and not any(" - at `" in leaf for leaf in leaves)


def _names_of_structs() -> Iterator[str]:
    """Yield the names of the fields of all classes of msgspec."""
    waiting = [sys.modules["msgspec"].Struct]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield from (*kind.__struct_fields__, *kind.__struct_encode_fields__)


# --- texts of an author -------------------------------------------------------------------------


def _without_values(text: str, seen: _Seen, value: Any, location: Any) -> str:
    """Return an author's text if it shares nothing with the request; else a general one.

    It is compared with the largest part of the request around the value that is small enough.
    """
    text = re.sub("^(Value error|Assertion failed), ", "", text)
    if len(text) > _MOST_SAID:
        return _NOT_SAID
    around = seen.payload if seen.document is None else seen.document
    for part in (*_around(around, location), value):
        leaves = _leaves(part, seen.names)
        if leaves is not None:
            own = _leaves(value, seen.names)
            return _NOT_SAID if own is None or _shares(text, {*leaves, *own}) else text
    return _NOT_SAID


def _around(payload: Any, location: Any) -> Iterator[Any]:
    """Yield a payload and its parts on the way to a place."""
    yield payload
    for part in location:
        if isinstance(payload, dict) and part in payload:
            payload = payload[part]
        elif isinstance(payload, list) and str(part).isdigit() and int(part) < len(payload):
            payload = payload[int(part)]
        else:
            continue
        yield payload


def _leaves(value: Any, names: Collection[str]) -> set[str] | None:
    """Return the texts, numbers and undeclared keys of a value; None if they are too many."""
    leaves: set[str] = set()
    waiting, room = [value], _MOST_TEXT
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += [*(key for key in node if key not in names), *node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += node
        elif node is not None and not isinstance(node, bool):
            text = node if isinstance(node, str) else str(node)
            leaves.add(text.casefold())
            room -= len(text) + 1
        if room < len(waiting):
            return None
    return leaves - {""}


def _shares(text: str, leaves: set[str]) -> bool:
    """Return whether a text contains one of these, or a long part of one, in any case."""
    text = text.casefold()
    words = set(re.findall(r"\w+", text))
    if words & leaves:
        return True
    if any(leaf in text for leaf in leaves if len(leaf) > 3 or not leaf.isalnum()):
        return True
    whole = "\0".join(leaves)
    windows = (text[start : start + _WINDOW] for start in range(len(text) - _WINDOW + 1))
    return any(window in whole for window in windows)
