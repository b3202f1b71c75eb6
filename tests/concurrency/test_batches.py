"""When joint calls are made, who is in them, and what becomes of who leaves."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve.concurrency.batches import Batches, Policy
from modelserve.concurrency.flights import Flights
from modelserve.concurrency.lanes import Caller, Part
from modelserve.errors import InvalidInput, ServerShuttingDown
from modelserve.limits import Deadlines

pytestmark = pytest.mark.anyio


async def settle() -> None:
    """Let every task run as far as it can; cheaper than `wait_all_tasks_blocked` on asyncio."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class Letters:
    """Work made of letters; what has another key may not go together."""

    def __init__(self, letters: str, key: str | None = "k") -> None:
        self.letters = letters
        self.size = len(letters)
        self.key = key

    def whole(self, results: Sequence[str]) -> str:
        return "".join(results)


class Model:
    """Calls that last until they are let go; records them, and how they ended."""

    def __init__(self, **policy: Any) -> None:
        self.calls: list[str] = []
        self.gates: list[anyio.Event] = []
        self.cancelled: list[str] = []
        self.cleaned: list[str] = []
        self.clean_up_takes: anyio.Event | None = None
        self.sizes: list[int] = []
        self.waits: list[int] = []
        self.outcomes: list[str] = []
        self.answers: dict[str, Any] = {}
        self.fails: dict[str, BaseException] = {}
        self.flights = Flights()
        self.batches = Batches(
            self.call_alone,
            self.call,
            Policy(**{"max_size": 4, **policy}),
            self,
            self.flights,
        )

    def start(
        self, size: int, waits: Sequence[float], callers: Sequence[Caller] = ()
    ) -> Callable[[str], None]:
        self.sizes.append(size)
        self.waits.append(len(waits))
        return self.outcomes.append

    async def call_alone(self, work: Letters) -> str:
        return await self.run(work.letters)

    async def call(self, parts: Sequence[Part]) -> list[Any]:
        result = await self.run("".join(p.work.letters[p.start : p.stop] for p in parts))
        results: list[Any] = []
        for part in parts:
            own, result = result[: part.size], result[part.size :]
            results.append(InvalidInput("no ?") if "?" in own else own)
        return results

    async def run(self, letters: str) -> str:
        self.calls.append(letters)
        gate = anyio.Event()
        self.gates.append(gate)
        try:
            await gate.wait()
        except BaseException:
            self.cancelled.append(letters)
            if self.clean_up_takes is not None:
                await self.clean_up_takes.wait()
            self.cleaned.append(letters)
            raise
        for letter, error in self.fails.items():
            if letter in letters:
                raise error
        return letters.upper()

    async def ask(self, letters: str, key: str | None = "k") -> None:
        try:
            self.answers[letters] = await self.batches.submit(Letters(letters, key))
        except Exception as exc:
            self.answers[letters] = exc

    async def arrive(
        self, group: anyio.abc.TaskGroup, *letters: str, key: str | None = "k"
    ) -> None:
        for some in letters:
            group.start_soon(self.ask, some, key)
            await settle()

    async def finish(self, index: int = -1) -> None:
        self.gates[index].set()
        await settle()

    async def finish_all(self) -> None:
        while any(not gate.is_set() for gate in self.gates):
            for gate in self.gates:
                gate.set()
            await settle()


async def test_an_idle_model_is_called_at_once_in_the_callers_own_task() -> None:
    model = Model()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            await model.arrive(group, "a")
            assert model.calls == ["a"]
            await model.finish()
    assert model.answers == {"a": "A"}
    assert model.batches.is_idle


async def test_who_waits_goes_together_in_order_with_all_that_fits() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "bc", "d", "ef", "g")
        assert model.calls == ["a"]
        await model.finish()
        assert model.calls == ["a", "bcd"]
        await model.finish()
        assert model.calls == ["a", "bcd", "efg"]
        await model.finish()
    assert model.answers == {"a": "A", "bc": "BC", "d": "D", "ef": "EF", "g": "G"}
    assert (model.sizes, model.waits) == ([1, 3, 3], [1, 2, 2])
    assert model.outcomes == ["done"] * 3


async def test_what_has_another_key_goes_in_a_call_of_its_own_the_oldest_first() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        await model.arrive(group, "b", key="x")
        await model.arrive(group, "c")
        await model.arrive(group, "d", key="x")
        await model.arrive(group, "e", "f", key=None)
        for _ in range(5):
            await model.finish()
    assert model.calls == ["a", "bd", "c", "e", "f"]
    assert model.batches.is_idle


