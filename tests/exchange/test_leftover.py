"""Requests that end before their body, on a host that tells so by the queue of the body."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from modelserve import Limits, ModelServer
from modelserve.exchange.leftover import receive_leftover

pytestmark = pytest.mark.anyio

LINES = b"".join(b'"%099d"\n' % 1 for _ in range(700))  # more than 64 KiB
PART = {"type": "http.request", "body": LINES, "more_body": True}
MESSAGE = {"type": "websocket.receive", "text": f'"{1:070000}"'}


class Host:
    """As hypercorn is: it receives from a client that never stops, and waits for its own queue.

    Attributes:
        sent: The messages of the answer.
        has_left: What the answer ends by, or the application, is in the queue.
    """

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.has_left = False
        self._queue, self._messages = anyio.create_memory_object_stream[Any](10)
        self._is_closed = False

    async def run(
        self, app: ModelServer, content_type: bytes = b"application/x-ndjson", kind: str = "http"
    ) -> None:
        """Run one request, until nothing of it is left."""
        scope = {
            "type": kind, "method": "POST", "path": "/v1/models/m:predict", "root_path": "",
            "headers": [(b"content-type", content_type)], "query_string": b"", "http_version": "1.1",
        }  # fmt: skip
        with self._queue, self._messages, anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(self._read if kind == "http" else self._read_messages)
                try:
                    await app(scope, self._messages.receive, self._send)
                except Exception:
                    self.sent.append({"type": "cut"})
                await self._close()

    async def _read(self) -> None:
        while not self._is_closed:
            await self._queue.send(PART)

    async def _read_messages(self) -> None:
        await self._queue.send({"type": "websocket.connect"})
        while not self._is_closed:
            for _ in range(40):  # as many as it has read at once, also if it is closed by then
                await self._queue.send(MESSAGE)

    async def _send(self, message: dict[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message["more_body"]:
            await self._close()

    async def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._queue.send({"type": "http.disconnect"})
            self.has_left = True


async def first(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for x in instances:
        yield x
        await anyio.wait_all_tasks_blocked()  # the queue is full
        return


async def broken(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for x in instances:
        yield x
        await anyio.wait_all_tasks_blocked()
        raise OSError


async def stuck(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for x in instances:
        yield x
        await anyio.sleep_forever()


async def sum_of_one(instances: AsyncIterator[Any]) -> Any:
    async for x in instances:
        await anyio.wait_all_tasks_blocked()
        return x


@pytest.mark.parametrize(
    ("function", "limits", "last"),
    [
        (first, Limits(), b""),
        (broken, Limits(), b'{"error":"Internal Server Error"}\n'),
        (sum_of_one, Limits(), b""),
        (stuck, Limits(idle_timeout=0.2), b'"error":"idle_timeout: no item'),
    ],
)
async def test_an_answer_that_ends_early_does_not_wait_for_its_host(
    function: Any, limits: Limits, last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelserve.exchange.intake._PATIENCE_SECONDS", 60)
    app, host = ModelServer(), Host()
    app.add_model(function, "m", limits=limits)
    await host.run(app)
    assert host.has_left
    assert host.sent[0]["status"] == 200
    assert last in b"".join(message.get("body", b"") for message in host.sent[-2:])
    assert host.sent[-1]["more_body"] is False


async def test_a_host_can_end_a_request_that_was_cut() -> None:
    async def pieces(instances: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for _ in instances:
            yield b"piece"
            await anyio.sleep_forever()

    app, host = ModelServer(), Host()
    app.add_model(pieces, "m", limits=Limits(idle_timeout=0.2))
    await host.run(app, b"application/octet-stream")
    assert (host.has_left, host.sent[-1]) == (True, {"type": "cut"})


@pytest.mark.parametrize("function", [first, broken])
async def test_a_host_can_end_a_websocket_whose_messages_nobody_needs(function: Any) -> None:
    app, host = ModelServer(), Host()
    app.add_model(function, "m")
    await host.run(app, kind="websocket")
    assert (host.has_left, host.sent[-1]["type"]) == (True, "websocket.close")


async def test_a_host_that_fails_to_receive_is_not_asked_again() -> None:
    class Failing:
        reason = None
        flight: object = "it has not ended yet"
        calls = 0

        def is_interrupted_by(self, exc: BaseException) -> bool:
            return False

        async def receive(self) -> Any:
            self.calls += 1
            if self.calls == 5:
                self.flight = None
            raise OSError

    exchange: Any = Failing()
    receive_leftover(exchange, TimeoutError())
    with anyio.fail_after(20):
        while not exchange.calls:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
    assert exchange.calls == 1
