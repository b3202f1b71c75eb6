"""Slots that are stepped together: who is in a step, and what becomes of who leaves."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve.concurrency.closing import aclose
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.steps import Slot, Stepper, Steps
from modelserve.concurrency.threads import Workers
from modelserve.errors import ServerShuttingDown
from modelserve.limits import Deadlines
from modelserve.metrics.cells import Gauge

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def stepper(step: Any, join: Any, leave: Any, **settings: Any) -> Stepper:
    usual = {
        "on_loop": True,
        "max_active": 2,
        "room": 2,
        "label": "m",
        "workers": Workers(1),
        "flights": Flights(),
        "deadlines": Deadlines(),
    }
    return Stepper(step, join, leave, **{**usual, **settings})


class Counting:
    """Counts down from the payload, each step when the test lets it. Async, on the event loop."""

    def __init__(self, *, max_active: int = 4, room: int = 16) -> None:
        self.steps: list[list[int]] = []
        self.left: list[int] = []
        self.joined: list[int] = []
        self.fails: dict[int, Exception] = {}
        self.go = anyio.Event()
        self.gauge = Gauge()
        self.flights = Flights()
        self.engine = Steps(
            stepper(
                self.step,
                self.join,
                self.leave,
                max_active=max_active,
                room=room,
                flights=self.flights,
            ),
            self.gauge,
        )

    def join(self, slot: Slot) -> None:
        self.joined.append(slot.payload)
        if slot.payload < 0:
            raise ValueError("negative")
        slot.state = slot.payload
        if slot.payload == 0:
            slot.end()

    async def step(self, active: list[Slot]) -> None:
        self.steps.append([slot.payload for slot in active])
        await self.go.wait()
        self.go = anyio.Event()
        for slot in active:
            if slot.payload in self.fails:
                raise self.fails[slot.payload]
            slot.put(slot.state)
            slot.state -= 1
            if slot.state == 0:
                slot.end()

    def leave(self, slot: Slot) -> None:
        self.left.append(slot.payload)

    async def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.go.set()
            await settle()


class Reader:
    """Reads a stream in a task of its own."""

    def __init__(self, model: Counting, payload: int) -> None:
        self.items: list[Any] = []
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self.over = False
        self.may_read = anyio.Event()
        self.may_read.set()
        self._stream = model.engine.stream(payload)

    async def read(self) -> None:
        try:
            with self.scope:
                async for item in self._stream:
                    self.items.append(item)
                    await self.may_read.wait()
        except Exception as exc:
            self.error = exc
        finally:
            with anyio.CancelScope(shield=True):
                await aclose(self._stream)
            self.over = True


async def begin(group: anyio.abc.TaskGroup, model: Counting, *payloads: int) -> list[Reader]:
    readers = [Reader(model, payload) for payload in payloads]
    for reader in readers:
        group.start_soon(reader.read)
        await settle()
    return readers


async def test_requests_join_and_leave_between_steps() -> None:
    model = Counting()
    async with anyio.create_task_group() as group:
        (three,) = await begin(group, model, 3)
        (one,) = await begin(group, model, 1)
        assert model.steps == [[3]]
        await model.advance(3)
    assert model.steps == [[3], [3, 1], [3]]
    assert (three.items, one.items) == ([3, 2, 1], [1])
    assert model.left == [1, 3]
    assert model.engine.is_idle
    assert model.gauge.cells[0] == 0


async def test_more_than_may_be_active_wait_in_order() -> None:
    model = Counting(max_active=2)
    async with anyio.create_task_group() as group:
        await begin(group, model, 2, 1, 4, 1)
        await model.advance()
        assert model.gauge.cells[0] == 2
        await model.advance(5)
    assert model.steps == [[2], [2, 1], [4, 1], [4], [4], [4]]


async def test_an_end_is_told_in_the_step_that_made_it() -> None:
    model = Counting()
    async with anyio.create_task_group() as group:
        one, two = await begin(group, model, 1, 2)
        await model.advance()
        assert one.over
        assert model.left == [1]
        await model.advance(2)
    assert two.items == [2, 1]


async def test_who_left_is_out_before_the_next_step() -> None:
    model = Counting()
    async with anyio.create_task_group() as group:
        stays, leaves = await begin(group, model, 9, 8)
        await model.advance()
        assert model.steps[-1] == [9, 8]
        leaves.scope.cancel()
        await settle()
        assert model.left == []  # a step is under way, and `leave` comes after it
        await model.advance()
        assert model.left == [8]
        assert model.steps[-1] == [9]
        stays.scope.cancel()
        await model.advance()
    assert model.left == [8, 9]
    assert model.engine.is_idle


async def test_who_leaves_while_waiting_never_joins() -> None:
    model = Counting(max_active=1)
    async with anyio.create_task_group() as group:
        _, waits, last = await begin(group, model, 2, 5, 1)
        waits.scope.cancel()
        await settle()
        assert waits.over
        await model.advance(3)
        assert last.items == [1]
    assert model.joined == [2, 1]
    assert model.left == [2, 1]


async def test_a_slow_reader_is_left_out_until_it_reads() -> None:
    model = Counting(room=2)
    async with anyio.create_task_group() as group:
        slow, quick = await begin(group, model, 100, 200)
        slow.may_read = anyio.Event()
        await model.advance(8)
        assert model.steps[-1] == [200]
        assert len(quick.items) >= 7
        assert len(slow.items) <= 2
        slow.may_read.set()
        await settle()
        await model.advance(3)
        assert model.steps[-1] == [100, 200]
        slow.scope.cancel()
        quick.scope.cancel()
        await model.advance()


async def test_nothing_is_stepped_while_all_are_slow() -> None:
    model = Counting(room=1)
    async with anyio.create_task_group() as group:
        (slow,) = await begin(group, model, 5)
        slow.may_read = anyio.Event()
        await model.advance(4)
        count = len(model.steps)
        assert count <= 3
        await model.advance(2)
        assert len(model.steps) == count
        slow.may_read.set()
        await model.advance(5)
    assert slow.items == [5, 4, 3, 2, 1]
    assert model.engine.is_idle


async def test_a_slow_reader_that_leaves_ends_the_waiting() -> None:
    model = Counting(room=1)
    async with anyio.create_task_group() as group:
        (slow,) = await begin(group, model, 5)
        slow.may_read = anyio.Event()
        await model.advance(4)
        slow.scope.cancel()
        await settle()
        assert slow.over
    assert model.left == [5]
    assert model.engine.is_idle


async def test_an_error_of_join_is_that_requests_own_and_it_leaves() -> None:
    model = Counting()
    async with anyio.create_task_group() as group:
        (bad,) = await begin(group, model, -1)
        (good,) = await begin(group, model, 1)
        assert isinstance(bad.error, ValueError)
        await model.advance()
    assert good.items == [1]
    assert model.left == [-1, 1]


async def test_a_slot_may_end_when_it_joins() -> None:
    model = Counting()
    async with anyio.create_task_group() as group:
        (empty,) = await begin(group, model, 0)
    assert empty.items == []
    assert model.steps == []
    assert model.left == [0]


async def test_an_error_of_step_fails_those_in_it_and_nobody_after() -> None:
    model = Counting(max_active=2)
    model.fails[7] = error = ValueError("seven")
    async with anyio.create_task_group() as group:
        seven, two, later = await begin(group, model, 7, 2, 1)
        await model.advance(3)
    assert seven.error is error
    assert two.items == [2, 1]  # it came to the second step
    assert later.items == [1]
    assert sorted(model.left) == [1, 2, 7]


async def test_an_error_of_leave_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = Counting()

    def leave(slot: Slot) -> None:
        raise ValueError("on the way out")

    model.engine = Steps(stepper(model.step, None, leave), model.gauge)
    with caplog.at_level(logging.ERROR):
        async with anyio.create_task_group() as group:
            (reader,) = await begin(group, model, 1)
            reader.scope.cancel()
            await model.advance()
    assert "leave of m failed" in caplog.text
    assert model.engine.is_idle


class Panic(BaseException):
    """No `Exception`, as what libraries in Rust raise when they panic."""


@pytest.mark.parametrize("on_loop", [True, False])
async def test_a_panic_of_leave_is_logged_and_its_reader_goes_on(
    on_loop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def step(active: list[Slot]) -> None:
        for slot in active:
            slot.put("item")
            slot.end()

    def leave(slot: Slot) -> None:
        raise Panic(slot.payload)

    workers = Workers(1)
    engine = Steps(stepper(step, None, leave, on_loop=on_loop, workers=workers), Gauge())
    with anyio.fail_after(10):
        for payload in (1, 2):
            assert [item async for item in engine.stream(payload)] == ["item"]
        await until_idle(engine)
    assert caplog.text.count("leave of m failed") == 2
    workers.close()


async def test_a_cancellation_of_leaves_own_is_logged_and_its_reader_goes_on(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio's cannot be made by hand")

    async def leave(slot: Slot) -> None:
        raise asyncio.CancelledError

    model = Counting()
    model.engine = Steps(stepper(model.step, model.join, leave), model.gauge)
    async with anyio.create_task_group() as group:
        ends, goes_on = await begin(group, model, 1, 2)
        await model.advance(3)
    assert (ends.items, goes_on.items) == ([1], [2, 1])
    assert "leave of m failed" in caplog.text


async def test_a_drain_that_ends_a_leave_loses_none_of_those_that_end_with_it() -> None:
    model = Counting()
    left: list[tuple[int, str]] = []

    async def leave(slot: Slot) -> None:
        try:
            if not left:
                await anyio.sleep_forever()
        finally:
            left.append((slot.payload, "left"))

    model.engine = Steps(stepper(model.step, model.join, leave, flights=model.flights), model.gauge)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            first, second = await begin(group, model, 2, 1)
            await model.advance(2)  # the first has joined earlier, and both end in one step
            assert (first.over, second.over) == (False, False)
            model.flights.cancel_all(ServerShuttingDown, cleanup_cap=10)
            await model.flights.emptied()
    assert left == [(2, "left"), (1, "left")]
    assert (first.items, second.items) == ([2, 1], [1])
    assert len(model.steps) == 2


def test_what_is_put_after_the_end_goes_nowhere() -> None:
    slot = Slot("payload")
    slot.put(1)
    slot.end()
    slot.put(2)
    slot.fail(ValueError("late"))
    assert list(slot._items) == [1]
    assert slot._error is None


async def until_idle(engine: Steps) -> None:
    """Wait for the thread, which may still be on its way out."""
    with anyio.fail_after(10):
        while not engine.is_idle:  # noqa: ASYNC110 - the thread says so
            await anyio.sleep(0.001)


# --- in a thread --------------------------------------------------------------------------------


class InThread:
    """Counts down from the payload as fast as it can, in a thread."""

    def __init__(self, workers: Workers, *, room: int = 16, max_active: int = 8) -> None:
        self.threads: set[int] = set()
        self.steps = 0
        self.left: list[int] = []
        self.engine = Steps(
            stepper(
                self.step,
                self.join,
                self.leave,
                on_loop=False,
                max_active=max_active,
                room=room,
                workers=workers,
            ),
            Gauge(),
        )

    def join(self, slot: Slot) -> None:
        self.threads.add(threading.get_ident())
        slot.state = slot.payload

    def step(self, active: list[Slot]) -> None:
        self.threads.add(threading.get_ident())
        self.steps += 1
        for slot in active:
            slot.put(slot.state)
            slot.state -= 1
            if slot.state == 0:
                slot.end()

    def leave(self, slot: Slot) -> None:
        self.threads.add(threading.get_ident())
        self.left.append(slot.payload)

    def stream(self, payload: int) -> AsyncIterator[Any]:
        return self.engine.stream(payload)


async def test_sync_steps_run_on_one_thread_and_lose_nothing() -> None:
    workers = Workers(4).own_thread("m")
    model = InThread(workers)
    counts: dict[int, int] = {}

    async def read(payload: int) -> None:
        items = [item async for item in model.stream(payload)]
        assert items == [*range(payload, 0, -1)]
        counts[payload] = len(items)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for payload in range(1, 60):
                group.start_soon(read, payload)
    assert counts == {n: n for n in range(1, 60)}
    assert sorted(model.left) == [*range(1, 60)]
    assert len(model.threads) == 1
    await until_idle(model.engine)
    assert not workers.running
    workers.close()


async def test_somebody_else_who_needs_the_thread_gets_it_between_two_steps() -> None:
    workers = Workers(4).own_thread("m")
    model = InThread(workers, room=1_000_000)
    stream = model.stream(1_000_000_000)
    with anyio.fail_after(10):
        assert await anext(stream) == 1_000_000_000
        assert await workers.call("other", threading.get_ident) in model.threads
        await aclose(stream)
    assert model.left == [1_000_000_000]
    workers.close()


async def test_leavers_in_a_storm_leave_once_each() -> None:
    workers = Workers(2)
    model = InThread(workers, room=2, max_active=4)

    async def read(payload: int) -> None:
        stream = model.stream(payload)
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == payload % 7:
                break
        await aclose(stream)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for payload in range(1, 200):
                group.start_soon(read, payload)
    assert len(model.left) == len(set(model.left))
    await until_idle(model.engine)
    workers.close()


async def test_a_thread_that_cannot_be_had_fails_who_waits() -> None:
    class NoThreads(Workers):
        async def call(self, label: str, function: Any, *args: Any) -> Any:
            args[0].close()
            raise RuntimeError("can't start new thread")

    model = InThread(NoThreads(1))
    with anyio.fail_after(5), pytest.raises(RuntimeError, match="can't start new thread"):
        await anext(model.stream(3))
    await until_idle(model.engine)


class Hanging(Counting):
    """Steps, or joins, that never end by themselves, and clean up for a while."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(max_active=2)
        self.cancelled: list[list[int]] = []
        self.cleaned: list[list[int]] = []
        self.clean_up_takes = anyio.Event()
        step = settings.pop("step", self.hang)
        join = settings.pop("join", self.join)
        self.engine = Steps(
            stepper(step, join, self.leave, room=16, flights=self.flights, **settings), self.gauge
        )

    async def hang(self, active: list[Slot]) -> None:
        payloads = [slot.payload for slot in active]
        self.steps.append(payloads)
        try:
            await anyio.sleep_forever()
        except BaseException:
            self.cancelled.append(payloads)
            await self.clean_up_takes.wait()
            self.cleaned.append(payloads)
            raise

    async def hang_in_join(self, slot: Slot) -> None:
        await self.hang([slot])