async def test_work_that_is_larger_than_a_call_is_divided_and_put_together() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "abcdefghij")
        assert model.calls == ["abcd"]
        await model.finish()
        await model.finish()
        await model.finish()
    assert model.calls == ["abcd", "efgh", "ij"]
    assert model.answers == {"abcdefghij": "ABCDEFGHIJ"}


async def test_a_large_caller_takes_turns_with_small_ones() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "abcdefghij", "1", "2")
        for _ in range(4):
            await model.finish()
    assert model.calls == ["abcd", "12ef", "ghij"]
    assert model.answers == {"abcdefghij": "ABCDEFGHIJ", "1": "1", "2": "2"}


async def test_several_calls_at_a_time() -> None:
    model = Model(concurrency=2)
    async with anyio.create_task_group() as group:
        await model.arrive(group, "abcdefghij", "1")
        assert sorted(model.calls) == ["abcd", "efgh"]
        await model.finish(1)
        assert model.calls[2:] == ["1ij"]
        await model.finish_all()
    assert model.answers == {"abcdefghij": "ABCDEFGHIJ", "1": "1"}


async def test_who_leaves_while_waiting_is_never_called() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        async with anyio.create_task_group() as leaving:
            await model.arrive(leaving, "b", "c")
            await model.arrive(leaving, "d", key=None)
            leaving.cancel_scope.cancel()
        await model.arrive(group, "e")
        await model.finish()
        await model.finish()
    assert model.calls == ["a", "e"]
    assert model.batches.is_idle


async def test_who_leaves_alone_is_cancelled_and_the_next_goes() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as leaving:
            await model.arrive(leaving, "a")
            await model.arrive(group, "b")
            leaving.cancel_scope.cancel()
        assert model.cleaned == ["a"]
        await settle()
        await model.finish()
    assert model.calls == ["a", "b"]
    assert model.outcomes == ["cancelled", "done"]


class Panic(BaseException):
    """No `Exception`, as what libraries in Rust raise when they panic."""


async def raised_alone(error: BaseException) -> tuple[BaseException | None, list[str]]:
    """Return what one caller is raised whose call raises, and how its call is recorded."""
    model = Model()
    model.fails["a"] = error
    raised: list[BaseException] = []

    async def ask() -> None:
        try:
            await model.batches.submit(Letters("a"))
        except BaseException as exc:
            raised.append(exc)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await settle()
        await model.finish()
    return (raised or [None])[0], model.outcomes


async def test_a_panic_alone_is_recorded_as_an_error() -> None:
    error = Panic()
    assert await raised_alone(error) == (error, ["error"])


