"""OpenAI's endpoints: chat completions, completions and embeddings. Pure.

The body names the model, and says whether the answer is streamed; `Accept` is ignored, as clients
send `application/json` or `*/*` either way. A stream ends with a finish reason and `[DONE]`, or
with an error and without `[DONE]`: it never looks complete when it is not.

No event has an `id` or `retry`: the Python client of OpenAI fails on events with only those.
"""

from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from numbers import Real  # numpy's too
from struct import pack
from typing import Any, Final

from modelserve.errors import (
    InferenceError,
    InvalidInput,
    InvalidParameter,
    ModelNotFound,
    ServingError,
    Unauthorized,
    single_cause,
)
from modelserve.protocols.codec import (
    Codec,
    Encoded,
    Item,
    ModelRef,
    Payload,
    SetHeaders,
    StreamFormat,
    with_model_headers,
)
from modelserve.protocols.completions import CHAT, TEXT, Completion, Kind, count_in, event, usage
from modelserve.wire.encoders import COLLECTED, SSE, Encoder
from modelserve.wire.generation import Generation
from modelserve.wire.head import Head
from modelserve.wire.headers import JSON, Header, error_headers
from modelserve.wire.json import detail_text, parse_json, plain_detail, to_json
from modelserve.wire.values import to_builtin

__all__ = ["ChatCodec", "EmbeddingsCodec", "OpenAICodec", "TextCodec"]

_NO_RETRY: Final[Header] = (b"x-should-retry", b"false")
_NOT_RETRIED: Final = frozenset({500, 501, 504})
_RETRY_SOON: Final[Header] = (b"retry-after", b"1")
_CODES: Final[tuple[tuple[type[ServingError], str | None, str], ...]] = (
    (ModelNotFound, "model", "model_not_found"),
    (Unauthorized, None, "invalid_api_key"),
)
_NO_EMBEDDINGS: Final = (
    "embed must return a vector for each text, or a dict with `embeddings` or `data`"
)
_TYPES: Final = {403: "permission_error", 429: "rate_limit_error"}


class OpenAICodec(Codec):
    """The common part of the endpoints: the name of the model, and the errors.

    Args:
        clock: Returns the seconds since 1970.
    """

    protocol = "openai"

    def __init__(
        self,
        format_class: type[StreamFormat] = StreamFormat,
        *,
        clock: Callable[[], float] = float,
        always_streams: bool = False,
    ) -> None:
        super().__init__(format_class, always_streams=always_streams)
        self.clock = clock

    def open(self, body: bytes | bytearray, head: Head) -> tuple[ModelRef, Payload]:
        """Return the model and the request's document. Raises InvalidInput."""
        document = parse_json(body)
        if not isinstance(document, dict):
            raise InvalidInput("Expected the request to be a JSON object")
        model = document.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidParameter("model", "the name of a model")
        return ModelRef(model), document

    def error(
        self, status: int, detail: Any, error: BaseException | None = None
    ) -> tuple[int, list[Header], bytes]:
        """Return an error in OpenAI's form.

        OpenAI's client repeats requests that fail with 500 or more unless a header forbids it: a
        request that exceeds a time limit would do so twice more.
        """
        if error is not None:
            error = single_cause(error)
        headers = [JSON, _NO_RETRY] if status in _NOT_RETRIED else [JSON]
        if status == 503 and not _says_when(error):
            headers.append(_RETRY_SOON)
        return status, headers, to_json(_error(status, detail, error))


class _CompletionFormat(StreamFormat):
    """Chunks in server-sent events if the request asks for a stream, else one document."""

    def __init__(
        self,
        head: Head,
        payload: Payload,
        response_headers: SetHeaders,
        ref: ModelRef,
        *,
        completion: Completion,
    ) -> None:
        super().__init__(head, payload, response_headers, ref)
        self._is_streamed = payload.get("stream") is True
        self._completion = completion

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        return self._events() if self._is_streamed else self._document()

    def framed_encoder(self) -> Encoder | None:
        return self._events() if self._is_streamed else None

    def _events(self) -> Encoder:
        completion = self._completion
        return replace(SSE, encode=completion.chunk, failure=_failure, finish=completion.last)

    def _document(self) -> Encoder:
        completion = self._completion

        def add(item: Item) -> bytes:
            return to_json(completion.add(item))  # for its size, and for what it raises

        return replace(COLLECTED, encode=add, join=lambda parts: to_json(completion.whole()))


