"""The wait for a client to leave, on both backends."""

from typing import Any

import anyio
import pytest

from modelserve.concurrency.watcher import watch
from modelserve.errors import ClientGone

pytestmark = pytest.mark.anyio


class Cancelled:
    """A flight, as far as its watcher knows it."""

    def __init__(self) -> None:
        self.reasons: list[Any] = []

    def cancel(self, reason: Any) -> None:
        self.reasons.append(type(reason))


async def test_a_disconnect_ends_the_request() -> None:
    flight: Any = Cancelled()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await watch(flight, receive)
    assert flight.reasons == [ClientGone]


async def test_an_exception_means_that_the_client_has_left() -> None:
    flight: Any = Cancelled()

    async def receive() -> Any:
        raise OSError("gone")

    await watch(flight, receive)
    assert flight.reasons == [ClientGone]


async def test_a_host_that_always_has_a_message_leaves_time_to_others() -> None:
    flight: Any = Cancelled()
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    with anyio.move_on_after(0.1):
        await watch(flight, receive)
    assert 1 < asked < 10
    assert flight.reasons == []
