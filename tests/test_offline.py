"""A model's hooks without HTTP."""

import asyncio
import gc
import logging
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelserve import InvalidInput, Limits, Model
from modelserve.errors import DeadlineExceeded, ModelNotReady, Overloaded
from modelserve.offline import Runner

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
SECONDS = 20


class Recorder(Model):
    """Notes what is called, and doubles numbers."""

    def __init__(self, name: str = "recorder") -> None:
        super().__init__(name)
        self.calls: list[Any] = []

    def start(self) -> None:
        self.calls.append("start")

    def load(self) -> bool:
        self.calls.append("load")
        return True

    def stop(self) -> None:
        self.calls.append("stop")

    async def preprocess(self, payload: Any, headers: Any) -> Any:
        self.calls.append(headers.get("x-kind"))
        return payload["instances"]

    def predict(self, numbers: Any) -> Any:
        return [2 * number for number in numbers]

    async def explain(self, numbers: Any) -> Any:
        return [f"twice {number}" for number in numbers]

    async def postprocess(self, result: Any) -> Any:
        return {"predictions": result}


@BACKENDS
def test_all_hooks_run_in_their_order(backend: Any) -> None:
    model = Recorder()
    with Runner(model, backend=backend) as run:
        assert model.calls == ["start", "load"]
        assert run({"instances": [1, 2]}) == {"predictions": [2, 4]}
        assert run({"instances": [3]}, headers={"X-Kind": "odd"}) == {"predictions": [6]}
        assert [*run.stream({"instances": [4]})] == [{"predictions": [8]}]
    assert model.calls == ["start", "load", None, "odd", None, "stop"]


def test_a_verb() -> None:
    with Runner(Recorder(), verb="explain") as run:
        assert run({"instances": [1]}) == {"predictions": ["twice 1"]}
    with pytest.raises(ValueError, match="There is no verb 'guess': there are predict, explain,"):
        Runner(Recorder(), verb="guess")


class Ended(threading.Event):
    """Set by a stream that has cleaned up."""


async def async_items(payload: Any) -> AsyncIterator[int]:
    try:
        for number in range(payload["count"]):
            yield number
            await asyncio.sleep(0)
    finally:
        payload["ended"].set()


def sync_items(payload: Any) -> Iterator[int]:
    try:
        yield from range(payload["count"])
    finally:
        payload["ended"].set()


@pytest.mark.parametrize("function", [async_items, sync_items])
def test_a_stream_is_a_list_or_comes_item_by_item(function: Any) -> None:
    ended = Ended()
    with Runner(function) as run:
        assert run({"count": 1000, "ended": ended}) == [*range(1000)]
        assert ended.is_set()
        assert run({"count": 0, "ended": ended}) == []
        items = run.stream({"count": 1000, "ended": ended})
        assert (next(items), next(items)) == (0, 1)
        assert [*items] == [*range(2, 1000)]


@pytest.mark.parametrize("function", [async_items, sync_items])
def test_a_stream_that_is_left_has_cleaned_up(function: Any) -> None:
    ended = Ended()
    with Runner(function) as run:
        items = run.stream({"count": 1_000_000, "ended": ended})
        assert next(items) == 0
        items.close()  # type: ignore[attr-defined]
        assert ended.is_set()


def test_a_stream_works_ahead_by_a_bounded_number_of_items() -> None:
    made = 0
    full = threading.Event()

    async def count(payload: Any) -> AsyncIterator[int]:
        nonlocal made
        while True:
            made += 1
            if made == 65:
                full.set()
            yield made

    with Runner(count) as run:
        items = run.stream(None)
        assert next(items) == 1
        assert full.wait(SECONDS)
        with Runner(count_to_one) as other:  # time for more to be made
            assert other(None) == 1
        assert made <= 66
        assert [next(items) for _ in range(200)] == [*range(2, 202)]


async def count_to_one(payload: Any) -> int:
    await asyncio.sleep(0)
    return 1


@pytest.mark.parametrize("error", [InvalidInput("no"), KeyError("key"), SystemExit(3)])
@pytest.mark.parametrize("kind", ["async", "sync", "stream"])
def test_what_a_hook_raises_is_raised(error: BaseException, kind: str) -> None:
    async def fail(payload: Any) -> None:
        raise error

    def fail_in_thread(payload: Any) -> None:
        raise error

    async def fail_late(payload: Any) -> AsyncIterator[int]:
        yield 1
        raise error

    hooks = {"async": fail, "sync": fail_in_thread, "stream": fail_late}
    with Runner(hooks[kind]) as run:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                run({})
            assert caught.value is error
        if kind == "stream":
            items = run.stream({})
            assert next(items) == 1
            with pytest.raises(type(error)):
                next(items)


