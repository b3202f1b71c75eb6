"""Settings of connections to a server: httpx's limits, and the trusted certificates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import ssl

__all__ = [
    "CONNECT_SECONDS",
    "LARGEST_ERROR",
    "LONGEST_HEAD",
    "is_garbled",
    "is_stalled",
    "no_cookies",
    "timeouts",
    "trusted",
]

CONNECT_SECONDS: Final = 10.0
LARGEST_ERROR: Final = 1024 * 1024  # the most that is read of an unsuccessful response's body
LONGEST_HEAD: Final = 100 * 1024  # as httpcore has it


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


def is_garbled(exc: Exception) -> bool:
    """Return whether an error of httpx is due to bytes that are not HTTP, and not to their end.

    httpcore reports both alike; the text of h11's error tells them apart.
    """
    import h11

    problem: BaseException | None = exc
    while problem is not None and not isinstance(problem, h11.RemoteProtocolError):
        problem = problem.__cause__ or problem.__context__
    return problem is not None and not str(problem).startswith("peer closed connection")
