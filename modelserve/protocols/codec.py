"""The interface of a protocol to the pipeline, and the common part of all protocols. Pure.

A codec turns a head and bytes into the name of a model and a payload, and a hook's result into
headers and bytes. It also writes the protocol's errors and ends its streams. The pipeline uses a
protocol only through its codec; a codec uses neither the pipeline nor the exchange.

For a request, the pipeline calls `json_length` before it reads the body; `check_cost` if the body
is not small; `decode`, or `open` and `check_opened` if the path names no model; `check`; and
`encode` or, for a stream, `stream_format`. `error` writes a failure before the start of the
response; a later one is the last record of the encoder.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from starlette.datastructures import MutableHeaders

from modelserve.errors import InvalidInput, NestedTooDeep
from modelserve.limits import Limits
from modelserve.tensors import InferResponse, rest_document
from modelserve.wire.cost import check_cost
from modelserve.wire.encoders import Encoder, Item
from modelserve.wire.head import Head
from modelserve.wire.headers import JSON, Body, Header, sendable_headers
from modelserve.wire.json import error_document, to_json
from modelserve.wire.lines import Cutter

__all__ = [
    "OCTETS",
    "Codec",
    "Encoded",
    "Item",
    "ModelRef",
    "Payload",
    "ReadBody",
    "SetHeaders",
    "StreamFormat",
    "encode_value",
    "with_model_headers",
]

Payload: TypeAlias = Any  # the result of decoding, which a hook takes
Encoded: TypeAlias = tuple[list[Header], list[Body]]  # the headers and the body of a response
SetHeaders: TypeAlias = MutableHeaders | None  # those that the model has set

OCTETS: Final[Header] = (b"content-type", b"application/octet-stream")
_TEXT: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")


class ReadBody(Protocol):
    """A body that was parsed as it arrived, and is not kept as bytes; it has their length."""

    payload: Payload

    def __len__(self) -> int: ...


class ModelRef(NamedTuple):
    """The model that a request is for, and its version if the request names one."""

    name: str
    version: str | None = None


class StreamFormat:
    """The format of one stream: its headers, its encoder, and common members of its records.

    It is made for one response, so it may keep state, such as the content of the last record. Only
    a format that needs the payload keeps it, since it may be large and a stream long.

    Args:
        head: The head of the request.
        payload: The decoded payload.
        response_headers: The headers that the model has set.
        ref: The model.

    Attributes:
        default: The media type of a stream if the client has no preference; None if its first item
            decides.
        as_message: Makes the text or the bytes of a message, if each item is one.
    """

    default: str | None = None
    as_message: Callable[[Item], str | bytes] | None = None

    def __init__(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> None:
        self.accept = head.accept if b"accept" in head.headers else None
        self.response_headers = response_headers
        self.ref = ref

    def headers(self) -> list[Header]:
        """Return the headers that the model has set, its content type included."""
        return sendable_headers(self.response_headers) if self.response_headers else []

    def encoder(self, first: Item, *, empty: bool) -> Encoder:
        """Choose the encoder by the first item; `empty` is a stream without any.

        Raises NotAcceptable if nothing that the client accepts can be sent.
        """
        raise NotImplementedError

    def framed_encoder(self) -> Encoder | None:
        """Return the encoder if it is known before the first item and can carry a heartbeat.

        None for a client that has not asked for such a stream: it gets no heartbeats.
        """
        return None


class Codec:
    """One protocol, or one endpoint of it.

    A codec serves many requests. Sources of anything other than their bytes, such as the time or
    new ids, are passed to its constructor.

    Attributes:
        protocol: The name of the protocol in metrics and in the log.
        takes_binary: A body may be JSON and binary tensors: `json_length` is called. A body that
            names the model is binary tensors.
        takes_forms: The pipeline reads a body of multipart/form-data part by part as it arrives,
            and `decode` is given a `ReadBody`.
        takes_lines: A body may be streamed to the model: `cutter` is called.
        is_socket: There is no body, but the messages of a WebSocket, which are always streamed.
        carries_responses: A response of starlette's that a hook returns is sent as it is.

        Args:
        format_class: The format of streams.
        always_streams: A value that is no stream is sent as a stream of one item.
        over_socket: The codec of the endpoint over a WebSocket; None if it cannot be one.
        of_bytes: The codec of the endpoint for hooks annotated to take bytes; None for this one.
    """

    protocol: str = ""
    takes_binary: bool = False
    takes_forms: bool = False
    takes_lines: bool = False
    is_socket: bool = False
    carries_responses: bool = True

    def __init__(
        self,
        format_class: type[StreamFormat] = StreamFormat,
        *,
        always_streams: bool = False,
        over_socket: "Codec | None" = None,
        of_bytes: "Codec | None" = None,
    ) -> None:
        self.format_class = format_class
        self.always_streams = always_streams
        self.over_socket = over_socket
        self._of_bytes = of_bytes or self

    def taking(self, takes_bytes: bool) -> "Codec":
        """Return the codec for a hook, by whether it is annotated to take bytes."""
        return self._of_bytes if takes_bytes else self

    def json_length(self, head: Head) -> bytes | None:
        """Return the declared length of the JSON in front of binary tensors.

        None for any other body. A body of binary tensors may be larger than others, unless a limit
        is set.
        """
        return None

    def cutter(self, media_type: str, limits: Limits, *, iterates: bool) -> Cutter | None:
        """Return the cutter of a body that is streamed to the model; None for any other body.

        Args:
            iterates: The hook takes its instances one by one.
        """
        return None

    def check_cost(self, body: bytes | bytearray, head: Head, limit: float) -> None:
        """Refuse a body whose JSON has more values than the limit, before it is parsed.

        By default the whole body is JSON. This is not called for a body that is too short to have
        so many. This and `decode` may be called in a thread. Raises BodyTooLarge.
        """
        check_cost(body, limit)

    def unwrap(self, body: bytes | bytearray, head: Head) -> tuple[bytes | bytearray, bytes]:
        """Return the content of the body of a request whose path names no model, and its coding.

        `open` is given that content once the coding is undone. Raises InvalidInput.
        """
        return body, head.get(b"content-encoding")

    def open(self, body: bytes | bytearray, head: Head) -> tuple[ModelRef, Payload]:
        """Return the model and the payload of a request whose path names no model.

        Raises InvalidInput where the body does not say which model it is for.
        """
        raise NotImplementedError

    def check_opened(self, payload: Payload) -> None:
        """Check what `open` has returned, once its model can be used. Raises InvalidInput."""

    def decode(self, body: bytes | bytearray, head: Head, ref: ModelRef) -> Payload:
        """Return the payload of a request whose path names the model. Raises InvalidInput.

        A codec that `takes_forms` may be given a ReadBody.
        """
        raise NotImplementedError

    def check(self, payload: Payload) -> None:
        """Check the payload of the main hook, after preprocess. Raises InvalidInput."""

    def encode(
        self, value: Any, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> Encoded:
        """Return the headers and the body of a value that is no stream.

        Raises TypeError or ValueError for a value that the protocol cannot carry.
        """
        raise NotImplementedError

    def stream_format(
        self, head: Head, payload: Payload, response_headers: SetHeaders, ref: ModelRef
    ) -> StreamFormat:
        """Return the format of a stream; the arguments are `StreamFormat`'s."""
        return self.format_class(head, payload, response_headers, ref)

    def document(self, item: Item, payload: Payload, ref: ModelRef) -> Any:
        """Return the content of one item, for an envelope around it; by default the item itself."""
        return item

    def error(
        self, status: int, detail: Any, error: BaseException | None = None
    ) -> tuple[int, list[Header], bytes]:
        """Return the status, the headers and the body of an error that is the whole response.

        Args:
            status: Its status.
            detail: A sentence, or the detail of an HTTPException that the model raised.
            error: The exception, for a protocol whose errors have more than a sentence. Nothing of
                an exception that is not a `ServingError` may be shown.
        """
        return status, [JSON], error_document(detail)


