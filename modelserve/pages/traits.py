"""What a verb of a model takes and returns, by its hooks, attributes and example.

Without any declaration it is JSON, which nearly every model takes.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, get_args, get_origin

import orjson
from starlette.datastructures import ImmutableMultiDict
from starlette.responses import Response

from modelserve.models.annotations import UNIONS, bare, element_of
from modelserve.models.declared import Form
from modelserve.models.hooks import Hook, Plan
from modelserve.models.model import METADATA, defines, host_of
from modelserve.models.registry import Entry
from modelserve.models.schemas import Schema, input_schema, output_schema
from modelserve.models.signatures import UNKNOWN, payload_type, return_type
from modelserve.tensors import InferRequest, InferResponse
from modelserve.wire.json import to_json

__all__ = ["Described", "Given", "Taken", "as_json", "example_of", "given_by", "taken_by"]

logger = logging.getLogger("modelserve")

# Types with their names in `Taken` or `Given`; the first that fits counts.
_Named: TypeAlias = tuple[tuple[type | tuple[type, ...], str], ...]
_BYTES: Final = (bytes, bytearray, memoryview)
_TAKEN: Final[_Named] = (
    (_BYTES, "bytes"),
    (InferRequest, "tensors"),
    (ImmutableMultiDict, "form"),
)
_GIVEN: Final[_Named] = (
    (str, "text"),
    (_BYTES, "bytes"),
    (Response, "response"),
    (InferResponse, "tensors"),
)
_UNSAID: Final = (UNKNOWN, Any, object)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the first hook of a verb takes.

    Attributes:
        json: A JSON document over V1.
        bytes: The bytes of a body that is not JSON.
        form: A form.
        rows: Instances one by one, as lines of JSON.
        tensors: A request of V2.
        text: A request of Triton's generate.
        schema: The schema of V1's document, if it is enforced.
        is_checked: The protocol's own rule about `instances` is enforced.
    """

    json: bool
    bytes: bool
    form: bool
    rows: bool
    tensors: bool
    text: bool
    schema: Schema | None
    is_checked: bool

    @property
    def kind(self) -> str:
        """The form in which people should enter a payload first."""
        if self.rows:
            return "rows"
        if self.json or not (self.bytes or self.form):
            return "json"
        return "bytes" if self.bytes else "form"


@dataclass(frozen=True, slots=True)
class Given:
    """The answer of a verb over V1.

    Attributes:
        streams: It is known to stream.
        may_stream: Nothing says that it does not stream.
        text, bytes: The answer, or an item of it, is text or bytes as they are.
        json: The answer, or an item of it, is written as JSON.
        anything: It may have any media type, which the model sets.
        tensors: It is a V2 response.
        schema: The schema of the whole answer, or of a collected stream.
    """

    streams: bool
    may_stream: bool
    text: bool
    bytes: bool
    json: bool
    anything: bool
    tensors: bool
    schema: Schema | None


class Described(NamedTuple):
    """A model, the name that it is served by, and its example as JSON, or None."""

    name: str
    entry: Entry
    example: Any


def taken_by(described: Described, plan: Plan) -> Taken | None:
    """Return what a verb takes; None for a verb that the model does not have."""
    model = described.entry.model
    main = plan.main
    if main.is_default and host_of(model, main.name) is None:
        return None
    iterates = plan.iterates is not None
    kinds = set() if iterates else _kinds(_annotation(model, plan), _TAKEN)
    pieces = iterates and _is_of_bytes(element_of(_annotation(model, plan), iterates=True))
    tensors = _takes_tensors(described, plan, kinds)
    is_unknown = not kinds and not iterates and not _is_of_tensors(described.example)
    return Taken(
        json=("json" in kinds) or (iterates and not pieces) or is_unknown,
        bytes="bytes" in kinds or pieces,
        form="form" in kinds,
        rows=iterates and not pieces,
        tensors=tensors,
        text=_takes_text(described, plan),
        schema=None if plan.declared is None else input_schema(model, plan),
        is_checked=plan.preprocess is None and not iterates,
    )


