"""Read the handshake of a WebSocket: its subprotocols, its token, its origin. Pure."""

import re
from base64 import urlsafe_b64decode
from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import urlsplit

__all__ = [
    "SUBPROTOCOL",
    "bearer_token",
    "checked_origins",
    "is_allowed_origin",
    "is_origin",
    "without_bearer",
]

SUBPROTOCOL: Final = "modelserve.v1"

# A subprotocol is a token of HTTP's, so the bearer token in it is base64url without padding.
_BEARER: Final = "bearer."
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_PORTS: Final = {"http": "80", "https": "443"}


def bearer_token(subprotocols: Sequence[str]) -> bytes | None:
    """Return the token among the subprotocols: browsers cannot set headers."""
    for name in subprotocols:
        text = name.removeprefix(_BEARER)
        if text != name and _BASE64URL.fullmatch(text) and len(text) % 4 != 1:
            return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return None


def without_bearer(subprotocols: Sequence[str]) -> list[str]:
    """Return the subprotocols without the token."""
    return [name for name in subprotocols if not name.startswith(_BEARER)]


def is_origin(text: str) -> bool:
    """Return whether this is an origin as browsers write it, or `*` for any."""
    if text in ("*", "null"):
        return True
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc) and text == f"{parts.scheme}://{parts.netloc}"


def checked_origins(origins: Collection[str]) -> frozenset[str]:
    """Return origins as a set. Raises TypeError for one text, ValueError for what is no origin."""
    if isinstance(origins, str):
        raise TypeError(f"Origins must be a list of them, not {origins!r}")
    for origin in origins:
        if not is_origin(origin):
            raise ValueError(f"{origin!r} is not an origin, like https://example.org")
    return frozenset(origins)


def is_allowed_origin(origin: str, host: str, allowed: Collection[str]) -> bool:
    """Return whether a page of this origin may open a WebSocket here.

    Browsers let any page open one, and send cookies along. The scheme is not compared: a proxy may
    have ended TLS.

    Args:
        origin: The header; empty without one, which means no browser.
        host: The header of that name; a page of the same host is allowed.
        allowed: Further origins; `*` is any.
    """
    if not origin or "*" in allowed or origin in allowed:
        return True
    try:
        parts = urlsplit(origin)
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
        there = urlsplit(f"//{host}")
        return bool(parts.hostname) and (parts.hostname, port) == (
            there.hostname,
            str(there.port or _PORTS.get(parts.scheme, "")),
        )
    except ValueError:  # not an origin, or not a host
        return False
