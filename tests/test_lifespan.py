"""What an application says of itself: a snapshot of its requests, threads and models."""

import threading
from dataclasses import FrozenInstanceError
from typing import Any

import anyio
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.lifespan import ModelStatistics, Statistics
from modelserve.models.registry import State
from modelserve.testing import exchange, lifespan, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


async def test_the_statistics_follow_requests_and_threads() -> None:
    started, release = threading.Event(), threading.Event()

    def predict(payload: Any) -> Any:
        started.set()
        assert release.wait(5)
        return payload

    app = ModelServer(limits=Limits(concurrency=1))
    app.add_model(predict, "m")
    app.add_model(Model("n"))
    serving = app.serving
    async with lifespan(app):
        async with exchange(app, *PREDICT, json=[]) as first:
            assert await anyio.to_thread.run_sync(started.wait, 5)
            async with exchange(app, *PREDICT, json=[]) as second:
                await anyio.wait_all_tasks_blocked()
                assert serving.statistics() == Statistics(
                    in_flight=2,
                    running=1,
                    waiting=1,
                    busy_threads=("m",),
                    loading=0,
                    models={
                        "m": ModelStatistics(State.READY, running=1, waiting=1),
                        "n": ModelStatistics(State.READY, running=0, waiting=0),
                    },
                )
                release.set()
                assert (await first.response()).status == 200
                assert (await second.response()).status == 200
        idle = serving.statistics()
    assert (idle.in_flight, idle.running, idle.waiting, idle.busy_threads) == (0, 0, 0, ())
    with pytest.raises(FrozenInstanceError):
        idle.running = 1  # type: ignore[misc]


async def test_the_statistics_follow_what_is_loaded() -> None:
    began, release = anyio.Event(), anyio.Event()

    class Slow(Model):
        async def load(self) -> bool:
            began.set()
            await release.wait()
            return True

    app = ModelServer([Slow("m")])

    def loading() -> tuple[int, State]:
        statistics = app.serving.statistics()
        return statistics.loading, statistics.models["m"].state

    assert loading() == (1, State.UNAVAILABLE)
    async with lifespan(app):
        await began.wait()
        assert loading() == (1, State.LOADING)
        release.set()
        await anyio.wait_all_tasks_blocked()
        assert loading() == (0, State.READY)
        await request(app, "POST", "/v2/repository/models/m/unload")
        assert app.serving.statistics().models == {}
