"""Choose the fixed form of uvicorn's protocols, and watch all connections."""

import asyncio
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

import uvicorn

from modelserve.server.connections.h11 import H11Mends
from modelserve.server.connections.httptools import HttpToolsMends
from modelserve.server.connections.silent import SilentConnections
from modelserve.server.connections.stalled import StalledConnections

__all__ = ["has_request", "mended", "new_protocol", "watch"]

# The attributes of uvicorn's objects that the fixed protocols rely on.
_PROTOCOL_USES: Final = frozenset(
    ("cycle", "flow", "headers", "parser", "pipeline", "scope", "timeout_keep_alive_task")
)
_CYCLE_USES: Final = frozenset(
    (
        "body",
        "chunked_encoding",
        "disconnected",
        "expected_content_length",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
    )
)
_H11_USES: Final = frozenset(("conn", "cycle", "timeout_keep_alive_task"))


def new_protocol(server: uvicorn.Server) -> asyncio.Protocol:
    """Make the protocol of a connection that the server's listener has not accepted itself."""
    protocol: asyncio.Protocol = server.config.http_protocol_class(  # type: ignore[call-arg]
        config=server.config, server_state=server.server_state, app_state=server.lifespan.state
    )
    return protocol


def has_request(connection: Any) -> bool:
    """Return whether the first request of a connection has arrived."""
    return getattr(connection, "cycle", None) is not None


def watch(connections: Iterable[Any], *, unread: float, unsent: float) -> Callable[[float], None]:
    """Return a function to call often, with the time: it cuts the clients that are too slow.

    Args:
        connections: The server's connections.
        unread: Seconds within which a client has to read something.
        unsent: Seconds within which it has to send a head, and each part of a body.
    """
    watches = StalledConnections(connections, unread), SilentConnections(connections, unsent)

    def check(now: float) -> None:
        for each in watches:
            each.check(now)

    return check


def mended(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return the fixed form of a protocol of uvicorn's."""
    module = sys.modules.get(protocol.__module__)
    cycle = getattr(module, "RequestResponseCycle", None)
    if protocol.__qualname__ == "HttpToolsProtocol":
        is_known = _sets(protocol, _PROTOCOL_USES) and _sets(cycle, _CYCLE_USES)
        # These two are called for each request; `super()` would cost as much as the bounds do.
        direct = {
            "_parse_all": protocol.data_received,
            "_on_body": getattr(protocol, "on_body", None),
        }
        return type("MendedHttpTools", (HttpToolsMends, protocol), direct) if is_known else protocol
    if protocol.__qualname__ == "H11Protocol" and _sets(protocol, _H11_USES):
        return type("MendedH11", (H11Mends, protocol), {})
    return protocol


def _sets(cls: Any, attributes: frozenset[str]) -> bool:
    """Return whether the constructor of a class sets these attributes."""
    code = getattr(getattr(cls, "__init__", None), "__code__", None)
    return code is not None and attributes <= set(code.co_names)
