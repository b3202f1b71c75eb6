"""A connection whose two directions fail on their own.

On asyncio a transport is gone with its first failed write, and with it what the server has sent
before it stopped reading: the reason, most likely. So this reads and writes the socket itself.
"""

from __future__ import annotations

import os
import socket
import ssl

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

__all__ = ["BROKEN", "connect"]

# What a stream raises where its connection is at an end.
BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


async def connect(host: str, port: int, trusted: ssl.SSLContext | None) -> ByteStream:
    """Return a connection, secured where certificates are given.

    Each address of the host is tried. Raises one of `BROKEN`.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    problem: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            stream = _Socket(await _connected(socket.socket(family, kind, protocol), address))
            break
        except OSError as exc:
            problem = exc
    else:
        raise problem or OSError("the name has no address")
    if trusted is None:
        return stream
    try:
        return await TLSStream.wrap(
            stream, hostname=host, ssl_context=trusted, standard_compatible=False
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


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
    """A connected socket. Nobody may be reading or writing when it is closed."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

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
        self._raw.close()