async def test_a_step_that_hangs_is_cancelled_when_nobody_in_it_is_left() -> None:
    model = Hanging()
    async with anyio.create_task_group() as group:
        first, second = await begin(group, model, 3, 4)
        (third,) = await begin(group, model, 5)  # waits for a place
        first.scope.cancel()
        await settle()
        assert model.steps == [[3]]
        assert model.cancelled == [[3]]
        assert model.left == []
        model.clean_up_takes.set()
        await settle()
        assert first.over
        assert model.left == [3]
        assert model.steps[1:] == [[4, 5]]
        second.scope.cancel()
        await settle()
        assert model.cancelled == [[3]]  # somebody is in it
        third.scope.cancel()
        await until_idle(model.engine)
    assert model.cleaned == [[3], [4, 5]]
    assert sorted(model.left) == [3, 4, 5]
    assert model.engine.is_idle
    assert not model.flights


async def test_clean_up_of_a_step_is_bounded() -> None:
    model = Hanging(deadlines=Deadlines(cleanup_timeout=0.05))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            (reader,) = await begin(group, model, 3)
            reader.scope.cancel()
            await until_idle(model.engine)
    assert model.cancelled == [[3]]
    assert not model.cleaned
    assert model.left == [3]
    assert model.engine.is_idle


async def test_a_join_that_hangs_is_cancelled_when_its_client_leaves() -> None:
    model = Counting()
    hanging = Hanging(step=model.step)
    model.engine = Steps(
        stepper(model.step, hanging.hang_in_join, model.leave, flights=model.flights), model.gauge
    )
    async with anyio.create_task_group() as group:
        first, second = await begin(group, model, 1, 2)
        hanging.clean_up_takes.set()
        first.scope.cancel()
        await settle()
        assert hanging.cancelled == [[1]]
        assert first.over
        second.scope.cancel()
        await until_idle(model.engine)
    assert hanging.cleaned == [[1], [2]]
    assert model.left == [1, 2]
    assert model.engine.is_idle


