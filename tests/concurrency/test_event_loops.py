"""One application that serves more than one event loop."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.concurrency.admission import Admission
from modelserve.concurrency.background import Background
from modelserve.concurrency.gate import Gate
from modelserve.concurrency.threads import Workers
from modelserve.errors import ServerShuttingDown
from modelserve.limits import DEFAULTS
from modelserve.models.health import Health
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


# --- what requests of different event loops wait for ----------------------------------------------


class Task:
    """An async function that runs in an event loop and a thread of its own."""

    def __init__(self, backend: str, function: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, args=(backend,), daemon=True)
        self._thread.start()

    def _run(self, backend: str) -> None:
        try:
            anyio.run(self._function, backend=backend)
        except BaseException as exc:
            self.error = exc

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


async def happened(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 20)


def slots(concurrency: int, queue: int = 1000) -> tuple[Admission, Gate]:
    limits = Limits(concurrency=concurrency, queue=queue).with_defaults(DEFAULTS)
    return Admission(Limits().with_defaults(DEFAULTS)), Gate(limits)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_a_slot_goes_to_who_waits_in_another_event_loop(
    backends: tuple[str, str], nested: bool
) -> None:
    admission, gate = slots(1)
    held, waits, let_go = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    async def first() -> None:
        await admission.acquire(gate)
        held.set()
        await happened(let_go)
        order.append("first")
        admission.release(gate)

    async def second() -> None:
        await happened(held)
        if nested:
            await nested_call()
        else:
            await admission.acquire(gate, on_accepted=waits.set)
            order.append("second")
            admission.release(gate)

    async def nested_call() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(admission.nesting.acquire, gate, {})
            await anyio.wait_all_tasks_blocked()
            waits.set()
        order.append("second")
        admission.nesting.release(gate)

    tasks = [Task(backends[0], first), Task(backends[1], second)]
    assert waits.wait(20)
    let_go.set()
    for task in tasks:
        task.join()
    assert order == ["first", "second"]
    assert (gate.running, gate.waiting, admission.gate.running, admission.gate.waiting) == (0,) * 4


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_who_waits_in_another_event_loop_is_refused(
    backends: tuple[str, str], nested: bool
) -> None:
    admission, gate = slots(1)
    waits = threading.Event()
    assert admission.acquire_nowait(gate)

    async def wait() -> None:
        acquire = admission.nesting.acquire(gate, {}) if nested else admission.acquire(gate)
        async with anyio.create_task_group() as group:
            group.start_soon(tell)
            with pytest.raises(ServerShuttingDown):
                await acquire

    async def tell() -> None:
        await anyio.wait_all_tasks_blocked()
        waits.set()

    async def refuse() -> None:
        await happened(waits)
        admission.refuse_waiting_for(gate, ServerShuttingDown)

    for task in [Task(backends[0], wait), Task(backends[1], refuse)]:
        task.join()
    assert gate.waiting == 0


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_the_last_request_is_waited_for_in_another_event_loop(backends: tuple[str, str]) -> None:
    admission, gate = slots(1)
    waits = threading.Event()
    assert admission.acquire_nowait(gate)

    async def wait() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(gate.emptied)
            await anyio.wait_all_tasks_blocked()
            waits.set()

    async def end() -> None:
        await happened(waits)
        admission.release(gate)

    for task in [Task(backends[0], wait), Task(backends[1], end)]:
        task.join()


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_a_slot_is_not_lost_to_an_event_loop_that_has_ended(backends: tuple[str, str]) -> None:
    admission, gate = slots(1)
    ended, other = backends
    assert admission.acquire_nowait(gate)
    kept: list[Any] = []

    async def leave_behind() -> None:
        acquire = admission.acquire(gate)
        kept.append(acquire)  # so that it is not closed, which would give up its place
        with contextlib.suppress(StopIteration):
            acquire.send(None)

    Task(ended, leave_behind).join()
    assert gate.waiting == 1

    async def take() -> None:
        admission.release(gate)
        await admission.acquire(gate)

    Task(other, take).join()
    assert (gate.running, gate.waiting, admission.gate.running) == (1, 0, 1)
    kept.pop().close()
    assert (gate.running, gate.waiting, admission.gate.running) == (1, 0, 1)


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_no_slot_is_lost_or_given_twice_between_event_loops(
    backends: tuple[str, str], fast_switches: None
) -> None:
    admission, gate = slots(3)
    holders: list[int] = []
    most: list[int] = []

    async def use(number: int) -> None:
        for turn in range(10):
            nested = number % 5 == 0
            with anyio.move_on_after(0 if (number + turn) % 7 == 0 else None):
                await (admission.nesting.acquire(gate, {}) if nested else admission.acquire(gate))
                holders.append(number)
                most.append(len(holders))
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    holders.remove(number)
                    (admission.nesting if nested else admission).release(gate)

    async def use_all() -> None:
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(use, number)

    for task in [Task(backend, use_all) for backend in backends]:
        task.join()
    assert max(most) <= 3
    assert (gate.running, gate.waiting, admission.gate.running, admission.gate.waiting) == (0,) * 4


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_a_thread_goes_to_who_waits_in_another_event_loop(backends: tuple[str, str]) -> None:
    workers = Workers(1)
    runs, waits, let_go = threading.Event(), threading.Event(), threading.Event()

    def run() -> bool:
        runs.set()
        return let_go.wait(20)

    async def first() -> None:
        assert await workers.call("first", run)

    async def second() -> None:
        await happened(runs)
        async with anyio.create_task_group() as group:
            group.start_soon(workers.call, "second", int)
            await anyio.wait_all_tasks_blocked()
            assert workers.has_waiting
            waits.set()

    tasks = [Task(backends[0], first), Task(backends[1], second)]
    assert waits.wait(20)
    let_go.set()
    for task in tasks:
        task.join()
    assert (workers.running, workers.has_waiting) == ([], False)
    workers.close()


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_threads_serve_one_event_loop_after_another(backends: tuple[str, str]) -> None:
    workers = Workers(1)

    async def call_twice_at_once() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(workers.call, "m", int)

    for backend in backends:
        anyio.run(call_twice_at_once, backend=backend)
    assert (workers.running, workers.has_waiting) == ([], False)
    workers.close()


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_a_thread_is_not_lost_to_an_event_loop_that_has_ended(kind: str) -> None:
    pool = Workers(1)
    workers = pool if kind == "shared" else pool.own_thread("m")
    runs, let_go = threading.Event(), threading.Event()

    def run() -> None:
        runs.set()
        let_go.wait(20)

    ended = asyncio.new_event_loop()
    task = ended.create_task(workers.call("first", run))
    ended.run_until_complete(asyncio.sleep(0))
    assert runs.wait(20)
    ended.close()
    waits = threading.Event()

    async def take() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(workers.call, "second", int)
            await anyio.wait_all_tasks_blocked()
            waits.set()

    other = Task("asyncio", take)
    assert waits.wait(20)
    let_go.set()
    other.join()
    assert workers.running == []
    pool.close()
    del task


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_no_thread_is_lost_or_shared_between_event_loops(
    backends: tuple[str, str], fast_switches: None
) -> None:
    workers = Workers(3)
    busy: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        busy.append(number)
        most.append(len(busy))
        busy.remove(number)

    async def use(number: int) -> None:
        for turn in range(5):
            with anyio.move_on_after(0 if (number + turn) % 7 == 0 else None):
                await workers.call("m", work, number)

    async def use_all() -> None:
        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(use, number)

    for task in [Task(backend, use_all) for backend in backends]:
        task.join()
    assert max(most) <= 3
    assert (workers.running, workers.has_waiting) == ([], False)
    workers.close()


# --- loads and health -----------------------------------------------------------------------------


class Slow(Model):
    """A model whose load and whose health a test lets go on, whichever event loop asks."""

    def __init__(self) -> None:
        super().__init__("m")
        self.began, self.let_go = threading.Event(), threading.Event()
        self.asked = 0

    async def load(self) -> None:
        self.began.set()
        await happened(self.let_go)

    async def healthy(self) -> bool:
        self.asked += 1
        self.began.set()
        await happened(self.let_go)
        return True

    async def predict(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_a_request_waits_for_the_load_that_another_event_loop_has_begun(
    backends: tuple[str, str],
) -> None:
    model = Slow()
    app = ModelServer([model])
    loop, waits = Loop(backends[0], app).begin(), threading.Event()

    async def ask() -> None:
        async with exchange(app, *PREDICT, json=[]) as client:
            await anyio.wait_all_tasks_blocked()
            waits.set()
            assert (await client.response()).status == 200

    assert model.began.wait(20)
    task = Task(backends[1], ask)
    assert waits.wait(20)
    model.let_go.set()
    task.join()
    loop.end()
    assert loop.answer.status == 200


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_who_asks_for_a_load_in_another_event_loop_joins_it(backends: tuple[str, str]) -> None:
    model = Slow()
    app = ModelServer([model])
    waits = threading.Event()
    first = Task(backends[0], partial(app.serving.loading.load, "m"))

    async def unload() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(app.serving.loading.load, "m")
            await anyio.wait_all_tasks_blocked()
            group.start_soon(app.serving.loading.unload, "m")
            await anyio.wait_all_tasks_blocked()
            waits.set()

    assert model.began.wait(20)
    second = Task(backends[1], unload)
    assert waits.wait(20)
    model.let_go.set()
    first.join()
    second.join()
    assert "m" not in app.serving.registry.entries
    assert not app.serving.registry.locks


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_the_first_answer_of_a_model_is_waited_for_in_another_event_loop(
    backends: tuple[str, str],
) -> None:
    model, waits, answers = Slow(), threading.Event(), list[bool]()
    health = Health("m", model.healthy)

    async def ask() -> None:
        answers.append(await health.ask())

    async def ask_too() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            waits.set()

    first = Task(backends[0], ask)
    assert model.began.wait(20)
    second = Task(backends[1], ask_too)
    assert waits.wait(20)
    model.let_go.set()
    first.join()
    second.join()
    assert answers == [True, True]
    assert model.asked == 1


@pytest.mark.parametrize("backends", BOTH, ids="-".join)
def test_tasks_in_the_background_of_another_event_loop_are_cancelled(
    backends: tuple[str, str],
) -> None:
    background, began, ends = Background(), threading.Event(), list[str]()

    async def work() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            ends.append("cleaned up")

    async def run() -> None:
        with pytest.raises(ServerShuttingDown):
            await background.run(work)

    async def cancel() -> None:
        await background.cancel(within=20)
        ends.append("cancelled")

    first = Task(backends[0], run)
    assert began.wait(20)
    Task(backends[1], cancel).join()
    first.join()
    assert ends == ["cleaned up", "cancelled"]


@pytest.fixture
def fast_switches() -> Iterator[None]:
    """Let the interpreter switch from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
