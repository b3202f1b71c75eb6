"""Forward a model's payloads to a predictor or an explainer over HTTP (KServe's transformers).

The answer is what a hook would return: a JSON document as a value, an `InferResponse` on V2, text
and bytes as they are, and a stream as an iterator of its items, which reads only when asked for the
next one. The media type decides what an item is: a line of NDJSON, an event of SSE (a
`ServerSentEvent`), otherwise a chunk of a response without a length. An error record is raised as
an error.

The predictor's error sentence and status reach the client, its address never does. httpx, an extra,
is imported by the first call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakKeyDictionary

import orjson

from modelserve.client.answers import LENGTH, media_type_of, reader_of, value_of
from modelserve.client.connections import is_stalled, no_cookies, timeouts, trusted
from modelserve.client.failures import sentence_in
from modelserve.client.items import AsyncItems, Decoder
from modelserve.errors import (
    HookMissing,
    InferenceError,
    InvalidInput,
    NestedTooDeep,
    PredictorError,
    UnsupportedProtocol,
)
from modelserve.models.predictor import PredictorConfig, Transport, config_of
from modelserve.tensors import InferRequest
from modelserve.wire.accept import framed_encoder
from modelserve.wire.head import HookHeaders, Scope
from modelserve.wire.json import to_json

if TYPE_CHECKING:
    import httpx

__all__ = ["Remote", "connect", "disconnect"]

logger = logging.getLogger("modelserve")

_FORWARDED: Final = (
    "accept",
    "authorization",
    "b3",
    "content-type",
    "traceparent",
    "tracestate",
    "x-b3-flags",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-request-id",
)
# Hop-by-hop and body headers of the predictor, not copied to our response.
_NOT_COPIED: Final = frozenset(
    (
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "keep-alive",
        "server",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
        LENGTH,
    )
)
_COPIED_OF_ERRORS: Final = ("retry-after", "www-authenticate")
_EVENTS: Final = "text/event-stream, application/json;q=0.9"
_OCTETS: Final = b"application/octet-stream"
_VISIBLE: Final = bytes((*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)))
# Content types that our response gets by default.
_USUAL_TYPES: Final = frozenset(
    ("", "application/octet-stream", "application/x-ndjson", "text/event-stream", "text/plain")
)
_IDLE_SECONDS: Final = 4.0  # less than the 5 s after which uvicorn closes a connection


# --- the call -----------------------------------------------------------------------------------


class Remote:
    """The connections of one model to its predictor and its explainer.

    Each event loop has one httpx client for each way to connect, created by the first call.
    """

    def __init__(self) -> None:
        self._clients: WeakKeyDictionary[Any, dict[Transport, httpx.AsyncClient]]
        self._clients = WeakKeyDictionary()

    def __reduce__(self) -> Any:
        return Remote, ()  # models are pickled for worker processes; connections cannot be

    async def predict(
        self, model: Any, payload: Any, headers: Any, response_headers: Any, *, sets_type: bool
    ) -> Any:
        """Send a payload to a model's predictor; return the answer, or an async iterator of items.

        With `sets_type`, `response_headers` gets the content type of an answer that is bytes.
        Cancellation closes the connection. Raises HookMissing if httpx is missing,
        UnsupportedProtocol, PredictorError.
        """
        config = config_of(model)
        assert config is not None
        forwarded = _Forwarded.of(headers)
        answer = await self._post(
            config, model.name, _action(config, payload, forwarded), payload, forwarded
        )
        if response_headers is not None:
            if sets_type and answer.content_type is not None:
                response_headers.setdefault("content-type", answer.content_type)
            if model.return_response_headers:
                response_headers.update(answer.headers)
        return answer.result

    async def explain(self, model: Any, payload: Any, headers: Any) -> Any:
        """Send a payload to a model's explainer, which speaks V1; otherwise as `predict`."""
        config = config_of(model, explainer=True)
        assert config is not None
        forwarded = _Forwarded.of(headers)
        return (await self._post(config, model.name, ":explain", payload, forwarded)).result

    async def close(self) -> None:
        """Close the connections of this event loop."""
        async with AsyncExitStack() as stack:  # the others are closed even if one fails
            for client in self._clients.pop(_this_loop(), {}).values():
                stack.push_async_callback(client.aclose)

    async def _post(
        self, config: PredictorConfig, name: str, action: str, payload: Any, forwarded: _Forwarded
    ) -> _Answer:
        headers, content = _encode(payload, forwarded)
        client = self._client(config)
        request = client.build_request(
            "POST",
            f"{config.predictor_base_url}/{config.protocol}/models/{quote(name, safe='')}{action}",
            content=content,
            headers=list(headers.items()),
            timeout=timeouts(config.timeout),
        )
        with _translated_errors(config):
            response = await client.send(request, stream=True)
        try:
            return await _read(response, config)
        except BaseException:
            await response.aclose()
            raise

    def _client(self, config: PredictorConfig) -> httpx.AsyncClient:
        clients = self._clients.setdefault(_this_loop(), {})
        client = clients.get(config.transport)
        if client is None:
            client = clients[config.transport] = _new_client(config.transport)
        return client


