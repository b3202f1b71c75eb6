"""The items of a stream as bytes, and the choice of a form from `Accept`. Pure.

A form is an `Encoder`: three functions of the same shape for raw bytes, NDJSON and SSE, chosen
once a stream. Collected JSON is a fourth form; it has no framing of its own and is put together
with `join`.

The choice (RFC 9110, section 12.5.1): ranges are tried by quality, then specificity, then the
client's order; the first that any form of the first item fits wins; `q=0` excludes.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from modelserve.errors import NestedTooDeep

__all__ = ["Encoder", "ServerSentEvent", "choose_encoder", "to_json"]

_ONLY_ORJSON_REFUSES: Final = ("ecursion", "endian", "64-bit")
JSON_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class ServerSentEvent:
    """One event with full control over its fields (WHATWG HTML, 9.2).

    `data` is text as it is or anything that JSON can hold; None leaves the field out. `retry` is
    in milliseconds. In forms other than SSE only `data` is sent.

    Raises ValueError where `event` or `id` hold a line break, or `id` a NUL.
    """

    __slots__ = ("data", "event", "id", "retry")

    def __init__(
        self,
        data: Any = None,
        *,
        event: str | None = None,
        id: str | None = None,
        retry: int | None = None,
    ) -> None:
        for name, value in (("event", event), ("id", id)):
            if value is not None and any(c in value for c in "\r\n\0"):
                raise ValueError(f"The {name} of a server-sent event must be one line: {value!r}")
        if retry is not None and (not isinstance(retry, int) or retry < 0):
            raise ValueError(f"retry must be a whole number of milliseconds, not {retry!r}")
        self.data = data
        self.event = event
        self.id = id
        self.retry = retry

    def __repr__(self) -> str:
        return (
            f"ServerSentEvent({self.data!r}, event={self.event!r}, "
            f"id={self.id!r}, retry={self.retry!r})"
        )


@dataclass(frozen=True, slots=True)
class Encoder:
    """How the items of one stream are framed.

    Attributes:
        media_type: The content type of the answer.
        encode: Frames one item. Raises TypeError or ValueError for an item that does not fit.
        failure: Frames the last record of a stream that failed, from the status and the sentence
            that it would have had before the start; without it the connection has to be cut.
        finish: Returns the last bytes of a stream that is complete.
        idle: What may be sent between items to keep a connection alive.
        join: Makes one document of all encoded items, which are collected instead of streamed.
    """

    media_type: str
    encode: Callable[[Any], bytes]
    failure: Callable[[int, str], bytes] | None = None
    finish: Callable[[], bytes] | None = None
    idle: bytes | None = None
    join: Callable[[list[bytes]], bytes] | None = None


# --- JSON ---------------------------------------------------------------------------------------


def to_json(value: Any) -> bytes:
    """Write compact JSON: NaN as null, numpy, dataclasses and datetimes included.

    orjson writes 254 levels of nesting, integers of 64 bits, and no numpy array of foreign byte
    order; other such values go to the standard library's writer.

    Raises TypeError for a value that JSON cannot hold, NestedTooDeep for one too deep.
    """
    try:
        return orjson.dumps(value, to_builtin, JSON_OPTIONS)
    except orjson.JSONEncodeError as exc:
        if not any(word in str(exc) for word in _ONLY_ORJSON_REFUSES):
            raise
    try:
        try:
            return _dumps(value)
        except ValueError:  # NaN or an infinity
            return _dumps(_with_nulls(value))
    except RecursionError:
        raise NestedTooDeep("The value is nested too deep to be written as JSON.") from None


def _dumps(value: Any) -> bytes:
    return json.dumps(
        value, default=_to_plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _with_nulls(value: Any) -> Any:
    """Return a copy in which no number is NaN or infinite: those are null in JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return value


def error_document(sentence: str) -> bytes:
    """Write the one shape of an error; what is no Unicode in the sentence becomes '?'."""
    return orjson.dumps({"error": sentence.encode("utf-8", "replace").decode()})


def json_item(item: Any) -> bytes:
    """Write one item of a stream as JSON; bytes must be UTF-8 and become a string."""
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, bytes | bytearray | memoryview):
        item = bytes(item).decode()
    return to_json(item)


def join_predictions(items: list[bytes]) -> bytes:
    """Put encoded items together as one V1 answer."""
    return b'{"predictions":[' + b",".join(items) + b"]}"