def encode_value(
    value: Any, payload: Payload, response_headers: SetHeaders
) -> tuple[list[Header], bytes]:
    """Return the headers and the body of a value; text and bytes are the body as they are.

    Raises TypeError for a value that JSON cannot hold. A value nested too deep to be written is the
    client's fault where its request was as deep: InvalidInput, else NestedTooDeep.
    """
    content_type, body = _body(value, payload)
    return with_model_headers(content_type, response_headers), body


def with_model_headers(content_type: Header, response_headers: SetHeaders) -> list[Header]:
    """Return the headers that the model has set, with this content type by default."""
    if not response_headers:
        return [content_type]
    headers = sendable_headers(response_headers)
    return headers if b"content-type" in dict(headers) else [content_type, *headers]


def _body(value: Any, payload: Payload) -> tuple[Header, bytes]:
    if type(value) is not dict:
        if isinstance(value, str):
            return _TEXT, value.encode()
        if isinstance(value, bytes | bytearray | memoryview):
            return OCTETS, bytes(value)
        if isinstance(value, InferResponse):
            value = rest_document(value)
    try:
        return JSON, to_json(value)
    except NestedTooDeep:
        if _is_deep(payload):
            raise InvalidInput("The request is nested too deep to be answered.") from None
        raise


def _is_deep(value: Any, levels: int = 254) -> bool:
    """Return whether a JSON value has more levels of nesting than this."""
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
