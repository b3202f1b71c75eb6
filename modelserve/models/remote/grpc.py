"""Call a predictor over gRPC: ModelInfer of the Open Inference Protocol (KServe's `grpc-v2`).

grpcio's asyncio API is used, with messages of our own; both are extras and imported by the first
call. A connection is made before the call that needs it, and no call is sent twice: grpcio itself
retries only calls that no predictor has seen.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from modelserve.concurrency.cancelling import ends_task
from modelserve.errors import (
    DeadlineExceeded,
    ExtraMissing,
    HookMissing,
    InferenceError,
    InvalidInput,
    PredictorError,
    ServingError,
)
from modelserve.models.predictor import PredictorConfig
from modelserve.models.remote.calls import (
    COPIED_OF_ERRORS,
    NOT_COPIED,
    Answer,
    Complaints,
    Incoming,
    shown,
)
from modelserve.tensors import InferRequest, InferResponse
from modelserve.tensors.grpc import is_message, messages
from modelserve.wire.grpc import SERVICE
from modelserve.wire.protobuf import parsed

__all__ = ["GrpcCaller"]

_CONNECT_SECONDS: Final = 10.0
_MOMENT: Final = 0.05
_RETRY_SECONDS: Final = 0.5  # before the second retry, doubled before each one after it
_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A connection is the channel's own, so that another channel can try anew at once.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", int(_CONNECT_SECONDS * 1000)),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)
_HTTP: Final = ("http", "https")
_PORTS: Final = {True: 443, False: 80}  # KServe's defaults
_PRINTABLE: Final = re.compile("[ -~]*")
_UNDECIDED: Final = ("IDLE", "CONNECTING")
# What is forwarded to a predictor over HTTP alone.
_OF_HTTP: Final = ("accept", "content-type")
# The HTTP statuses of codes; if several statuses have one code, the most likely.
_STATUSES: Final = {
    "CANCELLED": 503,  # from a predictor that is stopping
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 413,  # of inference servers: a message over the limit
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
# The beginnings of grpcio's own sentences, which may hold addresses: for a lost connection, and for
# an answer that is not gRPC's.
_LOST: Final = re.compile(
    "Socket closed|Stream removed|Connection (reset|dropped|closed)|Broken pipe|GOAWAY|recvmsg|"
    "sendmsg|failed to connect|errors resolving|DNS resolution|(ipv[46]|unix):",
    re.IGNORECASE,
)
_FOREIGN: Final = re.compile("Received (http2 header|RST_STREAM)")


class _Line:
    """A channel, the methods called on it, and its wait for a connection, which calls share.

    That wait is not cancelled: grpcio would continue it, and call an event loop that has ended.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._waiting: asyncio.Task[None] | None = None
        self.infer, self.is_ready = (
            channel.unary_unary(f"{SERVICE}/{method}") for method in ("ModelInfer", "ModelReady")
        )

    @property
    def state(self) -> str:
        return str(self._channel.get_state().name)

    async def connect(self, seconds: float) -> bool:
        """Wait for a connection; return whether there is one."""
        state = self._channel.get_state(try_to_connect=True).name
        if state in _UNDECIDED:
            if self._waiting is None or self._waiting.done():
                self._waiting = asyncio.create_task(self._wait())
            await asyncio.wait([self._waiting], timeout=seconds)
            state = self.state
        return bool(state == "READY")

    async def _wait(self) -> None:
        channel = self._channel
        with suppress(Exception):  # in some versions, if the channel is closed meanwhile
            while (state := channel.get_state(try_to_connect=True)).name in _UNDECIDED:
                await channel.wait_for_state_change(state)

    async def close(self) -> None:
        """Close the channel, which cancels the calls on it."""
        await self._channel.close()
        if self._waiting is not None:
            await asyncio.wait([self._waiting])


class _Address(NamedTuple):
    """The settings that calls must share to use the same channel."""

    target: str
    secure: bool