@dataclass
class House:
    rooms: int


async def rooms(instances: list[House]) -> Any:
    return [house.rooms for house in instances]


async def rooms_of_each(houses: AsyncIterator[House]) -> AsyncIterator[int]:
    async for house in houses:
        yield house.rooms


def rooms_in_thread(houses: Iterator[House]) -> Iterator[int]:
    for house in houses:
        yield house.rooms


def test_a_declared_payload_is_checked() -> None:
    with Runner(rooms) as run:
        assert run({"instances": [{"rooms": 3}]}) == {"predictions": [3]}
        with pytest.raises(InvalidInput, match=r"instances\[0\]\.rooms"):
            run({"instances": [{"rooms": "three"}]})


@pytest.mark.parametrize("function", [rooms_of_each, rooms_in_thread])
def test_rows_are_checked_one_by_one(function: Any) -> None:
    with Runner(function) as run:
        rows = [{"rooms": number} for number in range(500)]
        assert run(rows) == run({"instances": rows}) == [*range(500)]
        items = run.stream([*rows[:3], {"rooms": "three"}])
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(InvalidInput, match=r"instances\[3\]\.rooms"):
            next(items)


async def double_each(rows: AsyncIterator[int]) -> AsyncIterator[int]:
    async for row in rows:
        yield 2 * row


def double_in_thread(rows: Iterator[int]) -> Iterator[int]:
    for row in rows:
        yield 2 * row


def total(rows: Iterator[int]) -> int:
    return sum(rows)


def join(rows: Iterable[str]) -> Iterator[str]:
    yield "".join(rows)


@BACKENDS
@pytest.mark.parametrize("function", [double_each, double_in_thread])
def test_rows_of_any_iterable_are_read_by_the_thread_that_takes_the_items(
    function: Any, backend: Any
) -> None:
    threads: set[int] = set()
    read = 0

    def rows() -> Iterator[int]:
        nonlocal read
        for number in range(2000):
            threads.add(threading.get_ident())
            read += 1
            yield number

    with Runner(function, backend=backend) as run:
        items = run.stream(rows())
        assert next(items) == 0
        assert read < 500  # not all of them
        assert [*items] == [2 * number for number in range(1, 2000)]
    assert threads == {threading.get_ident()}
    assert read == 2000


def test_a_hook_may_make_one_result_of_all_rows() -> None:
    with Runner(total) as run:
        assert run(range(1000)) == 499_500
        assert run(iter(())) == 0
    with Runner(join) as run:
        assert run(("a", "b")) == ["ab"]


def test_a_table_is_no_iterable_of_rows() -> None:
    table = pytest.importorskip("pandas").DataFrame({"x": [1, 2]})
    with Runner(double_each) as run:
        with pytest.raises(InvalidInput):
            run(table)  # whose iterator gives the names of the columns
        assert run(table["x"]) == [2, 4]
        assert run(table.to_numpy().ravel()) == [2, 4]


@pytest.mark.parametrize("function", [double_each, double_in_thread, total])
def test_what_the_rows_raise_is_raised(function: Any) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise OSError("the disk")

    with Runner(function) as run, pytest.raises(OSError, match="the disk"):
        run(rows())


@pytest.mark.parametrize("function", [double_each, double_in_thread])
def test_a_stream_of_rows_that_is_left_ends(function: Any) -> None:
    with Runner(function) as run:
        items = run.stream(iter(int, 1))  # zeros without end
        assert [next(items) for _ in range(100)] == [0] * 100
        items.close()  # type: ignore[attr-defined]
        assert run([1]) == [2]


def test_several_threads_may_call_at_once() -> None:
    together = threading.Barrier(4)

    def meet(payload: Any) -> int:
        together.wait(SECONDS)
        return int(payload)

    with Runner(meet) as run, ThreadPoolExecutor(4) as pool:
        assert [*pool.map(run, range(8))] == [*range(8)]


def test_limits_hold() -> None:
    begun = threading.Event()

    class Slow(Model):
        limits = Limits(concurrency=1, queue=0)

        async def predict(self, payload: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool, Runner(Slow("slow")) as run:
        pool.submit(run, None)
        assert begun.wait(SECONDS)
        with pytest.raises(Overloaded):
            run(None)
    with (
        Runner(Slow("slow"), limits=Limits(timeout=0.01)) as run,
        pytest.raises(DeadlineExceeded),
    ):
        run(None)


def test_the_callers_thread_may_have_an_event_loop() -> None:
    async def main() -> Any:
        with Runner(Recorder()) as run:
            return run({"instances": [1]})

    assert asyncio.run(main()) == {"predictions": [2]}


def test_a_sync_hook_may_run_another_model() -> None:
    with Runner(count_to_one) as inner:

        def outer(payload: Any) -> int:
            return int(inner(payload)) + 1

        with Runner(outer) as run:
            assert run(None) == 2


def test_an_async_hook_cannot_wait_for_its_own_runner() -> None:
    async def recursive(payload: Any) -> Any:
        return run(payload)

    with Runner(recursive) as run:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="cannot wait for the Runner that it runs in"):
                run(None)


