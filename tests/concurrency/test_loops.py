"""One object for each event loop, of those that run and those that have ended."""

import sys
import threading

import anyio
import pytest

from modelserve.concurrency.loops import Event, PerLoop, Waiters


class Owned:
    def __init__(self) -> None:
        self.is_idle = True


class LoopThread:
    """An event loop in a thread, which asks for its object whenever it is told to."""

    def __init__(self, backend: str, objects: PerLoop[Owned]) -> None:
        self.objects = objects
        self.got: list[Owned] = []
        self._asked, self._answered = threading.Semaphore(0), threading.Semaphore(0)
        self._ends = False
        self._thread = threading.Thread(
            target=anyio.run, args=(self._main,), kwargs={"backend": backend}
        )
        self._thread.start()

    async def _main(self) -> None:
        while True:
            await anyio.to_thread.run_sync(self._asked.acquire)
            if self._ends:
                return
            self.got.append(self.objects.get())
            self._answered.release()

    def ask(self) -> Owned:
        self._asked.release()
        assert self._answered.acquire(timeout=10)
        return self.got[-1]

    def end(self) -> None:
        self._ends = True
        self._asked.release()
        self._thread.join(10)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_each_loop_keeps_its_object_while_it_runs(backend: str) -> None:
    objects = PerLoop(Owned)
    first, second = LoopThread(backend, objects), LoopThread(backend, objects)
    try:
        own = first.ask()
        assert second.ask() is not own
        assert first.ask() is own  # though it was idle when the other one came
    finally:
        first.end()
        second.end()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_idle_objects_of_ended_loops_are_dropped(backend: str) -> None:
    objects = PerLoop(Owned)
    for _ in range(3):
        loop = LoopThread(backend, objects)
        loop.ask()
        loop.end()
    assert len(objects) == 1


# --- those who wait for the same ------------------------------------------------------------------


@pytest.mark.anyio
async def test_all_who_wait_are_woken_and_nobody_later() -> None:
    waiters = Waiters()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await waiters.wait()
        woken.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 1)
        group.start_soon(wait, 2)
        await anyio.wait_all_tasks_blocked()
        waiters.wake()
        await anyio.wait_all_tasks_blocked()
        assert sorted(woken) == [1, 2]
        waiters.wake()  # for nobody
        group.start_soon(wait, 3)
        await anyio.wait_all_tasks_blocked()
        assert len(woken) == 2
        waiters.wake()
    assert len(woken) == 3


@pytest.mark.anyio
async def test_one_that_is_cancelled_waits_no_more() -> None:
    waiters = Waiters()
    with anyio.move_on_after(0.01):
        await waiters.wait()
    assert waiters._wakeups == []


@pytest.mark.anyio
async def test_an_event_wakes_all_who_wait_whichever_thread_sets_it() -> None:
    switched = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the woken tasks run while it is being set
    try:
        with anyio.fail_after(20):
            for _ in range(50):
                event = Event()
                async with anyio.create_task_group() as group:
                    for _ in range(6):
                        group.start_soon(event.wait)
                    await anyio.wait_all_tasks_blocked()
                    thread = threading.Thread(target=event.set)
                    thread.start()
                thread.join()
    finally:
        sys.setswitchinterval(switched)
