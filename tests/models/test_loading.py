"""Starting, loading, replacing, unloading and stopping models."""

import asyncio
import builtins
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.concurrency.admission import Admission
from modelserve.concurrency.threads import Workers
from modelserve.limits import DEFAULTS
from modelserve.metrics.telemetry import Telemetry
from modelserve.models.loading import Loading
from modelserve.models.registry import Entry, Registry, Shared, State
from modelserve.models.repository import ModelRepository
from modelserve.testing import exchange, lifespan, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


class SlowLoading(Model):
    """A model whose load a test lets go on, and which notes what is called."""

    def __init__(self, name: str = "m", *, result: Any = True) -> None:
        super().__init__(name)
        self.log: list[str] = []
        self.began = anyio.Event()
        self.release = anyio.Event()
        self.result = result

    async def load(self) -> Any:
        self.log.append("load")
        self.began.set()
        try:
            await self.release.wait()
        except BaseException:
            self.log.append("load cancelled")
            raise
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    async def predict(self, payload: Any) -> Any:
        return payload


class Noting(Model):
    """A model with all that may be called around its life."""

    engine = True

    def __init__(self, name: str = "m", *, failing: str = "") -> None:
        super().__init__(name)
        self.log: list[str] = []
        self.failing = failing

    def note(self, what: str) -> None:
        self.log.append(what)
        if what == self.failing:
            raise RuntimeError("no disk")

    def start(self) -> None:
        self.note("start")

    async def start_engine(self) -> None:
        self.note("start_engine")

    def load(self) -> bool:
        self.note("load")
        self.ready = True
        return True

    async def stop_engine(self) -> None:
        self.note("stop_engine")

    async def stop(self) -> None:
        self.note("stop")

    async def predict(self, payload: Any) -> Any:
        return payload


def of(*models: Any) -> Loading:
    registry = Registry(Shared(DEFAULTS, Workers(4), Telemetry(), Admission(DEFAULTS)))
    for model in models:
        registry.add(model)
    return Loading(registry)


async def attempted(entry: Entry) -> None:
    assert entry.attempted is not None
    with anyio.fail_after(5):
        await entry.attempted.wait()


async def load_pending(loading: Loading) -> None:
    loading.load_pending()
    for entry in loading.registry:
        await attempted(entry)


async def loaded(*models: Any) -> Registry:
    loading = of(*models)
    await load_pending(loading)
    return loading.registry


async def until_loaded(app: ModelServer) -> None:
    for entry in app.serving.registry:
        await attempted(entry)


async def predict(payload: Any) -> Any:
    return payload


async def status(app: ModelServer, path: str = "/v1/models/m") -> int:
    return (await request(app, "GET", path)).status


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("returned", "ready"),
    [(True, True), (False, False), (None, True), (1, True), (0, False), ("", False)],
)
async def test_what_load_returns_decides(kind: str, returned: Any, ready: bool) -> None:
    async def in_loop() -> Any:
        return returned

    model = Model("m")
    vars(model)["load"] = in_loop if kind == "async" else lambda: returned
    made = await loaded(model)
    assert model.ready is ready
    assert made.get("m").state == (State.READY if ready else State.UNAVAILABLE)
    assert made.get("m").failure is None


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_where_load_runs(kind: str) -> None:
    threads: list[threading.Thread] = []

    async def in_loop() -> None:
        threads.append(threading.current_thread())

    def in_thread() -> None:
        threads.append(threading.current_thread())

    model = Model("m")
    vars(model)["load"] = in_loop if kind == "async" else in_thread
    await loaded(model)
    assert (threads[0] is threading.current_thread()) == (kind == "async")


async def test_a_load_that_fails_is_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> bool:
        raise RuntimeError("no disk")

    model = Model("m")
    vars(model)["load"] = load
    made = await loaded(model, Model("n"))
    assert model.ready is False
    assert made.get("m").failure == "Error type: <class 'RuntimeError'> error msg: no disk"
    assert made.get("n").model.ready
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is not None


