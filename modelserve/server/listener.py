"""The listening socket: bind it, and accept what still waits when it closes."""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelserve.server.settings import Settings

__all__ = ["accept_waiting", "bind"]

# How much the kernel may hold of each connection that is not on its way yet. Without a bound it is
# megabytes, and that a client reads slowly is seen only once a third of them is gone.
_UNSENT_BYTES: Final = 1 << 17


def bind(settings: Settings) -> socket.socket:
    """Bind a socket, which only listens once a server has started. Raises OSError."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    if settings.uds is not None:
        return _bind_unix(Path(settings.uds))
    return _bind_tcp(settings.host, settings.port)


def accept_waiting(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """Accept the connections in the backlog: closing the listener would reset them."""
    accepted = []
    for listener in listeners:
        listener.setblocking(False)
        with suppress(OSError):
            while True:
                accepted.append(listener.accept()[0])
    return accepted


def _bind_tcp(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    sock = socket.socket(family)
    try:
        if os.name == "posix":  # elsewhere it lets two servers have one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: Path) -> socket.socket:
    if path.is_socket():
        path.unlink()  # left behind by a server that is gone
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o666)
    except OSError:
        sock.close()
        raise
    return sock
