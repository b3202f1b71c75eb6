"""Media types and parameters of headers (RFC 9110, 8.3.1 and 5.6.6). Pure."""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

__all__ = ["LINE_TYPES", "is_json", "media_type", "parameters"]

# The names of NDJSON, one JSON value in a line; the server sends the first.
LINE_TYPES: Final = (
    "application/x-ndjson",
    "application/jsonl",
    "application/ndjson",
    "application/x-jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
)

# `; name=value`; the value may be quoted.
_PARAMETER: Final = re.compile(
    rb';[ \t]*([^\s;=]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL
)
_ESCAPED: Final = re.compile(rb'\\(["\\])')


def media_type(content_type: str) -> str:
    """Return the type and the subtype in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(name: str) -> bool:
    """Return whether a media type is that of JSON (RFC 6839, 3.1)."""
    return name == "application/json" or name.endswith("+json")


def parameters(header: bytes) -> dict[str, bytes]:
    """Return a header's parameters by lower-case name, without quotes; of a repeated one, the
    first.

    The value of `name*=utf-8''...` (RFC 8187) is returned in UTF-8, under `name*`; a malformed one
    is left out.
    """
    found: dict[str, bytes] = {}
    for match in _PARAMETER.finditer(header):
        name, value = match[1].decode("latin-1").lower(), match[2].rstrip()
        if name.endswith("*"):
            extended = _extended(value)
            if extended is None:
                continue
            value = extended
        elif value.startswith(b'"') and value.endswith(b'"') and len(value) > 1:
            value = _ESCAPED.sub(rb"\1", value[1:-1])
        found.setdefault(name, value)
    return found


def _extended(value: bytes) -> bytes | None:
    """Convert a value of RFC 8187, in one of two charsets, to UTF-8."""
    charset, quote, rest = value.partition(b"'")
    text = unquote_to_bytes(rest.partition(b"'")[2])
    if not quote or charset.lower() not in (b"utf-8", b"iso-8859-1"):
        return None
    try:
        return text.decode(charset.decode()).encode()
    except UnicodeDecodeError:
        return None
