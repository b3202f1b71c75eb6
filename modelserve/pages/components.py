"""The schemas of an OpenAPI document: those of the protocols, and those that models declare. Pure.

A protocol's schema describes only what is enforced. Some rules cannot be put into a schema: that
shape and data of a tensor agree, for example.
"""

import math
import re
from typing import Any, Final

from modelserve.models.schemas import Schema
from modelserve.tensors.data import DATATYPES
from modelserve.wire.json import to_json

__all__ = ["ANY", "Components", "array", "nullable", "record", "string"]

ANY: Final[Schema] = {}
_REFERENCE: Final = "#/components/schemas/"
_DEFINITION: Final = "#/$defs/"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")
# Keywords whose values are data and contain no schema, and those that hold schemas by name.
_DATA: Final = frozenset({"const", "default", "enum", "example", "examples"})
# The range of integers that models declare: JSON with more digits is read as a float.
_RANGE: Final[Schema] = {"minimum": -(2**63), "maximum": 2**64 - 1}
_NAMED: Final = frozenset({"$defs", "dependentSchemas", "patternProperties", "properties"})


def record(required: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object with these members."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        **({"required": list(required)} if required else {}),
    }


def array(items: Schema, **limits: int) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", **limits, "items": items}


def string(description: str = "") -> Schema:
    """Return the schema of text."""
    return {"type": "string", **({"description": description} if description else {})}


def nullable(schema: Schema) -> Schema:
    """Return the schema of a value, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def _ref(name: str) -> Schema:
    return {"$ref": _REFERENCE + name}


_INTEGER: Final[Schema] = {"type": "integer"}
_SIZE: Final[Schema] = {"type": "integer", "minimum": 0}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_OBJECT: Final[Schema] = {"type": "object"}
_PARAMETERS: Final[Schema] = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_IN_JSON: Final = [name for name, datatype in DATATYPES.items() if datatype.json]
_TENSOR: Final[Schema] = {
    "name": string(),
    "shape": array(_SIZE, maxItems=32),
    "datatype": {"type": "string", "enum": _IN_JSON},
    "data": {**array(ANY), "description": "The elements, row by row; lists of lists will do, too."},
}
_TEXT: Final[Schema] = {
    "anyOf": [string(), array(string(), minItems=1)],
}
_STREAMED: Final[Schema] = {
    "stream": nullable(_BOOLEAN),
    "stream_options": nullable(_OBJECT),
}
_USAGE: Final[Schema] = record({"total_tokens": ANY})
_FRAME: Final[Schema] = {"id": ANY, "object": ANY, "created": ANY, "model": ANY}

# The schemas of the protocols by name, including all that they refer to.
_SCHEMAS: Final[dict[str, Schema]] = {
    "Error": record(
        {"error": {"description": "A sentence, or what the model has put into an HTTPException."}}
    ),
    "OpenAIError": record(
        {"error": record({"message": string(), "type": ANY, "param": ANY, "code": ANY})}
    ),
    "InferRequest": record(
        {"inputs": array(_ref("InferInput"))},
        {
            "id": nullable(string()),
            "parameters": _PARAMETERS,
            "outputs": nullable(array(_ref("RequestedOutput"))),
        },
    ),
    "InferInput": record(_TENSOR, {"parameters": _PARAMETERS}),
    "RequestedOutput": record({"name": string()}, {"parameters": _PARAMETERS}),
    "InferResponse": record(
        {"model_name": string(), "outputs": array(_ref("InferOutput"))},
        {"model_version": nullable(string()), "id": nullable(string()), "parameters": _PARAMETERS},
    ),
    "InferOutput": record(
        {key: _TENSOR[key] for key in ("name", "shape", "datatype")},
        {"parameters": _PARAMETERS, "data": array(ANY)},
    ),
    "GenerateRequest": record({"text_input": string()}, {"parameters": _OBJECT}),
    "GenerateResponse": record(
        {"text_output": string(), "model_name": string(), "model_version": nullable(string())}
    ),
    "ChatRequest": record({"messages": array(_OBJECT, minItems=1)}, _STREAMED),
    "ChatCompletion": record(
        {
            **_FRAME,
            "choices": array(record({"index": _INTEGER, "message": _OBJECT, "finish_reason": ANY})),
            "usage": _USAGE,
        }
    ),
    "CompletionRequest": record({"prompt": _TEXT}, _STREAMED),
    "Completion": record(
        {
            **_FRAME,
            "choices": array(record({"index": _INTEGER, "text": ANY, "finish_reason": ANY})),
            "usage": _USAGE,
        }
    ),
    "EmbeddingsRequest": record(
        {"input": _TEXT},
        {"encoding_format": {"enum": ["float", "base64", None]}},
    ),
    "Embeddings": record({"object": ANY, "data": array(ANY), "model": ANY, "usage": _USAGE}),
}


class Components:
    """The components that the operations of one document refer to.

    Attributes:
        responses: The responses by name.

    Args:
        prefix: The beginning of all names, if the document becomes a part of another one.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._schemas: dict[str, Schema] = {}
        self._closures: dict[str, bytes] = {}  # the declared classes, and all that they refer to
        self.responses: dict[str, Any] = {}

    @property
    def schemas(self) -> dict[str, Schema]:
        """The schemas by name, in order."""
        return dict(sorted(self._schemas.items()))

    def protocol(self, name: str) -> Schema:
        """Return a reference to a schema of a protocol."""
        key = self._prefix + name
        if key not in self._schemas:
            self._schemas[key] = {}  # it may refer to itself
            self._schemas[key] = self._moved(_SCHEMAS[name], _REFERENCE, self._named)
        return _ref(key)

    def response(self, name: str, response: dict[str, Any]) -> Schema:
        """Return a reference to a response of this name."""
        key = self._prefix + name
        self.responses.setdefault(key, response)
        return {"$ref": f"#/components/responses/{key}"}

    def declared(self, schema: Schema) -> Schema:
        """Return a declared schema, with classes in it replaced by references to their schemas."""
        schema = _named_by_title(schema)
        definitions: dict[str, Schema] = schema.get("$defs", {})
        names = {name: self._reserve(name, definitions) for name in definitions}
        for name, key in names.items():
            if not self._schemas[key]:
                self._schemas[key] = self._moved(definitions[name], _DEFINITION, names.__getitem__)
        rest = {key: value for key, value in schema.items() if key != "$defs"}
        moved: Schema = self._moved(rest, _DEFINITION, names.__getitem__)
        return moved

    def _named(self, name: str) -> str:
        return str(self.protocol(name)["$ref"]).removeprefix(_REFERENCE)

    def _reserve(self, name: str, definitions: dict[str, Schema]) -> str:
        """Return the name of a class in this document; different classes get different names."""
        closure = _closure(name, definitions)
        base = key = self._prefix + (_NOT_IN_NAMES.sub("_", name) or "_")
        number = 1
        while key in self._schemas or key.removeprefix(self._prefix) in _SCHEMAS:
            if self._closures.get(key) == closure:
                return key
            number += 1
            key = f"{base}_{number}"
        self._schemas[key], self._closures[key] = {}, closure
        return key

    def _moved(self, schema: Any, start: str, key_of: Any) -> Any:
        """Return a schema with references that begin so changed to the names in this document."""

        def moved(node: Any) -> Any:
            if isinstance(node, list):
                return [moved(item) for item in node]
            if not isinstance(node, dict):
                return node
            limits = _RANGE if start == _DEFINITION and node.get("type") == "integer" else {}
            kept = (key for key in node if _is_kept(key, node))
            return {**limits, **{key: member(key, node[key]) for key in kept}}

        def member(key: str, value: Any) -> Any:
            if key in _DATA:
                return value
            if key in _NAMED and isinstance(value, dict):
                return {name: moved(item) for name, item in value.items()}
            if key == "mapping" and isinstance(value, dict):  # of a discriminator
                return {name: reference(item) for name, item in value.items()}
            return reference(value) if key == "$ref" else moved(value)

        def reference(text: Any) -> Any:
            if not isinstance(text, str) or not text.startswith(start):
                return text
            return _REFERENCE + key_of(_unescaped(text.removeprefix(start)))

        return moved(schema)


