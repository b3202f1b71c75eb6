"""Slots for calls inside of requests: in turn, given up, refused."""

import anyio
import pytest

from modelserve import Limits
from modelserve.concurrency.admission import Admission
from modelserve.concurrency.gate import Gate
from modelserve.concurrency.nesting import Holders, Nesting
from modelserve.concurrency.slots import Slots
from modelserve.errors import ModelNotFound, Overloaded, ServerShuttingDown
from modelserve.limits import DEFAULTS

pytestmark = pytest.mark.anyio


def of(concurrency: int, queue: int = 10) -> Gate:
    return Gate(Limits(concurrency=concurrency, queue=queue).with_defaults(DEFAULTS))


def admission(concurrency: float = 10) -> Admission:
    return Admission(Limits(concurrency=concurrency).with_defaults(DEFAULTS))


async def test_a_call_goes_before_requests_that_wait() -> None:
    gates, gate, order = admission(), of(1), list[str]()
    assert gates.acquire_nowait(gate)

    async def request() -> None:
        await gates.acquire(gate)
        order.append("request")
        gates.release(gate)

    async def call() -> None:
        await gates.nesting.acquire(gate, {})
        order.append("call")
        gates.nesting.release(gate)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(request)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            assert gate.waiting == 2
            gates.release(gate)
    assert order == ["call", "request"]
    assert (gate.running, gate.waiting, gates.gate.running) == (0, 0, 0)


async def test_a_call_needs_no_slot_of_the_application() -> None:
    gates, own, other = admission(concurrency=1), of(1), of(1)
    assert gates.acquire_nowait(own)
    await gates.nesting.acquire(other, {1: own})
    assert (other.running, gates.gate.running) == (1, 1)
    gates.nesting.release(other)
    assert other.running == 0


async def test_a_cancelled_call_gives_up_its_place() -> None:
    gates, gate = admission(), of(1)
    assert gates.acquire_nowait(gate)
    with anyio.move_on_after(0.01):
        await gates.nesting.acquire(gate, {})
    assert gate.waiting == 0
    gates.release(gate)
    assert gates.acquire_nowait(gate)


async def test_a_full_queue_refuses_a_call() -> None:
    gates, gate = admission(), of(1, queue=0)
    assert gates.acquire_nowait(gate)
    with pytest.raises(Overloaded, match="its queue is full"):
        await gates.nesting.acquire(gate, {})


async def test_a_drain_refuses_requests_and_a_removed_model_calls_too() -> None:
    gates, gate, refused = admission(), of(1), list[str]()
    assert gates.acquire_nowait(gate)

    async def call() -> None:
        try:
            await gates.nesting.acquire(gate, {})
        except ModelNotFound:
            refused.append("call")

    async def request() -> None:
        try:
            await gates.acquire(gate)
        except ServerShuttingDown:
            refused.append("request")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            group.start_soon(request)
            await anyio.wait_all_tasks_blocked()
            gates.refuse_waiting(ServerShuttingDown)
            await anyio.wait_all_tasks_blocked()
            assert refused == ["request"]
            gates.refuse_waiting_for(gate, ModelNotFound)
    assert refused == ["request", "call"]


@pytest.mark.parametrize(
    ("concurrency", "running", "held", "is_refused"),
    [(1, 1, 1, True), (2, 2, 2, True), (2, 2, 1, False), (1, 1, 0, False)],
)
async def test_only_a_call_that_waits_for_itself_alone_is_refused(
    concurrency: int, running: int, held: int, is_refused: bool
) -> None:
    gates, gate = admission(), of(concurrency)
    for _ in range(running):
        assert gates.acquire_nowait(gate)
    refused = False
    with anyio.move_on_after(0.01):
        try:
            await gates.nesting.acquire(gate, dict.fromkeys(range(held), gate))
        except Overloaded:
            refused = True
    assert refused == is_refused


async def test_calls_that_wait_in_a_circle_are_noticed() -> None:
    gates, a, b, c = admission(), of(1), of(1), of(1)
    for gate in (a, b, c):
        assert gates.acquire_nowait(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(gates.nesting.acquire, b, {1: a})
        group.start_soon(gates.nesting.acquire, c, {2: b})
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="would deadlock"):
            await gates.nesting.acquire(a, {3: c})
        group.cancel_scope.cancel()


