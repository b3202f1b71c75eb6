"""Waits that no cancellation shortens."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from blocking import Blocking, until

from modelserve import ModelServer
from modelserve.concurrency.threads import Workers
from modelserve.concurrency.uninterrupted import call_to_end, wait_to_end, wait_until

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Work:
    """Ends once it is told to."""

    def __init__(self) -> None:
        self.began, self.may_end = anyio.Event(), anyio.Event()
        self.has_ended = False

    async def run(self) -> None:
        self.began.set()
        await self.may_end.wait()
        self.has_ended = True


async def cancel_often(task: "asyncio.Task[Any]", end: Callable[[], object]) -> None:
    """Cancel a task three times while it waits, then end what it waits for."""
    for _ in range(3):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    end()
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_scope_waits_for_the_end_and_is_cancelled_after_it() -> None:
    over, order = anyio.Event(), list[str]()

    async def waits() -> None:
        await wait_until(over.is_set, over.wait)
        order.append("over")
        await anyio.lowlevel.checkpoint()
        order.append("never")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                order.append("cancelled")
                over.set()
    assert order == ["cancelled", "over"]


async def test_what_is_over_is_not_waited_for() -> None:
    async def never() -> None:
        raise AssertionError

    await wait_until(lambda: True, never)


async def test_a_failure_of_the_wait_is_raised() -> None:
    async def fails() -> None:
        raise OSError

    with pytest.raises(OSError):
        await wait_until(lambda: False, fails)


@on_asyncio
@pytest.mark.parametrize("kind", ["task", "function"])
async def test_work_on_the_event_loop_is_waited_for(kind: str) -> None:
    work, seen = Work(), list[int]()
    note = partial(seen.append, 1)

    async def task() -> None:
        cancellation = await wait_to_end(asyncio.create_task(work.run()), when_cancelled=note)
        assert cancellation is not None
        raise cancellation

    wait = task() if kind == "task" else call_to_end(work.run, when_cancelled=note)
    waiting = asyncio.create_task(wait)
    await work.began.wait()
    await cancel_often(waiting, work.may_end.set)
    assert work.has_ended
    assert len(seen) == 3


@on_asyncio
async def test_a_thread_is_waited_for() -> None:
    workers, function = Workers(), Blocking()
    task = asyncio.create_task(workers.call("blocking", function))
    await until(function.started.is_set)
    await cancel_often(task, function.release.set)
    assert function.ended.is_set()
    assert workers.running == []


@on_asyncio
async def test_a_called_model_is_waited_for() -> None:
    app, work, cleaning = ModelServer(), Work(), Work()

    @app.model("called")
    async def called(payload: Any) -> Any:
        try:
            await work.run()
        finally:
            await cleaning.run()

    async def calls() -> None:
        await app.call("called", 1)

    task = asyncio.create_task(calls())
    await work.began.wait()
    task.cancel()
    await cleaning.began.wait()
    await cancel_often(task, cleaning.may_end.set)
    assert cleaning.has_ended
    assert app.serving.statistics().running == 0