async def test_a_cancellation_of_the_calls_own_alone_is_recorded_as_an_error(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio's cannot be made by hand")
    error = asyncio.CancelledError()
    assert await raised_alone(error) == (error, ["error"])


async def test_a_call_goes_on_for_those_who_stay() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        async with anyio.create_task_group() as leaving:
            await model.arrive(leaving, "b")
            await model.arrive(group, "c")
            await model.finish()
            leaving.cancel_scope.cancel()
        assert model.calls == ["a", "bc"]
        assert not model.cancelled
        await model.finish()
    assert model.answers == {"a": "A", "c": "C"}
    assert model.batches.is_idle


async def test_a_call_that_nobody_wants_is_cancelled_once_and_its_clean_up_is_waited_for() -> None:
    model = Model()
    model.clean_up_takes = anyio.Event()
    left = anyio.Event()

    async def ask(letters: str, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await model.batches.submit(Letters(letters))
            finally:
                left.set()  # the last one is not here before the clean-up is over

    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        first, last = anyio.CancelScope(), anyio.CancelScope(shield=True)
        group.start_soon(ask, "b", first)
        await settle()
        group.start_soon(leave_last, model, "c", last)
        await settle()
        await model.finish()
        first.cancel()
        await settle()
        assert left.is_set()
        assert not model.cancelled
        last.cancel()
        await settle()
        assert model.cancelled == ["bc"]
        assert not model.cleaned
        await model.arrive(group, "d")
        assert model.calls == ["a", "bc"]  # the model is not free yet
        model.clean_up_takes.set()
        await settle()
        assert model.cleaned == ["bc"]
        assert model.calls == ["a", "bc", "d"]
        await model.finish()
    assert model.outcomes == ["done", "cancelled", "done"]


async def leave_last(model: Model, letters: str, scope: anyio.CancelScope) -> None:
    with scope:
        await model.batches.submit(Letters(letters))


async def test_clean_up_of_a_joint_call_is_bounded() -> None:
    model = Model(deadlines=Deadlines(cleanup_timeout=0.05))
    model.clean_up_takes = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            await model.arrive(group, "a")
            async with anyio.create_task_group() as leaving:
                await model.arrive(leaving, "b", "c")
                await model.finish()
                leaving.cancel_scope.cancel()
            while not model.batches.is_idle:  # noqa: ASYNC110 - a bound that passes
                await anyio.sleep(0.01)
    assert model.cancelled == ["bc"]
    assert not model.cleaned


async def test_who_leaves_when_it_is_its_turn_gives_the_turn_on() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        async with anyio.create_task_group() as leaving:
            await model.arrive(leaving, "b", key=None)
            await model.arrive(group, "c", key=None)
            model.gates[0].set()
            while model.batches._running or "a" not in model.answers:
                if "a" in model.answers:  # its call is over, and the next one has its turn
                    leaving.cancel_scope.cancel()
                    break
                await anyio.lowlevel.checkpoint()
        await settle()
        await model.finish_all()
    assert model.answers["c"] == "C"
    assert model.batches.is_idle


async def test_a_failed_call_is_made_again_for_each_caller_alone() -> None:
    model = Model()
    model.fails["x"] = error = ValueError("x")
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "b", "x", "c")
        for _ in range(5):
            await model.finish()
    assert model.calls == ["a", "bxc", "b", "x", "c"]
    assert model.answers == {"a": "A", "b": "B", "x": error, "c": "C"}
    assert model.outcomes == ["done", "error"]


async def test_without_isolation_a_failed_call_fails_everybody() -> None:
    model = Model(isolates=False)
    model.fails["x"] = error = ValueError("x")
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "b", "x")
        await model.finish()
        await model.finish()
    assert model.calls == ["a", "bx"]
    assert model.answers == {"a": "A", "b": error, "x": error}


async def test_nobody_is_called_again_who_has_left() -> None:
    model = Model()
    model.fails["x"] = ValueError("x")
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        async with anyio.create_task_group() as leaving:
            await model.arrive(group, "x")
            await model.arrive(leaving, "b")
            await model.arrive(group, "c")
            await model.finish()
            await model.finish()
            leaving.cancel_scope.cancel()
        await model.finish()
        await model.finish()
    assert model.calls == ["a", "xbc", "x", "c"]
    assert model.batches.is_idle


async def test_who_leaves_while_called_again_alone_is_cancelled_and_waits_for_the_clean_up() -> (
    None
):
    model = Model()
    model.fails["x"] = ValueError("x")
    model.clean_up_takes = anyio.Event()
    leaving, has_left = anyio.CancelScope(), anyio.Event()

    async def ask_and_leave() -> None:
        with leaving:
            await model.batches.submit(Letters("c"))
        has_left.set()

    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "b")
        group.start_soon(ask_and_leave)
        await settle()
        await model.arrive(group, "x", "d")
        for _ in range(3):
            await model.finish()
        assert model.calls == ["a", "bcxd", "b", "c"]
        leaving.cancel()
        await settle()
        assert model.cancelled == ["c"]
        assert not has_left.is_set()
        await model.arrive(group, "e")
        assert model.calls[-1] == "c"  # the model is not free before the clean-up is over
        model.clean_up_takes.set()
        await settle()
        assert has_left.is_set()
        assert model.cleaned == ["c"]
        await model.finish_all()
    assert model.calls[4:] == ["x", "d", "e"]
    assert model.answers["d"] == "D"
    assert model.batches.is_idle


async def test_the_last_one_left_of_a_call_made_again_is_cancelled_when_it_leaves() -> None:
    model = Model()
    model.fails["x"] = ValueError("x")
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "x")
        async with anyio.create_task_group() as leaving:
            await model.arrive(leaving, "b")
            await model.finish()
            await model.finish()
            await model.finish()
            assert model.calls == ["a", "xb", "x", "b"]
            leaving.cancel_scope.cancel()
    assert model.cancelled == ["b"]
    assert model.batches.is_idle


