"""The application: its lifespan, mounted or not, its one load, and what an event loop leaves."""

import contextlib
import pickle
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from modelserve import Limits, Model, ModelServer
from modelserve.errors import ResponseCut
from modelserve.testing import Cut, Exchange, _scope, _start, exchange, lifespan, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
NDJSON = {"accept": "application/x-ndjson"}


async def echo(payload: Any) -> Any:
    return payload


class Loaded(Model):
    """A model that must be loaded; a test lets its load go on."""

    def __init__(self, name: str = "m") -> None:
        super().__init__(name)
        self.loads = 0
        self.began = anyio.Event()
        self.release = anyio.Event()
        self.log: list[str] = []

    async def load(self) -> bool:
        self.loads += 1
        self.began.set()
        await self.release.wait()
        self.log.append("loaded")
        return True

    async def predict(self, payload: Any) -> Any:
        return payload

    async def stop(self) -> None:
        self.log.append("stopped")


class Spoken:
    """An application's other side of the lifespan protocol."""

    def __init__(self, *incoming: str) -> None:
        self.incoming = [{"type": f"lifespan.{kind}"} for kind in incoming]
        self.sent: list[Any] = []
        self.failing = ""

    async def receive(self) -> Any:
        if not self.incoming:
            await anyio.sleep_forever()
        return self.incoming.pop(0)

    async def send(self, message: Any) -> None:
        if message["type"] == self.failing:
            raise OSError("closed")
        self.sent.append(message)

    @property
    def kinds(self) -> list[str]:
        return [message["type"] for message in self.sent]


# --- scopes -------------------------------------------------------------------------------------


async def test_the_lifespan_speaks_the_protocol() -> None:
    spoken = Spoken("startup", "shutdown")
    await ModelServer()({"type": "lifespan"}, spoken.receive, spoken.send)
    assert spoken.kinds == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_startup_is_complete_before_the_models_are_loaded() -> None:
    model = Loaded()
    async with lifespan(ModelServer([model])):
        await model.began.wait()
        assert not model.ready
        model.release.set()


async def test_a_lifespan_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = Spoken("startup", "shutdown")
    spoken.failing = "lifespan.startup.complete"
    with pytest.raises(OSError, match="closed"):
        await ModelServer()({"type": "lifespan"}, spoken.receive, spoken.send)
    assert spoken.kinds == ["lifespan.startup.failed"]


async def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await ModelServer()({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_an_unknown_scope_is_an_error() -> None:
    spoken = Spoken()
    with pytest.raises(RuntimeError, match="does not know the scope type 'mqtt'"):
        await ModelServer()({"type": "mqtt"}, spoken.receive, spoken.send)


# --- registering --------------------------------------------------------------------------------


async def test_functions_and_classes_are_registered_by_decorator() -> None:
    app = ModelServer()

    @app.model("double")
    def double(payload: Any) -> Any:
        return [2 * x for x in payload]

    @app.model("words")
    async def words(payload: Any) -> AsyncIterator[Any]:
        for word in payload:
            yield {"word": word}

    @app.model("kept")
    class Kept(Model):
        async def predict(self, payload: Any) -> Any:
            return self.name

    @app.model("plain")
    class Plain:
        def predict(self, payload: Any) -> Any:
            return "plain"

    assert double([1]) == [2]
    assert isinstance(Kept("x"), Model)
    assert isinstance(Plain(), Plain)
    answers = {
        name: (await request(app, "POST", f"/v1/models/{name}:predict", json=[1, 2])).body
        for name in ("double", "words", "kept", "plain")
    }
    assert answers == {
        "double": b"[2,4]",
        "words": b'{"word":1}\n{"word":2}\n',
        "kept": b"kept",
        "plain": b"plain",
    }


def test_an_application_is_made_without_an_event_loop() -> None:
    app = ModelServer([Model("m"), Loaded("n")], limits=Limits(concurrency=1))
    assert app.serving.registry.names == ["m", "n"]


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"limits": Limits(), "threads": -1}, {"models": [5]}]
)
def test_an_application_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        ModelServer(**options)


