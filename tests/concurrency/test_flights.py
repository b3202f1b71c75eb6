"""The register of requests in flight: who is in it, who is watched, and how all are ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import sniffio

from modelserve import Limits, ModelServer
from modelserve.errors import ServerShuttingDown
from modelserve.testing import Exchange, _scope, exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
NDJSON = {"accept": "application/x-ndjson"}


async def until(condition: Any) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a thread or a task says so
            await anyio.sleep(0.001)


def streaming(
    started: anyio.Event, cleaning: anyio.Event, release: anyio.Event, log: list[str]
) -> Any:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            started.set()
            await anyio.sleep(60)
        finally:
            cleaning.set()
            await release.wait()
            log.append("cleaned")

    return predict


async def test_a_request_is_in_flight_from_its_first_suspension() -> None:
    app = ModelServer()
    seen: list[int] = []

    async def predict(payload: Any) -> Any:
        seen.append(len(app.serving.flights))
        for _ in payload:
            await anyio.sleep(0.001)
            seen.append(len(app.serving.flights))

    app.add_model(predict, "m")
    for payload in ([], [1, 2]):
        assert (await request(app, *PREDICT, json=payload)).status == 200
        assert len(app.serving.flights) == 0
    if sniffio.current_async_library() == "asyncio":
        assert seen == [0, 0, 1, 1]  # before it, nothing could end it
    else:
        assert seen == [1, 1, 1, 1]


async def test_two_can_wait_until_none_is_in_flight() -> None:
    release = anyio.Event()
    app = ModelServer()

    @app.model("m")
    async def predict(payload: Any) -> Any:
        await release.wait()

    returned: list[int] = []

    async def wait() -> None:
        with anyio.move_on_after(10):
            await app.serving.flights.emptied()
            returned.append(1)

    async with anyio.create_task_group() as group, exchange(app, *PREDICT, json=[]) as client:
        await anyio.wait_all_tasks_blocked()
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        release.set()
        await client.ended()
    assert returned == [1, 1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_request_that_stays_young_keeps_no_other_from_being_watched() -> None:
    app = ModelServer()

    @app.model("m")
    async def predict(payload: Any) -> Any:
        await anyio.sleep_forever()

    async with exchange(app, *PREDICT, json=[]), exchange(app, *PREDICT, json=[]):
        await until(lambda: len(app.serving.flights) == 2)
        first, second = app.serving.flights  # young still, unless the machine is very busy
        first.request.arrived += 3600.0
        await until(lambda: second.is_watched)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_is_cancelled_once_though_host_and_client_both_leave() -> None:
    """Servers that stop cancel their tasks and close the connections too."""
    started, cleaning, release = anyio.Event(), anyio.Event(), anyio.Event()
    log: list[str] = []
    app = ModelServer()
    app.add_model(streaming(started, cleaning, release, log), "m")
    async with exchange(app, *PREDICT, json=[], headers=NDJSON) as client:
        await started.wait()
        await until(lambda: all(flight.is_watched for flight in app.serving.flights))
        assert client.task is not None
        client.task.cancel()
        await cleaning.wait()
        client.hang_up()
        await anyio.wait_all_tasks_blocked()
        release.set()
        with contextlib.suppress(asyncio.CancelledError):
            await client.task
    assert log == ["cleaned"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_host_task_is_left_alone_once_its_request_is_over() -> None:
    """A request that was cancelled in its first 20 ms may be cleaning up when it is watched."""
    started, cleaning, release = anyio.Event(), anyio.Event(), anyio.Event()
    log: list[str] = []
    app = ModelServer(limits=Limits(cleanup_timeout=0.15))
    app.add_model(streaming(started, cleaning, release, log), "m")
    flights = app.serving.flights
    client = Exchange(app, _scope(*PREDICT, NDJSON), timeout=10)
    client.send_body(b"[]")
    cancelled: list[BaseException] = []

    async def host() -> None:
        try:
            await client.run()
            await asyncio.sleep(0.4)
        except asyncio.CancelledError as exc:
            cancelled.append(exc)
            raise

    task = asyncio.get_running_loop().create_task(host())
    await started.wait()
    flights.cancel_all(ServerShuttingDown, cleanup_cap=0.15)
    young = list(flights)  # unless the machine is very busy
    await cleaning.wait()
    await until(lambda: young[0].is_watched)
    release.set()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert log == ["cleaned"]
    assert cancelled == []
