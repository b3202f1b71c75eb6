"""Calls of models that have one thread each: those that wait for it, and those that never could."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from modelserve import Batching, Limits, Model, ModelServer
from modelserve.concurrency.threads import Workers
from modelserve.testing import Exchange, Response, exchange, request

pytestmark = pytest.mark.anyio

DEADLOCK = "The call would deadlock: its model's only thread waits for it."


async def ask(app: ModelServer, name: str, payload: Any = None) -> Response:
    with anyio.fail_after(30):
        return await request(app, "POST", f"/v1/models/{name}:predict", json=payload)


def asking(app: ModelServer) -> tuple[Callable[..., Awaitable[None]], list[Response]]:
    """Return a function for a task group, that asks a model, and the list of the answers."""
    answers: list[Response] = []

    async def one(name: str, payload: Any) -> None:
        answers.append(await ask(app, name, payload))

    return one, answers


async def leave_waiting(client: Exchange, workers: Workers) -> None:
    """Leave once the request waits for the thread."""
    await until(lambda: workers.has_waiting)
    client.hang_up()
    await client.ended()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that a thread does and the event loop cannot see."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - no event of the loop's is set by a thread
            await anyio.sleep(0.001)


async def ask_all(app: ModelServer, asked: list[tuple[str, Any]]) -> list[Response]:
    """Ask at the same time."""
    one, answers = asking(app)
    async with anyio.create_task_group() as group:
        for name, payload in asked:
            group.start_soon(one, name, payload)
    return answers


def check(
    app: ModelServer, answers: list[Response], *, refused: int = 1, error: str = DEADLOCK
) -> None:
    """Check that so many were refused and the others answered, and that nothing is held."""
    errors = [answer.json()["error"] for answer in answers if answer.status != 200]
    assert errors == [error] * refused
    statistics = app.serving.statistics()
    assert (statistics.running, statistics.in_flight) == (0, 0)
    assert not any(one.running or one.waiting for one in statistics.models.values())
    assert not any(e.workers.running or e.workers.has_waiting for e in app.serving.registry)


def in_a_circle(*names: str, **settings: Any) -> ModelServer:
    """Models each of which calls the next, once the hooks of all are running."""
    app, all_run = ModelServer(), threading.Barrier(len(names))

    def register(name: str, other: str) -> None:
        def predict(payload: Any) -> Any:
            if payload != "first":
                return payload
            all_run.wait(20)
            return app.call(other, "second").result()

        app.add_model(predict, name, own_thread=True, **settings)

    for name, other in zip(names, (*names[1:], names[0]), strict=True):
        register(name, other)
    return app


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_models_that_call_each_other_in_a_circle_are_not_left_so(names: str) -> None:
    app = in_a_circle(*names)
    for _ in range(2):
        check(app, await ask_all(app, [(name, "first") for name in names]))
    check(app, [await ask(app, name, "alone") for name in names], refused=0)


async def test_a_circle_of_threads_with_full_queues_is_noticed() -> None:
    """Neither call has a slot; those that have the other ones wait for the threads."""
    app = in_a_circle("a", "b", limits=Limits(concurrency=2))
    gates = [app.serving.registry.get(name).gate for name in "ab"]
    go_on = threading.Event()

    def hold(payload: Any) -> Any:
        go_on.wait(20)

    one, answers = asking(app)
    async with anyio.create_task_group() as group:
        for name in "ab":  # before the hooks, so that they find the slots taken
            workers = app.serving.registry.get(name).workers
            group.start_soon(workers.call, "hold", hold, None)
        for payload in ("first", "other"):
            for name in "ab":
                group.start_soon(one, name, payload)
                await anyio.wait_all_tasks_blocked()
        assert [gate.running for gate in gates] == [2, 2]
        go_on.set()
    check(app, answers, error="The call would deadlock: its callers hold all slots.")


async def test_a_circle_of_a_slot_and_a_thread_is_noticed() -> None:
    app, both = ModelServer(), threading.Barrier(2)

    def threaded(payload: Any) -> Any:
        if payload != "first":
            return payload
        both.wait(20)
        return app.call("slot", "second").result()

    async def on_loop(payload: Any) -> Any:
        if payload != "first":
            return payload
        await anyio.to_thread.run_sync(both.wait, 20)
        return await app.call("thread", "second")

    app.add_model(threaded, "thread", own_thread=True)
    app.add_model(on_loop, "slot", limits=Limits(concurrency=1))
    answers = await ask_all(app, [("thread", "first"), ("slot", "first")])
    assert sorted(answer.status for answer in answers) == [200, 503]
    assert app.serving.statistics().running == 0


@pytest.mark.parametrize("waiting", ["caller", "threaded"])
async def test_what_waits_for_the_thread_keeps_its_slot(waiting: str) -> None:
    """A call, or a client's request. A third one waits for that slot, the thread for the third."""
    app, go_on, waits = ModelServer(), threading.Event(), anyio.Event()

    class Threaded(Model):
        own_thread = True
        limits = Limits(concurrency=2)

        def predict(self, payload: Any) -> Any:
            if payload == "first":
                assert go_on.wait(20)
                return app.call("slot", "second").result()
            return payload

        async def explain(self, payload: Any) -> Any:
            return payload

    async def slot(payload: Any) -> Any:
        if payload == "first":
            await waits.wait()
            return await app.call("threaded", "second", verb="explain")
        return payload

    async def caller(payload: Any) -> Any:
        return await app.call("threaded", "second")

    app.add_model(Threaded("threaded"))
    app.add_model(slot, "slot", limits=Limits(concurrency=1))
    app.add_model(caller, "caller")
    workers = app.serving.registry.get("threaded").workers
    one, answers = asking(app)
    async with anyio.create_task_group() as group:
        for name in ("threaded", "slot"):
            group.start_soon(one, name, "first")
            await until(lambda name=name: app.serving.statistics().models[name].running)
        group.start_soon(one, waiting, "other")
        await until(lambda: workers.has_waiting)
        go_on.set()
        waits.set()
    assert sorted(answer.status for answer in answers) == [200, 200, 503]
    assert app.serving.statistics().running == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_a_circle_of_models_that_also_run_on_the_event_loop_is_noticed(
    streams: bool,
) -> None:
    app, both = ModelServer(), threading.Barrier(2)

    class Mixed(Model):
        own_thread = True

        async def preprocess(self, payload: Any) -> Any:
            return payload

        def predict(self, payload: Any) -> Any:
            if payload != "first":
                return payload
            both.wait(20)
            call = app.call("b" if self.name == "a" else "a", "second")
            return iter(call) if streams else call.result()

    for name in "ab":
        app.add_model(Mixed(name))
    check(app, await ask_all(app, [("a", "first"), ("b", "first")]))