def to_builtin(value: Any) -> Any:
    """Help with what orjson does not know: tensors and arrays of other libraries."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _to_plain(value: Any) -> Any:
    """Help the standard library with what it does not know and orjson does: dataclasses, dates."""
    if hasattr(value, "tolist"):
        return _with_nulls(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if not field.name.startswith("_")]
        return _with_nulls({name: getattr(value, name) for name in names})
    return orjson.loads(orjson.dumps(value, to_builtin, JSON_OPTIONS))


# --- raw ----------------------------------------------------------------------------------------


def raw_item(item: Any) -> bytes:
    """Pass bytes as they are and text as UTF-8."""
    if type(item) is bytes:
        return item
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, ServerSentEvent):
        return b"" if item.data is None else raw_item(item.data)
    raise TypeError(f"An item of a raw stream must be str or bytes, not {type(item).__name__}")


# --- NDJSON -------------------------------------------------------------------------------------


def ndjson_item(item: Any) -> bytes:
    """Write one item as one line of JSON."""
    if type(item) is dict:  # most are: 0.15 us instead of 0.5
        try:
            return orjson.dumps(item, to_builtin, JSON_OPTIONS | orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:
            pass  # what is wrong with it, if anything is, `json_item` knows
    return json_item(item) + b"\n"


def ndjson_failure(status: int, sentence: str) -> bytes:
    """Write the last line of a stream that failed."""
    return error_document(sentence) + b"\n"


# --- SSE ----------------------------------------------------------------------------------------


def sse_item(item: Any) -> bytes:
    """Write one item as one event: text a `data:` field a line, the rest as JSON."""
    if type(item) is dict:  # most are: 0.3 us instead of 0.6
        return b"data: %b\n\n" % to_json(item)
    if isinstance(item, ServerSentEvent):
        return b"".join(_sse_fields(item)) + b"\n"
    return _sse_data(item) + b"\n"


def sse_event_item(item: Any) -> bytes:
    """Write an item under the model's own SSE type: what is framed already passes as it is."""
    return sse_item(item) if isinstance(item, ServerSentEvent) else raw_item(item)


def sse_failure(status: int, sentence: str) -> bytes:
    """Write the last event of a stream that failed."""
    return b"event: error\ndata: " + error_document(sentence) + b"\n\n"


def _sse_fields(event: ServerSentEvent) -> Iterable[bytes]:
    if event.event is not None:
        yield b"event: %b\n" % event.event.encode()
    if event.id is not None:
        yield b"id: %b\n" % event.id.encode()
    if event.retry is not None:
        yield b"retry: %d\n" % event.retry
    if event.data is not None:
        yield _sse_data(event.data)


def _sse_data(value: Any) -> bytes:
    if isinstance(value, str):
        text = value.encode()
    elif isinstance(value, bytes | bytearray | memoryview):
        text = bytes(value)
        text.decode()  # an event stream is UTF-8
    else:
        return b"data: " + to_json(value) + b"\n"
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"data: " + text.replace(b"\n", b"\ndata: ") + b"\n"


# --- the forms, and which the first item fits ---------------------------------------------------

SSE: Final = Encoder("text/event-stream", sse_item, sse_failure, idle=b":\n\n")
NDJSON: Final = Encoder("application/x-ndjson", ndjson_item, ndjson_failure, idle=b"\n")
TEXT: Final = Encoder("text/plain; charset=utf-8", raw_item)
OCTETS: Final = Encoder("application/octet-stream", raw_item)
COLLECTED: Final = Encoder("application/json", json_item, join=join_predictions)

_NDJSON_NAMES: Final = (
    "application/x-ndjson",
    "application/jsonl",
    "application/ndjson",
    "application/jsonlines",
    "application/x-jsonlines",
)
# What a client may call each form by; the first name decides what a wildcard matches.
_NAMES: Final = {
    SSE: ("text/event-stream",),
    NDJSON: _NDJSON_NAMES,
    TEXT: ("text/plain", "application/octet-stream"),
    OCTETS: ("application/octet-stream", "text/plain"),
    COLLECTED: ("application/json",),
}
_OFFERED: Final = "application/x-ndjson, text/event-stream, application/json"


class Range(NamedTuple):
    """One media range of `Accept`: `type/subtype`, `type/*` or `*/*`."""

    name: str
    quality: float

    @property
    def specificity(self) -> int:
        return 2 - self.name.count("*")

    def matches(self, name: str) -> bool:
        if self.name == "*/*":
            return True
        return self.name == name or (
            self.name.endswith("/*") and name.startswith(self.name.removesuffix("*"))
        )