# -- its life


def test_the_first_call_starts_the_model() -> None:
    model = Recorder()
    run = Runner(model)
    assert model.calls == []
    assert run({"instances": [1]}) == {"predictions": [2]}
    assert model.calls[:2] == ["start", "load"]
    run.close()
    assert model.calls[-1] == "stop"


def test_a_runner_that_is_closed_starts_again_when_asked_to() -> None:
    model = Recorder()
    run = Runner(model)
    with run:
        pass
    for _ in range(2):
        with pytest.raises(RuntimeError, match="This Runner is closed"):
            run({"instances": [1]})
    run.close()
    with run:
        assert run({"instances": [1]}) == {"predictions": [2]}
    assert model.calls.count("start") == model.calls.count("stop") == 2


def test_closing_what_was_never_started_does_nothing() -> None:
    model = Recorder()
    Runner(model).close()
    assert model.calls == []


def test_closing_cancels_what_runs() -> None:
    begun, ended = threading.Event(), threading.Event()

    async def forever(payload: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        with Runner(forever) as run:
            call = pool.submit(run, None)
            assert begun.wait(SECONDS)
        assert ended.is_set()
        with pytest.raises(RuntimeError, match="This Runner is closed"):
            call.result(SECONDS)


def test_a_load_that_fails_is_raised_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Flaky(Recorder):
        def load(self) -> bool:
            self.calls.append("load")
            if self.calls.count("load") == 1:
                raise OSError("no such file")
            return self.calls.count("load") > 2

    model = Flaky()
    run = Runner(model)
    with pytest.raises(OSError, match="no such file"):
        run({"instances": [1]})
    with pytest.raises(ModelNotReady, match=r"recorder is not ready\. Its load\(\) returned False"):
        run.start()
    assert "Stopping while models are loading" not in caplog.text
    with run:
        assert run({"instances": [1]}) == {"predictions": [2]}
    assert model.calls.count("start") == model.calls.count("stop")


def test_what_stop_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Recorder):
        def stop(self) -> None:
            raise OSError("still open")

    with caplog.at_level(logging.ERROR), Runner(Stubborn()) as run:
        assert run({"instances": [1]}) == {"predictions": [2]}
    assert "still open" in caplog.text


def test_a_runner_that_nobody_has_any_more_stops_its_model() -> None:
    stopped = threading.Event()

    class Model_(Recorder):
        def stop(self) -> None:
            stopped.set()

    run = Runner(Model_())
    run({"instances": [1]})
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None
    assert stopped.wait(SECONDS)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [(object(), "predict"), (7, "predict")],
)
def test_what_cannot_be_run_is_a_sentence(model: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        Runner(model)


def test_a_class_is_made_into_a_model() -> None:
    class Doubler:
        def predict(self, payload: Any) -> Any:
            return 2 * payload

    with Runner(Doubler) as run:
        assert run(4) == 8
    with Runner(Recorder) as run:
        assert run({"instances": [1]}) == {"predictions": [2]}


# -- other processes


def test_it_can_be_pickled() -> None:
    with Runner(Recorder(), verb="explain", limits=Limits(concurrency=2)) as run:
        copy = pickle.loads(pickle.dumps(run))
        with copy:
            assert copy({"instances": [1]}) == run({"instances": [1]})


def score(run: Runner, numbers: list[int]) -> Any:
    return run({"instances": numbers})["predictions"]


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_it_starts_again_after_a_fork() -> None:
    with Runner(Recorder()) as run:
        assert score(run, [1]) == [2]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(score, [(run, [number]) for number in range(4)]) == [
                [0],
                [2],
                [4],
                [6],
            ]
        assert score(run, [5]) == [10]


@BACKENDS
def test_the_end_of_the_process_stops_the_model(backend: str) -> None:
    code = f"""
from modelserve import Model
from modelserve.offline import Runner

class M(Model):
    def load(self): return True
    async def predict(self, payload): return payload
    def stop(self): print("stopped", flush=True)

run = Runner(M("m"), backend={backend!r})
print(run("scored"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["scored", "stopped"]), done.stderr


# -- its guide


def test_the_guide_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "examples/guides/offline.md").read_text()
    found: dict[str, Any] = {}
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(program, "offline.md", "exec"), found)  # noqa: S102
    assert capsys.readouterr().out == "{'predictions': [2, 4]}\none\ntwo\nthree\n49.95\n"