def connect(model: Any) -> None:
    """Enable a model to call its predictor. No connection is made before the first call."""
    if vars(model).get("_remote") is None:
        model._remote = Remote()


async def disconnect(model: Any) -> None:
    """Close the connections of this event loop to a model's predictor, if there are any."""
    remote = vars(model).get("_remote")
    if remote is not None:
        await remote.close()


def _new_client(transport: Transport) -> httpx.AsyncClient:
    """Create a client whose requests share only connections, no cookies.

    The number of connections is bounded by the model's limit on concurrency.
    """
    try:
        import httpx
    except ImportError:
        problem = "Calling a predictor needs httpx: pip install 'modelserve[predictor]'"
        raise HookMissing(problem) from None
    from modelserve.client.transports import with_own_sockets

    connections = httpx.AsyncHTTPTransport(
        # Loading the certificates takes time, and plain HTTP needs none.
        verify=trusted() if transport.verifies else False,
        retries=transport.retries,
        limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
    )
    return httpx.AsyncClient(
        transport=with_own_sockets(connections), cookies=no_cookies(), trust_env=False
    )


def _this_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


@contextmanager
def _translated_errors(config: PredictorConfig, *, started: bool = False) -> Iterator[None]:
    """Translate errors of the connection."""
    import httpx

    try:
        yield
    except httpx.HTTPError as exc:
        raise _Complaints(config).broken(exc, started=started) from None


class _Complaints(NamedTuple):
    """The errors of a call to a predictor. Only the log shows its address."""

    config: PredictorConfig

    def broken(self, exc: Exception, *, started: bool) -> PredictorError:
        logger.warning("Calling %s failed: %r", self.config.predictor_base_url, exc)
        if is_stalled(exc):
            seconds = self.config.timeout
            return PredictorError(f"The predictor did not answer within {seconds:g} s.", 504)
        return self.cut() if started else PredictorError("The predictor cannot be reached.", 503)

    def unreadable(self) -> PredictorError:
        return PredictorError("The answer of the predictor cannot be read.", 502)

    def failed(self, document: Any) -> PredictorError:
        sentence = "The predictor failed in the middle of its answer."
        return PredictorError(_sentence_in(document, self.config) or sentence, 502)

    def cut(self) -> PredictorError:
        return PredictorError("The answer of the predictor was cut short.", 502)


# --- the request --------------------------------------------------------------------------------


class _Forwarded(NamedTuple):
    """The parts of our client's request that go into the request to the predictor."""

    headers: dict[bytes, bytes]
    version: str | None
    streams: bool

    @classmethod
    def of(cls, headers: Any) -> _Forwarded:
        """Read a hook's headers: those of the server, a dict, or None."""
        given = {name.lower(): text for name, text in headers.items()} if headers else {}
        sent = {name: given[name] for name in _FORWARDED if name in given}
        sent.setdefault("accept", "*/*")
        sent["accept-encoding"] = "identity"
        version, verb = None, ""
        if isinstance(headers, HookHeaders) and headers.scope is not None:
            sent.setdefault("x-request-id", headers.request_id.decode())
            version, verb = _version_and_verb(headers.scope)
        if verb.endswith("_stream"):
            sent["accept"] = _EVENTS
        streams = verb != "generate" and framed_encoder(sent["accept"]) is not None
        return cls(_as_bytes(sent), version, streams)


