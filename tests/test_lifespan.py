"""What an application says of itself: a snapshot of its requests, threads and models."""

import asyncio
import pickle
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.errors import ModelNotReady
from modelserve.lifespan import ModelStatistics, Statistics
from modelserve.models.registry import State
from modelserve.models.repository import ModelRepository
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
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        async def load(self) -> bool:
            began.set()
            await release.wait()
            return True

    app = ModelServer([Slow("m")], control=True)

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


# --- waiting for the load -----------------------------------------------------------------------


class Loaded(Model):
    """A model whose load takes a moment, and fails where it is told to."""

    def predict(self, payload: Any) -> Any:
        raise NotImplementedError

    def __init__(self, name: str, *, failing: bool = False) -> None:
        super().__init__(name)
        self.failing = failing

    async def load(self) -> bool:
        await anyio.lowlevel.checkpoint()
        if self.failing:
            raise RuntimeError("no disk")
        return True


@pytest.mark.parametrize("hosted", [True, False])
async def test_ready_returns_once_all_is_loaded(hosted: bool) -> None:
    app = ModelServer([Loaded("a"), Loaded("b")])
    if not hosted:
        await app.ready()
        assert app.serving.statistics().loading == 0
        assert (await request(app, "GET", "/v2/health/ready")).status == 200
        return
    async with lifespan(app):
        await app.ready()
        assert (await request(app, "GET", "/v2/health/ready")).status == 200
        app.add_model(Loaded("c"))
        await app.ready()  # it loads what came later as well
        assert (await request(app, "GET", "/v1/models/c")).status == 200


async def test_ready_names_the_models_that_failed() -> None:
    app = ModelServer([Loaded("a", failing=True), Loaded("b"), Loaded("c", failing=True)])
    with pytest.raises(ModelNotReady, match=r"a, c is not ready.*no disk"):
        await app.ready()
    assert (await request(app, "GET", "/v1/models/b")).status == 200


async def test_ready_asks_the_models_whether_they_are_healthy() -> None:
    class Checked(Loaded):
        is_well = True

        def healthy(self) -> bool:
            return self.is_well

    model = Checked("checked")
    app = ModelServer([Loaded("a"), model])
    async with lifespan(app):
        await app.ready()
        model.is_well = False
        with pytest.raises(
            ModelNotReady, match=r"checked is not ready\. Its healthy\(\) returned False\."
        ):
            await app.ready()
        model.is_well = True
        await app.ready()


async def test_a_wait_for_the_load_that_is_given_up_leaves_it_running() -> None:
    began, go_on = anyio.Event(), anyio.Event()

    class Slow(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        async def load(self) -> None:
            began.set()
            await go_on.wait()

    app = ModelServer([Slow("m")])
    with anyio.move_on_after(0):
        await app.ready()
    await began.wait()
    go_on.set()
    await app.ready()
    assert app.serving.statistics().models["m"].state is State.READY


@pytest.mark.parametrize("failing", [False, True])
async def test_the_start_waits_for_the_load_where_it_is_asked_to(failing: bool) -> None:
    app = ModelServer([Loaded("a"), Loaded("b", failing=failing)], wait_for_load=True)
    async with lifespan(app):
        assert app.serving.statistics().loading == 0
        assert (await request(app, "GET", "/v1/models/a")).status == 200
        status = (await request(app, "GET", "/v1/models/b")).status
        assert status == (503 if failing else 200)


# --- before it stops ----------------------------------------------------------------------------


async def test_a_stop_that_is_announced_is_seen_by_probes_alone() -> None:
    app = ModelServer([Model("m")])
    app.add_model(lambda payload: payload, "echo")
    probes = ("/v2/health/ready", "/v1/models/echo", "/v2/models/echo/ready")
    async with lifespan(app):
        await app.ready()
        app.serving.announce_stop()
        assert {(await request(app, "GET", path)).status for path in probes} == {503}
        for path in ("/", "/v2/health/live", "/v1/models", "/v2/models/echo", "/metrics"):
            assert (await request(app, "GET", path)).status == 200
        assert (await request(app, "POST", "/v1/models/echo:predict", json=[1])).json() == [1]
    async with lifespan(app):
        await app.ready()
        assert {(await request(app, "GET", path)).status for path in probes} == {200}


# --- loading and unloading over HTTP ------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "has_repository", "status"),
    [
        (None, False, 403),
        (None, True, 200),
        (True, False, 200),
        (True, True, 200),
        (False, False, 403),
        (False, True, 403),
    ],
)
async def test_models_are_loaded_over_http_where_that_is_turned_on(
    control: bool | None, has_repository: bool, status: int, tmp_path: Path
) -> None:
    repository = ModelRepository(tmp_path) if has_repository else None
    app = ModelServer([Model("m")], repository=repository, control=control)
    app = pickle.loads(pickle.dumps(app))
    for verb in ("load", "unload"):
        response = await request(app, "POST", f"/v2/repository/models/m/{verb}")
        assert response.status == status
        unknown = await request(app, "POST", f"/v2/repository/models/zz/{verb}")
        assert unknown.status == (404 if status == 200 else 403)
        assert status == 200 or "turned off" in response.json()["error"]
    assert (await request(app, "POST", "/v2/repository/index")).status == 200
    get = await request(app, "GET", "/v2/repository/models/m/load")
    assert get.status == 405


