"""The operations of an OpenAPI document that run a model. Pure.

A request has a 400 if something is enforced that a schema cannot express.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from modelserve.limits import TIMEOUT_HEADER
from modelserve.models.schemas import Schema, input_schema
from modelserve.pages.components import ANY, Components, array, record, string
from modelserve.pages.traits import Described, Given, Taken, as_json
from modelserve.wire.media import LINE_TYPES

__all__ = ["Operation", "error_responses", "infer", "openai_verb", "plain_responses", "v1"]

Operation = dict[str, Any]

_JSON: Final = "application/json"
_LINES: Final = LINE_TYPES[0]
_EVENTS: Final = "text/event-stream"
_TEXT: Final = "text/plain"
_OCTETS: Final = "application/octet-stream"
_STRING: Final = string()
_BINARY: Final[Schema] = {_OCTETS: {"schema": {"type": "string", "format": "binary"}}}
# A stream as one text, and as events: in 3.1 it is open whether a schema means one event or all.
_SERVER_SENT: Final[Schema] = {_EVENTS: {}}
_FRAMED: Final[Schema] = {_LINES: {"schema": _STRING}, **_SERVER_SENT}
# The errors of a request for a model; 406 and 401 only where they are possible.
_RUN: Final = (400, 404, 408, 413, 415, 500, 501, 503, 504)
_ID: Final = {"x-request-id": {"schema": _STRING, "description": "As sent, or a new one."}}
_WORDS: Final = {
    400: "The request is invalid; the error says what is wrong with it.",
    401: "The bearer token is missing or wrong.",
    404: "There is no such model.",
    406: "Nothing that Accept allows can be sent.",
    408: "The body came too slowly.",
    413: "The body is over the limit.",
    415: "The body has an unknown content coding.",
    500: "The model failed.",
    501: "The model, or the server, lacks what this needs.",
    503: "The model is not ready, the queue is full, or the server is stopping.",
    504: f"A limit on time has passed, or that of the header {TIMEOUT_HEADER.decode()}.",
}
_OF_OPENAI: Final = {
    "chat": ("ChatRequest", "ChatCompletion", "Chat completion (OpenAI)"),
    "complete": ("CompletionRequest", "Completion", "Completion (OpenAI)"),
    "embed": ("EmbeddingsRequest", "Embeddings", "Embeddings (OpenAI)"),
}
_SAMPLES: Final[dict[str, dict[str, Any]]] = {
    "chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "complete": {"prompt": "Hello"},
    "embed": {"input": ["Hello"]},
}
_KEYS: Final = {"chat": "messages", "complete": "prompt", "embed": "input"}


def plain_responses(media: Iterable[str], schema: Schema) -> dict[str, Any]:
    """Return the 200 of an operation: one schema, with these media types."""
    return _ok({name: {"schema": schema} for name in media})


def error_responses(
    components: Components, statuses: Iterable[int], schema: str = "Error"
) -> dict[str, Any]:
    """Return the error responses, each with this schema of a protocol."""
    return {str(status): _error(components, status, schema) for status in statuses}


def _error(components: Components, status: int, schema: str) -> dict[str, Any]:
    content = {_JSON: {"schema": components.protocol(schema)}}
    return components.response(
        f"{schema}{status}",
        {"description": _WORDS[status], "headers": _ID, "content": content},
    )


def v1(
    components: Components, verb: str, model: Described, taken: Taken, given: Given
) -> Operation:
    """Return predict or explain over V1."""
    statuses = (*_RUN, 406) if given.may_stream or taken.rows else _RUN
    return {
        "summary": f"{verb.capitalize()} (V1)",
        **_described(_notes(model.entry.model, taken, given)),
        "requestBody": _body(_taken_content(components, model.example, taken)),
        "responses": {
            **_ok(_given_content(components, taken, given)),
            **error_responses(components, statuses),
        },
        "x-modelserve": _extension(verb, given.streams, kind=taken.kind, websocket=True),
    }


def infer(components: Components, verb: str, model: Described, given: Given) -> Operation:
    """Return V2's infer, or Triton's generate; both also as server-sent events."""
    is_text, is_stream = verb.startswith("generate"), verb.endswith("_stream")
    request, answer = ("GenerateRequest", "GenerateResponse") if is_text else ("InferRequest", "")
    schema: Schema = components.protocol(answer) if answer else ANY
    if not is_text and (given.streams or given.tensors):
        schema = components.protocol("InferResponse")
    content: Schema = dict(_SERVER_SENT) if is_stream else {_JSON: {"schema": schema}}
    if not is_text:
        if not is_stream and given.may_stream:
            content |= _FRAMED
        if not is_stream:
            content |= _BINARY
    has_406 = not is_text and not is_stream and given.may_stream
    example = model.example
    key = "text_input" if is_text else "inputs"
    fits = isinstance(example, dict) and key in example
    body = {_JSON: _media(components.protocol(request), example if fits else None)}
    return {
        "summary": _SUMMARIES[verb],
        "description": _OF_TEXT if is_text else _OF_TENSORS,
        "requestBody": _body(body),
        "responses": {
            **_ok(content),
            **error_responses(components, (*_RUN, 406) if has_406 else _RUN),
        },
        "x-modelserve": _extension(verb, is_stream or given.streams),
    }


_SUMMARIES: Final = {
    "infer": "Infer (V2)",
    "infer_stream": "Infer, streamed (V2, MLServer)",
    "generate": "Generate (Triton)",
    "generate_stream": "Generate, streamed (Triton)",
}
_OF_TENSORS: Final = (
    "The product of a tensor's shape is the number of its elements, and no two have the same name."
    " Tensors may also follow the JSON as bytes: Triton's binary tensor extension, with the header"
    " inference-header-content-length."
)
_OF_TEXT: Final = "Text in, text out; parameters are the model's own."


def openai_verb(components: Components, hook: str, models: Sequence[Described]) -> Operation:
    """Return the operation of one of OpenAI's endpoints, for the models that have its hook."""
    request, answer, summary = _OF_OPENAI[hook]
    streams = any(model.entry.plans[hook].streams for model in models)
    content: Schema = {_JSON: {"schema": components.protocol(answer)}}
    if hook != "embed":
        content |= _SERVER_SENT
    examples = {
        model.name: {"value": {**_sample(model.example, hook), "model": model.name}}
        for model in models
    }
    schema = {"allOf": [components.protocol(request), _named(components, hook, models)]}
    return {
        "summary": summary,
        "requestBody": _body({_JSON: {"schema": schema, "examples": examples}}),
        "responses": {
            **_ok(content),
            **error_responses(components, _RUN, "OpenAIError"),
        },
        "x-modelserve": _extension(hook, streams),
    }


