"""Connections for httpx that can still be read after a write has failed.

A server that refuses a large body answers and closes. On asyncio httpx's connections are closed by
the write that fails then, and the refusal is lost. This is the only module that uses httpx's
internals; if they are different, httpx's own connections are used.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpcore
import httpx
from anyio.abc import ByteStream, SocketAttribute

from modelserve.client.sockets import BROKEN, connect, secured

__all__ = ["with_own_sockets"]


def with_own_sockets(transport: httpx.AsyncHTTPTransport) -> httpx.AsyncHTTPTransport:
    """Let a transport make its connections by this module."""
    pool: Any = getattr(transport, "_pool", None)
    if hasattr(pool, "_network_backend"):
        pool._network_backend = _Backend()
    return transport


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError, timeout) as limit, limit:
            return _Connection(await connect(host, port, None))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Connection(httpcore.AsyncNetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(httpcore.ReadTimeout, httpcore.ReadError, timeout) as limit, limit:
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(httpcore.WriteTimeout, httpcore.WriteError, timeout) as limit, limit:
            if buffer:
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await anyio.aclose_forcefully(self._stream)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError, timeout) as limit, limit:
            return _Connection(await secured(self._stream, server_hostname, ssl_context))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return _is_readable(self._stream.extra(SocketAttribute.raw_socket))
        return None


@contextmanager
def _translated(
    late: type[Exception], broken: type[Exception], timeout: float | None
) -> Iterator[Any]:
    """Translate errors into httpcore's; return a limit on time to enter."""
    try:
        yield anyio.fail_after(timeout)
    except TimeoutError as exc:
        raise late(exc) from exc
    except BROKEN as exc:
        raise broken(exc) from exc


def _is_readable(raw: Any) -> bool:
    """Return whether an idle connection has something to read: then it has ended."""
    if raw.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([raw], [], [], 0)[0])
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    return bool(poll.poll(0))