async def test_the_number_of_threads_is_the_applications() -> None:
    started: list[int] = []
    release = threading.Event()

    def predict(payload: Any) -> Any:
        started.append(payload)
        assert release.wait(10)

    app = ModelServer(threads=2)
    app.add_model(predict, "m")
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(ask, app, [number])
        await until(lambda: len(started) == 2)
        await anyio.sleep(0.02)
        assert len(started) == 2
        release.set()
    assert sorted(started) == [[0], [1], [2], [3]]


async def ask(app: Any, payload: Any = (), path: str = PREDICT[1]) -> int:
    return (await request(app, "POST", path, json=payload)).status


async def until(condition: Any) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a thread or a task says so
            await anyio.sleep(0.001)


@pytest.mark.parametrize("path", ["/metrics", "/", "/v2/health/ready"])
async def test_busy_threads_do_not_hold_up_what_runs_no_model(path: str) -> None:
    started, release = threading.Event(), threading.Event()

    def predict(payload: Any) -> Any:
        started.set()
        assert release.wait(10)

    app = ModelServer(threads=1)
    app.add_model(predict, "m")
    async with exchange(app, *PREDICT, json=[]):
        await until(started.is_set)
        try:
            assert (await request(app, "GET", path, timeout=10)).status == 200
        finally:
            release.set()


# --- the one load, without a lifespan -----------------------------------------------------------


async def test_the_first_request_loads_and_waits() -> None:
    model = Loaded()
    model.release.set()
    assert (await request(ModelServer([model]), *PREDICT, json=[1])).json() == [1]


async def test_the_model_is_loaded_once_for_all_who_wait() -> None:
    model = Loaded()
    app = ModelServer([model])
    statuses: list[int] = []

    async def one() -> None:
        statuses.append(await ask(app))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        model.release.set()
    assert statuses == [200] * 5
    assert model.loads == 1


@pytest.mark.parametrize("path", ["/", "/v2/health/ready", "/v1/models/m", "/v2/health/live"])
async def test_any_request_starts_the_load_and_does_not_wait(path: str) -> None:
    model = Loaded()
    app = ModelServer([model])
    expected = 503 if path in ("/v2/health/ready", "/v1/models/m") else 200
    assert (await request(app, "GET", path)).status == expected
    with anyio.fail_after(5):
        await model.began.wait()
    model.release.set()
    await until(lambda: model.ready)
    assert (await request(app, "GET", path)).status == 200
    assert model.loads == 1


async def test_a_client_that_leaves_does_not_cancel_the_load() -> None:
    model = Loaded()
    app = ModelServer([model])
    async with exchange(app, *PREDICT, json=[]) as client:
        await model.began.wait()
        client.hang_up()
        await anyio.wait_all_tasks_blocked()
        model.release.set()
        await client.ended()
    await until(lambda: model.ready)
    assert (await request(app, *PREDICT, json=[1])).json() == [1]
    assert model.loads == 1


async def test_a_deadline_during_the_load_is_no_slow_body() -> None:
    model = Loaded()
    app = ModelServer([model])
    assert (await request(app, "GET", "/")).status == 200
    await model.began.wait()
    headers = {"x-request-timeout-seconds": "0.05"}
    response = await request(app, *PREDICT, json=[], headers=headers)
    model.release.set()
    assert response.status == 504