def _is_kept(key: str, schema: Schema) -> bool:
    """Return False for keywords of a library's schema that are not enforced, or redundant.

    A set may be sent with an element twice. A tuple's length is in `maxItems`, and generators of
    clients do not read `false` as a schema. A default may be refused by its own schema: `x: int =
    None`, and infinities, which are null.
    """
    if key == "items":
        return schema[key] is not False or "maxItems" not in schema
    if key != "default":
        return key != "uniqueItems"
    default = schema[key]
    if isinstance(default, float):
        return math.isfinite(default)
    return default is not None or schema.get("type", "null") == "null"


def _named_by_title(schema: Schema) -> Schema:
    """Return a schema of a pydantic class with that class among the definitions."""
    rest = {key: value for key, value in schema.items() if key != "$defs"}
    definitions: dict[str, Schema] = schema.get("$defs", {})
    title = schema.get("title")
    if not title or "properties" not in schema or definitions.get(title, rest) != rest:
        return schema
    return {"$ref": _DEFINITION + _escaped(title), "$defs": {**definitions, title: rest}}


def _closure(name: str, definitions: dict[str, Schema]) -> bytes:
    """Return a class's schema with everything that it refers to, for comparisons."""
    found: dict[str, Schema] = {}
    names = [name]
    while names:
        name = names.pop()
        if name in definitions and name not in found:
            found[name] = definitions[name]
            text = to_json(found[name]).decode()
            names += [other for other in definitions if f'"{_DEFINITION}{_escaped(other)}"' in text]
    return to_json(dict(sorted(found.items())))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _unescaped(name: str) -> str:
    return name.replace("~1", "/").replace("~0", "~")