def _named(components: Components, hook: str, models: Sequence[Described]) -> Schema:
    """Return the schema of the body with the names of the models, and their declarations."""
    names: list[str] = []
    choices: list[Schema] = []
    for name, entry, _ in models:
        declared = input_schema(entry.model, entry.plans[hook])
        if declared is None or entry.plans[hook].declared is None:
            names.append(name)
        else:
            which = record({"model": {"const": name}})
            choices.append({"allOf": [which, components.declared(declared)]})
    if names:
        choices.insert(0, record({"model": {"type": "string", "enum": names}}))
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _sample(example: Any, hook: str) -> dict[str, Any]:
    fits = isinstance(example, dict) and _KEYS[hook] in example
    return example if fits else _SAMPLES[hook]


# --- the bodies of V1 ---------------------------------------------------------------------------


def _taken_content(components: Components, example: Any, taken: Taken) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if taken.json:
        content[_JSON] = _media(_taken_schema(components, taken), _v1_example(example))
    if taken.rows:
        content[_LINES] = {"schema": _STRING}
    if taken.bytes:
        content |= _BINARY
    if taken.form:
        content["multipart/form-data"] = {"schema": {"type": "object"}}
    return content


def _taken_schema(components: Components, taken: Taken) -> Schema:
    if taken.schema is not None:
        return components.declared(taken.schema)
    if taken.rows:
        return record({"instances": array(ANY)})
    return {"properties": {"instances": array(ANY)}} if taken.is_checked else ANY


def _v1_example(example: Any) -> Any:
    """Return the example, unless it belongs to another protocol."""
    is_others = isinstance(example, dict) and any(k in example for k in ("messages", "text_input"))
    return None if is_others else example


def _given_content(components: Components, taken: Taken, given: Given) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if given.anything and given.may_stream and not given.streams:
        return {_JSON: {"schema": _given_schema(components, given)}, "*/*": {}}
    if given.json or given.streams or taken.rows:
        content[_JSON] = {"schema": _given_schema(components, given)}
    if given.may_stream or taken.rows:
        content |= _FRAMED
    if given.text:
        content[_TEXT] = {"schema": _STRING}
    if given.bytes:
        content |= _BINARY
    if given.anything:
        content["*/*"] = {}
    return content


def _given_schema(components: Components, given: Given) -> Schema:
    if given.schema is not None:
        return components.declared(given.schema)
    return record({"predictions": array(ANY)}) if given.streams else ANY


def _notes(model: Any, taken: Taken, given: Given) -> Iterable[str]:
    """Yield the known properties of a verb that are not enforced."""
    for name, what in (("input_schema", "takes"), ("output_schema", "answers with")):
        schema = getattr(model, name)
        if isinstance(schema, dict):
            text = schema.get("description") or ""
            yield f"What it {what}, unchecked: {text}\n\n```json\n{_indented(schema)}\n```"
    if taken.rows:
        yield "Lines of JSON are answered while they are sent, each in its turn."
    if given.streams:
        yield "Its items come as they are made, in the form that Accept asks for."


def _indented(schema: Any) -> str:
    import json

    try:
        return json.dumps(as_json(schema), indent=2, ensure_ascii=False)
    except Exception:  # not a JSON Schema; its author sees that in the document
        return str(schema)


# --- parts --------------------------------------------------------------------------------------


def _ok(content: Schema) -> dict[str, Any]:
    return {"200": {"description": "The answer.", "headers": _ID, "content": content}}


def _body(content: Schema) -> dict[str, Any]:
    return {"required": True, "content": content}


def _media(schema: Schema, example: Any) -> dict[str, Any]:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def _described(notes: Iterable[str]) -> dict[str, str]:
    text = "\n\n".join(notes)
    return {"description": text} if text else {}


def _extension(
    verb: str, streams: bool, *, kind: str = "json", websocket: bool = False
) -> dict[str, Any]:
    return {"streams": streams, "input": kind, "websocket": websocket, "verb": verb}