async def test_who_leaves_several_calls_ends_them_all_at_once() -> None:
    model = Model(concurrency=2)
    model.clean_up_takes = anyio.Event()
    async with anyio.create_task_group() as group, anyio.create_task_group() as leaving:
        await model.arrive(leaving, "abcdefgh")
        assert sorted(model.calls) == ["abcd", "efgh"]
        leaving.cancel_scope.cancel()
        group.start_soon(let_both_clean_up, model)
    assert sorted(model.cleaned) == ["abcd", "efgh"]
    assert model.batches.is_idle


async def let_both_clean_up(model: Model) -> None:
    while len(model.cancelled) < 2:
        await settle()
    assert model.clean_up_takes is not None
    model.clean_up_takes.set()


async def test_a_drain_ends_joint_calls_and_bounds_their_clean_up() -> None:
    model = Model()
    model.clean_up_takes = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            await model.arrive(group, "a", "b", "c")
            await model.finish()
            assert len(model.flights) == 1
            model.flights.cancel_all(ServerShuttingDown, cleanup_cap=0.05)
            await model.flights.emptied()
    assert model.cancelled == ["bc"]
    assert not model.cleaned
    assert isinstance(model.answers["b"], ServerShuttingDown)  # nobody waits for ever
    assert model.outcomes == ["done", "cancelled"]


class Failing(Model):
    async def run(self, letters: str) -> str:
        result = await super().run(letters)
        if "x" in letters:
            raise ValueError
        return result


@pytest.mark.parametrize("isolates", [True, False])
async def test_callers_and_calls_leave_no_garbage(isolates: bool) -> None:
    model = Failing(isolates=isolates)
    gc.collect()
    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            await model.arrive(group, "a", "b", "c", "x", "?", "defghij")
            await model.finish_all()
        model.answers.clear()
        left = [one for one in gc.get_objects() if isinstance(one, Caller)]
    finally:
        gc.enable()
    assert not left


async def test_an_exception_among_the_results_fails_its_caller_alone() -> None:
    model = Model()
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "b", "?", "c")
        await model.finish()
        await model.finish()
    assert isinstance(model.answers.pop("?"), InvalidInput)
    assert model.answers == {"a": "A", "b": "B", "c": "C"}


async def test_a_part_that_fails_ends_the_rest_of_its_caller() -> None:
    model = Model()
    model.fails["x"] = error = ValueError("x")
    async with anyio.create_task_group() as group:
        await model.arrive(group, "xbcdefghij", "1")
        await model.finish()
        await model.finish()
    assert model.calls == ["xbcd", "1"]
    assert model.answers == {"xbcdefghij": error, "1": "1"}
    assert model.batches.is_idle


async def test_a_cancellation_of_the_calls_own_is_a_failure_of_the_call(
    anyio_backend_name: str,
) -> None:
    """A hook may raise CancelledError of itself, by awaiting a task that somebody cancelled."""
    if anyio_backend_name == "trio":
        pytest.skip("trio's cannot be made by hand")
    model = Model(isolates=False)
    model.fails["x"] = asyncio.CancelledError()
    raised: list[BaseException] = []

    async def ask() -> None:
        try:
            await model.batches.submit(Letters("x"))
        except asyncio.CancelledError as exc:
            raised.append(exc)

    async with anyio.create_task_group() as group:
        await model.arrive(group, "a", "b")
        group.start_soon(ask)
        await settle()
        with anyio.fail_after(5):
            await model.finish()
            model.gates[-1].set()
            while not raised:  # noqa: ASYNC110 - a task of asyncio's own
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()
    assert model.batches.is_idle


async def test_max_wait_waits_for_company() -> None:
    model = Model(max_wait=60.0, max_size=2)
    async with anyio.create_task_group() as group:
        await model.arrive(group, "a")
        assert model.calls == []
        await model.arrive(group, "b")
        assert model.calls == ["ab"]
        await model.finish()


async def test_max_wait_ends() -> None:
    model = Model(max_wait=0.02)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            await model.arrive(group, "a", "b")
            while not model.calls:  # noqa: ASYNC110 - a time that passes
                await anyio.sleep(0.005)
            await model.finish()
    assert model.calls == ["ab"]
    assert model.batches.is_idle


async def test_a_full_call_does_not_wait_for_an_older_one_that_is_not() -> None:
    model = Model(max_wait=60.0, max_size=2)
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as leaving:
            await model.arrive(leaving, "a", key="x")
            await model.arrive(group, "b", "c")
            assert model.calls == ["bc"]
            leaving.cancel_scope.cancel()
        await model.finish()
    assert model.batches.is_idle
