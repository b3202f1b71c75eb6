"""Tasks that outlive the task that started them."""

import asyncio
from functools import partial

import anyio
import pytest

from modelserve.concurrency.background import Background
from modelserve.errors import ServerShuttingDown

pytestmark = pytest.mark.anyio


class Task:
    """An async function that notes how it ends, once a test lets it end."""

    def __init__(self, *, error: BaseException | None = None) -> None:
        self.began, self.proceed, self.ended = anyio.Event(), anyio.Event(), anyio.Event()
        self.error = error
        self.log: list[str] = []

    async def __call__(self) -> None:
        self.began.set()
        try:
            await self.proceed.wait()
            if self.error is not None:
                raise self.error
            self.log.append("done")
        except anyio.get_cancelled_exc_class():
            self.log.append("cancelled")
            raise
        finally:
            self.ended.set()


async def test_a_task_is_not_waited_for() -> None:
    background, task = Background(), Task()
    background.start_soon(task)
    assert not task.began.is_set()
    with anyio.fail_after(5):
        await task.began.wait()
        task.proceed.set()
        await task.ended.wait()
    assert task.log == ["done"]


async def test_running_waits_for_the_end() -> None:
    background, task = Background(), Task()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(background.run, task)
            await task.began.wait()
            task.proceed.set()
    assert task.log == ["done"]


async def test_running_raises_what_the_function_raises() -> None:
    background, task = Background(), Task(error=ValueError("x"))
    task.proceed.set()
    with anyio.fail_after(5), pytest.raises(ValueError, match=r"^x$"):
        await background.run(task)


@pytest.mark.parametrize("error", [BaseException("x"), asyncio.CancelledError("x")])
async def test_running_raises_what_is_no_ordinary_exception(error: BaseException) -> None:
    background, task = Background(), Task(error=error)
    task.proceed.set()
    with anyio.fail_after(5), pytest.raises(type(error), match=r"^x$"):
        await background.run(task)


async def test_who_waits_for_a_task_that_is_cancelled_is_told() -> None:
    background, task = Background(), Task()
    refused: list[ServerShuttingDown] = []

    async def wait() -> None:
        try:
            await background.run(task)
        except ServerShuttingDown as exc:
            refused.append(exc)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await task.began.wait()
            await background.cancel(within=1)
    assert len(refused) == 1


@pytest.mark.parametrize("error", [ValueError("x"), BaseException("x"), GeneratorExit()])
async def test_what_a_task_raises_is_logged_and_ends_no_other(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    background, task, other = Background(), Task(error=error), Task()
    with anyio.fail_after(5):
        background.start_soon(task)
        background.start_soon(other)
        task.proceed.set()
        await task.ended.wait()
        await other.began.wait()
        await anyio.wait_all_tasks_blocked()
        other.proceed.set()
        await other.ended.wait()
    assert other.log == ["done"]
    assert [r.getMessage() for r in caplog.records] == ["A task in the background failed"]


@pytest.mark.parametrize("error", [None, ValueError("x")])
async def test_a_cancelled_wait_leaves_the_task_running(error: Exception | None) -> None:
    background, task = Background(), Task(error=error)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(background.run, task)
            await task.began.wait()
            group.cancel_scope.cancel()
        assert not task.ended.is_set()
        task.proceed.set()
        await task.ended.wait()
        await anyio.wait_all_tasks_blocked()
    assert task.log == ([] if error else ["done"])


async def test_cancelling_waits_for_the_end() -> None:
    background, tasks = Background(), [Task(), Task()]
    for task in tasks:
        background.start_soon(task)
    with anyio.fail_after(5):
        for task in tasks:
            await task.began.wait()
        await background.cancel(within=5)
    assert [task.log for task in tasks] == [["cancelled"], ["cancelled"]]


async def test_cancelling_waits_for_a_bounded_time() -> None:
    background, release, ended = Background(), anyio.Event(), anyio.Event()

    async def hang() -> None:
        with anyio.CancelScope(shield=True):
            await release.wait()
        ended.set()

    background.start_soon(hang)
    with anyio.fail_after(5):
        await anyio.wait_all_tasks_blocked()
        await background.cancel(within=0.01)
        assert not ended.is_set()
        release.set()
        await ended.wait()


async def test_without_tasks_there_is_nothing_to_wait_for() -> None:
    with anyio.fail_after(10):
        await Background().cancel(within=5)


async def test_two_that_cancel_at_once_wait_for_the_same_end() -> None:
    background, tasks = Background(), [Task()]
    background.start_soon(tasks[0])
    with anyio.fail_after(20):
        await tasks[0].began.wait()
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(partial(background.cancel, within=60))
