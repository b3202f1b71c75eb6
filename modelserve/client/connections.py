"""How connections to a server are made: what httpx is told, and which certificates are trusted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import ssl

__all__ = ["CONNECT_SECONDS", "is_stalled", "no_cookies", "timeouts", "trusted"]

CONNECT_SECONDS: Final = 10.0


def trusted() -> ssl.SSLContext | bool:
    """Return the certificates to trust: KServe's controller may name a file."""
    import ssl

    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return ssl.create_default_context(cafile=bundle) if bundle else True


def timeouts(seconds: float) -> tuple[float, float, float, None]:
    """Return httpx's limits: to connect, to read a piece, to write one, to wait for a slot."""
    return min(seconds, CONNECT_SECONDS), seconds, seconds, None


def no_cookies() -> Any:
    """Return a jar that stays empty: nothing is shared between requests but connections."""
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def is_stalled(exc: Exception) -> bool:
    """Return whether an error of httpx says that the server has been too slow."""
    import httpx

    return isinstance(exc, httpx.ReadTimeout | httpx.WriteTimeout)
