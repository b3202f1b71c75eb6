"""What an API server that is strict would say of a manifest, by KServe's custom resource definitions.

A plain JSON-schema check is not enough: Kubernetes' schemas are open, since it prunes what they do
not name, so a misspelt field would pass. Here every object with `properties` is closed, and what
only Kubernetes has is turned into JSON schema or checked: int-or-string, nullable, lists that are
sets or maps, the metadata, which the definitions leave out, and keys that come twice.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

__all__ = ["documents", "load", "problems"]

Schemas = dict[tuple[str, str], Any]

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
}


def load(folder: Path) -> Schemas:
    """Read the definitions in a folder, which may be compressed; one schema a kind."""
    found: Schemas = {}
    for path in [*folder.glob("*.yaml"), *folder.glob("*.yaml.xz")]:
        data = path.read_bytes()
        text = lzma.decompress(data) if path.suffix == ".xz" else data
        crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
        for version in crd["spec"]["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = METADATA
            schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
            found[f"{group}/{version['name']}", kind] = Strict(schema)
    return found


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI schema of Kubernetes' as a JSON schema that allows nothing unnamed."""
    made = {k: v for k, v in schema.items() if k not in ("description", "format", "nullable")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    if "properties" in made:
        made["properties"] = {name: closed(each) for name, each in made["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = closed(made[key])
    return made


def once(
    validator: Any, kind: str, items: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    """Find items of a list that is a set, or a map by some of the items' fields, that come twice."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if kind == "atomic" or not isinstance(items, list):
        return
    seen = []
    for item in items:
        key = item
        if keys and isinstance(item, dict):
            defaults = schema["items"]["properties"]
            key = [item.get(name, defaults[name].get("default")) for name in keys]
        if key in seen:
            yield ValidationError(f"{key!r} comes twice")
        seen.append(key)


Strict = validators.extend(Draft202012Validator, {"x-kubernetes-list-type": once})


def problems(schemas: Schemas, document: Any) -> list[str]:
    """Return what is wrong with a manifest, one sentence for each fault."""
    key = document.get("apiVersion"), document.get("kind")
    if key not in schemas:
        return [f"There is no {key[1]} in {key[0]}"]
    return [
        f"{'/'.join(map(str, error.absolute_path)) or '.'}: {error.message}"
        for error in schemas[key].iter_errors(document)
    ]


class _Once(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML's reader would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Any]:
    """Read the documents of a manifest. Raises YAMLError, also for a key that comes twice."""
    return list(yaml.load_all(text, _Once))
