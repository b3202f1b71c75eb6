"""Call a predictor or an explainer over HTTP: V1, or V2 in JSON and binary tensors.

The answer is what a hook would return: a JSON document as a value, an `InferResponse` on V2, text
and bytes as they are, and a stream as an iterator of its items, which reads only when asked for the
next one. The media type decides what an item is: a line of NDJSON, an event of SSE (a
`ServerSentEvent`), otherwise a chunk of a response without a length. An error record is raised as
an error. httpx, an extra, is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

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
)
from modelserve.models.predictor import PredictorConfig, Transport
from modelserve.models.remote.calls import (
    COPIED_OF_ERRORS,
    NOT_COPIED,
    Answer,
    Complaints,
    Incoming,
    shown,
)
from modelserve.tensors import InferRequest
from modelserve.wire.accept import framed_encoder
from modelserve.wire.json import to_json

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpCaller"]

_EVENTS: Final = "text/event-stream, application/json;q=0.9"
_OCTETS: Final = b"application/octet-stream"
_VISIBLE: Final = bytes((*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)))
# Content types that our response gets by default.
_USUAL_TYPES: Final = frozenset(
    ("", "application/octet-stream", "application/x-ndjson", "text/event-stream", "text/plain")
)
_IDLE_SECONDS: Final = 4.0  # less than the 5 s after which uvicorn closes a connection


# --- the call -----------------------------------------------------------------------------------


class HttpCaller:
    """Calls over HTTP: one httpx client for each way to connect, created by the first call."""

    def __init__(self) -> None:
        self._clients: dict[Transport, httpx.AsyncClient] = {}

    async def predict(
        self, config: PredictorConfig, name: str, payload: Any, incoming: Incoming
    ) -> Answer:
        """Send a payload; the result may be an async iterator of items.

        Cancellation closes the connection. Raises HookMissing if httpx is missing, PredictorError,
        and InvalidInput for a payload that cannot be sent.
        """
        action = _action(config, payload, incoming)
        return await self._post(config, name, action, payload, incoming)

    async def explain(
        self, config: PredictorConfig, name: str, payload: Any, incoming: Incoming
    ) -> Answer:
        """Send a payload to an explainer, which speaks V1; otherwise as `predict`."""
        return await self._post(config, name, ":explain", payload, incoming)

    async def is_ready(self, config: PredictorConfig, name: str) -> bool:
        """Ask for the model's readiness: by its status, and on V1 by the document as well."""
        client = self._client(config)
        action = "/ready" if config.protocol == "v2" else ""
        with _translated_errors(config):
            response = await client.get(
                _url(config, name, action), timeout=timeouts(config.timeout)
            )
        if not response.is_success:
            return False
        document = None
        with suppress(ValueError):  # only KServe's has a document
            document = orjson.loads(response.content)
        return not isinstance(document, dict) or document.get("ready") is not False

    async def close(self) -> None:
        async with AsyncExitStack() as stack:  # the others are closed even if one fails
            for client in self._clients.values():
                stack.push_async_callback(client.aclose)

    async def _post(
        self, config: PredictorConfig, name: str, action: str, payload: Any, incoming: Incoming
    ) -> Answer:
        headers, content = _encode(payload, _headers(incoming))
        client = self._client(config)
        request = client.build_request(
            "POST",
            _url(config, name, action),
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
        client = self._clients.get(config.transport)
        if client is None:
            client = self._clients[config.transport] = _new_client(config.transport)
        return client


def _url(config: PredictorConfig, name: str, action: str) -> str:
    path = f"/{config.protocol}/models/{quote(name, safe='')}{action}"
    return f"{config.predictor_base_url}{path}"


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


@contextmanager
def _translated_errors(config: PredictorConfig, *, started: bool = False) -> Iterator[None]:
    """Translate errors of the connection."""
    import httpx

    try:
        yield
    except httpx.HTTPError as exc:
        raise _HttpComplaints(config).broken(exc, started=started) from None


class _HttpComplaints(Complaints):
    """The errors for what goes wrong over HTTP."""

    def broken(self, exc: Exception, *, started: bool) -> PredictorError:
        if is_stalled(exc):
            return self.late(repr(exc))
        if not started:
            return self.unreachable(repr(exc))
        self.note(repr(exc))
        return self.cut()

    def failed(self, document: Any) -> PredictorError:
        sentence = "The predictor failed in the middle of its answer."
        return PredictorError(shown(sentence_in(document), self.config) or sentence, 502)


# --- the request --------------------------------------------------------------------------------


def _headers(incoming: Incoming) -> dict[bytes, bytes]:
    """Return the headers of the request to the predictor, a content type among them if known."""
    sent = {"accept": "*/*", **incoming.headers, "accept-encoding": "identity"}
    if incoming.verb.endswith("_stream"):
        sent["accept"] = _EVENTS
    return _as_bytes(sent)


def _streams(incoming: Incoming) -> bool:
    """Return whether our client wants the stream of a language model."""
    if incoming.verb.endswith("_stream"):
        return True
    accept = incoming.headers.get("accept", "*/*")
    return incoming.verb != "generate" and framed_encoder(accept) is not None


def _as_bytes(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Encode headers; drop those that HTTP does not allow."""
    pairs = ((name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items())
    return {name: value for name, value in pairs if not value.translate(None, _VISIBLE)}


def _action(config: PredictorConfig, payload: Any, incoming: Incoming) -> str:
    """Return what follows the model's name in the predictor's path."""
    if config.protocol == "v1":
        return ":predict"
    version = getattr(payload, "model_version", None) or incoming.version
    inside = f"/versions/{quote(str(version), safe='')}" if version else ""
    if not isinstance(payload, dict) or "text_input" not in payload:
        return f"{inside}/infer"
    return f"{inside}/generate_stream" if _streams(incoming) else f"{inside}/generate"


def _encode(payload: Any, given: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], bytes]:
    """Return a payload's headers and body; bytes keep the content type among the given headers.

    Raises InvalidInput for a payload that cannot be sent.
    """
    headers = {name: value for name, value in given.items() if name != b"content-type"}
    if isinstance(payload, InferRequest):
        payload, length = payload.to_rest()
        if length is not None:
            return headers | {b"content-type": _OCTETS, LENGTH.encode(): b"%d" % length}, payload
    elif isinstance(payload, bytes | bytearray | memoryview):
        return {b"content-type": _OCTETS, **given}, bytes(payload)
    try:
        return headers | {b"content-type": b"application/json"}, to_json(payload)
    except NestedTooDeep:
        raise InvalidInput("The request is nested too deep to be sent on.") from None


# --- the answer ---------------------------------------------------------------------------------


async def _read(response: httpx.Response, config: PredictorConfig) -> Answer:
    """Read a response, unless it streams. Raises PredictorError."""
    response.headers.encoding = "latin-1"  # as our response's headers are encoded
    if not response.is_success:
        raise await _error_in(response, config)
    headers = {name: text for name, text in response.headers.items() if name not in NOT_COPIED}
    media_type = media_type_of(response.headers.get("content-type", ""))
    content_type = None if media_type in _USUAL_TYPES else response.headers["content-type"]
    reader = reader_of(media_type, response.headers)
    if reader is not None:
        complaints = _HttpComplaints(config)
        items = AsyncItems(response, Decoder(reader, complaints), complaints)
        return Answer(items, content_type, headers)
    with _translated_errors(config, started=True):
        body = await response.aread()
    try:
        value = value_of(media_type, body, response.headers, v2=config.protocol == "v2")
    except (ValueError, InferenceError) as exc:
        complaints = _HttpComplaints(config)
        complaints.note(repr(exc))
        raise complaints.unreadable() from None
    return Answer(value, content_type if isinstance(value, bytes) else None, headers)


async def _error_in(response: httpx.Response, config: PredictorConfig) -> PredictorError:
    """Turn an unsuccessful response into an error."""
    status = response.status_code
    sentence = f"The predictor answered with status {status}."
    if not 400 <= status <= 599:
        return PredictorError(sentence, 502)
    document = None
    with suppress(Exception):  # without a readable body, the status alone is reported
        document = orjson.loads(await response.aread())
    copied = {name: response.headers[name] for name in COPIED_OF_ERRORS if name in response.headers}
    return PredictorError(shown(sentence_in(document), config) or sentence, status, copied)