class Busy(Model):
    """Its thread is busy until it is released."""

    own_thread = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.began, self.release = threading.Event(), threading.Event()

    def predict(self, payload: Any) -> Any:
        if payload == "hold":
            self.began.set()
            assert self.release.wait(20)
        return payload


def calling(app: ModelServer, **settings: Any) -> None:
    """Register models of each kind that call the busy one."""

    async def on_loop(payload: Any) -> Any:
        return await app.call("busy", payload)

    def in_thread(payload: Any) -> Any:
        return app.call("busy", payload).result()

    app.add_model(on_loop, "async", **settings)
    app.add_model(in_thread, "sync", **settings)
    app.add_model(in_thread, "own", own_thread=True, **settings)


async def test_calls_wait_for_a_busy_thread() -> None:
    model = Busy("busy")
    app = ModelServer([model])
    calling(app)
    one, answers = asking(app)
    async with anyio.create_task_group() as group:
        group.start_soon(one, "own", "hold")
        await until(model.began.is_set)
        for name in ("async", "sync", "own", "busy"):
            group.start_soon(one, name, name)
        await until(lambda: app.serving.statistics().models["busy"].running == 4)
        assert answers == []
        model.release.set()
    check(app, answers, refused=0)
    assert len(answers) == 5


@pytest.mark.parametrize("kind", ["async", "sync", "own"])
@pytest.mark.parametrize("end", ["client", "deadline"])
async def test_a_call_that_waits_for_a_thread_ends_with_its_request(kind: str, end: str) -> None:
    model = Busy("busy")
    app = ModelServer([model])
    calling(app, limits=Limits(timeout=0.05 if end == "deadline" else None))
    workers = app.serving.registry.get("busy").workers
    one, held = asking(app)
    async with anyio.create_task_group() as group:
        group.start_soon(one, "busy", "hold")
        await until(model.began.is_set)
        async with exchange(app, "POST", f"/v1/models/{kind}:predict", json=1) as client:
            if end == "client":
                await leave_waiting(client, workers)
            else:
                with anyio.fail_after(30):
                    assert (await client.response()).status == 504
        assert not workers.has_waiting
        assert app.serving.statistics().running == 1
        model.release.set()
    check(app, held, refused=0)
    check(app, [await ask(app, "busy", 2)], refused=0)