class GrpcCaller:
    """Calls over gRPC: one channel for each predictor, opened by the first call."""

    def __init__(self) -> None:
        self._aio = _import_aio()
        self._lines: dict[_Address, _Line] = {}

    async def predict(
        self, config: PredictorConfig, name: str, payload: Any, incoming: Incoming
    ) -> Answer:
        """Send an InferRequest; the result is an InferResponse.

        The deadline is the predictor's time limit, or our client's if it is shorter. Cancellation
        cancels the call. Raises InvalidInput for a payload that is no request of V2,
        DeadlineExceeded, PredictorError.
        """
        message = _message(payload, name, incoming.version)
        seconds, is_clients = _time_limit(config, incoming.time_limit)
        line = await self._connected(config, seconds)
        call = line.infer(
            message.SerializeToString(), timeout=seconds, metadata=_metadata(incoming.headers)
        )
        try:
            body = await self._body(call, line, config)
        except PredictorError:
            if is_clients and _is_late(call):
                limit = f"timeout: the request took longer than {seconds:g} s"
                raise DeadlineExceeded(limit) from None
            raise
        metadata = [*await call.initial_metadata(), *await call.trailing_metadata()]
        return Answer(_response(body, config), None, _headers(metadata))

    async def is_ready(self, config: PredictorConfig, name: str) -> bool:
        """Call ModelReady."""
        seconds = _finite(config.timeout)
        line = await self._connected(config, seconds)
        question = messages()["ModelReadyRequest"](name=name).SerializeToString()
        body = await self._body(line.is_ready(question, timeout=seconds), line, config)
        return bool(_parsed("ModelReadyResponse", body, config).ready)

    async def _body(self, call: Any, line: _Line, config: PredictorConfig) -> bytes:
        """Return the message that answers a call. Raises PredictorError."""
        try:
            body: bytes = await call
        except self._aio.AioRpcError as exc:
            if exc.code().name == "DEADLINE_EXCEEDED" and _is_late(call):
                raise Complaints(config).late(exc.details()) from None
            raise _error_of(exc, line, config) from None
        except asyncio.CancelledError as exc:
            if ends_task(exc):
                raise
            raise Complaints(config).cut() from None  # the channel has been closed
        return body

    async def close(self) -> None:
        """Close the channels."""
        async with AsyncExitStack() as stack:  # the others are closed even if one fails
            for line in self._lines.values():
                stack.push_async_callback(line.close)

    async def _connected(self, config: PredictorConfig, seconds: float | None) -> _Line:
        """Return a connected channel, after as many attempts as the config allows.

        A channel that cannot connect is returned as well: a call on it fails at once, with the
        reason. Raises PredictorError if a server is silent, or the channel has been closed.
        """
        address = _address_of(config)
        for attempt in range(config.retries + 1):
            if attempt > 1:
                await asyncio.sleep(_RETRY_SECONDS * 2 ** (attempt - 2))
            line = self._line(address)
            if await line.connect(min(seconds or math.inf, _CONNECT_SECONDS)):
                break
        if line.state in ("CONNECTING", "SHUTDOWN"):
            raise Complaints(config).unreachable("no connection in time")
        return line

    def _line(self, address: _Address) -> _Line:
        """Return the channel to an address: a new one if the last could not connect.

        The old one would wait longer and longer before each attempt. It is not closed: it ends with
        the calls that are left on it.
        """
        line = self._lines.get(address)
        if line is None or line.state in ("TRANSIENT_FAILURE", "SHUTDOWN"):
            line = self._lines[address] = self._new_line(address)
        return line

    def _new_line(self, address: _Address) -> _Line:
        aio = self._aio
        if address.secure:
            channel = aio.secure_channel(address.target, _credentials(), options=_OPTIONS)
        else:
            channel = aio.insecure_channel(address.target, options=_OPTIONS)
        return _Line(channel)


def _import_aio() -> Any:
    """Return grpcio's asyncio API. Raises HookMissing on trio, ExtraMissing without grpcio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        problem = "A predictor can be called over gRPC on asyncio only, and this is trio."
        raise HookMissing(problem) from None
    try:
        from grpc import aio
    except ImportError:
        raise ExtraMissing("A predictor over gRPC", "grpcio", "grpc") from None
    return aio


# --- where to -----------------------------------------------------------------------------------


def _address_of(config: PredictorConfig) -> _Address:
    """Return a predictor's address in grpc's form, and whether it is called over TLS.

    Addresses with grpc's own schemes stay as they are. Raises ValueError for an address with a
    path.
    """
    host = config.predictor_host.strip()
    scheme, slashes, _ = host.partition("://")
    if re.match(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):", host):
        return _Address(host, config.use_ssl)
    parts = urlsplit(host if slashes else f"//{host}")
    if parts.path.strip("/") or (slashes and scheme.lower() not in _HTTP):
        raise ValueError(f"gRPC needs HOST[:PORT] of a predictor, and not {host!r}")
    secure = scheme.lower() == "https" if slashes else config.use_ssl
    target = parts.netloc
    return _Address(target if parts.port else f"{target}:{_PORTS[secure]}", secure)


def _credentials() -> Any:
    """Return the certificates to trust: KServe's controller may name a file."""
    import grpc

    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return grpc.ssl_channel_credentials(Path(bundle).read_bytes() if bundle else None)


