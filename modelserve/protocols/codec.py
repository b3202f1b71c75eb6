"""What a protocol is to the walk, and what all of them share. Pure.

A protocol's module turns bytes and headers into a payload, and a hook's result into headers and
bytes. The walk knows it by its `Codec` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import MutableHeaders

from modelserve.errors import InvalidInput, NestedTooDeep
from modelserve.exchange.exchange import JSON, Body, Header, model_headers
from modelserve.exchange.streams import StreamForm
from modelserve.tensors import InferResponse, rest_document
from modelserve.wire.encoders import to_json
from modelserve.wire.head import Request

__all__ = ["Body", "Codec", "Named", "encode_value", "with_own"]

_TEXT: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")
_OCTETS: Final[Header] = (b"content-type", b"application/octet-stream")


@dataclass(frozen=True, slots=True)
class Named:
    """The model that a path names, and its version where it names one."""

    model: str
    version: str | None = None


def _as_it_is(item: Any, payload: Any, named: Named) -> Any:
    return item


@dataclass(frozen=True, slots=True)
class Codec:
    """One protocol, or one endpoint of it.

    `decode(body, request, named)` returns the payload or raises InvalidInput. `check(payload)`
    looks at what goes to `predict`. `encode(value, request, payload, own, named)` returns headers
    and buffers, where `payload` is the decoded one and `own` the headers that the model has set.
    `form(request, payload, own, named)` is how a stream goes out. With `always_streams` a value is
    a stream of one. `document(item, payload, named)` is what one item is, for an envelope.
    """

    protocol: str
    decode: Callable[[bytes | bytearray, Request, Named], Any]
    check: Callable[[Any], None]
    encode: Callable[
        [Any, Request, Any, MutableHeaders | None, Named], tuple[list[Header], list[Body]]
    ]
    form: Callable[[Request, Any, MutableHeaders | None, Named], StreamForm]
    always_streams: bool = False
    document: Callable[[Any, Any, Named], Any] = _as_it_is


def encode_value(
    value: Any, payload: Any, own: MutableHeaders | None
) -> tuple[list[Header], bytes]:
    """Return the headers and the body of a value; text and bytes are the body as they are.

    Raises TypeError for a value that JSON cannot hold. A value too deep to be written is the
    client's fault where its request was as deep: InvalidInput, else NestedTooDeep.
    """
    content_type, body = _body(value, payload)
    return with_own(content_type, own), body


def with_own(content_type: Header, own: MutableHeaders | None) -> list[Header]:
    """Return the headers that the model has set, with this content type where it set none."""
    if not own:
        return [content_type]
    headers = model_headers(own)
    return headers if b"content-type" in dict(headers) else [content_type, *headers]


def _body(value: Any, payload: Any) -> tuple[Header, bytes]:
    if type(value) is not dict:
        if isinstance(value, str):
            return _TEXT, value.encode()
        if isinstance(value, bytes | bytearray | memoryview):
            return _OCTETS, bytes(value)
        if isinstance(value, InferResponse):
            value = rest_document(value)
    try:
        return JSON, to_json(value)
    except NestedTooDeep:
        if _is_deep(payload):
            raise InvalidInput("The request is nested too deep to be answered.") from None
        raise


def _is_deep(value: Any, levels: int = 254) -> bool:
    """Say whether a JSON value has more levels of nesting than this."""
    level = [value]
    for _ in range(levels):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> Any:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
