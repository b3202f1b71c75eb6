"""Clients that do not send what the server waits for."""

import select
from collections.abc import Iterable
from typing import Any, Final

from modelserve.server.connections.refusals import LONGEST_INTERVAL, document

__all__ = ["SilentConnections"]

_TOO_LATE: Final = "The head of the request was not received in time."


class SilentConnections:
    """Cut the connections whose clients do not send what the server waits for.

    A head has to be complete within this time; from a body some data has to come within it. A
    connection that is idle between two requests has the keep-alive time. This also notices clients
    that close their connection while the server does not read it.
    """

    def __init__(self, connections: Iterable[Any], seconds: float) -> None:
        self._connections = connections
        self._seconds = seconds
        self._interval = min(seconds / 4, LONGEST_INTERVAL)
        self._next_check = 0.0
        self._waited_for: dict[Any, tuple[tuple[Any, int], float]] = {}

    def check(self, now: float) -> None:
        """Check all connections, if it is time to."""
        if now < self._next_check:
            return
        self._next_check = now + self._interval
        before, self._waited_for = self._waited_for, {}
        for connection in tuple(self._connections):
            if _has_left(connection):
                connection.transport.abort()
                continue
            awaited = _awaited(connection)
            if awaited is None:
                continue
            last, since = before.get(connection, (None, now))
            if last is None or last[0] is not awaited[0] or last[1] != awaited[1]:
                self._waited_for[connection] = awaited, now
            elif now - since < self._seconds:
                self._waited_for[connection] = awaited, since
            else:
                _end_late(connection)


def _awaited(connection: Any) -> tuple[Any, int] | None:
    """Return a value that changes when a client sends what is awaited; None if nothing is."""
    try:
        cycle = connection.cycle
        if cycle is None or cycle.response_complete:
            is_idle = connection.timeout_keep_alive_task is not None
            return None if is_idle or connection.transport.is_closing() else (cycle, 0)
        if cycle.more_body and not _is_excused(connection):
            return cycle, connection.received
    except AttributeError:  # a WebSocket, or an unknown protocol
        pass
    return None


def _has_left(connection: Any) -> bool:
    """Return whether a client has left unnoticed, since nothing is being read."""
    try:
        if not connection.flow.read_paused or connection.transport.is_closing():
            return False
        ended = select.poll()
        ended.register(connection.transport.get_extra_info("socket"), select.POLLRDHUP)
        return bool(ended.poll(0))
    except (AttributeError, OSError, ValueError):  # another protocol, not Linux, closed already
        return False


def _is_excused(connection: Any) -> bool:
    """Return whether a client may rightly pause inside of a body now."""
    cycle = connection.cycle
    return (
        connection.flow.read_paused
        or cycle.waiting_for_100_continue
        or cycle.response_started  # it may wait for items of the response
        or bool(getattr(connection, "pipeline", ()))  # another request is running
    )


def _end_late(connection: Any) -> None:
    """End a connection, with an error if a head has begun and no response is under way."""
    cycle, transport = connection.cycle, connection.transport
    if (cycle is None or cycle.response_complete) and _has_begun(connection):
        transport.write(document(408, _TOO_LATE))
        transport.close()
    else:
        transport.abort()


def _has_begun(connection: Any) -> bool:
    """Return whether a part of a head has come."""
    conn, scope = getattr(connection, "conn", None), connection.scope
    if conn is not None:
        return bool(conn.trailing_data[0])
    return scope is not None and (connection.cycle is None or connection.cycle.scope is not scope)
