"""Connecting to a name that has several addresses."""

import contextlib
import socket
from collections.abc import Iterator

import anyio
import pytest

from modelserve.client.sockets import connect

pytestmark = pytest.mark.anyio


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port of a listener whose backlog is full: it answers nobody any more."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(("127.0.0.1", port))
        yield port


def named(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Give a name addresses, which differ here by their port."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_an_address_that_does_not_answer_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        named(monkeypatch, closed_port(), silent, silent, listener.getsockname()[1])
        with anyio.fail_after(30):
            stream = await connect("a.test", 80, None)
            accepted, _ = listener.accept()
            with accepted:
                await stream.send(b"x")
                assert accepted.recv(1) == b"x"
            await stream.aclose()


async def test_the_problem_of_the_last_address_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, closed_port(), closed_port())
    with pytest.raises(ConnectionRefusedError):
        await connect("a.test", 80, None)
    named(monkeypatch)
    with pytest.raises(OSError, match="no address"):
        await connect("a.test", 80, None)


async def test_connecting_may_be_cancelled(monkeypatch: pytest.MonkeyPatch, silent: int) -> None:
    named(monkeypatch, silent)
    with anyio.move_on_after(0.05) as scope:
        await connect("a.test", 80, None)
    assert scope.cancelled_caught