@pytest.mark.parametrize("debug", [True, False])
async def test_why_a_load_failed_is_detail_when_debugging(debug: bool) -> None:
    def load() -> bool:
        raise RuntimeError("no disk")

    model = Model("m")
    vars(model).update(load=load, predict=predict)
    app = ModelServer([model], debug=debug)
    async with lifespan(app):
        await until_loaded(app)
        response = await request(app, *PREDICT, json=[])
    assert response.status == 503
    detail = "Error type: <class 'RuntimeError'> error msg: no disk"
    sentence = detail if debug else "It failed to load."
    assert response.json() == {"error": f"Model with name m is not ready. {sentence}"}


async def test_models_load_at_the_same_time_and_one_that_fails_stops_no_other() -> None:
    first, second = SlowLoading("a", result=RuntimeError("no disk")), SlowLoading("b")
    loading = of(first, second)
    made = loading.registry
    with anyio.fail_after(5):
        loading.load_pending()
        await first.began.wait()
        await second.began.wait()
        assert [entry.state for entry in made] == [State.LOADING, State.LOADING]
        first.release.set()
        await attempted(made.get("a"))
        assert [entry.state for entry in made] == [State.UNAVAILABLE, State.LOADING]
        second.release.set()
        await attempted(made.get("b"))
    assert [entry.state for entry in made] == [State.UNAVAILABLE, State.READY]
    assert made.pending == []


async def test_a_model_that_says_it_is_ready_is_not_loaded() -> None:
    model = SlowLoading()
    model.ready = True
    await loaded(model)
    assert model.log == []


async def test_what_is_registered_later_is_loaded_on_its_own() -> None:
    loading = of(Noting("a"))
    await load_pending(loading)
    loading.registry.add(Noting("b"))
    await load_pending(loading)
    assert [entry.model.log.count("load") for entry in loading.registry] == [1, 1]


async def test_a_load_may_be_tried_again() -> None:
    model = Noting(failing="load")
    loading = of(model)
    await load_pending(loading)
    entry = loading.registry.get("m")
    assert entry.failure is not None
    model.failing = ""
    await loading.load("m")
    assert model.ready
    assert entry.failure is None
    assert model.log == ["start", "start_engine", "load", "load"]


@pytest.mark.parametrize("failing", ["start", "start_engine"])
async def test_a_start_that_failed_is_tried_again(failing: str) -> None:
    model = Noting(failing=failing)
    loading = of(model)
    await load_pending(loading)
    assert not model.ready
    assert "load" not in model.log
    model.failing = ""
    model.log.clear()
    await loading.load("m")
    assert model.log[-3:] == ["start", "start_engine", "load"] or model.log[-2:] == [
        "start_engine",
        "load",
    ]
    assert failing in model.log


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_a_load_that_exits_does_not_end_the_process(kind: str, anyio_backend: str) -> None:
    """Think of argparse in a model's code."""

    def load() -> bool:
        raise SystemExit(1)

    async def load_in_loop() -> bool:
        raise SystemExit(1)

    model = Model("m")
    vars(model).update(load=load_in_loop if kind == "async" else load, predict=predict)
    app = ModelServer([model])
    statuses: list[int] = []

    async def main() -> None:
        async with lifespan(app, timeout=10):
            await until_loaded(app)
            await anyio.sleep(0.01)
            statuses.append(await status(app))
            statuses.append(await status(app, "/"))

    error: BaseException | None = None
    try:
        anyio.run(main, backend=anyio_backend)
    except BaseException as exc:
        error = exc
    assert (error, statuses) == (None, [503, 200])


class PanicException(BaseException):
    """What libraries in Rust raise when they panic."""


FATAL = [
    PanicException("called `unwrap()` on a `None` value"),
    asyncio.CancelledError(),
    GeneratorExit(),
    KeyboardInterrupt(),
    BaseExceptionGroup("x", [PanicException("x")]),
]