async def test_a_leave_goes_on_when_others_leave() -> None:
    model = Counting()
    may_leave, ended = anyio.Event(), []

    async def leave(slot: Slot) -> None:
        await may_leave.wait()
        ended.append(slot.payload)

    model.engine = Steps(stepper(model.step, model.join, leave), model.gauge)
    async with anyio.create_task_group() as group:
        long, short = await begin(group, model, 3, 1)
        await model.advance(2)  # the short one has ended, and is being taken out
        long.scope.cancel()
        await settle()
        may_leave.set()
        await until_idle(model.engine)
    assert short.items == [1]
    assert ended == [1, 3]


async def test_a_drain_ends_a_step() -> None:
    model = Hanging()
    model.clean_up_takes.set()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            (reader,) = await begin(group, model, 3)
            model.flights.cancel_all(ServerShuttingDown, cleanup_cap=1)
            await model.flights.emptied()
    assert isinstance(reader.error, ServerShuttingDown)
    assert model.cleaned == [[3]]
    assert model.left == [3]


async def test_a_cancellation_of_the_steps_own_is_a_failure_of_the_step(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio's cannot be made by hand")

    async def step(active: list[Slot]) -> None:
        model.steps.append([slot.payload for slot in active])
        if len(model.steps) == 1:
            raise asyncio.CancelledError
        for slot in active:
            slot.put("item")
            slot.end()

    model = Hanging(step=step)
    with anyio.fail_after(5):
        with pytest.raises(asyncio.CancelledError):
            async for _ in model.engine.stream(1):
                pass
        assert [item async for item in model.engine.stream(2)] == ["item"]
    assert model.left == [1, 2]
