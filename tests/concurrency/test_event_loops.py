"""One application that serves more than one event loop."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from modelserve import Limits, ModelServer
from modelserve.testing import exchange, lifespan, request

PREDICT = ("POST", "/v1/models/m:predict")


class Loop:
    """An event loop in a thread of its own, with one request in flight that waits for its end."""

    def __init__(self, backend: str, app: Any) -> None:
        self.app = app
        self.answer: Any = None
        self.thread = threading.Thread(target=lambda: anyio.run(self.main, backend=backend))

    async def main(self) -> None:
        self.answer = await request(self.app, *PREDICT, json=[])

    def begin(self) -> "Loop":
        self.thread.start()
        return self

    def end(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def waiting_app(started: list[Any], ended: list[str], **limits: Any) -> ModelServer:
    app = ModelServer(limits=Limits(**limits))

    @app.model("m")
    async def predict(payload: Any) -> Any:
        started.append(1)
        try:
            await anyio.sleep(20)
        finally:
            await anyio.sleep(0.001)
            ended.append("cleaned")

    return app


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread does."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.002)


BOTH = [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "asyncio"), ("trio", "trio")]


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_requests_of_each_event_loop_are_watched(backends: tuple[str, str]) -> None:
    """The second event loop's first request comes while the first's is young."""
    started: list[Any] = []
    ended: list[str] = []
    app = waiting_app(started, ended, timeout=0.15)
    loops = [Loop(backend, app).begin() for backend in backends]
    for loop in loops:
        loop.end()
        assert loop.answer.status == 504
    assert ended == ["cleaned"] * 2
    assert len(app.serving.flights) == 0


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_the_drain_ends_the_requests_of_all_event_loops(backends: tuple[str, str]) -> None:
    started: list[Any] = []
    ended: list[str] = []
    app = waiting_app(started, ended, drain_timeout=0.05)
    here, other = backends
    loop = Loop(other, app)

    async def main() -> None:
        async with lifespan(app):
            loop.begin()
            async with exchange(app, *PREDICT, json=[]) as client:
                await until(lambda: len(started) == 2)
                app.serving.refuse_new()
                await app.serving.drain()
                assert ended == ["cleaned"] * 2
                assert (await client.response()).status == 503

    anyio.run(main, backend=here)
    loop.end()
    assert loop.answer.status == 503
    assert len(app.serving.flights) == 0


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_the_drain_waits_for_a_request_of_another_event_loop(backends: tuple[str, str]) -> None:
    app = ModelServer()
    started, go_on = threading.Event(), threading.Event()
    steps: list[str] = []

    @app.model("m")
    async def predict(payload: Any) -> Any:
        started.set()
        await until(go_on.is_set)
        steps.append("ended")
        return []

    loop = Loop(backends[1], app)

    async def main() -> None:
        async with lifespan(app):
            loop.begin()
            await until(started.is_set)
            threading.Timer(0.1, go_on.set).start()
            await app.serving.drain()
            assert steps == ["ended"]

    anyio.run(main, backend=backends[0])
    loop.end()
    assert loop.answer.status == 200


def test_requests_of_an_event_loop_that_was_closed_are_not_waited_for() -> None:
    started: list[Any] = []
    app = waiting_app(started, [])
    first = asyncio.new_event_loop()
    task = first.create_task(request(app, *PREDICT, json=[]))
    first.run_until_complete(asyncio.sleep(0.1))
    assert started
    assert len(app.serving.flights) == 1
    first.close()

    async def main() -> None:
        with anyio.fail_after(5):
            await app.serving.flights.emptied()

    asyncio.run(main())
    del task