def raising(hook: str, kind: str, error: BaseException) -> Noting:
    model = Noting("bad")

    def raise_error() -> bool:
        model.note(hook)
        raise error

    async def raise_error_in_loop() -> bool:
        return raise_error()

    vars(model)[hook] = raise_error if kind == "sync" else raise_error_in_loop
    return model


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("hook", ["start", "start_engine", "load"])
@pytest.mark.parametrize("error", FATAL, ids=lambda error: type(error).__name__)
async def test_whatever_a_model_raises_on_its_way_up_is_its_failure_alone(
    error: BaseException, hook: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, slow = raising(hook, kind, error), SlowLoading("slow")
    app = ModelServer([bad, slow], control=True)
    async with lifespan(app):
        with anyio.fail_after(5):
            await slow.began.wait()
        await anyio.wait_all_tasks_blocked()
        slow.release.set()
        await until_loaded(app)
        assert [await status(app, f"/v1/models/{name}") for name in ("bad", "slow")] == [503, 200]
        assert bad.log.count(hook) == 1
        assert (await load(app, "bad")).status == 503
        assert (await load(app, "slow")).status == 200
        assert await status(app, "/v1/models/bad") == 503
    assert bad.log.count(hook) == 2
    failures = [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]
    assert [r.getMessage() for r in failures] == ["Loading model bad failed"] * 2


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("error", FATAL, ids=lambda error: type(error).__name__)
async def test_whatever_a_load_raises_without_a_lifespan_is_its_failure_alone(
    error: BaseException, kind: str
) -> None:
    bad = raising("load", kind, error)
    app = ModelServer([bad, SlowLoading("slow")])
    app.serving.registry.get("slow").model.release.set()
    for _ in range(3):
        assert (await request(app, "POST", "/v1/models/bad:predict", json=[])).status == 503
        assert (await request(app, "POST", "/v1/models/slow:predict", json=[])).status == 200
    assert bad.log.count("load") == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("hook", ["stop", "stop_engine"])
@pytest.mark.parametrize("error", FATAL, ids=lambda error: type(error).__name__)
async def test_whatever_a_stop_raises_all_others_are_stopped(
    error: BaseException, hook: str, kind: str
) -> None:
    bad, good, other = raising(hook, kind, error), Noting("good"), raising(hook, kind, error)
    other.name = "other"
    app = ModelServer([bad, good, other], control=True)
    async with lifespan(app):
        await until_loaded(app)
        assert (await unload(app, "other")).status == 200
        assert other.log[-2:] == ["stop_engine", "stop"]
    assert bad.log[-2:] == good.log[-2:] == ["stop_engine", "stop"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_load_whose_own_task_was_cancelled_by_others_has_failed() -> None:
    async def load_with_task() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    model = Model("m")
    vars(model).update(load=load_with_task, predict=predict)
    loading = of(model, Model("n"))
    await load_pending(loading)
    assert "CancelledError" in str(loading.registry.get("m").failure)
    assert not loading.registry.pending


@pytest.mark.parametrize("hosted", [True, False])
async def test_a_load_that_had_no_thread_is_tried_again(
    hosted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> list[int]:
        paths = ["/v1/models/m:predict", "/v2/repository/models/n/load"]
        return [(await request(app, "POST", path, json=[])).status for path in paths]

    monkeypatch.setattr("modelserve.models.loading._RETRY_SECONDS", 0.05)
    model, other = Noting(), Noting("n")
    app = ModelServer([model, other], control=True)
    async with lifespan(app) if hosted else nullcontext():
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            assert await ask() == [503, 503]
            assert await ask() == [503, 503]
        assert model.log == other.log == []
        await anyio.sleep(0.06)
        await status(app)
        await until_loaded(app)
        assert await ask() == [200, 200]
    assert model.log[:3] == other.log[:3] == ["start", "start_engine", "load"]
    assert model.log.count("load") == 1


# --- the background -----------------------------------------------------------------------------


async def test_liveness_answers_while_a_model_loads() -> None:
    model = SlowLoading()
    app = ModelServer([model, Model("n")])
    async with lifespan(app):
        await model.began.wait()
        assert await status(app, "/") == 200
        assert await status(app, "/v2/health/live") == 200
        assert await status(app, "/v2/health/ready") == 503
        assert await status(app) == 503
        assert await status(app, "/v1/models/n") == 200
        assert (await request(app, *PREDICT, json=[1])).status == 503
        assert (await request(app, "GET", "/v1/models")).json() == {"models": ["m", "n"]}
        model.release.set()
        await until_loaded(app)
        assert await status(app, "/v2/health/ready") == 200
        assert await status(app) == 200
        assert (await request(app, *PREDICT, json=[1])).json() == [1]


@pytest.mark.parametrize("result", [False, RuntimeError("no disk")])
async def test_a_failed_load_leaves_the_others_served(result: Any) -> None:
    model = SlowLoading(result=result)
    model.release.set()
    app = ModelServer([model])
    app.add_model(predict, "n")
    async with lifespan(app):
        await until_loaded(app)
        assert await status(app) == 503
        ready = await request(app, "GET", "/v2/health/ready")
        assert (ready.status, ready.json()) == (503, {"error": "Server is not ready."})
        response = await request(app, *PREDICT, json=[])
        detail = "" if result is False else " It failed to load."
        assert response.json() == {"error": f"Model with name m is not ready.{detail}"}
        assert (await request(app, "POST", "/v1/models/n:predict", json=[1])).json() == [1]


async def test_a_model_that_is_added_while_serving_is_loaded() -> None:
    app = ModelServer()
    async with lifespan(app):
        model = SlowLoading()
        model.release.set()
        app.add_model(model)
        await status(app, "/")
        await until_loaded(app)
        assert await status(app) == 200


async def test_shutting_down_ends_a_load_that_is_not_done() -> None:
    class Both(SlowLoading):
        def stop(self) -> None:
            self.log.append("stop")

        def start(self) -> None:
            self.log.append("start")

    model = Both()
    async with lifespan(ModelServer([model])):
        await model.began.wait()
    seen = list(model.log)
    model.release.set()
    await anyio.wait_all_tasks_blocked()
    assert seen == ["start", "load", "load cancelled", "stop"]


# --- the order of a life ------------------------------------------------------------------------


async def test_a_model_is_started_loaded_and_stopped_in_order() -> None:
    model = Noting()
    app = ModelServer([model])
    async with lifespan(app):
        await until_loaded(app)
        assert model.log == ["start", "start_engine", "load"]
        assert (await request(app, *PREDICT, json=[1])).json() == [1]
    assert model.log == ["start", "start_engine", "load", "stop_engine", "stop"]


async def test_an_engine_is_left_alone_unless_asked_for() -> None:
    model = Noting()
    model.engine = False
    app = ModelServer([model])
    async with lifespan(app):
        await until_loaded(app)
    assert model.log == ["start", "load", "stop"]


@pytest.mark.parametrize("failing", ["start", "start_engine", "load"])
async def test_what_fails_on_the_way_up_makes_the_model_not_ready(failing: str) -> None:
    model = Noting(failing=failing)
    app = ModelServer([model])
    async with lifespan(app):
        await until_loaded(app)
        assert model.log[-1] == failing
        assert await status(app) == 503


@pytest.mark.parametrize("failing", ["stop", "stop_engine"])
async def test_what_fails_on_the_way_down_stops_no_other(
    failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = Noting(failing=failing), Noting("n")
    app = ModelServer([model, other])
    async with lifespan(app):
        await until_loaded(app)
    assert other.log[-1] == "stop"
    (record,) = caplog.records
    assert model.name in record.getMessage() and failing in record.getMessage()
    assert record.exc_info is not None


async def test_a_stop_engine_that_fails_does_not_keep_stop_from_running() -> None:
    model = Noting(failing="stop_engine")
    app = ModelServer([model])
    async with lifespan(app):
        await until_loaded(app)
    assert model.log[-2:] == ["stop_engine", "stop"]


async def test_stop_waits_for_the_last_request() -> None:
    log: list[str] = []
    release, running = anyio.Event(), anyio.Event()

    class Slow(Model):
        def start(self) -> None:
            log.append("start")

        async def predict(self, payload: Any) -> AsyncIterator[Any]:
            running.set()
            yield {"n": 1}
            await release.wait()
            yield {"n": 2}
            log.append("done")

        def stop(self) -> None:
            log.append("stop")

    app = ModelServer([Slow("m")])
    async with anyio.create_task_group() as group, held_open(app, group) as close:
        await until_loaded(app)
        group.start_soon(ask_into, app, log)
        await running.wait()
        close()
        await anyio.wait_all_tasks_blocked()
        assert log == ["start"]
        release.set()
    assert log == ["start", "done", "answered 200", "stop"] or log == [
        "start",
        "done",
        "stop",
        "answered 200",
    ]


async def ask_into(app: ModelServer, log: list[str]) -> None:
    response = await request(app, *PREDICT, json=[])
    assert len(response.chunks) == 2
    log.append(f"answered {response.status}")


@asynccontextmanager
async def held_open(app: ModelServer, group: Any) -> AsyncIterator[Any]:
    """Run a lifespan in a task of its own; what is given ends it."""
    up, down = anyio.Event(), anyio.Event()

    async def run() -> None:
        async with lifespan(app):
            up.set()
            await down.wait()

    group.start_soon(run)
    await up.wait()
    yield down.set


SOURCE = """
from modelserve import Model

class M(Model):
    def start(self):
        LOG.append("start")

    async def load(self):
        return True

    def stop(self):
        LOG.append("stop")

    async def predict(self, payload):
        return payload
"""


@pytest.mark.parametrize("names", ["a", "abcdefgh"])
async def test_what_is_replaced_is_stopped_once(names: str, tmp_path: Path) -> None:
    log: list[str] = []
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(SOURCE)
    builtins.LOG = log  # type: ignore[attr-defined]
    app = ModelServer(repository=ModelRepository(tmp_path))
    try:
        async with lifespan(app):
            await until_loaded(app)
            for _ in range(3):
                async with anyio.create_task_group() as group:
                    for name in names:
                        group.start_soon(load, app, name)
        assert log.count("start") == log.count("stop") == 4 * len(names)
    finally:
        del builtins.LOG  # type: ignore[attr-defined]


async def test_what_is_replaced_while_it_loads_is_stopped_once_it_has_started() -> None:
    class Old(Noting, SlowLoading):
        def __init__(self) -> None:
            SlowLoading.__init__(self)
            self.failing = ""

        load = SlowLoading.load

    old = Old()
    app = ModelServer([old])
    async with lifespan(app):
        await old.began.wait()
        app.add_model(Model("m"))
        assert await status(app) in (200, 503)
        await anyio.wait_all_tasks_blocked()
        assert old.log == ["start", "start_engine", "load"]
        old.release.set()
        await until_loaded(app)
    assert old.log == ["start", "start_engine", "load", "stop_engine", "stop"]


async def test_a_stop_that_has_begun_is_not_interrupted_by_the_end() -> None:
    class Slow(Noting):
        async def stop(self) -> None:
            self.note("stop")
            stopping.set()
            await release.wait()
            self.note("stopped")

    stopping, release = anyio.Event(), anyio.Event()
    model = Slow()
    app = ModelServer([model])

    async def let_go() -> None:
        with anyio.fail_after(5):
            await app.serving.flights.emptied()
            for _ in range(20):  # the end has begun, and will not wait for long
                await anyio.lowlevel.checkpoint()
        release.set()

    async with anyio.create_task_group() as group, lifespan(app):
        await until_loaded(app)
        app.add_model(Model("m"))
        assert await status(app, "/") == 200
        await stopping.wait()
        group.start_soon(let_go)
    assert model.log[-3:] == ["stop_engine", "stop", "stopped"]


async def test_what_is_started_while_the_server_ends_is_stopped() -> None:
    class Starting(Noting):
        engine = False

        def start(self) -> None:
            starting.set()
            assert release.wait(5)
            self.note("start")

    starting, release = threading.Event(), threading.Event()
    model = Starting()
    app = ModelServer([model])
    async with lifespan(app):
        assert await anyio.to_thread.run_sync(starting.wait, 5)
        threading.Timer(0.05, release.set).start()
    assert model.log == ["start", "stop"]


@pytest.mark.parametrize("result", [False, ValueError("x")])
async def test_an_unloaded_model_that_does_not_come_back_is_stopped(result: Any) -> None:
    class Returning(Noting):
        async def load(self) -> Any:
            self.note("load")
            if self.log.count("load") > 1 and isinstance(result, Exception):
                raise result
            return True if self.log.count("load") == 1 else result

    model = Returning()
    app = ModelServer([model], control=True)
    async with lifespan(app):
        await until_loaded(app)
        assert (await unload(app)).status == 200
        model.log.clear()
        model.log.append("load")
        assert (await load(app)).status == 503
        assert model.log == ["load", "start", "start_engine", "load", "stop_engine", "stop"]
    assert model.log.count("stop") == 1


async def test_a_stop_that_hangs_is_given_up_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Noting):
        async def stop(self) -> None:
            self.note("stop")
            stopping.set()
            await anyio.sleep(60)

    monkeypatch.setattr("modelserve.lifespan.CLEANUP_AFTER_DRAIN", 0.05)
    stopping = anyio.Event()
    model, other = Hanging(), Noting("other")
    app = ModelServer([model, other])
    with anyio.fail_after(5):
        async with lifespan(app):
            await until_loaded(app)
            app.add_model(Model("m"))
            assert await status(app, "/") == 200
            await stopping.wait()
    assert model.log.count("stop") == other.log.count("stop") == 1


async def test_a_second_life_starts_and_loads_again() -> None:
    """Each `with TestClient(app)` is a life of its own."""
    model = Noting()
    app = ModelServer([model])
    for _ in range(2):
        model.log.clear()
        async with lifespan(app):
            await until_loaded(app)
            assert await status(app) == 200
        assert model.log == ["start", "start_engine", "load", "stop_engine", "stop"]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_a_load_that_an_event_loop_took_with_it_is_begun_again(anyio_backend: str) -> None:
    """TestClient without `with` makes an event loop for each request."""
    loads: list[int] = []

    class Slow(Model):
        async def load(self) -> bool:
            loads.append(1)
            if len(loads) == 1:
                await anyio.sleep(60)
            return True

        async def predict(self, payload: Any) -> Any:
            return payload

    app = ModelServer([Slow("m")])

    async def first() -> int:
        answer = await status(app, "/")
        await anyio.wait_all_tasks_blocked()
        return answer

    assert anyio.run(first, backend=anyio_backend) == 200
    assert loads == [1]

    async def later() -> int:
        await status(app)
        await until_loaded(app)
        return await status(app)

    assert anyio.run(later, backend=anyio_backend) == 200


# --- Triton's repository --------------------------------------------------------------------------


async def load(app: ModelServer, name: str = "m") -> Any:
    return await request(app, "POST", f"/v2/repository/models/{name}/load", body=b"{}")


async def unload(app: ModelServer, name: str = "m") -> Any:
    return await request(app, "POST", f"/v2/repository/models/{name}/unload", body=b"{}")


async def index(app: ModelServer) -> list[tuple[str, str]]:
    response = await request(app, "POST", "/v2/repository/index", body=b"{}")
    return [(row["name"], row["state"]) for row in response.json()]


async def test_a_model_is_unloaded_and_loaded_again() -> None:
    model = Noting()
    app = ModelServer([model], control=True)
    async with lifespan(app):
        await until_loaded(app)
        response = await unload(app)
        assert (response.status, response.json()) == (200, {"name": "m", "unload": True})
        assert model.log[-2:] == ["stop_engine", "stop"]
        assert await index(app) == [("m", "UNAVAILABLE")]
        assert (await request(app, *PREDICT, json=[])).status == 404
        assert (await unload(app)).status == 404
        model.log.clear()
        response = await load(app)
        assert (response.status, response.json()) == (200, {"name": "m", "load": True})
        assert model.log == ["start", "start_engine", "load"]
        assert await index(app) == [("m", "READY")]
        assert (await request(app, *PREDICT, json=[1])).json() == [1]


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_an_unknown_model_is_404_in_the_repository(verb: str) -> None:
    app = ModelServer(control=True)
    response = await (load if verb == "load" else unload)(app, "zz")
    assert response.status == 404
    assert response.json() == {"error": "Model with name zz does not exist."}


async def test_a_load_that_fails_over_http_leaves_what_was_serving() -> None:
    model = Noting()
    app = ModelServer([model], control=True)
    async with lifespan(app):
        await until_loaded(app)
        model.failing = "load"
        response = await load(app)
        assert response.status == 503
        assert response.json()["error"].startswith("Model with name m is not ready.")
        assert (await request(app, *PREDICT, json=[1])).json() == [1]


async def test_an_unload_waits_for_the_running_requests() -> None:
    running, release = anyio.Event(), anyio.Event()
    log: list[str] = []

    class Slow(Model):
        def start(self) -> None:
            pass

        async def predict(self, payload: Any) -> Any:
            running.set()
            await release.wait()
            log.append("answered")
            return payload

        def stop(self) -> None:
            log.append("stopped")

    app = ModelServer([Slow("m")], control=True)
    async with lifespan(app):
        await until_loaded(app)
        async with exchange(app, *PREDICT, json=[1]) as client:
            await running.wait()
            async with exchange(app, "POST", "/v2/repository/models/m/unload") as unloading:
                await anyio.wait_all_tasks_blocked()
                assert (await request(app, *PREDICT, json=[])).status == 404
                assert log == []
                release.set()
                assert (await client.response()).json() == [1]
                assert (await unloading.response()).status == 200
    assert log == ["answered", "stopped"]


async def test_a_client_that_leaves_does_not_stop_a_load() -> None:
    model = SlowLoading()
    model.ready = True
    app = ModelServer([model], control=True)
    async with exchange(app, "POST", "/v2/repository/models/m/load") as client:
        await model.began.wait()
        client.hang_up()
        await anyio.wait_all_tasks_blocked()
        assert model.log == ["load"]
        model.release.set()
        await client.ended()
    assert model.log == ["load"]
    assert await status(app) == 200


@pytest.mark.parametrize("first", ["background", "http"])
async def test_a_model_is_loaded_once_at_a_time(first: str) -> None:
    model = SlowLoading()
    model.ready = first == "http"
    app = ModelServer([model], control=True)
    async with anyio.create_task_group() as group:
        await status(app, "/")
        if first == "http":
            group.start_soon(load, app)
        await model.began.wait()
        group.start_soon(load, app)
        await anyio.wait_all_tasks_blocked()
        began = list(model.log)
        model.release.set()
    assert began == ["load"]


async def test_a_load_after_an_unload_is_another_one() -> None:
    model = SlowLoading()
    app = ModelServer([model], control=True)
    statuses: list[int] = []

    async def ask(function: Any) -> None:
        statuses.append((await function(app)).status)

    async with anyio.create_task_group() as group:
        for function in (load, load, unload, load, load):
            group.start_soon(ask, function)
            await anyio.wait_all_tasks_blocked()
        assert model.log == ["load"]
        model.release.set()
    assert statuses == [200] * 5
    assert model.log == ["load", "load"]
    assert await index(app) == [("m", "READY")]


async def test_all_who_wait_for_a_load_are_told_that_it_failed() -> None:
    model = SlowLoading(result=RuntimeError("no disk"))
    app = ModelServer([model], control=True)
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await load(app)).status)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        model.release.set()
    assert statuses == [503] * 3
    assert model.log == ["load"]


async def test_the_index_has_each_model_once() -> None:
    app = ModelServer([Model("m")], control=True)
    await unload(app)
    app.add_model(predict, "m")
    assert await index(app) == [("m", "READY")]


async def test_an_unload_does_not_wait_for_one_that_has_left_the_queue() -> None:
    release, running = anyio.Event(), anyio.Event()

    async def slow(payload: Any) -> Any:
        running.set()
        await release.wait()

    app = ModelServer([Model("m")], control=True, limits=Limits(concurrency=1))
    app.add_model(slow, "slow")
    async with exchange(app, "POST", "/v1/models/slow:predict", json=[]):
        await running.wait()
        async with exchange(app, *PREDICT, json=[]) as waiting:
            await anyio.wait_all_tasks_blocked()
            async with exchange(
                app, "POST", "/v2/repository/models/m/unload", timeout=10
            ) as taking:
                await anyio.wait_all_tasks_blocked()
                waiting.hang_up()
                try:
                    assert (await taking.response()).status == 200
                finally:
                    release.set()