def given_by(model: Any, plan: Plan) -> Given:
    """Return the answer of a verb."""
    last = plan.postprocess or plan.main
    annotation = bare(return_type(getattr(model, last.name)))
    item = element_of(annotation, iterates=True)
    streams = plan.streams or item is not UNKNOWN
    kinds = _kinds(item if streams else annotation, _GIVEN, (*_UNSAID, None))
    if plan.forwards or model.stepping is not None:
        kinds = set()
    is_unknown = not kinds
    has_class = not isinstance(model.output_schema, dict)
    return Given(
        streams=streams,
        may_stream=streams or is_unknown,
        text="text" in kinds or is_unknown,
        bytes="bytes" in kinds or is_unknown,
        json="json" in kinds or is_unknown,
        anything="response" in kinds or plan.wants_response_headers or (is_unknown and not streams),
        tensors="tensors" in kinds,
        schema=output_schema(model, plan) if has_class else None,
    )


def example_of(model: Any) -> Any:
    """Return a model's example; None without one, or if JSON cannot hold it.

    A method of that name does not count.
    """
    try:
        example = model.example
        return None if callable(example) else as_json(example)
    except Exception as exc:
        logger.warning("The example of model %r is not in the document: %s", model.name, exc)
        return None


def as_json(value: Any) -> Any:
    """Return a value as a client reads it. Raises an exception if JSON cannot hold it."""
    return orjson.loads(to_json(value))


# --- what a hook takes --------------------------------------------------------------------------


def _annotation(model: Any, plan: Plan) -> Any:
    """Return the annotation that describes the payload, UNKNOWN without one."""
    first: Hook = plan.preprocess or plan.main
    if plan.iterates is not None and first.iterates is None:
        first = plan.main
    return payload_type(getattr(model, first.name))[1]


def _kinds(annotation: Any, named: _Named, unsaid: tuple[Any, ...] = _UNSAID) -> set[str]:
    """Name the members of an annotation; any type without a name is JSON.

    Args:
        unsaid: Members that declare nothing.
    """
    return {_kind(member, named) for member in _members(annotation) if member not in unsaid}


def _kind(member: Any, named: _Named) -> str:
    kind = get_origin(member) or member
    if isinstance(kind, type):
        for types, name in named:
            if issubclass(kind, types):
                return name
    return "json"


def _members(annotation: Any) -> tuple[Any, ...]:
    annotation = bare(annotation)
    return get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)


def _is_of_bytes(annotation: Any) -> bool:
    return "bytes" in _kinds(annotation, _TAKEN)


def _takes_tensors(described: Described, plan: Plan, kinds: set[str]) -> bool:
    """Return whether a model says that it takes requests of V2."""
    model = described.entry.model
    if plan.main.name != "predict" or plan.iterates is not None:
        return False
    if plan.declared is not None and InferRequest not in plan.declared.passed:
        return False
    if plan.forwards:
        return bool(model.protocol == "v2")
    if kinds and plan.declared is None:
        return "tensors" in kinds
    says_so = any(defines(model, hook) for hook in METADATA) or model.platform
    return bool("tensors" in kinds or says_so or _is_of_tensors(described.example))


def _is_of_tensors(example: Any) -> bool:
    inputs = example.get("inputs") if isinstance(example, dict) else None
    return isinstance(inputs, list) and all(
        isinstance(tensor, dict) and "datatype" in tensor for tensor in inputs
    )


def _takes_text(described: Described, plan: Plan) -> bool:
    """Return whether a model says that it takes requests of Triton's generate."""
    example = described.example
    if plan.main.name != "predict":
        return False
    if plan.declared is not None and plan.declared.form in (Form.PAYLOAD, Form.CHECKED):
        return "text_input" in _properties(input_schema(described.entry.model, plan))
    return plan.declared is None and isinstance(example, dict) and "text_input" in example


def _properties(schema: Schema | None) -> Schema:
    schema = schema or {}
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: Schema = schema.get("$defs", {}).get(name, schema)
    properties: Schema = found.get("properties", {})
    return properties
