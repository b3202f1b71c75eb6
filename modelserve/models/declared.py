"""Declared payloads: what a model declares, and how a payload is converted before its hooks run.

The declaration is the annotation of the payload's parameter in the first hook that runs. It
describes V1's document; on a parameter called `instances`, the list of instances; as the element of
an iterator, each instance of streamed input. It is read once, when the model is registered.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from modelserve.errors import NotAsDeclared
from modelserve.models.annotations import (
    as_list,
    element_of,
    libraries_of,
    passed_and_rest,
    unnamed,
)
from modelserve.models.checks import instances, name_of_kind
from modelserve.models.model import defines
from modelserve.models.signatures import UNKNOWN, payload_type
from modelserve.models.validators import Validate, validator_of
from modelserve.tensors import InferRequest

__all__ = ["Declared", "Form", "declared_input"]

_JSON_TYPES: Final = frozenset((bool, dict, float, int, list, str, type(None)))


class Form(Enum):
    """What a declaration describes."""

    PAYLOAD = "the document of a request"
    INSTANCES = "its instances, in a list"
    ITERATOR = "each instance of streamed input; a whole payload stays as it is"
    CHECKED = "the document of a request, which the hook takes as it came"


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared payload.

    Attributes:
        type: Of the payload, of the list of instances, or of one instance of an iterator.
        passed: Classes whose objects the hook takes as they are.
        validate: Makes a document, found at a place, into the type. Raises NotAsDeclared.
    """

    form: Form
    type: Any
    passed: tuple[type, ...]
    validate: Validate

    def convert(self, payload: Any) -> Any:
        """Return what the first hook takes. Raises InvalidInput if it is not as declared."""
        if self.form is Form.ITERATOR or isinstance(payload, self.passed):
            return payload
        if type(payload) not in _JSON_TYPES:
            if _is_instance(payload, self.type):
                return payload  # a call from another model
            raise NotAsDeclared(_not_json(payload))
        if self.form is Form.INSTANCES:
            return self.validate(instances(payload), "instances")
        document = self.validate(payload, "")
        return payload if self.form is Form.CHECKED else document

    def convert_instance(self, instance: Any, index: int) -> Any:
        """Convert one instance of streamed input. Raises InvalidInput as `convert` does."""
        return self.validate(instance, f"instances[{index}]")

    def answer(self, result: Any) -> Any:
        """Return the answer for a result: for declared instances, a list becomes `predictions`."""
        if self.form is Form.INSTANCES and _is_list(result):
            return {"predictions": result}
        return result


def declared_input(model: Any, hook: str, *, iterates: bool = False) -> Declared | None:
    """Return what is declared of the payload of a hook, by its annotation or by `input_schema`.

    `iterates` is true for a hook that takes its instances one by one. None if nothing is declared.
    Raises TypeError, in one sentence, for a type that cannot be read from JSON.
    """
    name, annotation = payload_type(getattr(model, hook))
    label = f"The payload of {hook} of model {model.name!r}"
    if not iterates and name == "instances" and element_of(annotation) is not UNKNOWN:
        return _declare(Form.INSTANCES, as_list(annotation), label)
    element = element_of(annotation, iterates=True)
    if element is not UNKNOWN and libraries_of(element):
        return _declare(Form.ITERATOR, element, label)
    passed, kind = passed_and_rest(annotation)
    if kind is not UNKNOWN:
        return _declare(Form.PAYLOAD, kind, label, passed)
    schema = model.input_schema
    if schema is None or isinstance(schema, dict) or not defines(model, hook):
        return None
    label = f"The input_schema of model {model.name!r}"
    if not libraries_of(schema):
        raise TypeError(
            f"{label} must be a JSON Schema, a dict, or a class of pydantic or msgspec, "
            "a dataclass or a TypedDict"
        )
    return _declare(Form.CHECKED, schema, label, (InferRequest,))


def _declare(form: Form, kind: Any, label: str, passed: tuple[type, ...] = ()) -> Declared:
    kind = unnamed(kind)
    return Declared(form, kind, passed, validator_of(kind, label))


def _is_instance(payload: Any, kind: Any) -> bool:
    try:
        return isinstance(kind, type) and isinstance(payload, kind)
    except TypeError:  # a TypedDict, which has no instances
        return False


def _not_json(payload: Any) -> str:
    if isinstance(payload, InferRequest):
        return "This model takes V1's JSON, as it has declared, and no V2 request"
    is_form = hasattr(payload, "multi_items")  # starlette's
    return f"Expected a JSON document, not {'a form' if is_form else name_of_kind(payload)}"


def _is_list(result: Any) -> bool:
    """Return whether a result is a list of predictions: a list, a tuple, an array or a column."""
    if isinstance(result, list | tuple):
        return not hasattr(result, "_fields")
    return hasattr(type(result), "tolist") and bool(getattr(result, "shape", None))
