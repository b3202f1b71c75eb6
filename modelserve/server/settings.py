"""Where and how to serve, as data, and the exit codes."""

import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

__all__ = [
    "CANNOT_LOAD",
    "CANNOT_LOAD_MODELS",
    "CANNOT_START",
    "HEAD_TIMEOUT",
    "Settings",
    "has_grpc",
]

CANNOT_LOAD: Final = 2
CANNOT_START: Final = 3
CANNOT_LOAD_MODELS: Final = 4
_LAST_PORT: Final = 65535
HEAD_TIMEOUT: Final = 60.0  # seconds; nginx and Node have the same

_FOR_WORKERS: Final = ("SIGCHLD", "pthread_sigmask", "set_wakeup_fd")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how to serve; `uvicorn` holds further arguments of `uvicorn.Config`.

    Worker processes receive it by pickle. Each of them calls `set_up_logging`. If there are folders
    to watch, one worker serves, and is replaced when a Python file in them changes. For
    `shutdown_delay` seconds after a signal to stop, requests are still served. A client has
    `head_timeout` seconds to send a head, and as many from one part of a body to the next. With
    `exit_on_load_failure`, a model that cannot be loaded ends the process. gRPC is served beside
    HTTP if there is a `grpc_port`, 0 for any, with further options of grpcio; if it is optional and
    the port is taken, only HTTP is served. Unless the server is to end its process, the process may
    go on afterwards for any time.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    uds: str | None = None
    fd: int | None = None
    grpc_port: int | None = None
    grpc_is_optional: bool = False
    grpc_options: Mapping[str, int] = field(default_factory=dict)
    workers: int = 1
    shutdown_delay: float = 0.0
    head_timeout: float = HEAD_TIMEOUT
    exit_on_load_failure: bool = False
    ends_process: bool = True
    watched: Sequence[Path] = ()
    uvicorn: Mapping[str, Any] = field(default_factory=dict)
    set_up_logging: Callable[[], None] | None = None

    @property
    def unsupported(self) -> str | None:
        """Why this system cannot serve with these settings, in one sentence; None if it can."""
        for port in (self.port, self.grpc_port):
            if port is not None and not 0 <= port <= _LAST_PORT:  # would be another port, modulo
                return f"{port} is not a port: those are the numbers from 0 to {_LAST_PORT}."
        if self.uds is not None and not hasattr(socket, "AF_UNIX"):
            return "--uds needs Unix domain sockets, which this system does not have."
        if self.workers > 1 and not all(hasattr(signal, name) for name in _FOR_WORKERS):
            return "More than one worker needs Unix signals, which this system does not have."
        if self.grpc_port is not None and not has_grpc():
            return "gRPC needs grpcio and protobuf: pip install 'modelserve[grpc]'."
        if self.watched and find_spec("watchfiles") is None:
            return "--reload needs the package watchfiles, which comes with uvicorn[standard]."
        return None

    @property
    def address(self) -> str:
        """The address in words, for messages."""
        if self.fd is not None:
            return f"file descriptor {self.fd}"
        return self.uds or f"{self.host}:{self.port}"


def has_grpc() -> bool:
    """Return whether the packages are installed that serve gRPC."""
    try:
        return bool(find_spec("grpc") and find_spec("google.protobuf"))
    except (ModuleNotFoundError, ValueError):  # without the latter's package, or one turned off
        return False
