"""A connection whose two directions fail on their own.

On asyncio a transport closes at its first failed write, and loses what the server had sent before
it stopped reading: most likely the reason. So this module reads and writes the socket itself.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

__all__ = ["BROKEN", "connect", "secured"]

_NEXT_SECONDS: Final = 0.25

# The exceptions of a stream whose connection has ended.
BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


async def connect(host: str, port: int, trusted: ssl.SSLContext | None) -> ByteStream:
    """Return a connection, over TLS if certificates are given.

    Each address of the host is tried. Raises one of `BROKEN`.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    stream = _Socket(await _first_connected(found))
    return stream if trusted is None else await secured(stream, host, trusted)


async def secured(stream: ByteStream, host: str | None, trusted: ssl.SSLContext) -> ByteStream:
    """Begin TLS on a connection; close it if that fails. Raises one of `BROKEN`."""
    try:
        return await TLSStream.wrap(
            stream, hostname=host, ssl_context=trusted, standard_compatible=False
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


async def _first_connected(addresses: Sequence[tuple[Any, ...]]) -> socket.socket:
    """Try one address after the other, the next after a short time (RFC 8305)."""
    connected: list[socket.socket] = []
    problem = OSError("the name has no address")

    async def attempt(kind: tuple[int, int, int], address: Any, failed: anyio.Event) -> None:
        nonlocal problem
        try:
            connected.append(await _connected(socket.socket(*kind), address))
            tasks.cancel_scope.cancel()
        except OSError as exc:
            problem = exc
            failed.set()

    try:
        async with anyio.create_task_group() as tasks:
            for family, kind, protocol, _, address in addresses:
                failed = anyio.Event()
                tasks.start_soon(attempt, (family, kind, protocol), address, failed)
                with anyio.move_on_after(_NEXT_SECONDS):
                    await failed.wait()
        if not connected:
            raise problem
        return connected.pop(0)
    finally:
        for raw in connected:
            raw.close()


async def _connected(raw: socket.socket, address: tuple[str | int, ...]) -> socket.socket:
    try:
        raw.setblocking(False)
        try:
            raw.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(raw)
            if code := raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return raw
    except BaseException:
        raw.close()
        raise


class _Socket(ByteStream):
    """A connected socket. Closing it wakes its reader and writer, if anyio can do so."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._raw}

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                piece = self._raw.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._raw)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc
            else:
                if not piece:
                    raise anyio.EndOfStream
                return piece

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        left = memoryview(item)
        while left:
            try:
                left = left[self._raw.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._raw)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc

    async def send_eof(self) -> None:
        self._raw.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        if self._raw.fileno() >= 0 and hasattr(anyio, "notify_closing"):  # not in anyio 4.8
            anyio.notify_closing(self._raw)
        self._raw.close()