# --- the request --------------------------------------------------------------------------------


def _message(payload: Any, name: str, version: str | None) -> Any:
    """Return a payload as a ModelInferRequest. Raises InvalidInput if it is not a V2 request."""
    if is_message(payload, "ModelInferRequest"):
        payload = InferRequest.from_grpc(payload)
    elif isinstance(payload, dict) and "inputs" in payload:
        payload = InferRequest.from_rest(name, payload)
    elif not isinstance(payload, InferRequest):
        raise InvalidInput(
            "The predictor speaks V2 over gRPC: it takes an InferRequest, and not"
            f" {_described(payload)}."
        )
    message = payload.to_grpc()
    message.model_name = message.model_name or name
    message.model_version = message.model_version or version or ""
    return message


def _described(payload: Any) -> str:
    if isinstance(payload, dict) and "instances" in payload:
        return "the instances of V1"
    return f"a payload of type {type(payload).__name__}"


def _metadata(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return headers as metadata, without those that gRPC does not allow."""
    pairs = ((name, text) for name, text in headers.items() if name not in _OF_HTTP)
    return [pair for pair in pairs if _PRINTABLE.fullmatch(pair[1])]


def _time_limit(config: PredictorConfig, requested: str | None) -> tuple[float | None, bool]:
    """Return the seconds of a call, and whether they are our client's limit."""
    seconds = _finite(config.timeout)
    try:
        wanted = float(requested or math.inf)
    except ValueError:  # a server has refused an invalid one already
        return seconds, False
    if wanted > 0 and wanted < (seconds or math.inf):
        return wanted, True
    return seconds, False


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


# --- the answer ---------------------------------------------------------------------------------


def _response(body: bytes, config: PredictorConfig) -> InferResponse:
    message = _parsed("ModelInferResponse", body, config)
    try:
        return InferResponse.from_grpc(message)
    except InferenceError as exc:
        raise _unreadable(exc, config) from None


def _parsed(name: str, body: bytes, config: PredictorConfig) -> Any:
    try:
        return parsed(messages()[name], body)
    except InvalidInput as exc:
        raise _unreadable(exc, config) from None


def _unreadable(problem: ServingError, config: PredictorConfig) -> PredictorError:
    complaints = Complaints(config)
    complaints.note(problem)
    return complaints.unreadable()


def _headers(metadata: Any) -> dict[str, str]:
    """Return metadata as headers, except binary values and gRPC's own."""
    return {
        name: value
        for name, value in metadata
        if isinstance(value, str) and name not in NOT_COPIED and not name.startswith("grpc-")
    }


def _is_late(call: Any) -> bool:
    """Return whether a call's time is over; a predictor, who knows it too, may be first to say."""
    left = call.time_remaining()
    return left is not None and left < _MOMENT


def _error_of(exc: Any, line: _Line, config: PredictorConfig) -> PredictorError:
    """Turn the status of a call into an error."""
    code, text = exc.code().name, exc.details() or ""
    complaints = Complaints(config)
    is_lost, is_foreign = _LOST.match(text), _FOREIGN.match(text)
    if code == "UNAVAILABLE" and (is_lost or is_foreign or line.state != "READY"):
        return complaints.unreachable(text)
    if is_lost or is_foreign:
        complaints.note(text)
        return complaints.cut() if is_lost else complaints.unreadable()
    given = _headers([*exc.initial_metadata(), *exc.trailing_metadata()])
    copied = {name: given[name] for name in COPIED_OF_ERRORS if name in given}
    sentence = shown(text, config) or f"The predictor answered with status {code}."
    return PredictorError(sentence, _STATUSES.get(code, 500), copied)
