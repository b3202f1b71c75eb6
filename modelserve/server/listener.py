"""The listening socket: bind it, and accept what still waits when it closes."""

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelserve.server.settings import Settings

__all__ = ["SocketFile", "accept_waiting", "bind"]

# How many bytes of each connection the kernel may hold that are not on their way yet. Without a
# bound it is megabytes, and a slow client is noticed only once a third of them is gone.
_UNSENT_BYTES: Final = 1 << 17


def bind(settings: Settings) -> socket.socket:
    """Bind a socket, which listens only once a server has started. Raises OSError."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    if settings.uds is not None:
        return _bind_unix(Path(settings.uds))
    return _bind_tcp(settings.host, settings.port)


class SocketFile:
    """The file of a Unix socket that has just been bound, by device and inode."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._identity = self._identify()

    def remove(self) -> None:
        """Remove it, unless it is gone, or another server has replaced it by its own."""
        with suppress(OSError):
            if self._identify() == self._identity:
                self._path.unlink()

    def _identify(self) -> tuple[int, int]:
        found = self._path.lstat()
        return found.st_dev, found.st_ino


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
    _make_way(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o666)
    except OSError:
        sock.close()
        raise
    return sock


def _make_way(path: Path) -> None:
    """Remove the socket of a server that is gone. Raises OSError if it is something else."""
    if path.is_socket():
        if _is_bound(path):
            raise OSError(errno.EADDRINUSE, "another process has this socket")
        path.unlink()
    elif path.exists():
        kind = "directory" if path.is_dir() else "file"
        raise OSError(errno.EEXIST, f"there is a {kind} that is not a socket")


def _is_bound(path: Path) -> bool:
    """Return whether a process has a socket open, listening already or not.

    This connects a socket of another kind: if one is open, that fails with a wrong type, and its
    server sees no connection. Raises OSError if that is not permitted.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:
                raise
        return True