def choose_encoder(accept: str | None, first: Any, *, empty: bool = False) -> Encoder | None:
    """Choose the form of a stream from `Accept` and its first item; None where none will do.

    A stream without items is `empty`: then any form fits, NDJSON where the client leaves it open.
    """
    if not accept or accept == "*/*":
        return _forms_of(first)[0] if not empty else NDJSON
    forms = _ANY_FORM if empty else _forms_of(first)
    return _best(parse_accept(accept), forms)


def choose_form(accept: str | None, forms: tuple[Encoder, ...]) -> Encoder | None:
    """Choose among some forms, the first of them where `Accept` leaves it open."""
    return _best(parse_accept(accept), forms) if accept else forms[0]


def named_encoder(accept: str | None) -> Encoder | None:
    """Return the framed form, SSE or NDJSON, that `Accept` wants most and names."""
    ranges = parse_accept(accept) if accept else ()
    if not ranges or ranges[0].name not in (*_NAMES[SSE], *_NAMES[NDJSON]):
        return None
    return _best(ranges[:1], (SSE, NDJSON))


def not_acceptable() -> str:
    """Name what there is, for a 406."""
    return (
        f"Nothing that Accept allows can be sent. This stream is available as {_OFFERED}, "
        "and as text/plain or application/octet-stream where its items are text or bytes."
    )


def own_encoder(content_type: str) -> Encoder:
    """Pass items as they are under the content type that the model set itself."""
    name = content_type.partition(";")[0].strip().lower()
    if name == "text/event-stream":
        return replace(SSE, media_type=content_type, encode=sse_event_item)
    if name in _NDJSON_NAMES:
        return replace(NDJSON, media_type=content_type, encode=raw_item)
    return Encoder(content_type, raw_item)


_ANY_FORM: Final = (NDJSON, SSE, COLLECTED, TEXT, OCTETS)
_TEXT_FORMS: Final = (TEXT, NDJSON, SSE, COLLECTED)
_BYTES_FORMS: Final = (OCTETS, NDJSON, SSE, COLLECTED)
_OTHER_FORMS: Final = (NDJSON, SSE, COLLECTED)


def _forms_of(first: Any) -> tuple[Encoder, ...]:
    """Return the forms that an item like this fits, the natural one first."""
    if isinstance(first, ServerSentEvent):
        return _forms_of(first.data)
    if isinstance(first, str):
        return _TEXT_FORMS
    if isinstance(first, bytes | bytearray | memoryview):
        return _BYTES_FORMS
    return _OTHER_FORMS


def _best(ranges: tuple[Range, ...], forms: tuple[Encoder, ...]) -> Encoder | None:
    if not ranges:
        return forms[0]
    for wanted in ranges:
        if wanted.quality <= 0:
            break
        for form in forms:
            name = _name_under(wanted, form)
            if name and _quality(ranges, name) > 0:
                return form if name == _NAMES[form][0] else _called(form, name)
    return None


def _called(form: Encoder, name: str) -> Encoder:
    """Return a form under another of its names, since that is the one that is acceptable."""
    return replace(form, media_type=TEXT.media_type if name == "text/plain" else name)


def _name_under(wanted: Range, form: Encoder) -> str | None:
    """Return the name that a range gives a form: its own, or the first of the form's."""
    names = _NAMES[form]
    if wanted.name in names:
        return wanted.name
    return names[0] if wanted.matches(names[0]) else None


def _quality(ranges: tuple[Range, ...], name: str) -> float:
    """Return the quality of the most specific range that matches."""
    matching = [r for r in ranges if r.matches(name)]
    return max(matching, key=lambda r: r.specificity).quality if matching else 0.0


def parse_accept(header: str) -> tuple[Range, ...]:
    """Return the ranges of an `Accept` header, the most wanted first; what is not one is skipped."""
    return _parse_short(header) if len(header) <= 256 else _parse(header)


def _parse(header: str) -> tuple[Range, ...]:
    ranges = [r for part in header.split(",") if (r := _parse_range(part))]
    return tuple(sorted(ranges, key=lambda r: (-r.quality, -r.specificity)))


_parse_short = lru_cache(maxsize=256)(_parse)


def _parse_range(text: str) -> Range | None:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    if name == "*":
        name = "*/*"
    kind, slash, subtype = name.partition("/")
    if not (kind and slash and subtype) or (kind == "*" and subtype != "*"):
        return None
    return Range(name, _parse_quality(parameters))


def _parse_quality(parameters: list[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 1.0
            return 1.0 if math.isnan(quality) else min(max(quality, 0.0), 1.0)
    return 1.0
