"""Requests to a server as data: its address, and what to send. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlsplit

from modelserve.client.answers import EVENTS, LENGTH, NDJSON
from modelserve.errors import InvalidInput
from modelserve.tensors import InferInput, InferRequest, RequestedOutput
from modelserve.tensors.data import name_datatype, need
from modelserve.version import __version__
from modelserve.wire.json import to_json

__all__ = [
    "Arrays",
    "Headers",
    "Request",
    "Server",
    "chat",
    "get",
    "infer",
    "instances",
    "no_address",
    "predict",
    "readiness",
    "rows",
    "stream",
]

Headers: TypeAlias = Mapping[str, str]
Arrays: TypeAlias = Mapping[str, Any]  # numpy arrays by the name of the tensor

_ONE_DOCUMENT: Final = "application/json, */*;q=0.5"
_ITEMS: Final = f"{NDJSON}, */*;q=0.5"
_ITEMS_AS_EVENTS: Final = f"{EVENTS}, application/json;q=0.5"
_JSON: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        path: The path below the server's address, with the query.
        headers: The headers that the request needs; those of the client override them.
        given: The caller's headers for this request, which override all others.
    """

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    given: dict[str, str] = field(default_factory=dict)

    def with_headers(self, given: Headers | None) -> Request:
        """Return the request with the caller's headers."""
        lowered = {name.lower(): value for name, value in (given or {}).items()}
        return replace(self, given=lowered)


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server, and the headers of each request to it.

    Attributes:
        scheme: `http` or `https`.
        host: A name or an address; an IPv6 address without brackets.
        authority: Host and port as the `Host` header has them.
        base: The path below which the server is mounted, without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    authority: str
    base: str
    headers: dict[str, str]

    @classmethod
    def of(cls, url: str, *, token: str | None = None, headers: Headers | None = None) -> Server:
        """Read an address, `http://` by default. Raises ValueError for an invalid one."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise no_address(url) from None
        sound = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        if not sound or parts.query or parts.fragment or not url.isprintable() or " " in url:
            raise no_address(url)
        always = {
            "accept-encoding": "identity",
            "user-agent": f"modelserve/{__version__}",
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        if token is not None:
            always["authorization"] = f"Bearer {token}"
        assert parts.hostname is not None
        port = port or (443 if parts.scheme == "https" else 80)
        base = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        return cls(parts.scheme, parts.hostname, port, parts.netloc, base, always)

    def headers_of(self, request: Request) -> list[tuple[bytes, bytes]]:
        """Return all headers of a request, encoded."""
        headers = request.headers | self.headers | request.given
        return [(n.encode(), v.encode("latin-1", "replace")) for n, v in headers.items()]

    @property
    def url(self) -> str:
        """The address, base path included."""
        return f"{self.scheme}://{self.authority}{self.base}"


def get(path: str) -> Request:
    """Ask for a document."""
    return Request("GET", path, {"accept": "application/json"})


def readiness(model: str | None) -> Request:
    """Ask whether the server, or a model, is ready."""
    return get("/v2/health/ready" if model is None else f"/v2/models/{quote(model, safe='')}/ready")


def predict(
    model: str, payload: Any, *, verb: str, version: str | None, content_type: str | None
) -> Request:
    """Send a payload for one document."""
    headers, content = _body(payload, content_type)
    headers["accept"] = _ONE_DOCUMENT
    return Request("POST", _path(model, verb, version), headers, content)


def stream(
    model: str,
    payload: Any,
    *,
    verb: str,
    version: str | None,
    content_type: str | None,
    sse: bool,
) -> Request:
    """Send a payload for a stream of items."""
    headers, content = _body(payload, content_type)
    headers["accept"] = _ITEMS_AS_EVENTS if sse else _ITEMS
    return Request("POST", _path(model, verb, version), headers, content)


def rows(
    model: str, *, verb: str, version: str | None, content_type: str | None, on_error: str | None
) -> Request:
    """Open a request whose body is streamed: rows of JSON, unless another content type is given."""
    headers = {"content-type": content_type or NDJSON, "accept": _ITEMS}
    query = "" if on_error is None else f"?on_error={quote(on_error, safe='')}"
    return Request("POST", _path(model, verb, version) + query, headers)


def instances(model: str, encoded: Sequence[bytes], *, verb: str, version: str | None) -> Request:
    """Send rows that are JSON already as the instances of one request."""
    content = b'{"instances":[%b]}' % b",".join(encoded)
    return Request("POST", _path(model, verb, version), {**_JSON, "accept": _ONE_DOCUMENT}, content)


def infer(
    model: str,
    inputs: Arrays | InferRequest,
    *,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Any] | None,
    version: str | None,
    binary: bool,
) -> Request:
    """Send tensors, in binary if requested and possible.

    Raises InvalidInput for an array that V2 cannot hold.
    """
    if not isinstance(inputs, InferRequest):
        inputs = _infer_request(model, inputs, outputs, parameters, binary=binary)
    document, length = inputs.to_rest()
    inside = "" if version is None else f"/versions/{quote(version, safe='')}"
    path = f"/v2/models/{quote(model, safe='')}{inside}/infer"
    if length is None:
        return Request("POST", path, dict(_JSON), to_json(document))
    assert isinstance(document, bytes)
    headers = {"content-type": "application/octet-stream", LENGTH: str(length)}
    return Request("POST", path, headers, document)


def chat(model: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Request:
    """Ask for the next message of a conversation, as a stream (OpenAI's protocol)."""
    document = {**options, "model": model, "messages": list(messages), "stream": True}
    headers = {**_JSON, "accept": _ITEMS_AS_EVENTS}
    return Request("POST", "/v1/chat/completions", headers, to_json(document))


def _path(model: str, verb: str, version: str | None) -> str:
    inside = "" if version is None else f"/versions/{quote(version, safe='')}"
    return f"/v1/models/{quote(model, safe='')}{inside}:{quote(verb, safe='')}"


def _body(payload: Any, content_type: str | None) -> tuple[dict[str, str], bytes]:
    """Return a payload's headers and body: bytes as they are, a list as instances, else JSON."""
    if isinstance(payload, bytes | bytearray | memoryview):
        return {"content-type": content_type or "application/octet-stream"}, bytes(payload)
    document = {"instances": payload} if isinstance(payload, list | tuple) else payload
    return {"content-type": content_type or "application/json"}, to_json(document)


def _infer_request(
    model: str,
    arrays: Arrays,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Any] | None,
    *,
    binary: bool,
) -> InferRequest:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"Inputs must be arrays by their names, not {type(arrays).__name__}")
    asked = {**({"binary_data_output": True} if binary else {}), **(parameters or {})}
    named = [RequestedOutput(name, {"binary_data": binary}) for name in outputs or ()]
    tensors = [_tensor(name, array, binary=binary) for name, array in arrays.items()]
    return InferRequest(model, tensors, parameters=asked or None, request_outputs=named or None)


def _tensor(name: str, values: Any, *, binary: bool) -> InferInput:
    array = need("numpy").asarray(values)
    datatype = name_datatype(array.dtype)
    if datatype is None:
        raise InvalidInput(f"Tensor {name!r} has the dtype {array.dtype}, which V2 does not have.")
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def no_address(url: str) -> ValueError:
    """Return the error for an invalid address."""
    return ValueError(f"{url!r} is not the address of a server, like http://localhost:8080")