async def test_a_load_that_failed_answers_those_who_wait() -> None:
    class Failing(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        async def load(self) -> bool:
            raise RuntimeError("no disk")

    response = await request(ModelServer([Failing("m")]), *PREDICT, json=[])
    assert response.status == 503
    assert response.json() == {"error": "Model with name m is not ready. It failed to load."}


# --- mounted ------------------------------------------------------------------------------------


def in_starlette(app: ModelServer) -> Any:
    return Starlette(routes=[Mount("/ml", app=app)])


def in_fastapi(app: ModelServer) -> Any:
    host = FastAPI()
    host.mount("/ml", app)
    return host


def in_fastapi_behind_a_proxy(app: ModelServer) -> Any:
    """The proxy takes its prefix off, and the host tells of it in `root_path` alone."""
    host = in_fastapi(app)

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        await host({**scope, "root_path": "/proxy"}, receive, send)

    return proxied


def in_nested_mounts(app: ModelServer) -> Any:
    return Starlette(routes=[Mount("/ml", routes=[Mount("/", app=app)])])


def under_base_http_middleware(app: ModelServer) -> Any:
    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    return Starlette(routes=[Mount("/ml", app=app)], middleware=[Middleware(Passing)])


HOSTS = [
    in_starlette,
    in_fastapi,
    in_fastapi_behind_a_proxy,
    in_nested_mounts,
    under_base_http_middleware,
]


def served() -> ModelServer:
    app = ModelServer()
    app.add_model(echo, "m")

    @app.model("words")
    async def words(payload: Any) -> AsyncIterator[Any]:
        for word in payload:
            yield {"word": word}

    return app


@pytest.mark.parametrize("host", HOSTS)
async def test_a_mounted_application_answers(host: Any) -> None:
    app = host(served())
    assert (await request(app, "POST", "/ml/v1/models/m:predict", json=[1])).json() == [1]
    assert (await request(app, "POST", "/ml/v1/models/m%3Apredict", json=[1])).json() == [1]
    assert (await request(app, "GET", "/ml/v1/models")).json() == {"models": ["m", "words"]}
    assert (await request(app, "GET", "/ml/v2/health/ready")).status == 200
    assert (await request(app, "GET", "/ml/nowhere")).json() == {"error": "Not Found"}
    response = await request(app, "POST", "/ml/v1/models/words:predict", json=["a", "b"])
    assert response.body == b'{"word":"a"}\n{"word":"b"}\n'


@pytest.mark.parametrize("host", HOSTS)
async def test_a_mounted_stream_is_cancelled_with_its_client(host: Any) -> None:
    cleaned: list[bool] = []
    started = anyio.Event()
    app = ModelServer()

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            started.set()
            await anyio.sleep(60)
        finally:
            await anyio.sleep(0.001)
            cleaned.append(True)

    async with exchange(host(app), "POST", "/ml/v1/models/m:predict", json=[]) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b'{"n":1}\n'
        await started.wait()
        client.hang_up()
        await client.ended()
    assert cleaned == [True]


async def test_a_compressing_host_passes_each_item_on() -> None:
    host = Starlette(routes=[Mount("/ml", app=served())], middleware=[Middleware(GZipMiddleware)])
    headers = {"accept-encoding": "gzip"}
    path = "/ml/v1/models/words:predict"
    response = await request(host, "POST", path, json=["a", "b"], headers=headers)
    assert response.headers["content-encoding"] == "gzip"
    assert len([chunk for chunk in response.chunks if chunk]) >= 2


@pytest.mark.parametrize("host", [in_starlette, in_fastapi])
async def test_a_host_without_our_lifespan_loads_at_the_first_request(host: Any) -> None:
    model = Loaded()
    model.release.set()
    app = host(ModelServer([model]))
    async with lifespan(app):
        assert (await request(app, "POST", "/ml/v1/models/m:predict", json=[1])).json() == [1]
    assert model.log == ["loaded"]  # nobody says when to stop


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_a_host_may_run_our_lifespan(kind: Any) -> None:
    model = Loaded()
    server = ModelServer([model])
    host = kind(lifespan=server.lifespan)
    host.mount("/ml", server)
    async with lifespan(host):
        with anyio.fail_after(5):
            await model.began.wait()
        assert (await request(host, "GET", "/ml/v2/health/ready")).status == 503
        model.release.set()
        await until(lambda: model.ready)
        assert (await request(host, "POST", "/ml/v1/models/m:predict", json=[1])).json() == [1]
    assert model.log == ["loaded", "stopped"]


async def test_the_lifespan_may_be_run_by_hand() -> None:
    model = Loaded()
    model.release.set()
    app = ModelServer([model])
    async with app.lifespan():
        await until(lambda: model.ready)
        assert await ask(app) == 200
    assert model.log == ["loaded", "stopped"]
    assert await ask(app) == 503  # it is shut down


async def test_an_error_inside_the_lifespan_still_stops_the_models() -> None:
    model = Loaded()
    model.release.set()
    with pytest.raises(ValueError, match="in the host"):
        async with ModelServer([model]).lifespan():
            await until(lambda: model.ready)
            raise ValueError("in the host")
    assert model.log == ["loaded", "stopped"]


async def test_a_lifespan_that_is_cancelled_still_stops_the_models() -> None:
    model = Loaded()
    model.release.set()
    app = ModelServer([model])

    async def run() -> None:
        async with app.lifespan():
            await until(lambda: model.ready)
            group.cancel_scope.cancel()
            await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
    assert model.log == ["loaded", "stopped"]


# --- shutting down ------------------------------------------------------------------------------


async def test_a_shutdown_waits_for_a_stream_and_lets_it_end_whole() -> None:
    release, running = anyio.Event(), anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        running.set()
        await release.wait()
        yield {"n": 2}

    app = ModelServer()
    app.add_model(predict, "m")
    async with contextlib.AsyncExitStack() as stack:
        client: Exchange
        async with anyio.create_task_group() as group, lifespan(app):
            client = await stack.enter_async_context(exchange(app, *PREDICT, json=[]))
            await running.wait()
            group.start_soon(release_when_draining, app, release)
        response = await client.response()
    assert response.chunks == [b'{"n":1}\n', b'{"n":2}\n']


async def release_when_draining(app: ModelServer, release: anyio.Event) -> None:
    await until(lambda: app.serving.draining)
    response = await request(app, *PREDICT, json=[])
    assert response.status == 503
    assert response.headers["retry-after"]
    assert response.headers["connection"] == "close"
    release.set()


async def test_what_outlives_the_drain_is_answered_and_cancelled() -> None:
    cleaned: list[bool] = []
    running = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            running.set()
            await anyio.sleep(60)
        finally:
            await anyio.sleep(0.001)
            cleaned.append(True)

    app = ModelServer(limits=Limits(drain_timeout=0.05))
    app.add_model(predict, "m")
    async with contextlib.AsyncExitStack() as stack:
        async with lifespan(app):
            client = await stack.enter_async_context(exchange(app, *PREDICT, json=[]))
            await running.wait()
        assert cleaned == [True]
        response = await client.response()
    assert response.chunks[-1] == b'{"error":"server shutting down"}\n'


async def test_a_drain_waits_for_the_final_message() -> None:
    running = anyio.Event()

    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {"n": 1}
        running.set()
        await anyio.sleep(60)

    app = ModelServer(limits=Limits(drain_timeout=0))
    app.add_model(predict, "m")
    ended = anyio.Event()

    async def live() -> None:
        async with lifespan(app):
            await running.wait()
            client.hold()
        ended.set()

    async with exchange(app, *PREDICT, json=[]) as client, anyio.create_task_group() as group:
        group.start_soon(live)
        await until(lambda: app.serving.draining)
        await anyio.wait_all_tasks_blocked()
        was_over = ended.is_set()
        client.resume()
        await client.ended()
    assert not was_over


@pytest.mark.slow
async def test_a_thread_that_hangs_does_not_keep_the_lifespan_from_ending(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started, release = threading.Event(), threading.Event()

    def predict(payload: Any) -> Any:
        started.set()
        assert release.wait(20)

    app = ModelServer(limits=Limits(drain_timeout=0))
    app.add_model(predict, "m")
    async with exchange(app, *PREDICT, json=[]) as client:
        with anyio.fail_after(8):
            async with lifespan(app):
                await until(started.is_set)
        assert "1 requests have not ended; busy threads: m" in caplog.text
        assert not client.over
        release.set()


async def test_a_second_life_has_the_whole_time_for_clean_up() -> None:
    running = anyio.Event()
    app = ModelServer(limits=Limits(drain_timeout=0))

    @app.model("m")
    async def predict(payload: Any) -> Any:
        running.set()
        await anyio.sleep(60)

    async with contextlib.AsyncExitStack() as stack, lifespan(app):
        await stack.enter_async_context(exchange(app, *PREDICT, json=[]))
        await running.wait()
    async with lifespan(app):
        assert app.serving.flights.cleanup_bound(5.0) == 5.0


# --- copies and event loops ---------------------------------------------------------------------


class Pickled(Model):
    """At the top of a module, so that it can be pickled."""

    limits = Limits(concurrency=2)

    def load(self) -> bool:
        return True

    def predict(self, payload: Any) -> Any:
        return payload

    def explain(self, payload: Any, headers: Any = None) -> Iterator[Any]:
        yield {"agent": headers.get("user-agent")}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_an_application_can_be_pickled(used: bool, anyio_backend: str) -> None:
    app = ModelServer([Pickled("m")], limits=Limits(timeout=9), prefix="/ml", debug=True)
    app.add_model(echo, "f")

    async def use(server: ModelServer) -> bytes:
        async with lifespan(server):
            await until(lambda: not server.serving.statistics().loading)
            assert (await request(server, "POST", "/v1/models/f:predict", json=[1])).json() == [1]
            response = await request(server, "POST", "/v1/models/m:explain", json=[])
            return response.body

    if used:
        anyio.run(use, app, backend=anyio_backend)
    copy = pickle.loads(pickle.dumps(app))
    assert anyio.run(use, copy, backend=anyio_backend) == b'{"agent":null}\n'
    assert copy.serving.limits.timeout == 9
    assert copy.serving.statistics().models["m"].running == 0


class Branded(ModelServer):
    """A subclass with an argument of its own."""

    def __init__(self, brand: str, **options: Any) -> None:
        super().__init__(**options)
        self.brand = brand


def test_a_subclass_is_pickled_with_its_attributes() -> None:
    copy = pickle.loads(pickle.dumps(Branded("acme", models=[Pickled("m")], token="t")))
    assert type(copy) is Branded
    assert copy.brand == "acme"
    assert copy.serving.token == "t"
    assert list(copy.serving.statistics().models) == ["m"]


@pytest.mark.parametrize("with_lifespan", [True, False])
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_an_application_serves_one_event_loop_after_another(
    with_lifespan: bool, anyio_backend: str
) -> None:
    def sync(payload: Any) -> Iterator[Any]:
        yield from payload

    app = ModelServer(limits=Limits(concurrency=1))
    app.add_model(echo, "m")
    app.add_model(sync, "sync")

    async def use() -> None:
        async with lifespan(app) if with_lifespan else contextlib.nullcontext():
            statuses: list[int] = []

            async def one(name: str) -> None:
                statuses.append(await ask(app, [1], f"/v1/models/{name}:predict"))

            with anyio.fail_after(5):
                async with anyio.create_task_group() as group:
                    for name in ("m", "sync") * 4:
                        group.start_soon(one, name)
            assert statuses == [200] * 8

    for _ in range(3):
        anyio.run(use, backend=anyio_backend)
    statistics = app.serving.statistics()
    assert (statistics.in_flight, statistics.running) == (0, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_an_event_loop_that_ends_under_a_stream_leaves_nothing(anyio_backend: str) -> None:
    cleaned: list[bool] = []
    app = ModelServer(limits=Limits(concurrency=1))

    @app.model("m")
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            await anyio.sleep(60)
        finally:
            cleaned.append(True)

    async def start() -> None:
        client = Exchange(app, _scope(*PREDICT, {}), timeout=5)
        client.send_body(b"[]")
        _start(client)
        await client.head()  # and the loop ends with the request still running

    for _ in range(2):
        anyio.run(start, backend=anyio_backend)
    assert cleaned == [True, True]
    statistics = app.serving.statistics()
    assert (statistics.in_flight, statistics.running) == (0, 0)


# --- all of it at once --------------------------------------------------------------------------


class Crowd:
    """Handlers of every kind, and clients who read, leave, stop reading or ask for little time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.begun: list[bool] = []
        self.ended: list[bool] = []
        self.errors: list[BaseException] = []

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.begun.append(True)
        try:
            yield
        finally:
            self.ended.append(True)

    async def async_items(self, payload: Any) -> AsyncIterator[Any]:
        with self.counted():
            for seconds in payload["steps"]:
                yield {"n": seconds}
                await (anyio.sleep(seconds) if seconds else anyio.lowlevel.checkpoint())
            if payload["fails"]:
                raise ValueError

    async def async_value(self, payload: Any) -> Any:
        with self.counted():
            for seconds in payload["steps"]:
                with anyio.move_on_after(seconds / 2):
                    await anyio.sleep(seconds)
            return payload

    def sync_items(self, payload: Any) -> Iterator[Any]:
        with self.counted():
            for seconds in payload["steps"]:
                time.sleep(seconds / 4)
                yield from [{"n": seconds}] * 30
            if payload["fails"]:
                raise ValueError

    def sync_value(self, payload: Any) -> Any:
        with self.counted():
            time.sleep(sum(payload["steps"]) / 8)
            return payload

    async def first_few(self, result: Any) -> AsyncIterator[Any]:
        with self.counted():
            for _ in range(2):
                yield await anext(result, None)

    def served(self) -> ModelServer:
        app = ModelServer(limits=Limits(concurrency=9, queue=200), threads=3)
        for name in ("async_items", "async_value", "sync_items", "sync_value"):
            app.add_model(getattr(self, name), name)
        for name in ("async_items", "sync_items"):
            model = Model(f"few_{name}")
            model.heartbeat = 0.005
            model.limits = Limits(concurrency=2)
            vars(model).update(predict=getattr(self, name), postprocess=self.first_few)
            app.add_model(model)
        return app

    async def one(self, app: ModelServer) -> None:
        choice, some = self.random.choice, self.random.random
        payload = {
            "steps": [choice((0, some() * 0.01)) for _ in range(choice(range(6)))],
            "fails": some() < 0.2,
        }
        headers = {"accept": choice(("*/*", "text/event-stream", "application/json"))}
        if some() < 0.3:
            headers["x-request-timeout-seconds"] = f"{some() * 0.1 + 0.001:.4f}"
        path = f"/v1/models/{choice(app.serving.registry.names)}:predict"
        await anyio.sleep(some() * 0.1)
        async with exchange(app, "POST", path, json=payload, headers=headers) as client:
            with contextlib.suppress(Cut):
                await self.behave(client, choice(("read", "read", "leave", "hold")))
            await client.ended()
        if client.error is not None and not isinstance(client.error, ResponseCut):
            self.errors.append(client.error)

    async def behave(self, client: Exchange, how: str) -> None:
        if how == "hold":
            client.hold()
        if how != "read":
            await anyio.sleep(self.random.random() * 0.03)
            client.hang_up() if how == "leave" else client.resume()
        await client.response()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_clients_do_nothing_is_left(seed: int) -> None:
    crowd = Crowd(seed)
    app = crowd.served()
    async with anyio.create_task_group() as group:
        for _ in range(80):
            group.start_soon(crowd.one, app)
    statistics = app.serving.statistics()
    assert crowd.errors == []
    assert len(crowd.begun) == len(crowd.ended) > 40
    assert (statistics.in_flight, statistics.busy_threads) == (0, ())
    queues = [statistics, *statistics.models.values()]
    assert [(queue.running, queue.waiting) for queue in queues] == [(0, 0)] * len(queues)


# --- settings of a model, given where it is registered --------------------------------------------


@pytest.mark.anyio
async def test_a_function_is_given_what_a_class_may_set() -> None:
    app = ModelServer()

    @app.model("m", limits=Limits(max_body_bytes=4), versions=["1"], heartbeat=2.0)
    def predict(payload: Any) -> Any:
        return payload

    app.add_model(predict, "n", limits=Limits(max_body_bytes=8))
    sizes = [(name, [1, 2, 3]) for name in ("m", "n")]
    answers = [
        await request(app, "POST", f"/v1/models/{name}:predict", json=body) for name, body in sizes
    ]
    assert [answer.status for answer in answers] == [413, 200]
    assert (await request(app, "GET", "/v2/models/m/versions/1")).status == 200
    assert app.serving.registry.get("m").streaming.heartbeat == 2.0


def test_a_class_is_given_settings_for_this_application_alone() -> None:
    class Served(Model):
        def predict(self, payload: Any) -> Any:
            return payload

    app = ModelServer()
    app.model("m", own_thread=True)(Served)
    assert app.serving.registry.get("m").model.own_thread
    assert Served.own_thread is None


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"models": Model("m")}, TypeError, "are a list of models, not <.*Model object"),
        ({"limits": 5}, TypeError, "The limits of a ModelServer must be Limits: 5"),
        ({"threads": "4"}, ValueError, "The number of threads must be at least 1, not '4'"),
        ({"threads": 0}, ValueError, "The number of threads must be at least 1, not 0"),
        ({"prefix": "ml"}, ValueError, "The prefix 'ml' must begin with '/'"),
        ({"repository": "models"}, TypeError, "must be a ModelRepository, as of 'models'"),
        ({"origins": "https://a.org"}, TypeError, "must be a list of them, not 'https://a.org'"),
        ({"origins": ["a.org"]}, ValueError, "'a.org' is not an origin, like https://example"),
        ({"aliases": ["/p"]}, TypeError, r"The aliases must be a dict of paths, not \['/p'\]"),
        ({"observers": print}, TypeError, "The observers must be a list of functions, not <"),
    ],
)
def test_an_argument_of_another_kind_is_refused(
    arguments: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        ModelServer(**arguments)


@pytest.mark.parametrize("models", [list, iter])
def test_two_models_of_one_name_in_one_list_are_refused(models: Any) -> None:
    class Answers(Model):
        def predict(self, payload: Any) -> Any:
            return payload

    first, second, other = Answers("m"), Answers("m"), Answers("n")
    with pytest.raises(ValueError, match=r"^2 models of one ModelServer have the name 'm'$"):
        ModelServer(models([first, other, second]))
    app = ModelServer(models([first, other]))
    app.add_model(second)  # replaces, as it says
    assert app.serving.registry.get("m").model is second


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"limit": Limits()}, "A model has no setting 'limit': there are"),
        ({"name": "n"}, "A model has no setting 'name'|multiple values"),
        ({"limits": {"queue": 1}}, "The limits of model 'm' must be Limits: {'queue': 1}"),
        ({"versions": "10"}, "The versions of model 'm' must be a list: '10'"),
        ({"heartbeat": "15"}, "The heartbeat of model 'm' must be seconds above 0: '15'"),
        ({"heartbeat": 0}, "The heartbeat of model 'm' must be seconds above 0: 0"),
    ],
)
def test_what_no_model_has_is_refused(settings: dict[str, Any], sentence: str) -> None:
    app = ModelServer()
    with pytest.raises(TypeError, match=sentence):
        app.model("m", **settings)(lambda payload: payload)
    assert app.serving.registry.names == []