async def test_a_repository_without_any_model_is_not_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = ModelServer(repository=ModelRepository(tmp_path))
    assert f"There is no model in {tmp_path}" in caplog.text
    async with lifespan(app):
        assert (await request(app, "GET", "/v2/health/ready")).status == 503
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "model.py").write_text("def load(path, name): return lambda payload: 1")
        assert (await request(app, "POST", "/v2/repository/models/m/load")).status == 200
        assert (await request(app, "GET", "/v2/health/ready")).status == 200


class Hanging(Model):
    """A model whose requests last until they are cancelled."""

    def __init__(self) -> None:
        super().__init__("m")
        self.began = anyio.Event()
        self.ends: list[str] = []

    async def predict(self, payload: Any) -> Any:
        self.began.set()
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            self.ends.append("cleaned up")

    def stop(self) -> None:
        self.ends.append("stopped")


async def hosted(app: ModelServer) -> None:
    async with app.lifespan():
        await anyio.sleep_forever()


async def until_draining(app: ModelServer) -> None:
    with anyio.fail_after(10):
        while not app.serving.draining:
            await anyio.lowlevel.checkpoint()


async def test_a_second_cancellation_of_the_host_cuts_the_drain_short(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("a shield keeps all of trio's cancellations out")
    model = Hanging()
    app = ModelServer([model], limits=Limits(drain_timeout=60))
    host = asyncio.create_task(hosted(app))
    async with exchange(app, *PREDICT, json=[]) as client:
        await model.began.wait()
        host.cancel()
        await until_draining(app)
        assert model.ends == []
        host.cancel()
        host.cancel()
        with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
            await host
        assert model.ends == ["cleaned up", "stopped"]
        assert not app.serving.hosted
        assert (await client.response()).status == 503


async def test_a_cancellation_of_a_lifespan_that_ends_by_itself_is_raised_at_its_end(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("a shield keeps all of trio's cancellations out")
    model = Hanging()
    app = ModelServer([model], limits=Limits(drain_timeout=60))

    async def host() -> None:
        async with app.lifespan():
            await model.began.wait()

    task = asyncio.create_task(host())
    async with exchange(app, *PREDICT, json=[]):
        await until_draining(app)
        task.cancel()
        with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
            await task
    assert model.ends == ["cleaned up", "stopped"]


def test_an_event_loop_that_ends_in_the_drain_leaves_nothing_running() -> None:
    app = ModelServer(limits=Limits(drain_timeout=60))
    models: list[Hanging] = []

    async def main() -> None:
        models.append(Hanging())
        app.add_model(models[0])
        host = asyncio.create_task(hosted(app))
        asked = asyncio.create_task(request(app, *PREDICT, json=[]))
        await models[0].began.wait()
        host.cancel()
        await until_draining(app)
        assert not asked.done()

    asyncio.run(main())  # cancels every task
    assert models[0].ends == ["cleaned up", "stopped"]
    assert not app.serving.hosted


async def test_a_host_that_is_cancelled_drains(anyio_backend_name: str) -> None:
    model = Hanging()
    app = ModelServer([model], limits=Limits(drain_timeout=0.05))
    async with exchange(app, *PREDICT, json=[]) as client, anyio.create_task_group() as group:
        group.start_soon(hosted, app)
        await model.began.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(20):
            assert (await client.response()).status == 503
    assert model.ends == ["cleaned up", "stopped"]
