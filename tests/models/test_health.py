"""What a model says of its health: one question at a time, bounded, in no hook's thread."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from modelserve import Model, ModelServer
from modelserve.models.health import Health
from modelserve.testing import request

pytestmark = pytest.mark.anyio


class Asked:
    """A `healthy` that answers when it is released; it counts how often it is asked."""

    def __init__(self) -> None:
        self.answer: Any = True
        self.count = 0
        self.started, self.release = threading.Event(), threading.Event()

    def blocking(self) -> Any:
        self.count += 1
        self.started.set()
        assert self.release.wait(10)
        return self.answer

    async def on_loop(self) -> Any:
        self.count += 1
        self.started.set()
        assert await anyio.to_thread.run_sync(self.release.wait, 10, abandon_on_cancel=True)
        return self.answer


KINDS: list[Callable[[Asked], Callable[[], Any]]] = [
    lambda asked: asked.blocking,
    lambda asked: asked.on_loop,
]


async def started(asked: Asked) -> None:
    assert await anyio.to_thread.run_sync(asked.started.wait, 5)


def join_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "healthy of m":
            thread.join(5)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelserve.models.health._SECONDS", 0.05)


@pytest.mark.parametrize("kind", KINDS, ids=["sync", "async"])
@pytest.mark.parametrize("answer", [True, False])
async def test_those_who_ask_at_the_same_time_share_one_answer(kind: Any, answer: bool) -> None:
    asked = Asked()
    asked.answer = answer
    health = Health("m", kind(asked))
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await health.ask())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(ask)
            await started(asked)
            asked.release.set()
    assert (answers, asked.count) == ([answer] * 40, 1)


@pytest.mark.parametrize("kind", KINDS, ids=["sync", "async"])
async def test_those_who_ask_meanwhile_have_the_last_answer(kind: Any) -> None:
    asked = Asked()
    health = Health("m", kind(asked))
    asked.release.set()
    assert await health.ask()
    asked.answer = False
    asked.release.clear()
    asked.started.clear()
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await health.ask())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await started(asked)
            assert [await health.ask() for _ in range(3)] == [True] * 3
            asked.release.set()
    assert (answers, asked.count) == ([False], 2)
    assert not await health.ask()
    assert asked.count == 3


@pytest.mark.usefixtures("short")
async def test_one_that_blocks_is_not_healthy_and_keeps_one_thread() -> None:
    asked = Asked()
    health = Health("m", asked.blocking)
    with anyio.fail_after(5):
        assert [await health.ask() for _ in range(10)] == [False] * 10
        assert asked.count == 1
        asked.release.set()
        await anyio.to_thread.run_sync(join_threads)
        assert await health.ask()


@pytest.mark.parametrize("kind", KINDS, ids=["sync", "async"])
async def test_who_leaves_does_not_keep_the_others_waiting(kind: Any) -> None:
    asked = Asked()
    health = Health("m", kind(asked))
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await health.ask())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(ask)
                await started(asked)
                asked.started.clear()
                group.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                leaving.cancel_scope.cancel()
            asked.release.set()
    assert answers == [True]
    assert asked.count == (1 if kind is KINDS[0] else 2)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_a_thread_that_outlives_its_event_loop_does_not_count_for_the_next(
    anyio_backend: str, short: None
) -> None:
    asked = Asked()
    health = Health("m", asked.blocking)
    assert not anyio.run(health.ask, backend=anyio_backend)
    asked.release.set()
    join_threads()
    assert anyio.run(health.ask, backend=anyio_backend)


@pytest.mark.parametrize("answer", [True, False, None, 1, ValueError("x")])
async def test_an_answer_from_a_thread_may_be_awaitable(answer: Any) -> None:
    async def later() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await Health("m", lambda: later()).ask() is (answer in (True, 1))


async def test_a_failure_is_logged_once_and_is_no_health(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise ValueError("x")

    assert not await Health("m", fails).ask()
    (record,) = caplog.records
    assert record.getMessage() == "healthy() of model m failed"


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "error", [BaseException("a panic"), asyncio.CancelledError(), GeneratorExit(), SystemExit(1)]
)
async def test_whatever_is_raised_is_no_health(error: BaseException, kind: str) -> None:
    def fails() -> None:
        raise error

    async def fails_on_loop() -> None:
        raise error

    assert not await Health("m", fails if kind == "sync" else fails_on_loop).ask()


@pytest.mark.parametrize("threads", [1, 4])
async def test_probes_do_not_take_the_threads_of_hooks(threads: int) -> None:
    asked = Asked()

    class Stuck(Model):
        def healthy(self) -> Any:
            return asked.blocking()

        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

    app = ModelServer([Stuck("stuck")], threads=threads)
    app.add_model(lambda payload: "fine", "m")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(request, app, "GET", "/v1/models/stuck")
            await started(asked)
            answer = await request(app, "POST", "/v1/models/m:predict", json=[])
            assert (answer.body, asked.count) == (b"fine", 1)
            assert app.serving.statistics().busy_threads == ()
            asked.release.set()


async def test_one_that_has_no_thread_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    health = Health("m", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with anyio.fail_after(10):
            assert not await health.ask()
    assert await health.ask()
