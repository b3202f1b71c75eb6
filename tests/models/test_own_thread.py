"""Models that have one thread, from `load` to `stop`."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.testing import Response, exchange, lifespan, request

pytestmark = pytest.mark.anyio

BODY = {"instances": [1]}


class Bound(Model):
    """It notes the thread of each hook."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: dict[str, int] = {}

    def note(self, hook: str) -> None:
        self.seen[hook] = threading.get_ident()

    def start(self) -> None:
        self.note("start")

    def load(self) -> None:
        self.note("load")

    def preprocess(self, payload: Any) -> Any:
        self.note("preprocess")
        return payload

    def predict(self, payload: Any) -> Any:
        self.note("predict")
        return {"predictions": payload["instances"]}

    def explain(self, payload: Any) -> Any:
        self.note("explain")
        try:
            yield {"n": 1}
            yield {"n": 2}
        finally:
            self.note("close")

    def postprocess(self, result: Any) -> Any:
        self.note("postprocess")
        return result

    def get_input_types(self) -> Any:
        self.note("metadata")
        return []

    def healthy(self) -> Any:
        self.note("healthy")
        return True

    def stop(self) -> None:
        self.note("stop")


class OneAtATime(Bound):
    limits = Limits(concurrency=1)


class OwnThread(Bound):
    own_thread = True


class Pooled(Bound):
    own_thread = False
    limits = Limits(concurrency=1)


async def loaded(app: ModelServer, name: str = "m") -> None:
    entry = app.serving.registry.get(name)
    assert entry.attempted is not None
    with anyio.fail_after(5):
        await entry.attempted.wait()


async def predict(app: ModelServer, name: str = "m") -> Response:
    return await request(app, "POST", f"/v1/models/{name}:predict", json=BODY)


async def use_all_hooks(app: ModelServer) -> None:
    assert (await predict(app)).status == 200
    response = await request(app, "POST", "/v1/models/m:explain", json=BODY)
    assert response.body == b'{"n":1}\n{"n":2}\n'
    assert (await request(app, "GET", "/v2/models/m")).status == 200
    assert (await request(app, "GET", "/v2/health/ready")).status == 200


@pytest.mark.parametrize("kind", [OneAtATime, OwnThread])
async def test_all_sync_hooks_but_healthy_run_in_one_thread(kind: type[Bound]) -> None:
    model = kind("m")
    app = ModelServer([model])
    async with lifespan(app):
        await loaded(app)
        await use_all_hooks(app)
    healthy = model.seen.pop("healthy")
    assert set(model.seen) == {
        *("start", "load", "preprocess", "predict", "explain", "close"),
        *("postprocess", "metadata", "stop"),
    }
    assert len(set(model.seen.values())) == 1
    assert healthy not in model.seen.values()
    assert threading.get_ident() not in model.seen.values()


class Slow(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started, self.release = threading.Event(), threading.Event()

    def predict(self, payload: Any) -> Any:
        self.started.set()
        assert self.release.wait(10)
        return {}


async def test_it_is_the_same_thread_beside_other_models() -> None:
    model, slow = OneAtATime("m"), Slow("slow")
    app = ModelServer([slow, model])
    async with lifespan(app), anyio.create_task_group() as group:
        await loaded(app)
        threads = {model.seen["load"]}
        group.start_soon(predict, app, "slow")
        for _ in range(6):
            await predict(app)
            threads.add(model.seen["predict"])
        slow.release.set()
        for _ in range(6):
            await predict(app)
            threads.add(model.seen["predict"])
    assert len(threads) == 1


async def test_a_model_that_needs_no_thread_of_its_own_uses_the_pool() -> None:
    """The thread that is idle takes the next call: a busy one shows that there are several."""
    model, slow = Pooled("m"), Slow("slow")
    app = ModelServer([model, slow], threads=1)
    async with lifespan(app), anyio.create_task_group() as group:
        await loaded(app)
        group.start_soon(predict, app, "slow")
        await anyio.to_thread.run_sync(slow.started.wait, 5)
        group.start_soon(predict, app)
        await anyio.wait_all_tasks_blocked()
        assert "predict" not in model.seen
        slow.release.set()


async def test_the_limit_of_the_application_gives_no_model_a_thread() -> None:
    app = ModelServer([Bound("m")], limits=Limits(concurrency=1))
    entry = app.serving.registry.get("m")
    assert entry.workers is app.serving.workers


async def test_an_object_may_have_a_thread_too() -> None:
    class Plain:
        own_thread = True

        def load(self) -> None:
            self.thread = threading.get_ident()

        def predict(self, payload: Any) -> Any:
            return {"same": self.thread == threading.get_ident()}

    app = ModelServer()
    app.add_model(Plain(), "m")
    other = Slow("slow")
    app.add_model(other)
    async with lifespan(app):
        await loaded(app)
        async with exchange(app, "POST", "/v1/models/slow:predict", json=BODY):
            assert [(await predict(app)).json() for _ in range(3)] == [{"same": True}] * 3
            other.release.set()


def reading(payload: Any) -> Any:
    return payload


async def reading_on_loop(payload: Any) -> Any:
    return payload


async def wrapping(payload: Any) -> AsyncIterator[Any]:
    async for item in payload:
        yield item


def replacing(payload: Any) -> Any:
    return iter([{"n": n} for n in range(200)])


async def replacing_on_loop(payload: Any) -> Any:
    return replacing(payload)


def items(payload: Any) -> Iterator[Any]:
    for number in range(200):
        yield {"n": number}


@pytest.mark.parametrize(
    "postprocess", [reading, reading_on_loop, wrapping, replacing, replacing_on_loop]
)
async def test_a_hook_after_a_stream_does_not_wait_for_the_end_of_it(
    postprocess: Callable[[Any], Any],
) -> None:
    """The stream has the thread, and waits for that hook to read it."""
    model = Model("m")
    vars(model).update(predict=items, postprocess=postprocess, own_thread=True)
    with anyio.fail_after(5):
        response = await predict(ModelServer([model]))
    assert response.body == b"".join(b'{"n":%d}\n' % number for number in range(200))


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_client_that_leaves_frees_the_thread(concurrency: int) -> None:
    closed: list[int] = []

    class Endless(Model):
        own_thread = True
        limits = Limits(concurrency=concurrency)

        def predict(self, payload: Any) -> Iterator[Any]:
            try:
                while True:
                    yield {"thread": threading.get_ident()}
            finally:
                closed.append(threading.get_ident())

    app = ModelServer([Endless("m")])
    with anyio.fail_after(10):
        for _ in range(3):
            async with exchange(app, "POST", "/v1/models/m:predict", json=BODY) as client:
                assert (await client.head()).status == 200
                assert await client.chunk()
                client.hang_up()
                await client.ended()
    assert len(closed) == 3
    assert len(set(closed)) == 1


async def test_a_model_that_was_unloaded_and_loaded_again_has_one_thread() -> None:
    model = OwnThread("m")
    app = ModelServer([model])
    async with lifespan(app):
        await loaded(app)
        await app.serving.loading.unload("m")
        assert model.seen["stop"] == model.seen["load"]
        await app.serving.loading.load("m")
        assert (await predict(app)).status == 200
        assert model.seen["predict"] == model.seen["load"] == model.seen["start"]
