"""The OpenAPI document of an application, made of its table of routes and its models. Pure.

It describes what is enforced, and a verb only for models that declare it: that a model takes V2
requests, for example, by an annotation, its metadata or its example.
https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from modelserve.lifespan import Serving
from modelserve.models.registry import Entry
from modelserve.pages.components import Components
from modelserve.pages.fixed import FIXED, Fixed
from modelserve.pages.operations import (
    Operation,
    error_responses,
    infer,
    openai_verb,
    plain_responses,
    v1,
)
from modelserve.pages.traits import Described, example_of, given_by, taken_by
from modelserve.version import __version__

__all__ = ["describe"]

_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_]+")
_SERVER: Final = "server"
_OPENAI: Final = "openai"


class _Row(NamedTuple):
    """A future operation: its method and path, and its subject."""

    method: str
    path: str
    tag: str
    name: str
    operation: Operation


def describe(
    serving: Serving,
    rows: Sequence[Any],
    models: Iterable[tuple[str, Entry]],
    *,
    base: str = "",
    prefix: str = "",
) -> dict[str, Any]:
    """Return the document.

    Args:
        rows: The table of routes.
        models: Each name with its model.
        base: The path below which it is requested.
        prefix: The beginning of all paths, and of all names in it.
    """
    start = _start_of(prefix)
    described = [Described(name, entry, example_of(entry.model)) for name, entry in models]
    components = Components(start)
    scheme = f"{start}bearer"
    paths: dict[str, dict[str, Operation]] = {}
    ids: set[str] = set()
    for row, found in _described(serving, rows, described, components):
        identifier = _unused(_NOT_IN_IDS.sub("_", start + found.name), ids)
        operation: Operation = {"operationId": identifier, "tags": [found.tag], **found.operation}
        if serving.token is not None and not row.public:
            operation["security"] = [{scheme: []}]
            operation["responses"] |= error_responses(components, [401], _error_of(row))
        if not row.always:
            operation["responses"] |= error_responses(components, [503], _error_of(row))
        operation["responses"] = dict(sorted(operation["responses"].items()))
        paths.setdefault(prefix + found.path, {})[found.method.lower()] = operation
    parts: dict[str, Any] = {"schemas": components.schemas, "responses": components.responses}
    if serving.token is not None:
        parts["securitySchemes"] = {scheme: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "modelserve", "version": __version__},
        **({"servers": [{"url": base}]} if base else {}),
        "tags": [{"name": tag} for tag in _tags(paths)],
        "paths": paths,
        "components": parts,
    }


def _described(
    serving: Serving, rows: Sequence[Any], models: Sequence[Described], components: Components
) -> Iterator[tuple[Any, _Row]]:
    by_endpoint = {(row.endpoint, row.method): row for row in reversed(rows) if not row.means}
    for row in rows:
        if row.codec.protocol == "grpc":
            continue  # a .proto describes it
        if not row.verb:
            template = row
            if row.means:
                method = "POST" if row.method == "PUT" else row.method
                template = by_endpoint.get((row.endpoint, method), row)
            found = _fixed_rows(serving, row, template.path, models, components)
        elif row.codec.protocol == "openai":
            found = _openai_rows(row, models, components)
        else:
            found = _model_rows(row, models, components)
        for each in found:
            yield row, each


# --- paths that run no model --------------------------------------------------------------------


def _fixed_rows(
    serving: Serving, row: Any, template: str, models: Sequence[Described], components: Components
) -> Iterator[_Row]:
    fixed = FIXED.get(template)
    if fixed is None or (fixed.needs == "control" and not serving.is_controllable):
        return
    chosen = [m for m in models if fixed.needs != "openai" or m.entry.plans.has_openai]
    if "{model}" not in template:
        if chosen or fixed.needs != "openai":
            yield _Row(row.method, row.path, _SERVER, fixed.name, _fixed(fixed, row, components))
        return
    for filled in _filled(row, chosen):
        name = f"{fixed.name}_{filled.suffix}"
        operation = _fixed(fixed, row, components)
        yield _Row(row.method, filled.path, filled.model.name, name, operation)


def _fixed(fixed: Fixed, row: Any, components: Components) -> Operation:
    body = {}
    if fixed.request is not None:
        body = {"requestBody": {"content": {"application/json": {"schema": fixed.request}}}}
    return {
        "summary": fixed.summary,
        **body,
        "responses": {
            **plain_responses(fixed.media, fixed.answer),
            **error_responses(components, fixed.errors, _error_of(row)),
        },
    }


def _error_of(row: Any) -> str:
    return "OpenAIError" if row.codec.protocol == "openai" else "Error"


# --- paths that run a model ---------------------------------------------------------------------


def _model_rows(row: Any, models: Sequence[Described], components: Components) -> Iterator[_Row]:
    for filled in _filled(row, models):
        make = _maker(row, filled.model, components)
        if make is not None:
            name = f"{row.verb}_{filled.suffix}"
            yield _Row(row.method, filled.path, filled.model.name, name, make())


def _maker(row: Any, model: Described, components: Components) -> partial[Operation] | None:
    """Return the description of a model's verb; None if the model does not declare it."""
    plan = model.entry.plans[row.hook]
    taken = taken_by(model, plan)
    if taken is None:
        return None
    given = given_by(model.entry.model, plan)
    if row.codec.protocol == "v1":
        is_taken = taken.json or taken.bytes or taken.form
        return partial(v1, components, row.verb, model, taken, given) if is_taken else None
    is_taken = taken.text if row.verb.startswith("generate") else taken.tensors
    return partial(infer, components, row.verb, model, given) if is_taken else None


def _openai_rows(row: Any, models: Sequence[Described], components: Components) -> Iterator[_Row]:
    chosen = [model for model in models if row.hook in model.entry.plans]
    if chosen:
        operation = openai_verb(components, row.hook, chosen)
        yield _Row(row.method, row.path, _OPENAI, f"openai_{row.verb}", operation)


class _Filled(NamedTuple):
    """A path with the names filled in."""

    path: str
    model: Described
    suffix: str


def _filled(row: Any, models: Sequence[Described]) -> Iterator[_Filled]:
    """Yield the path for each model, and for each version if the path contains one."""
    for model in models:
        name, entry, _ = model
        if row.means:
            version = row.ref.version
            if row.ref.name == name and (version is None or version in entry.versions):
                yield _Filled(row.path, model, "_".join((name, *row.path.split("/")[1:])))
            continue
        path = row.path.replace("{model}", quote(name, safe=""))
        if "{version}" not in path:
            yield _Filled(path, model, name)
            continue
        for version in entry.versions:
            filled = path.replace("{version}", quote(version, safe=""))
            yield _Filled(filled, model, f"{name}_{version}")


# --- names --------------------------------------------------------------------------------------


def _start_of(prefix: str) -> str:
    words = _NOT_IN_IDS.sub("_", prefix).strip("_")
    return f"{words}_" if words else ""


def _unused(name: str, ids: set[str]) -> str:
    number, chosen = 1, name
    while chosen in ids:
        number += 1
        chosen = f"{name}_{number}"
    ids.add(chosen)
    return chosen


def _tags(paths: dict[str, dict[str, Operation]]) -> Iterable[str]:
    operations = (operation for methods in paths.values() for operation in methods.values())
    return dict.fromkeys(tag for operation in operations for tag in operation["tags"])
