"""A client's settings, shared by both clients."""

from __future__ import annotations

import ssl
from typing import Any, Final, TypedDict

from modelserve.client import flows, requests
from modelserve.client.answers import NDJSON, media_type_of
from modelserve.client.connections import no_cookies, timeouts, trusted
from modelserve.client.flows import Complaints, Flow, Retries
from modelserve.client.requests import Headers, Request, Server, no_address
from modelserve.client.sources import Rows, RowSource, as_line, as_piece
from modelserve.errors import ExtraMissing
from modelserve.wire.bearer import valid_token

__all__ = ["ForMap", "ForPipe", "Given", "Settings"]

_IDLE_SECONDS: Final = 4.0  # less than the 5 s after which uvicorn closes a connection


class Given(TypedDict, total=False):
    """The settings of a client beside the address; `Settings` explains each."""

    token: str | None
    headers: Headers | None
    timeout: float
    retries: int
    verify: bool | ssl.SSLContext


class ForMap(TypedDict, total=False):
    """The options of `map`."""

    chunk: int
    at_once: int
    verb: str
    version: str | None
    headers: Headers | None
    idempotent: bool


class ForPipe(TypedDict, total=False):
    """The options of `pipe`."""

    verb: str
    version: str | None
    content_type: str | None
    on_error: str | None
    raw: bool
    headers: Headers | None


class Settings:
    """Which server is called, and how.

    Args:
        url: The server's address, with the path that it is mounted below, if any.
        token: The bearer token.
        headers: More headers for each request.
        timeout: The seconds for which nothing may move, either way, before a call fails with
            `TimedOut`; making a connection may take 10 of them.
        retries: How often a call is tried again if the server says when (`Retry-After` with 503 or
            429, at most a minute). A call with `idempotent` is tried again after an error of the
            connection as well.
        verify: Whether certificates must be trusted, or an `ssl.SSLContext` that decides.

        Raises ExtraMissing without httpx, ValueError for an invalid address or token.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Headers | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        try:
            import h11  # noqa: F401 - both come with the extra
            import httpx
        except ImportError:
            raise ExtraMissing("The client", "httpx", "client") from None
        if not timeout > 0 or retries < 0:
            raise ValueError("timeout must be above 0, and retries must not be below")
        token = None if token is None else valid_token(token)
        self.server = Server.of(url, token=token, headers=headers)
        try:
            httpx.URL(self.server.url)
        except httpx.InvalidURL:
            raise no_address(url) from None
        self.complaints = Complaints(self.server, timeout)
        self.timeout = timeout
        self.retries = retries
        self.context = None if self.server.scheme == "http" else _context(verify)

    @property
    def for_httpx(self) -> dict[str, Any]:
        """httpx's options for connections; the environment is ignored."""
        import httpx

        return {
            "limits": httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
            "verify": False if self.context is None else self.context,
            "cookies": no_cookies(),
            "trust_env": False,
            "timeout": timeouts(self.timeout),
        }

    def built(self, request: Request) -> dict[str, Any]:
        """Return a request as httpx builds it."""
        return {
            "method": request.method,
            "url": self.server.url + request.path,
            "headers": self.server.headers_of(request),
            "content": request.content,
        }

    def flow(
        self,
        request: Request,
        headers: Headers | None = None,
        *,
        idempotent: bool = False,
        streams: bool = False,
    ) -> Flow:
        """Return the steps of a call."""
        retries = Retries(self.retries, idempotent)
        return flows.call(request.with_headers(headers), retries, streams=streams)

    def pipe(
        self,
        model: str,
        rows: RowSource,
        *,
        verb: str,
        version: str | None,
        content_type: str | None,
        on_error: str | None,
        headers: Headers | None,
    ) -> tuple[Request, Rows, Complaints, ssl.SSLContext | None]:
        """Return the parts of a pipe."""
        request = requests.rows(
            model, verb=verb, version=version, content_type=content_type, on_error=on_error
        )
        is_lines = media_type_of(content_type or NDJSON) == NDJSON
        source = Rows(rows, as_line if is_lines else as_piece)
        return request.with_headers(headers), source, self.complaints, self.context


def _context(verify: bool | ssl.SSLContext) -> ssl.SSLContext:
    if verify is True:
        import httpx

        found = trusted()
        verify = httpx.create_ssl_context() if found is True else found
    if isinstance(verify, ssl.SSLContext):
        return verify
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
