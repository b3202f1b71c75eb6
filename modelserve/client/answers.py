"""Decode a response by its media type: one value, or items of a stream. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from modelserve.tensors import InferResponse
from modelserve.wire import media
from modelserve.wire.decoders import ChunkReader, EventReader, LineReader, Reader, TextReader

__all__ = [
    "EVENTS",
    "LENGTH",
    "NDJSON",
    "is_json",
    "media_type_of",
    "reader_of",
    "retry_after",
    "value_of",
]

LENGTH: Final = "inference-header-content-length"
EVENTS: Final = "text/event-stream"
NDJSON: Final = media.LINE_TYPES[0]


def media_type_of(content_type: str) -> str:
    """Return the media type, the same for all names of NDJSON; "text" for text not in UTF-8."""
    name, parameters = media.media_type(content_type), content_type.lower().partition(";")[2]
    if name == "text/plain" and "charset" in parameters and "utf-8" not in parameters:
        return "text"
    return NDJSON if name in media.LINE_TYPES else name


def is_json(media_type: str) -> bool:
    """Return whether a media type is that of a JSON document."""
    return media_type.startswith("application/") and media.is_json(media_type)


def reader_of(media_type: str, headers: Mapping[str, str]) -> Reader | None:
    """Choose the reader of a stream's items; None for an answer that does not stream."""
    if media_type in (EVENTS, NDJSON):
        return EventReader() if media_type == EVENTS else LineReader()
    if LENGTH in headers or "content-length" in headers or is_json(media_type):
        return None
    return TextReader() if media_type == "text/plain" else ChunkReader()


def value_of(media_type: str, body: bytes, headers: Mapping[str, str], *, v2: bool) -> Any:
    """Decode a body; with `v2`, a document of outputs is an `InferResponse`.

    Raises ValueError or InferenceError for a broken body.
    """
    length = headers.get(LENGTH)
    if length is not None:
        return InferResponse.from_bytes(body, int(length))
    if media_type == "text/plain":
        return body.decode()
    if not is_json(media_type):
        return body
    document = orjson.loads(body)
    if v2 and isinstance(document, dict) and "outputs" in document:
        return InferResponse.from_rest(document)
    return document


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the server may be asked again, if it says so (Retry-After).

    A date is compared with the server's own clock if the response has a date, else with ours.
    """
    wait = headers.get("retry-after", "").strip()
    if wait.isascii() and wait.isdigit():
        return float(wait)
    until = _date(wait)
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