async def test_a_call_that_has_left_is_in_no_circle() -> None:
    """The thread that it waited for may wait for the one that its caller has left."""
    app, go_on, began = ModelServer(), threading.Event(), threading.Event()

    def left(payload: Any) -> Any:
        return app.call("busy", "second").result() if payload == "first" else payload

    def busy(payload: Any) -> Any:
        if payload != "first":
            return payload
        began.set()
        assert go_on.wait(20)
        return app.call("left", "second").result()

    app.add_model(left, "left", own_thread=True)
    app.add_model(busy, "busy", own_thread=True)
    workers = app.serving.registry.get("busy").workers
    one, answers = asking(app)
    async with anyio.create_task_group() as group:
        group.start_soon(one, "busy", "first")
        await until(began.is_set)
        async with exchange(app, "POST", "/v1/models/left:predict", json="first") as client:
            await leave_waiting(client, workers)
        go_on.set()
    check(app, answers, refused=0)


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio")], ids="-".join)
def test_a_circle_over_two_event_loops_is_noticed(backends: tuple[str, str]) -> None:
    app = in_a_circle("a", "b")
    one, answers = asking(app)
    threads = [
        threading.Thread(
            target=lambda name=name, backend=backend: anyio.run(one, name, "first", backend=backend)
        )
        for name, backend in zip("ab", backends, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert len(answers) == 2
    check(app, answers)


async def test_a_sync_hook_may_return_a_call_that_needs_its_thread() -> None:
    app = ModelServer()

    class Returns(Model):
        own_thread = True

        def predict(self, payload: Any) -> Any:
            return app.call("returns", payload, verb="explain")

        def explain(self, payload: Any) -> Any:
            return {"explained": payload}

    app.add_model(Returns("returns"))
    answer = await ask(app, "returns", 1)
    assert (answer.status, answer.json()) == (200, {"explained": 1})


@pytest.mark.parametrize("batching", [None, Batching(max_size=4)])
async def test_a_call_of_the_thread_that_waits_for_it_is_refused(batching: Any) -> None:
    app = ModelServer()

    @app.model("m", own_thread=True, batching=batching)
    def predict(payload: Any) -> Any:
        return app.call("between", payload).result()

    app.add_model(lambda payload: app.call("m", payload).result(), "between")
    check(app, [await ask(app, "m", [1])])


async def test_a_call_of_hooks_that_need_no_thread_is_not_refused() -> None:
    app = ModelServer()

    class Both(Model):
        own_thread = True

        def predict(self, payload: Any) -> Any:
            return app.call("both", payload, verb="explain").result()

        async def explain(self, payload: Any) -> Any:
            return {"explained": payload}

    app.add_model(Both("both"))
    answer = await ask(app, "both", 1)
    assert (answer.status, answer.json()) == (200, {"explained": 1})