def _version_and_verb(scope: Scope) -> tuple[str | None, str]:
    """Return the last parts of a path that ends in `/versions/VERSION/VERB` or `/VERB`."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    segments = ["", "", *path.decode("latin-1").partition("?")[0].split("/")]
    above, version, verb = segments[-3:]
    return (unquote(version) if above == "versions" else None), verb


def _as_bytes(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Encode headers; drop those that HTTP does not allow."""
    pairs = ((name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items())
    return {name: value for name, value in pairs if not value.translate(None, _VISIBLE)}


def _action(config: PredictorConfig, payload: Any, forwarded: _Forwarded) -> str:
    """Return what follows the model's name in the predictor's path."""
    if config.protocol == "v1":
        return ":predict"
    if config.protocol != "v2":
        raise UnsupportedProtocol(config.protocol)
    version = getattr(payload, "model_version", None) or forwarded.version
    inside = f"/versions/{quote(str(version), safe='')}" if version else ""
    if not isinstance(payload, dict) or "text_input" not in payload:
        return f"{inside}/infer"
    return f"{inside}/generate_stream" if forwarded.streams else f"{inside}/generate"


def _encode(payload: Any, forwarded: _Forwarded) -> tuple[dict[bytes, bytes], bytes]:
    """Return a payload's headers and body; bytes keep the content type among the hook's headers.

    Raises InvalidInput for what cannot be sent.
    """
    headers = {name: value for name, value in forwarded.headers.items() if name != b"content-type"}
    if isinstance(payload, InferRequest):
        payload, length = payload.to_rest()
        if length is not None:
            return headers | {b"content-type": _OCTETS, LENGTH.encode(): b"%d" % length}, payload
    elif isinstance(payload, bytes | bytearray | memoryview):
        return {b"content-type": _OCTETS, **forwarded.headers}, bytes(payload)
    try:
        return headers | {b"content-type": b"application/json"}, to_json(payload)
    except NestedTooDeep:
        raise InvalidInput("The request is nested too deep to be sent on.") from None


# --- the answer ---------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """The hook's result, its content type unless that is the default, and other headers."""

    result: Any
    content_type: str | None
    headers: dict[str, str]


async def _read(response: httpx.Response, config: PredictorConfig) -> _Answer:
    """Read a response, unless it streams. Raises PredictorError."""
    response.headers.encoding = "latin-1"  # as our response's headers are encoded
    if not response.is_success:
        raise await _error_in(response, config)
    headers = {name: text for name, text in response.headers.items() if name not in _NOT_COPIED}
    media_type = media_type_of(response.headers.get("content-type", ""))
    content_type = None if media_type in _USUAL_TYPES else response.headers["content-type"]
    reader = reader_of(media_type, response.headers)
    if reader is not None:
        complaints = _Complaints(config)
        items = AsyncItems(response, Decoder(reader, complaints), complaints)
        return _Answer(items, content_type, headers)
    with _translated_errors(config, started=True):
        body = await response.aread()
    try:
        value = value_of(media_type, body, response.headers, v2=config.protocol == "v2")
    except (ValueError, InferenceError) as exc:
        logger.warning("The answer of %s cannot be read: %r", config.predictor_base_url, exc)
        raise _Complaints(config).unreadable() from None
    return _Answer(value, content_type if isinstance(value, bytes) else None, headers)


async def _error_in(response: httpx.Response, config: PredictorConfig) -> PredictorError:
    """Turn an unsuccessful response into an error."""
    status = response.status_code
    sentence = f"The predictor answered with status {status}."
    if not 400 <= status <= 599:
        return PredictorError(sentence, 502)
    document = None
    with suppress(Exception):  # without a readable body, the status alone is reported
        document = orjson.loads(await response.aread())
    copied = {
        name: response.headers[name] for name in _COPIED_OF_ERRORS if name in response.headers
    }
    return PredictorError(_sentence_in(document, config) or sentence, status, copied)


def _sentence_in(document: Any, config: PredictorConfig) -> str | None:
    """Return the error sentence in a document, unless it reveals the predictor's address."""
    text = sentence_in(document)
    return None if text is None or _reveals_address(text, config) else text


def _reveals_address(text: str, config: PredictorConfig) -> bool:
    """Look for the predictor's address; a host name without a dot or port may be any word."""
    address = urlsplit(config.predictor_base_url).netloc
    return f"//{address}" in text or (address in text and any(sign in address for sign in ".:"))