async def test_a_request_that_waits_by_two_calls_counts_once() -> None:
    gates, own, called = admission(), of(2), of(1)
    for gate in (own, own, called):
        assert gates.acquire_nowait(gate)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(gates.nesting.acquire, called, {"request": own})
        await anyio.wait_all_tasks_blocked()
        group.start_soon(gates.nesting.acquire, own, {"request": own, "call": called})
        await anyio.wait_all_tasks_blocked()
        assert (own.waiting, called.waiting) == (1, 2)  # the other slot of `own` will be free
        group.cancel_scope.cancel()


async def test_a_request_needs_all_that_it_waits_for() -> None:
    gates, own, called, other = admission(), of(1), of(1), of(1)
    for gate in (own, called, other):
        assert gates.acquire_nowait(gate)
    async with anyio.create_task_group() as group:
        for wanted in (other, called):  # the slot of `other` will be free, which helps nobody
            group.start_soon(gates.nesting.acquire, wanted, {"request": own})
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="would deadlock"):
            await gates.nesting.acquire(own, {"request": own, "call": called})
        group.cancel_scope.cancel()


# --- threads of models' own -----------------------------------------------------------------------


def busy() -> Slots:
    thread = Slots(1)
    assert thread.acquire_nowait()
    return thread


def wait_for(nesting: Nesting, thread: Slots, held: Holders) -> None:
    """Begin to wait and give up."""
    with nesting.waiting_for_thread(thread, held):
        pass


async def test_threads_that_wait_in_a_circle_are_noticed() -> None:
    nesting, a, b, c = admission().nesting, busy(), busy(), busy()
    first, second = nesting.waiting_for_thread(b, {1: a}), nesting.waiting_for_thread(c, {2: b})
    with first, second, pytest.raises(Overloaded, match="only thread waits for it"):
        wait_for(nesting, a, {3: c})
    wait_for(nesting, a, {3: c})  # the others have ended


async def test_a_thread_that_only_is_busy_is_waited_for() -> None:
    nesting, a, b = admission().nesting, busy(), busy()
    with nesting.waiting_for_thread(b, {1: a}):  # the hook in `b` waits for nothing
        wait_for(nesting, b, {2: a})
        wait_for(nesting, a, {})  # that in `a` waits for `b`
    free = Slots(1)
    wait_for(nesting, free, {1: free})  # released meanwhile


async def test_a_circle_of_slots_and_threads_is_noticed() -> None:
    gates, gate, thread = admission(), of(1), busy()
    assert gates.acquire_nowait(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(gates.nesting.acquire, gate, {"hook": thread})
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="only thread waits for it"):
            wait_for(gates.nesting, thread, {"request": gate})
        group.cancel_scope.cancel()
    waiting = gates.nesting.waiting_for_thread(thread, {"request": gate})
    with waiting, pytest.raises(Overloaded, match="its callers hold all slots"):
        await gates.nesting.acquire(gate, {"hook": thread})


async def test_requests_that_wait_for_a_thread_keep_their_slots() -> None:
    gates, gate, other, thread = admission(), of(3), of(1), busy()
    for taken in (gate, gate, gate, other):
        assert gates.acquire_nowait(taken)
    nesting, holder, caller = gates.nesting, {"hook": thread, "R": gate}, {"C": other}
    async with anyio.create_task_group() as group:
        with nesting.request_waiting_for_thread(thread, gate):
            group.start_soon(nesting.acquire, other, holder)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(nesting.acquire, gate, caller)  # the third may end
            await anyio.wait_all_tasks_blocked()
            assert (gate.waiting, other.waiting) == (1, 1)
            second = nesting.request_waiting_for_thread(thread, gate)
            with pytest.raises(Overloaded, match="only thread waits for it"), second:
                raise AssertionError
        group.cancel_scope.cancel()
    waits = nesting.request_waiting_for_thread
    async with anyio.create_task_group() as group:
        with waits(thread, gate), waits(thread, gate):
            group.start_soon(nesting.acquire, other, holder)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Overloaded, match="its callers hold all slots"):
                await nesting.acquire(gate, caller)
        group.start_soon(nesting.acquire, gate, caller)  # these requests have ended
        await anyio.wait_all_tasks_blocked()
        assert (gate.waiting, other.waiting) == (1, 1)
        group.cancel_scope.cancel()