class _CompletionCodec(OpenAICodec):
    """Chat completions and completions."""

    kind: Kind

    def __init__(self, *, clock: Callable[[], float]) -> None:
        super().__init__(_CompletionFormat, clock=clock, always_streams=True)

    def check_opened(self, payload: Payload) -> None:
        if not isinstance(payload.get("stream"), bool | None):
            raise InvalidParameter("stream", "a boolean")
        if not isinstance(payload.get("stream_options"), dict | None):
            raise InvalidParameter("stream_options", "an object")

    def stream_format(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> StreamFormat:
        created, id = int(self.clock()), head.id.decode()
        completion = Completion(self.kind, payload, id=id, created=created, model=ref.name)
        head.generated = completion
        return _CompletionFormat(head, payload, response_headers, ref, completion=completion)


class ChatCodec(_CompletionCodec):
    """POST /v1/chat/completions."""

    kind = CHAT

    def check_opened(self, payload: Payload) -> None:
        super().check_opened(payload)
        messages = payload.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise InvalidParameter("messages", "a list of objects")
        if not messages:
            raise InvalidParameter("messages", "a list of one object or more")


class TextCodec(_CompletionCodec):
    """POST /v1/completions."""

    kind = TEXT

    def check_opened(self, payload: Payload) -> None:
        super().check_opened(payload)
        if not _is_text(payload.get("prompt")):
            raise InvalidParameter("prompt", "text or a list of texts")


class EmbeddingsCodec(OpenAICodec):
    """POST /v1/embeddings."""

    def check_opened(self, payload: Payload) -> None:
        given = payload.get("input")
        if isinstance(given, list) and any(isinstance(item, int | list) for item in given):
            raise InvalidParameter(
                "input",
                "text or a list of texts, not tokens (LangChain sends text with"
                " check_embedding_ctx_length=False)",
            )
        if not _is_text(given):
            raise InvalidParameter("input", "text or a list of texts")
        if payload.get("encoding_format") not in (None, "float", "base64"):
            raise InvalidParameter("encoding_format", '"float" or "base64"')

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        """Return the embeddings that a hook has returned as OpenAI's list."""
        document = _embeddings(value, payload, ref)
        head.generated = _Embedded(document)
        return with_model_headers(JSON, response_headers), [to_json(document)]

    def stream_format(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> StreamFormat:
        return _EmbeddingsFormat(head, payload, response_headers, ref)


class _EmbeddingsFormat(StreamFormat):
    """Embeddings that are yielded one by one, as one document."""

    def __init__(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> None:
        super().__init__(head, payload, response_headers, ref)
        self._payload = payload
        self._head = head

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        vectors: list[Any] = []

        def add(item: Item) -> bytes:
            vectors.append(item)
            return to_json(item)

        def join(parts: list[bytes]) -> bytes:
            document = _embeddings(vectors, self._payload, self.ref)
            self._head.generated = _Embedded(document)
            return to_json(document)

        return replace(COLLECTED, encode=add, join=join)


class _Embedded:
    """The metadata of an answer with embeddings."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._model, self._usage = document["model"], document["usage"]

    def generation(self) -> Generation:
        count = count_in(self._usage, "prompt_tokens")
        return Generation(model=str(self._model), input_tokens=count or None)


def _embeddings(value: Any, payload: Payload, ref: ModelRef) -> dict[str, Any]:
    """Return the document of embeddings: a vector for each text, or a document of the model's."""
    value = _listed(value)
    frame = {"object": "list", "model": ref.name}
    told = value if isinstance(value, dict) else {}
    end = {"usage": usage(told.get("usage"), "prompt_tokens")}
    write = _base64 if payload.get("encoding_format") == "base64" else list
    if isinstance(told.get("data"), list | tuple):
        data = [_row(row, write) for row in told["data"]]
        return {**frame, **told, "data": data, **end}
    vectors = _vectors(told.get("embeddings") if told else value, payload["input"])
    data = [
        {"object": "embedding", "index": index, "embedding": write(vector)}
        for index, vector in enumerate(vectors)
    ]
    return {**frame, "data": data, **end}


def _vectors(value: Any, given: str | list[str]) -> list[Any]:
    """Return a vector for each text that was given. Raises InferenceError for anything else."""
    rows = _listed(value)
    if isinstance(rows, dict):
        raise InferenceError(_NO_EMBEDDINGS)
    vectors = [row if isinstance(row, Real) else _listed(row) for row in rows]
    if isinstance(given, str) and vectors and isinstance(vectors[0], Real):
        vectors = [vectors]  # of one text
    count = 1 if isinstance(given, str) else len(given)
    if len(vectors) != count:
        raise InferenceError(f"embed returned {len(vectors)} embeddings for {count} texts")
    if not all(isinstance(vector, list | tuple) for vector in vectors):
        raise InferenceError(_NO_EMBEDDINGS)
    return vectors


def _listed(value: Any) -> Any:
    """Return a list or a dict; convert an array or an object of another library to one."""
    if isinstance(value, dict | list | tuple):
        return value
    try:
        plain = None if isinstance(value, str) else to_builtin(value)
    except TypeError:
        plain = None
    if not isinstance(plain, dict | list):
        raise InferenceError(_NO_EMBEDDINGS)
    return plain


def _row(row: Any, write: Callable[[list[float]], Any]) -> Any:
    """Return a row of the model's own document, its vector in the form that the client wants."""
    if not isinstance(row, dict) or isinstance(row.get("embedding"), str | None):
        return row
    return {**row, "embedding": write(_listed(row["embedding"]))}


def _base64(vector: list[float]) -> str:
    """Return the numbers as little-endian floats of 32 bits, in base64."""
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _error(status: int, detail: Any, error: BaseException | None) -> dict[str, Any]:
    """Return the document of an error; a detail with a `message` is the model's own error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param, code = getattr(error, "param", None) if isinstance(error, InvalidInput) else None, None
    for types, of_param, of_code in _CODES:
        if isinstance(error, types):
            param, code = of_param, of_code
    detail = plain_detail(detail)
    if isinstance(detail, dict) and isinstance(detail.get("error"), dict):
        detail = detail["error"]
    message = detail_text(detail)
    document = {"message": message, "type": kind, "param": plain_detail(param), "code": code}
    if isinstance(detail, dict) and isinstance(detail.get("message"), str):
        document |= detail
    return {"error": document}


def _says_when(error: BaseException | None) -> bool:
    """Return whether an exception has a Retry-After header."""
    headers = error_headers(getattr(error, "headers", None) or {})
    return any(name == b"retry-after" for name, _ in headers)


def _failure(status: int, detail: Any) -> bytes:
    return b"event: error\n" + event(_error(status, detail, None))
