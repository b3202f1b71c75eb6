"""Those who sleep are woken from any thread, in their own event loop."""

import threading

import anyio
import anyio.to_thread
import pytest

from modelserve.concurrency.sleepers import Sleepers

pytestmark = pytest.mark.anyio


async def test_all_are_woken_where_they_sleep() -> None:
    sleepers, threads = Sleepers(), list[int]()

    async def sleep() -> None:
        with anyio.CancelScope() as scope:

            def wake() -> None:
                threads.append(threading.get_ident())
                scope.cancel()

            with sleepers.woken_by(wake):
                await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(sleep)
            group.start_soon(sleep)
            await anyio.wait_all_tasks_blocked()
            assert len(sleepers) == 2
            await anyio.to_thread.run_sync(sleepers.wake)
    assert threads == [threading.get_ident()] * 2
    assert not len(sleepers)
