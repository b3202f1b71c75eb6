"""Handlers that wait in every possible way; the ledger says how they ended."""

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from apps.ledger import note

from modelserve import Model, ModelServer

Wait = Callable[[], Coroutine[Any, Any, None]]


async def sleep() -> None:
    await anyio.sleep(20)


async def event() -> None:
    await anyio.Event().wait()


async def checkpoints() -> None:
    while True:
        await anyio.lowlevel.checkpoint()


async def polls() -> None:
    while True:
        await anyio.lowlevel.checkpoint_if_cancelled()
        await anyio.lowlevel.cancel_shielded_checkpoint()


async def busy_polls() -> None:
    """Blocks most of the time, so that its end is met by a poll rather than by a wait."""
    while True:
        time.sleep(0.005)  # noqa: ASYNC251
        await anyio.lowlevel.checkpoint_if_cancelled()
        await anyio.lowlevel.cancel_shielded_checkpoint()


async def locks() -> None:
    lock = anyio.Lock()
    while True:
        time.sleep(0.002)  # noqa: ASYNC251
        async with lock:
            await anyio.lowlevel.cancel_shielded_checkpoint()


async def locked() -> None:
    lock = anyio.Semaphore(0)
    await lock.acquire()


async def queue() -> None:
    sender, receiver = anyio.create_memory_object_stream[int](1)
    with sender, receiver:
        await receiver.receive()


async def group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleep)
        tasks.start_soon(checkpoints)
        await event()


async def started() -> None:
    async def child(*, task_status: Any) -> None:
        task_status.started()
        await sleep()

    async with anyio.create_task_group() as tasks:
        await tasks.start(child)


async def timeouts() -> None:
    while True:
        with anyio.move_on_after(0.01):
            await sleep()


async def nested_timeouts() -> None:
    with anyio.fail_after(20), anyio.CancelScope():
        async with anyio.create_task_group() as tasks:
            await wait_in(tasks)


async def wait_in(_: TaskGroup) -> None:
    with anyio.fail_after(20):
        await sleep()


async def threads() -> None:
    while True:
        await anyio.to_thread.run_sync(time.sleep, 0.01)


async def shielded() -> None:
    """Cannot be ended inside the shield; each is short."""
    while True:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        await anyio.lowlevel.checkpoint()


async def caught() -> None:
    """Waits once more on its way out, before it lets the cancellation pass."""
    try:
        await sleep()
    except anyio.get_cancelled_exc_class():
        await anyio.sleep(0.02)
        raise


async def inner_finally() -> None:
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caught)
            await caught()
    finally:
        await anyio.sleep(0.02)


async def generators() -> None:
    async def ticks() -> AsyncIterator[None]:
        while True:
            await anyio.sleep(0.005)
            yield

    async for _ in ticks():
        pass


WAITS: dict[str, Wait] = {
    wait.__name__: wait
    for wait in (
        sleep, event, checkpoints, polls, busy_polls, locks, locked, queue, group, started,
        timeouts, nested_timeouts, threads, shielded, caught, inner_finally, generators,
    )
}  # fmt: skip


async def wait(payload: dict[str, str]) -> None:
    key = payload["key"]
    note(key, "start")
    try:
        await WAITS[payload["wait"]]()
    except BaseException as error:
        note(key, type(error).__name__)
        raise
    finally:
        await anyio.sleep(0.02)
        note(key, "end")


class Value(Model):
    async def predict(self, payload):
        await wait(payload)


class First(Model):
    async def predict(self, payload):
        await wait(payload)
        yield "never"


class Second(Model):
    async def predict(self, payload):
        yield "first"
        await wait(payload)


class Preprocessing(Model):
    async def preprocess(self, payload):
        await wait(payload)

    def predict(self, payload):
        return payload


class Postprocessing(Model):
    async def predict(self, payload):
        return payload

    async def postprocess(self, result):
        await wait(result)


class Wrapping(Model):
    async def predict(self, payload):
        yield "first"
        await wait(payload)

    async def postprocess(self, result):
        async for item in result:
            yield item


app = ModelServer(
    [
        Value("value"),
        First("first"),
        Second("second"),
        Preprocessing("preprocessing"),
        Postprocessing("postprocessing"),
        Wrapping("wrapping"),
    ]
)
