import asyncio
import gc
import socket
import struct
import weakref
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from modelserve import ModelServer
from modelserve.server.connections import StalledConnections, mended

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_only_httptools_needs_mending() -> None:
    assert issubclass(mended(HttpToolsProtocol), HttpToolsProtocol)
    assert mended(H11Protocol) is H11Protocol


async def test_connection_that_was_reset_is_not_kept_until_its_keep_alive_time_is_over() -> None:
    """uvicorn's protocol leaves the timer, which holds it, where the connection ends in an error."""
    config, state = uvicorn.Config(ModelServer(), log_config=None), ServerState()
    made: list[weakref.ref[Any]] = []

    def make() -> asyncio.Protocol:
        protocol = mended(HttpToolsProtocol)(config, state, {})  # type: ignore[call-arg]
        made.append(weakref.ref(protocol))
        return protocol

    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b'{"live":true}')
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    async with asyncio.timeout(5):
        while state.connections or made[0]() is not None:
            gc.collect()
            await asyncio.sleep(0.01)
    server.close()


class Connection:
    """A connection as `StalledConnections` sees it; `unread` is what its client has not taken."""

    def __init__(self, unread: int, *, complete: bool = True, closing: bool = False) -> None:
        self.unread = unread
        self.closing = closing
        self.aborted = False
        self.transport = self
        self.cycle = self
        self.response_complete = complete

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> socket.socket:
        with socket.socket() as closed:
            return closed

    def abort(self) -> None:
        self.aborted = True


def test_only_clients_that_read_nothing_are_cut() -> None:
    stalled, cut, read, running, done = (
        Connection(7),
        Connection(7, complete=False, closing=True),
        Connection(7),
        Connection(7, complete=False),
        Connection(0),
    )
    connections = {stalled, cut, read, running, done}
    watch = StalledConnections(connections, 1.0)
    for now in (10.0, 10.5, 10.9):
        watch.look(now)
    assert not any(connection.aborted for connection in connections)
    read.unread = 6
    watch.look(11.2)
    assert {connection for connection in connections if connection.aborted} == {stalled, cut}
    connections -= {stalled, cut}
    for now in (11.5, 12.0, 12.3):
        watch.look(now)
    assert read.aborted
    assert not running.aborted and not done.aborted


def test_websocket_connections_are_left_alone() -> None:
    watch = StalledConnections({object()}, 1.0)
    for now in (10.0, 12.0):
        watch.look(now)
