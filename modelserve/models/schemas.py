"""The JSON Schemas of a model's declared payloads and answers, for its documentation. Pure."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from modelserve.models.annotations import MSGSPEC, PLAIN_CLASS, PYDANTIC, element_of, libraries_of
from modelserve.models.declared import Form
from modelserve.models.hooks import Plan
from modelserve.models.signatures import UNKNOWN, return_type
from modelserve.models.typed_dicts import readable
from modelserve.models.validators import library_for

__all__ = ["Schema", "input_schema", "output_schema"]

Schema = dict[str, Any]

_DEFINITIONS: Final = "$defs"


def input_schema(model: Any, plan: Plan) -> Schema | None:
    """Return the JSON Schema (2020-12) of V1's payloads for a verb; None where nothing is declared.

    It is complete: everything it refers to is in its `$defs`. None for a class without a schema,
    because of a field that its library cannot describe.
    """
    declared = plan.declared
    if declared is None:
        return model.input_schema if isinstance(model.input_schema, dict) else None
    schema = _schema_of(declared.type)
    if schema is None:
        return None
    if declared.form is Form.INSTANCES:
        return _object(instances=schema)
    return _object(instances=_list(schema)) if declared.form is Form.ITERATOR else schema


def output_schema(model: Any, plan: Plan) -> Schema | None:
    """Return the JSON Schema of a verb's answers: `output_schema`, else what the last hook returns.

    The items of a stream are the elements of `predictions`, as in a collected stream.
    """
    if isinstance(model.output_schema, dict):
        return model.output_schema
    if model.output_schema is not None:
        return _schema_of(model.output_schema, answers=True)
    last = plan.postprocess or plan.main
    annotation = return_type(getattr(model, last.name))
    item = element_of(annotation, iterates=True)
    if item is not UNKNOWN and libraries_of(item):
        return _predictions(_schema_of(item, answers=True))
    is_list = plan.declared is not None and plan.declared.form is Form.INSTANCES
    if is_list and element_of(annotation) is not UNKNOWN:
        return _predictions(_schema_of(element_of(annotation), answers=True))
    return _schema_of(annotation, answers=True) if libraries_of(annotation) else None


def _schema_of(annotation: Any, *, answers: bool = False) -> Schema | None:
    """Return the schema of a type by the library that reads it; None where it has none."""
    try:
        library = library_for(annotation, "A schema")
        return _MAKERS[library](annotation, answers)
    except Exception:  # the library's own, for a type that JSON Schema cannot describe
        if libraries_of(annotation) != {PLAIN_CLASS}:
            return None
    with suppress(Exception):  # one that msgspec does not know
        return _of_pydantic(annotation, answers)
    return None


def _of_msgspec(annotation: Any, answers: bool) -> Schema:
    import msgspec

    return msgspec.json.schema(annotation)


def _of_pydantic(annotation: Any, answers: bool) -> Schema:
    from pydantic import TypeAdapter

    adapter = TypeAdapter(readable(annotation))
    return _as_written(adapter) if answers else adapter.json_schema()


def _as_written(adapter: Any) -> Schema:
    """Return the schema of what `model_dump` writes."""
    from pydantic.json_schema import GenerateJsonSchema

    class AsWritten(GenerateJsonSchema):
        def model_schema(self, schema: Any) -> Schema:
            """Describe a class, by its fields' own names unless its settings say otherwise."""
            before = self.by_alias
            self.by_alias = schema["cls"].model_config.get("serialize_by_alias") is True
            try:
                return super().model_schema(schema)
            finally:
                self.by_alias = before

    found: Schema = adapter.json_schema(
        by_alias=False, mode="serialization", schema_generator=AsWritten
    )
    return found


_MAKERS: Final = {MSGSPEC: _of_msgspec, PYDANTIC: _of_pydantic}


def _predictions(item: Schema | None) -> Schema | None:
    return None if item is None else _object(predictions=_list(item))


def _list(item: Schema) -> Schema:
    return _with_definitions({"type": "array", "items": _without_definitions(item)}, item)


def _object(**members: Schema) -> Schema:
    [(name, member)] = members.items()
    schema = {
        "type": "object",
        "properties": {name: _without_definitions(member)},
        "required": [name],
    }
    return _with_definitions(schema, member)


def _without_definitions(schema: Mapping[str, Any]) -> Schema:
    return {key: value for key, value in schema.items() if key != _DEFINITIONS}


def _with_definitions(schema: Schema, inner: Schema) -> Schema:
    return schema | {key: inner[key] for key in (_DEFINITIONS,) if key in inner}
