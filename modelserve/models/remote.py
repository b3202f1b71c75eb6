"""Send a model's payloads on to a predictor, or an explainer, over HTTP (KServe's transformers).

The answer comes back as a hook would have returned it: a JSON document as a value, an
`InferResponse` on V2, text and bytes as they are, and a stream as an iterator of its items, read
no faster than they are taken. What a stream is, its media type says: NDJSON has an item a line, SSE
a `ServerSentEvent` an event, and anything else that comes without a length an item a chunk. A
record that tells of an error is raised as one.

What the predictor says of an error reaches the client with its status; where it is, never does.
httpx, an extra, is imported by the first call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakKeyDictionary

import orjson

from modelserve.errors import InferenceError, InvalidInput, NestedTooDeep, UnsupportedProtocol
from modelserve.tensors import InferRequest, InferResponse
from modelserve.wire.accept import framed_encoder
from modelserve.wire.decoders import (
    ChunkReader,
    EventReader,
    Failure,
    LineReader,
    Reader,
    TextReader,
)
from modelserve.wire.head import HookHeaders, Scope
from modelserve.wire.json import to_json

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["PredictorConfig", "PredictorError", "Remote", "config_of", "disconnect"]

logger = logging.getLogger("modelserve")

_LENGTH: Final = "inference-header-content-length"
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
# What of the predictor's headers is of its own answer, its connection or itself.
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
        _LENGTH,
    )
)
_COPIED_OF_ERRORS: Final = ("retry-after", "www-authenticate")
_EVENTS: Final = "text/event-stream, application/json;q=0.9"
_OCTETS: Final = b"application/octet-stream"
_VISIBLE: Final = bytes((*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)))
_NDJSON: Final = re.compile(r"application/(x-)?(ndjson|jsonl|jsonlines)")
# Types that a result of ours has, or gets, by itself.
_NATURAL: Final = frozenset(
    ("", "application/octet-stream", "application/x-ndjson", "text/event-stream", "text/plain")
)
_NOTHING: Final = object()
_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 4.0  # less than the 5 s after which uvicorn closes a connection
_LONGEST: Final = 2000


@dataclass(frozen=True)
class PredictorConfig:
    """Where a predictor is and how it is called; the names are KServe's.

    Args:
        predictor_host: `host[:port]`, and a path below it if need be.
        predictor_protocol: "v1" or "v2".
        predictor_request_timeout_seconds: For the start of the answer, and for each part of it.
        predictor_request_retries: Of connections that could not be made.
        predictor_health_check: Taken, but not used: readiness is the model's own.
    """

    predictor_host: str
    predictor_protocol: str = "v1"
    predictor_use_ssl: bool = False
    predictor_request_timeout_seconds: float = 600
    predictor_request_retries: int = 0
    predictor_health_check: bool = False

    @property
    def predictor_base_url(self) -> str:
        host = self.predictor_host.rstrip("/")
        if "://" in host:
            return host
        return f"{'https' if self.predictor_use_ssl else 'http'}://{host}"

    @property
    def protocol(self) -> str:
        return self.predictor_protocol

    @property
    def use_ssl(self) -> bool:
        return self.predictor_use_ssl

    @property
    def timeout(self) -> float:
        return self.predictor_request_timeout_seconds

    @property
    def retries(self) -> int:
        return self.predictor_request_retries


class PredictorError(InferenceError):
    """What came from the predictor instead of a result, with its status."""

    def __init__(self, reason: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason, status)
        self._headers = headers or {}

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers


# --- the call -----------------------------------------------------------------------------------


class Remote:
    """The predictor and the explainer of one model, where its attributes say that they are.

    There is one httpx client an event loop, made by the first call in it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._clients: WeakKeyDictionary[Any, httpx.AsyncClient] = WeakKeyDictionary()

    def __reduce__(self) -> Any:
        return Remote, (self._model,)

    async def predict(
        self, payload: Any, headers: Any, response_headers: Any, *, sets_type: bool
    ) -> Any:
        """Send a payload to the predictor; return its answer, or an async iterator of its items.

        With `sets_type`, `response_headers` gets the type of an answer that is bytes of some kind.
        Cancellation closes the connection. Raises NotImplementedError where the model names no
        predictor or httpx is missing, UnsupportedProtocol, PredictorError.
        """
        config = config_of(self._model)
        if config is None:
            raise NotImplementedError(f"Model {self._model.name} does not implement predict.")
        wish = _Wish.of(headers)
        answer = await self._post(config, _action(config, payload, wish), payload, wish)
        if response_headers is not None:
            if sets_type and answer.own_type is not None:
                response_headers.setdefault("content-type", answer.own_type)
            if self._model.return_response_headers:
                response_headers.update(answer.headers)
        return answer.result

    async def explain(self, payload: Any, headers: Any) -> Any:
        """Send a payload to the explainer, which speaks V1; otherwise as `predict`."""
        config = config_of(self._model, explainer=True)
        if config is None:
            raise NotImplementedError(f"Model {self._model.name} does not implement explain.")
        return (await self._post(config, ":explain", payload, _Wish.of(headers))).result

    async def close(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(_this_loop(), None)
        if client is not None:
            await client.aclose()

    async def _post(
        self, config: PredictorConfig, action: str, payload: Any, wish: _Wish
    ) -> _Answer:
        headers, content = _described(payload, wish)
        name = quote(self._model.name, safe="")
        seconds = config.timeout
        client = self._client(config)
        request = client.build_request(
            "POST",
            f"{config.predictor_base_url}/{config.protocol}/models/{name}{action}",
            content=content,
            headers=list(headers.items()),
            timeout=(min(seconds, _CONNECT_SECONDS), seconds, seconds, None),
        )
        with _telling(config):
            response = await client.send(request, stream=True)
        try:
            return await _read(response, config)
        except BaseException:
            await response.aclose()
            raise

    def _client(self, config: PredictorConfig) -> httpx.AsyncClient:
        loop = _this_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = _new_client(config)
        return client


async def disconnect(model: Any) -> None:
    """Close the connections that a model has made to its predictor, if it has made any."""
    remote = vars(model).get("_remote")
    if remote is not None:
        await remote.close()


def config_of(model: Any, *, explainer: bool = False) -> PredictorConfig | None:
    """Return what a model's attributes say of its predictor; None where they name no host."""
    host = model.explainer_host if explainer else model.predictor_host
    if not host:
        return None
    protocol = "v1" if explainer else model.protocol
    return PredictorConfig(host, protocol, model.use_ssl, model.timeout, model.retries)


def _new_client(config: PredictorConfig) -> httpx.AsyncClient:
    """Return a client that keeps nothing of one request for another but the connection.

    How many connections there may be is for the model's own limit on concurrency to say.
    """
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    try:
        import httpx
    except ImportError:
        problem = "Calling a predictor needs httpx: pip install 'modelserve[predictor]'"
        raise NotImplementedError(problem) from None
    secure = config.predictor_base_url.startswith("https:")
    transport = httpx.AsyncHTTPTransport(
        verify=_trusted() if secure else False,
        retries=config.retries,
        limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
    )
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return httpx.AsyncClient(transport=transport, cookies=no_cookies, trust_env=False)


def _trusted() -> ssl.SSLContext | bool:
    """Return the certificates to trust: KServe's controller names a file of its own."""
    import ssl

    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return ssl.create_default_context(cafile=bundle) if bundle else True


def _this_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


@contextmanager
def _telling(config: PredictorConfig, *, begun: bool = False) -> Iterator[None]:
    """Tell what went wrong on the way, without where that leads; the log has the whole of it."""
    import httpx

    try:
        yield
    except httpx.HTTPError as exc:
        logger.warning("Calling %s failed: %r", config.predictor_base_url, exc)
        if isinstance(exc, httpx.ReadTimeout | httpx.WriteTimeout):
            problem = f"The predictor did not answer within {config.timeout:g} s."
            raise PredictorError(problem, 504) from None
        if begun:
            raise PredictorError("The answer of the predictor was cut short.", 502) from None
        raise PredictorError("The predictor cannot be reached.", 503) from None


# --- the request --------------------------------------------------------------------------------


class _Wish(NamedTuple):
    """What our client's request means for the predictor's."""

    headers: dict[bytes, bytes]
    version: str | None
    streams: bool

    @classmethod
    def of(cls, headers: Any) -> _Wish:
        """Read the headers that a hook was given: the server's own, a dict, or None."""
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
        return cls(_encoded(sent), version, streams)


def _version_and_verb(scope: Scope) -> tuple[str | None, str]:
    """Return how a path ends: in `/versions/VERSION/VERB`, or just a verb."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    segments = ["", "", *path.decode("latin-1").partition("?")[0].split("/")]
    above, version, verb = segments[-3:]
    return (unquote(version) if above == "versions" else None), verb


def _encoded(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return headers as they are sent, without those that cannot be."""
    pairs = ((name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items())
    return {name: value for name, value in pairs if not value.translate(None, _VISIBLE)}


def _action(config: PredictorConfig, payload: Any, wish: _Wish) -> str:
    """Return what follows the model's name in the path."""
    if config.protocol == "v1":
        return ":predict"
    if config.protocol != "v2":
        raise UnsupportedProtocol(config.protocol)
    version = getattr(payload, "model_version", None) or wish.version
    inside = f"/versions/{quote(str(version), safe='')}" if version else ""
    if not isinstance(payload, dict) or "text_input" not in payload:
        return f"{inside}/infer"
    return f"{inside}/generate_stream" if wish.streams else f"{inside}/generate"


def _described(payload: Any, wish: _Wish) -> tuple[dict[bytes, bytes], bytes]:
    """Return a payload's headers and body; bytes have the client's type, or what a hook made it.

    Raises InvalidInput for what cannot be sent.
    """
    headers = {name: value for name, value in wish.headers.items() if name != b"content-type"}
    if isinstance(payload, InferRequest):
        payload, length = payload.to_rest()
        if length is not None:
            return headers | {b"content-type": _OCTETS, _LENGTH.encode(): b"%d" % length}, payload
    elif isinstance(payload, bytes | bytearray | memoryview):
        return {b"content-type": _OCTETS, **wish.headers}, bytes(payload)
    try:
        return headers | {b"content-type": b"application/json"}, to_json(payload)
    except NestedTooDeep:
        raise InvalidInput("The request is nested too deep to be sent on.") from None


# --- the answer ---------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """What a hook returns, the content type that it should go out with, and other headers."""

    result: Any
    own_type: str | None
    headers: dict[str, str]


async def _read(response: httpx.Response, config: PredictorConfig) -> _Answer:
    """Return an answer; one that streams is read later. Raises PredictorError."""
    response.headers.encoding = "latin-1"  # as ours go out
    if not response.is_success:
        raise await _refusal(response, config)
    headers = {name: text for name, text in response.headers.items() if name not in _NOT_COPIED}
    content_type = response.headers.get("content-type", "")
    kind = _kind(content_type)
    own_type = None if kind in _NATURAL else content_type
    reader = _reader(
        kind, sized=_LENGTH in response.headers or "content-length" in response.headers
    )
    if reader is not None:
        return _Answer(_Items(response, reader, config), own_type, headers)
    with _telling(config, begun=True):
        body = await response.aread()
    try:
        value = _value(kind, body, response.headers.get(_LENGTH), config.protocol)
    except (ValueError, InferenceError) as exc:
        logger.warning("The answer of %s cannot be read: %r", config.predictor_base_url, exc)
        raise PredictorError("The answer of the predictor cannot be read.", 502) from None
    return _Answer(value, own_type if isinstance(value, bytes) else None, headers)


def _value(kind: str, body: bytes, length: str | None, protocol: str) -> Any:
    """Return the value in a body. Raises ValueError or InferenceError for one that is broken."""
    if length is not None:
        return InferResponse.from_bytes(body, int(length))
    if kind == "text/plain":
        return body.decode()
    if not _is_json(kind):
        return body
    document = orjson.loads(body)
    if protocol == "v2" and isinstance(document, dict) and "outputs" in document:
        return InferResponse.from_rest(document)
    return document


def _reader(kind: str, *, sized: bool) -> Reader | None:
    """Return what reads a stream of this kind; None for an answer that is whole."""
    if kind in ("text/event-stream", "application/x-ndjson"):
        return EventReader() if kind == "text/event-stream" else LineReader()
    if sized or _is_json(kind):
        return None
    return TextReader() if kind == "text/plain" else ChunkReader()


def _kind(content_type: str) -> str:
    """Return a media type by its one name; text that is not UTF-8 has none."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    if kind == "text/plain" and "charset" in parameters and "utf-8" not in parameters:
        return "text"
    return "application/x-ndjson" if _NDJSON.fullmatch(kind) else kind


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


async def _refusal(response: httpx.Response, config: PredictorConfig) -> PredictorError:
    """Return an answer that is no success as an error."""
    status = response.status_code
    words = f"The predictor answered with status {status}."
    if not 400 <= status <= 599:
        return PredictorError(words, 502)
    document = None
    with suppress(Exception):  # what cannot be read says nothing more than its status
        document = orjson.loads(await response.aread())
    copied = {
        name: response.headers[name] for name in _COPIED_OF_ERRORS if name in response.headers
    }
    return PredictorError(_sentence(document, config) or words, status, copied)


def _sentence(document: Any, config: PredictorConfig) -> str | None:
    """Return what a document says of an error, unless it says where the predictor is."""
    if not isinstance(document, dict):
        return None
    for key in ("error", "detail", "message"):
        text = document.get(key)
        if isinstance(text, str) and text:
            return None if _tells_place(text, config) else text[:_LONGEST]
    return None


def _tells_place(text: str, config: PredictorConfig) -> bool:
    """Say whether a sentence has the predictor's address; a name alone may be any word."""
    place = urlsplit(config.predictor_base_url).netloc
    return f"//{place}" in text or (place in text and any(sign in place for sign in ".:"))


# --- the items of a stream ----------------------------------------------------------------------


class _Items:
    """The items of an answer, each read when it is asked for; close it, or the connection stays.

    A record of an error is raised, as is what happens to the connection.
    """

    def __init__(self, response: httpx.Response, reader: Reader, config: PredictorConfig) -> None:
        self._response = response
        self._reader = reader
        self._config = config
        self._chunks = response.aiter_bytes()
        self._ready: Iterator[Any] = iter(())
        self._ended = False

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> Any:
        while True:
            item = self._next_ready()
            if item is not None:
                return item[0]
            if self._ended:
                raise StopAsyncIteration
            with _telling(self._config, begun=True):
                chunk = await anext(self._chunks, None)
            self._ended = chunk is None
            self._ready = self._reader.finish() if chunk is None else self._reader.feed(chunk)

    async def aclose(self) -> None:
        """Close the connection, unless all has been read.

        httpx's generators, one inside another, are then run to their end, which comes at once:
        trio warns of those that are left to the garbage collector.
        """
        self._ended, self._ready = True, iter(())
        await self._response.aclose()
        with suppress(Exception):
            async for _ in self._chunks:
                pass

    def _next_ready(self) -> tuple[Any] | None:
        """Return the next item of what has been read, if there is one."""
        try:
            item = next(self._ready, _NOTHING)
        except ValueError:
            raise PredictorError("The answer of the predictor cannot be read.", 502) from None
        if isinstance(item, Failure):
            words = "The predictor failed in the middle of its answer."
            raise PredictorError(_sentence(item.document, self._config) or words, 502)
        return None if item is _NOTHING else (item,)
