"""The page at `/playground`, to try models in, and a browser's way to it.

The page is one static file. It requests all its data from the server, wherever that is mounted, so
it holds no secret: it is served without a token, and asks for one if the server needs one. Its
Content-Security-Policy allows its own script and style by their hashes, and requests to this server
only.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

from modelserve.endpoints import Target, alive
from modelserve.exchange.exchange import Exchange
from modelserve.lifespan import Serving
from modelserve.wire.accept import parse_accept
from modelserve.wire.head import Scope
from modelserve.wire.headers import Header

__all__ = ["PLAYGROUND", "Page", "pages", "policy_of", "read_page"]

PLAYGROUND: Final = "/playground"
_FILE: Final = Path(__file__).with_name("playground.html")
_HTML: Final = ("text/html", "application/xhtml+xml")
_ELEMENT: Final = r"<{0}(?:\s[^>]*)?>(.*?)</{0}>"


@dataclass(frozen=True, slots=True)
class Page:
    """An encoded page: its bytes, and the headers that are the same for all requests."""

    body: bytes
    etag: bytes
    headers: tuple[Header, ...]


@cache
def read_page() -> Page:
    """Read the page from the package, once."""
    body = _FILE.read_bytes().replace(b"\r\n", b"\n")  # as browsers normalize it before they hash
    etag = b'"%s"' % sha256(body).hexdigest()[:32].encode()
    headers = {
        "etag": etag.decode(),
        "cache-control": "no-cache",
        "content-security-policy": policy_of(body.decode()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(self), microphone=(self)",
    }
    pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())
    return Page(body, etag, pairs)


def policy_of(html: str) -> str:
    """Return the Content-Security-Policy of a page: only its own scripts and styles."""
    rules = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
        "style-src": _hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "data: blob:",
        "media-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hashes(html: str, element: str) -> str:
    texts = re.findall(_ELEMENT.format(element), html, re.DOTALL)
    digests = (b64encode(sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def pages() -> Mapping[str, Target]:
    """Return the further targets of an application with a playground, by path.

    Raises OSError if the package lacks the page.
    """
    read_page()  # now, and not in a request
    return {
        PLAYGROUND: Target({"GET": _playground, "HEAD": _playground}, public=True),
        "/": Target({"GET": _home, "HEAD": _home}, always=True, public=True),
    }


async def _playground(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /playground; 304 for a client that has the page already."""
    page = read_page()
    exchange.check_reason()
    if _is_known(exchange, page.etag):
        await exchange.start(304, list(page.headers))
        await exchange.finish()
        return
    headers = [(b"content-type", b"text/html; charset=utf-8"), *page.headers]
    await exchange.send_document(200, headers, [page.body])


async def _home(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /: a browser is redirected to the page, any other client gets KServe's liveness."""
    if not _wants_html(exchange.accept):
        await alive(serving, target, exchange)
        return
    exchange.check_reason()
    headers = [
        (b"location", _location(exchange.scope).encode()),
        (b"vary", b"Accept"),
        (b"cache-control", b"no-store"),
    ]
    await exchange.send_document(302, headers, [b""])


def _is_known(exchange: Exchange, etag: bytes) -> bool:
    """Return whether the client has the page (RFC 9110, 13.1.2)."""
    given = [text.strip() for text in exchange.get(b"if-none-match").split(b",")]
    return b"*" in given or etag in (text.removeprefix(b"W/") for text in given)


def _wants_html(accept: str | None) -> bool:
    """Return whether a client prefers a page (text/html), by name."""
    ranges = parse_accept(accept) if accept else ()
    return bool(ranges) and ranges[0].name in _HTML and ranges[0].quality > 0


def _location(scope: Scope) -> str:
    """Return the page's address, relative to that of `/`.

    A relative address is right whatever prefix a proxy has removed. The mount itself may have been
    requested without a slash.
    """
    path = scope["path"] or scope.get("root_path") or "/"
    return "." + quote(path[path.rindex("/") :].rstrip("/")) + PLAYGROUND
