"""The choice of an encoder, by `Accept` or by the content type that a model has set. Pure.

By `Accept` (RFC 9110, 12.5.1): ranges are tried by quality, then specificity, then the client's
order; the first that fits any encoder for the first item wins; `q=0` excludes. The client chooses
the length of the header: it is read only once, and a range of an unknown type costs one look-up.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

from modelserve.wire.encoders import (
    COLLECTED,
    NDJSON,
    OCTETS,
    SSE,
    TEXT,
    Encoder,
    Item,
    ServerSentEvent,
    natural_encoder,
    raw_item,
    sse_item,
)
from modelserve.wire.media import LINE_TYPES, media_type

__all__ = [
    "NOT_ACCEPTABLE",
    "Range",
    "choose_among",
    "choose_encoder",
    "encoder_for_type",
    "framed_encoder",
    "parse_accept",
]

_EVENTS: Final = "text/event-stream"
# The names that a client may use for each; a wildcard means the first.
_NAMES: Final = {
    SSE: (_EVENTS,),
    NDJSON: LINE_TYPES,
    TEXT: ("text/plain", "application/octet-stream"),
    OCTETS: ("application/octet-stream", "text/plain"),
    COLLECTED: ("application/json",),
}
# The encoders that can send an item, the natural one first.
_FITTING: Final = {
    TEXT: (TEXT, NDJSON, SSE, COLLECTED),
    OCTETS: (OCTETS, NDJSON, SSE, COLLECTED),
    NDJSON: (NDJSON, SSE, COLLECTED),
}
_FOR_NO_ITEM: Final = (NDJSON, SSE, COLLECTED, TEXT, OCTETS)

# The sentence of a 406.
NOT_ACCEPTABLE: Final = (
    "Nothing that Accept allows can be sent. This stream is available as application/x-ndjson, "
    "text/event-stream, application/json, and as text/plain or application/octet-stream where its "
    "items are text or bytes."
)


def choose_encoder(accept: str | None, first: Item, *, empty: bool = False) -> Encoder | None:
    """Choose by `Accept` and the first item of a stream; None if nothing is acceptable.

    A stream without items is `empty`: any encoder will do, by default NDJSON.
    """
    if not accept or accept == "*/*":
        return NDJSON if empty else natural_encoder(first)
    return _best(parse_accept(accept), _FOR_NO_ITEM if empty else _FITTING[natural_encoder(first)])


def choose_among(accept: str | None, encoders: tuple[Encoder, ...]) -> Encoder | None:
    """Choose one of these, the first without a preference; None if none is acceptable."""
    return _best(parse_accept(accept), encoders) if accept else encoders[0]


def framed_encoder(accept: str | None) -> Encoder | None:
    """Return SSE or NDJSON, if that is what the client wants most and asks for by name."""
    ranges = parse_accept(accept) if accept else ()
    if not ranges or ranges[0].name not in (_EVENTS, *LINE_TYPES):
        return None
    return _best(ranges[:1], (SSE, NDJSON))


def encoder_for_type(content_type: str) -> Encoder:
    """Return the encoder for a content type that the model has set: its items pass as they are."""
    name = media_type(content_type)
    if name == _EVENTS:
        return replace(SSE, media_type=content_type, encode=_event_or_raw)
    if name in LINE_TYPES:
        return replace(NDJSON, media_type=content_type, encode=raw_item, encode_all=None)
    return Encoder(content_type, raw_item)


def _event_or_raw(item: Item) -> bytes:
    return sse_item(item) if isinstance(item, ServerSentEvent) else raw_item(item)


# --- the ranges of Accept -----------------------------------------------------------------------


class Range(NamedTuple):
    """One media range of `Accept`: `type/subtype`, `type/*` or `*/*`."""

    name: str
    quality: float

    @property
    def specificity(self) -> int:
        return 2 - self.name.count("*")


def parse_accept(header: str) -> tuple[Range, ...]:
    """Return the ranges of an `Accept` header, the most wanted first; others are skipped."""
    return _parse_short(header) if len(header) <= 256 else _parse_long(header)


def _parse(header: str) -> tuple[Range, ...]:
    # Exact repetitions have no meaning of their own.
    ranges = [r for part in dict.fromkeys(header.split(",")) if (r := _parse_range(part))]
    return tuple(sorted(ranges, key=lambda r: (-r.quality, -r.specificity)))


_parse_short = lru_cache(maxsize=256)(_parse)
_parse_long = lru_cache(maxsize=1)(_parse)  # a request needs it several times


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


def _best(ranges: tuple[Range, ...], encoders: tuple[Encoder, ...]) -> Encoder | None:
    if not ranges:
        return encoders[0]
    # By name, the most wanted first: of several ranges of one name only the first counts.
    qualities: dict[str, float] = {}
    for wanted in ranges:
        if wanted.name in _MEANINGFUL:
            qualities.setdefault(wanted.name, wanted.quality)
    for wanted_name, quality in qualities.items():
        if quality <= 0:
            break
        for encoder in encoders:
            name = _name_within(wanted_name, encoder)
            if name and _quality(qualities, name) > 0:
                return encoder if name == _NAMES[encoder][0] else _renamed(encoder, name)
    return None


def _name_within(wanted: str, encoder: Encoder) -> str | None:
    """Return the name of the encoder that a range's name means, if any."""
    names = _NAMES[encoder]
    if wanted in names:
        return wanted
    return names[0] if wanted in _covering(names[0]) else None


def _renamed(encoder: Encoder, name: str) -> Encoder:
    """Return an encoder with the media type that is acceptable."""
    return replace(encoder, media_type=TEXT.media_type if name == "text/plain" else name)


def _quality(qualities: dict[str, float], name: str) -> float:
    """Return the quality of the most specific range that matches."""
    return next((qualities[range_] for range_ in _covering(name) if range_ in qualities), 0.0)


def _covering(name: str) -> tuple[str, str, str]:
    """Return the names of the ranges that match a media type, the most specific first."""
    return name, f"{name.partition('/')[0]}/*", "*/*"


_MEANINGFUL: Final = frozenset(
    range_ for names in _NAMES.values() for name in names for range_ in _covering(name)
)
