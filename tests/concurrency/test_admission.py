"""Which requests run, which wait and which are refused."""

import gzip
import math
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.concurrency import gate as gates
from modelserve.concurrency.admission import Admission
from modelserve.concurrency.gate import Gate
from modelserve.errors import Overloaded, ServerShuttingDown
from modelserve.limits import DEFAULTS
from modelserve.testing import Exchange, exchange, lifespan, request

PREDICT = ("POST", "/v1/models/m:predict")


# --- admission ----------------------------------------------------------------------------------


class Requests:
    """Requests that ask to be admitted, and what became of each."""

    def __init__(self, **limits: Any) -> None:
        self.admission = Admission(Limits(**limits).with_defaults(DEFAULTS))
        self.admitted: list[str] = []
        self.refused: dict[str, BaseException] = {}

    def gate(self, **limits: Any) -> Gate:
        return Gate(Limits(**limits).within(DEFAULTS))

    async def ask(self, name: str, gate: Gate, size: int = 0) -> None:
        try:
            await self.admission.acquire(gate, size)
        except Exception as exc:
            self.refused[name] = exc
        else:
            self.admitted.append(name)

    @property
    def running(self) -> int:
        return self.admission.gate.running

    @property
    def waiting(self) -> int:
        return self.admission.gate.waiting


async def arrive(group: Any, requests: Requests, *named: tuple[str, Gate]) -> None:
    """Have requests ask in this order, each until it runs, waits or is refused."""
    for name, gate in named:
        group.start_soon(requests.ask, name, gate)
        await anyio.wait_all_tasks_blocked()


@pytest.mark.anyio
async def test_without_limits_every_request_runs() -> None:
    requests = Requests()
    gate = requests.gate()
    assert [requests.admission.acquire_nowait(gate) for _ in range(1000)] == [True] * 1000
    assert (gate.running, requests.running, requests.waiting) == (1000, 1000, 0)
    for _ in range(1000):
        requests.admission.release(gate)
    assert (gate.running, requests.running) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["model", "application"])
async def test_waiting_requests_are_admitted_in_order(where: str) -> None:
    requests = Requests(concurrency=2 if where == "application" else math.inf)
    gate = requests.gate(concurrency=2 if where == "model" else math.inf)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, *[(name, gate) for name in "abcdef"])
        assert (requests.admitted, requests.waiting, requests.running) == (["a", "b"], 4, 2)
        for count in range(3, 7):
            requests.admission.release(gate)
            await anyio.wait_all_tasks_blocked()
            assert requests.admitted == list("abcdef")[:count]
            assert requests.running == 2
    assert requests.waiting == 0


@pytest.mark.anyio
async def test_a_new_request_does_not_overtake_a_waiting_one() -> None:
    requests = Requests()
    gate = requests.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate), ("b", gate))
        requests.admission.release(gate)  # b has the slot, though it has not run yet
        assert not requests.admission.acquire_nowait(gate)
        await arrive(group, requests, ("c", gate))
        assert requests.admitted == ["a", "b"]
        requests.admission.release(gate)
        await anyio.wait_all_tasks_blocked()
        assert requests.admitted == ["a", "b", "c"]
        requests.admission.release(gate)


@pytest.mark.anyio
async def test_no_slot_of_one_is_held_while_waiting_for_the_other() -> None:
    requests = Requests(concurrency=2)
    full, free = requests.gate(concurrency=1), requests.gate()
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("full 1", full), ("full 2", full), ("free 1", free))
        assert requests.admitted == ["full 1", "free 1"]  # the waiting request holds nothing
        assert (requests.running, full.running, full.waiting) == (2, 1, 1)
        requests.admission.release(full)
        await anyio.wait_all_tasks_blocked()
        assert requests.admitted[-1] == "full 2"
        for gate in (full, free):
            requests.admission.release(gate)
    assert (requests.running, full.running, free.running, requests.waiting) == (0, 0, 0, 0)


@pytest.mark.anyio
async def test_a_slot_goes_to_the_request_that_has_waited_longest_and_can_use_it() -> None:
    requests = Requests(concurrency=2)
    one, other = requests.gate(concurrency=1), requests.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("one 1", one), ("other 1", other))
        await arrive(group, requests, ("one 2", one), ("other 2", other), ("other 3", other))
        requests.admission.release(other)  # one 2 has waited longest, but its model is full
        await anyio.wait_all_tasks_blocked()
        assert requests.admitted == ["one 1", "other 1", "other 2"]
        requests.admission.release(one)
        await anyio.wait_all_tasks_blocked()
        assert requests.admitted[-1] == "one 2"
        requests.admission.release(other)
        await anyio.wait_all_tasks_blocked()
        assert requests.admitted[-1] == "other 3"
        requests.admission.release(one)
        requests.admission.release(other)
    assert (requests.running, requests.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_slot_of_the_application_goes_to_the_longest_wait_of_all_models() -> None:
    requests = Requests(concurrency=1)
    gates = {name: requests.gate() for name in "abc"}
    async with anyio.create_task_group() as group:
        await arrive(group, requests, *[(name, gates[name]) for name in "abc"])
        await arrive(group, requests, ("a2", gates["a"]))
        for expected, gate in (("b", "a"), ("c", "b"), ("a2", "c")):
            requests.admission.release(gates[gate])
            await anyio.wait_all_tasks_blocked()
            assert requests.admitted[-1] == expected
        requests.admission.release(gates["a"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "application", "waiting"),
    [
        ({"concurrency": 1, "queue": 0}, {}, 0),
        ({"concurrency": 1, "queue": 2}, {}, 2),
        ({}, {"concurrency": 1, "queue": 0}, 0),
        ({}, {"concurrency": 1, "queue": 2}, 2),
        ({"concurrency": 1, "queue": 5}, {"queue": 2}, 2),
        ({"concurrency": 1, "queue": 2}, {"queue": 5}, 2),
    ],
)
async def test_a_full_queue_refuses(model: Any, application: Any, waiting: int) -> None:
    requests = Requests(**application)
    gate = requests.gate(**model)
    async with anyio.create_task_group() as group:
        names = [str(number) for number in range(waiting + 1)]
        await arrive(group, requests, *[(name, gate) for name in names])
        assert (requests.admitted, requests.waiting, requests.refused) == (["0"], waiting, {})
        await arrive(group, requests, ("late", gate))
        assert type(requests.refused["late"]) is Overloaded
        assert (gate.waiting, requests.waiting) == (waiting, waiting)
        for _ in names:
            requests.admission.release(gate)
            await anyio.wait_all_tasks_blocked()
    assert sorted(requests.admitted) == names
    assert (gate.running, gate.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_full_queue_of_one_model_does_not_refuse_others() -> None:
    requests = Requests()
    full, free = requests.gate(concurrency=1, queue=0), requests.gate()
    await requests.ask("a", full)
    await requests.ask("b", full)
    await requests.ask("c", free)
    assert (requests.admitted, list(requests.refused)) == (["a", "c"], ["b"])


@pytest.mark.anyio
async def test_a_cancelled_wait_gives_up_its_place() -> None:
    requests = Requests()
    gate = requests.gate(concurrency=1, queue=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate))
        async with anyio.create_task_group() as leaving:
            await arrive(leaving, requests, ("b", gate))
            assert gate.waiting == 1
            leaving.cancel_scope.cancel()
        assert (gate.waiting, requests.waiting) == (0, 0)
        await arrive(group, requests, ("c", gate))
        requests.admission.release(gate)
        await anyio.wait_all_tasks_blocked()
        assert requests.admitted == ["a", "c"]
        requests.admission.release(gate)
    assert (gate.running, requests.running) == (0, 0)


@pytest.mark.anyio
async def test_a_slot_given_to_a_request_being_cancelled_goes_to_the_next() -> None:
    requests = Requests()
    gate = requests.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate))
        async with anyio.create_task_group() as leaving:
            await arrive(leaving, requests, ("b", gate))
            await arrive(group, requests, ("c", gate))
            leaving.cancel_scope.cancel()
            requests.admission.release(gate)  # both in the same turn of the loop
        await anyio.wait_all_tasks_blocked()
        assert "c" in requests.admitted
        for _ in range(gate.running):
            requests.admission.release(gate)
    assert (gate.running, gate.waiting, requests.running, requests.waiting) == (0, 0, 0, 0)


@pytest.mark.anyio
async def test_a_drain_refuses_all_waiting_requests() -> None:
    requests = Requests()
    one, other = requests.gate(concurrency=1), requests.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await arrive(
            group, requests, ("a", one), ("b", other), ("c", one), ("d", other), ("e", one)
        )
        requests.admission.refuse_waiting(ServerShuttingDown)
        await anyio.wait_all_tasks_blocked()
        assert sorted(requests.refused) == ["c", "d", "e"]
        assert (requests.waiting, one.waiting, other.waiting, requests.running) == (0, 0, 0, 2)
        requests.admission.release(one)
        requests.admission.release(other)
    assert all(type(exc) is ServerShuttingDown for exc in requests.refused.values())
    assert requests.running == 0


@pytest.mark.anyio
async def test_refused_requests_do_not_share_an_exception() -> None:
    requests = Requests()
    gate = requests.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate), ("b", gate), ("c", gate))
        requests.admission.refuse_waiting(ServerShuttingDown)
    assert requests.refused["b"] is not requests.refused["c"]


@pytest.mark.anyio
async def test_the_bytes_of_waiting_requests_are_bounded() -> None:
    requests = Requests(concurrency=1, max_queued_bytes=100)
    gates = [requests.gate(), requests.gate()]  # the bound is the application's
    admission = requests.admission
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gates[0]))
        for name, gate, size, held in (
            ("b", gates[0], 60, 60),
            ("c", gates[1], 40, 100),
            ("d", gates[1], 1, 100),  # refused
            ("e", gates[0], 0, 100),
        ):
            group.start_soon(requests.ask, name, gate, size)
            await anyio.wait_all_tasks_blocked()
            assert admission.budget.held == held
        assert type(requests.refused["d"]) is Overloaded
        assert requests.waiting == 3
        for gate, held in ((gates[0], 40), (gates[0], 0), (gates[1], 0)):
            admission.release(gate)
            await anyio.wait_all_tasks_blocked()
            assert admission.budget.held == held
        admission.release(gates[0])
    assert (requests.admitted, list(requests.refused)) == (["a", "b", "c", "e"], ["d"])


@pytest.mark.anyio
async def test_one_request_may_wait_alone_whatever_its_size() -> None:
    requests = Requests(max_queued_bytes=100)
    gate = requests.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate))
        for name, size in (("b", 10**9), ("c", 1)):
            group.start_soon(requests.ask, name, gate, size)
            await anyio.wait_all_tasks_blocked()
        assert (gate.waiting, list(requests.refused)) == (1, ["c"])
        requests.admission.release(gate)
        await anyio.wait_all_tasks_blocked()
        requests.admission.release(gate)
    assert (requests.admitted, requests.admission.budget.held) == (["a", "b"], 0)


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["cancelled", "draining", "model removed"])
async def test_a_wait_that_ends_early_gives_back_its_bytes(end: str) -> None:
    requests = Requests()
    gate = requests.gate(concurrency=1)
    admission = requests.admission
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate))
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(requests.ask, "b", gate, 70)
            await anyio.wait_all_tasks_blocked()
            assert admission.budget.held == 70
            if end == "cancelled":
                waiting.cancel_scope.cancel()
            elif end == "draining":
                admission.refuse_waiting(ServerShuttingDown)
            else:
                admission.refuse_waiting_for(gate, ServerShuttingDown)
        assert (admission.budget.held, gate.waiting) == (0, 0)
        admission.release(gate)


@pytest.mark.anyio
async def test_a_full_queue_and_a_drain_are_the_reasons_that_count() -> None:
    requests = Requests(max_queued_bytes=1)
    gate = requests.gate(concurrency=1, queue=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate), ("b", gate))
        await requests.ask("c", gate, 10**9)  # alone with bytes, but the queue is full
        assert type(requests.refused["c"]) is Overloaded
        requests.admission.refuse_waiting(ServerShuttingDown)
        await requests.ask("d", gate, 10**9)
        assert type(requests.refused["d"]) is ServerShuttingDown
    assert requests.admission.budget.held == 0


@pytest.mark.anyio
@pytest.mark.parametrize("free", [True, False])
async def test_a_share_is_closed_once_its_request_is_admitted(free: bool) -> None:
    requests = Requests()
    gate = requests.gate(concurrency=1)
    admission = requests.admission
    if not free:
        assert admission.acquire_nowait(gate)
    share = admission.budget.hold(30)
    async with anyio.create_task_group() as group:
        group.start_soon(admission.acquire, gate, 80, share)
        await anyio.wait_all_tasks_blocked()
        assert share.size == admission.budget.held == (0 if free else 80)
        admission.release(gate)
        await anyio.wait_all_tasks_blocked()
    assert admission.budget.held == 0


# --- Retry-After --------------------------------------------------------------------------


def test_an_unmeasured_queue_is_assumed_to_admit_one_a_second() -> None:
    gate = Gate(DEFAULTS)
    for waiting, retry_after in ((0, 1), (7, 7), (1000, 120)):
        gate.waiting = waiting
        assert gate.refusal().retry_after == retry_after


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(gates, "monotonic", lambda: self.now)


@pytest.mark.anyio
@pytest.mark.parametrize(("gap", "retry_after"), [(0.001, 1), (2.0, 20), (5.0, 50), (1000.0, 120)])
async def test_retry_after_follows_the_rate_of_admissions(
    gap: float, retry_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    requests = Requests()
    gate = requests.gate(concurrency=1, queue=10)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, *[(str(number), gate) for number in range(11)])
        for number in range(11, 17):  # each release admits one, and another joins the queue
            clock.now += gap
            requests.admission.release(gate)
            await arrive(group, requests, (str(number), gate))
        await requests.ask("late", gate)
        for _ in range(11):
            requests.admission.release(gate)
            await anyio.wait_all_tasks_blocked()
    refusal = requests.refused["late"]
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after == pytest.approx(retry_after, abs=1)


@pytest.mark.anyio
async def test_time_without_a_queue_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    requests = Requests()
    gate = requests.gate(concurrency=1, queue=1)
    async with anyio.create_task_group() as group:
        await arrive(group, requests, ("a", gate), ("b", gate))
        for name in "cdefgh":
            clock.now += 0.1
            requests.admission.release(gate)
            await arrive(group, requests, (name, gate))
        for _ in range(2):
            requests.admission.release(gate)
            await anyio.wait_all_tasks_blocked()
        clock.now += 3600
        await arrive(group, requests, ("i", gate), ("j", gate))
        clock.now += 0.1
        requests.admission.release(gate)
        await arrive(group, requests, ("k", gate), ("late", gate))
        for _ in range(2):
            requests.admission.release(gate)
            await anyio.wait_all_tasks_blocked()
    refusal = requests.refused["late"]
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after is not None and refusal.retry_after <= 2


# --- in an application ------------------------------------------------------------------------------


class Blocking:
    """A handler that runs until it is released, and counts how many run."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.started: list[Any] = []
        self.release = anyio.Event()

    async def __call__(self, payload: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.append(payload)
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        return payload


def serve(
    predict: Any, *, limits: Limits | None = None, model_limits: Limits | None = None
) -> ModelServer:
    model = Model("m")
    model.limits = model_limits
    vars(model)["predict"] = predict
    return ModelServer([model], limits=limits)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["model", "application"])
async def test_no_more_requests_run_than_the_limit(where: str) -> None:
    predict = Blocking()
    limits = Limits(concurrency=2, queue=1)
    option = "limits" if where == "application" else "model_limits"
    app = serve(predict, **{option: limits})
    async with (
        exchange(app, *PREDICT, json=1) as first,
        exchange(app, *PREDICT, json=2) as second,
        exchange(app, *PREDICT, json=3) as third,
    ):
        await anyio.wait_all_tasks_blocked()
        assert len(predict.started) == 2
        refused = await request(app, *PREDICT, json=4)
        assert refused.status == 503
        assert refused.json() == {"error": "The server is busy and its queue is full."}
        assert int(refused.headers["retry-after"]) >= 1
        predict.release.set()
        for client in (first, second, third):
            assert (await client.response()).status == 200
    assert predict.most == 2
    statistics = app.serving.statistics()
    assert (statistics.running, statistics.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_client_that_hangs_up_in_the_queue_makes_room() -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1, queue=1))
    async with exchange(app, *PREDICT, json=1) as first:
        await anyio.wait_all_tasks_blocked()
        async with exchange(app, *PREDICT, json=2) as leaving:
            await anyio.wait_all_tasks_blocked()
            leaving.hang_up()
            await leaving.ended()
        async with exchange(app, *PREDICT, json=3) as third:
            await anyio.wait_all_tasks_blocked()
            predict.release.set()
            assert (await first.response()).json() == 1
            assert (await third.response()).json() == 3
    assert predict.started == [1, 3]


@pytest.mark.anyio
async def test_a_slot_is_released_only_after_clean_up() -> None:
    log: list[str] = []
    cleaning, cleaned = anyio.Event(), anyio.Event()

    async def predict(payload: Any) -> Any:
        log.append(f"start {payload}")
        if payload == 2:
            return None
        try:
            await anyio.sleep_forever()
        finally:
            cleaning.set()
            await cleaned.wait()
            log.append(f"cleaned {payload}")

    app = serve(predict, limits=Limits(concurrency=1))
    async with exchange(app, *PREDICT, json=1) as first:
        await anyio.wait_all_tasks_blocked()
        async with exchange(app, *PREDICT, json=2) as second:
            await anyio.wait_all_tasks_blocked()
            first.hang_up()
            await cleaning.wait()
            await anyio.wait_all_tasks_blocked()
            assert log == ["start 1"]
            cleaned.set()
            await second.response()
    assert log == ["start 1", "cleaned 1", "start 2"]


@pytest.mark.anyio
async def test_a_slot_is_released_only_when_its_thread_has_ended() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()
    overlaps: list[bool] = []

    def predict(payload: Any) -> Any:
        if payload == 2:
            overlaps.append(not ended.is_set())
            return None
        started.set()
        release.wait(10)
        ended.set()

    app = serve(predict, limits=Limits(concurrency=1))
    async with exchange(app, *PREDICT, json=1) as first:
        assert await anyio.to_thread.run_sync(started.wait, 5)
        async with exchange(app, *PREDICT, json=2) as second:
            first.hang_up()
            await anyio.sleep(0.05)
            assert overlaps == []
            release.set()
            await second.response()
    assert overlaps == [False]


@pytest.mark.anyio
async def test_the_timeout_counts_time_in_the_queue() -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1))
    async with exchange(app, *PREDICT, json=1) as first:
        await anyio.wait_all_tasks_blocked()
        headers = {"x-request-timeout-seconds": "0.05"}
        response = await request(app, *PREDICT, json=2, headers=headers)
        assert response.status == 504
        assert response.json()["error"].startswith("timeout:")
        predict.release.set()
        assert (await first.response()).status == 200
    assert predict.started == [1]


@pytest.mark.anyio
@pytest.mark.slow
async def test_first_item_timeout_starts_at_admission() -> None:
    calls: list[Any] = []

    async def predict(payload: Any) -> Any:
        calls.append(payload)
        if payload == 1:
            await anyio.sleep(0.25)
        return payload

    limits = Limits(concurrency=1, first_item_timeout=0.4)
    app = serve(predict, limits=limits)
    async with exchange(app, *PREDICT, json=1) as first, exchange(app, *PREDICT, json=1) as second:
        assert (await first.response()).status == 200
        assert (await second.response()).status == 200  # 0.5 s after its arrival


@pytest.mark.anyio
async def test_a_drain_refuses_the_queue_and_lets_running_requests_finish() -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1))
    async with lifespan(app), exchange(app, *PREDICT, json=1) as first:
        await anyio.wait_all_tasks_blocked()
        async with exchange(app, *PREDICT, json=2) as last:
            await anyio.wait_all_tasks_blocked()
            app.serving.refuse_new()
            refused = await last.response()
        assert refused.status == 503
        assert refused.json() == {"error": "server shutting down"}
        assert refused.headers["retry-after"] == "1"
        predict.release.set()
        assert (await first.response()).status == 200


@pytest.mark.anyio
async def test_during_a_drain_no_request_starts_to_wait() -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1))
    async with (
        exchange(app, *PREDICT, json=1) as first,
        exchange(app, *PREDICT, body=None, timeout=10) as late,
    ):
        await anyio.wait_all_tasks_blocked()
        app.serving.refuse_new()
        late.send_body(b"2")
        await anyio.wait_all_tasks_blocked()
        try:
            assert (await late.response()).status == 503
        finally:
            predict.release.set()
            await first.response()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models/m:predict", "/v1/models/m", "/v2/health/ready"])
async def test_a_refusal_during_a_drain_says_when_to_come_back(path: str) -> None:
    app = serve(Blocking())
    app.serving.refuse_new()
    method = "POST" if "predict" in path else "GET"
    response = await request(app, method, path, json=1)
    assert response.status == 503
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/metrics"])
async def test_during_a_drain_liveness_and_metrics_are_200(path: str) -> None:
    app = serve(Blocking())
    app.serving.refuse_new()
    assert (await request(app, "GET", path)).status == 200


@pytest.mark.anyio
async def test_many_requests_pass_a_low_limit() -> None:
    running: list[int] = []
    most: list[int] = []

    async def predict(payload: Any) -> Any:
        running.append(1)
        most.append(len(running))
        await anyio.lowlevel.checkpoint()
        running.pop()
        return payload

    app = serve(predict, limits=Limits(concurrency=3), model_limits=Limits(concurrency=2))
    statuses: list[int] = []

    async def one(number: int) -> None:
        async with exchange(app, *PREDICT, json=number) as client:
            if number % 5 == 0:
                client.hang_up()
            else:
                statuses.append((await client.response()).status)

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(one, number)
    assert statuses == [200] * 160
    assert max(most) <= 2
    statistics = app.serving.statistics()
    assert (statistics.running, statistics.waiting) == (0, 0)


# --- the bytes of waiting requests ----------------------------------------------------------------

SIXTY = b'"' + b"a" * 58 + b'"'


@pytest.mark.anyio
@pytest.mark.parametrize("coding", [None, "gzip"])
async def test_bodies_that_wait_are_bounded_by_what_they_hold(coding: str | None) -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1, max_queued_bytes=100))
    budget = app.serving.admission.budget
    body = SIXTY if coding is None else gzip.compress(SIXTY)
    options: Any = {"body": body, "headers": {} if coding is None else {"content-encoding": coding}}
    async with (
        exchange(app, *PREDICT, **options) as first,
        exchange(app, *PREDICT, **options) as second,
    ):
        await anyio.wait_all_tasks_blocked()
        assert budget.held == 60
        refused = await request(app, *PREDICT, **options)
        assert (refused.status, refused.json()) == (
            503,
            {"error": "The server is busy and its queue is full."},
        )
        assert int(refused.headers["retry-after"]) >= 1
        assert budget.held == 60
        async with exchange(app, *PREDICT, json=[1]) as small:
            await anyio.wait_all_tasks_blocked()
            assert budget.held == 63
            predict.release.set()
            for client in (first, second, small):
                assert (await client.response()).status == 200
    assert budget.held == 0
    assert len(predict.started) == 3


@pytest.mark.anyio
async def test_a_request_holds_nothing_once_it_runs() -> None:
    predict = Blocking()
    app = serve(predict)
    body = gzip.compress(SIXTY)
    async with exchange(app, *PREDICT, body=None, headers={"content-encoding": "gzip"}) as client:
        client.send_body(body[:20], more=True)
        await anyio.wait_all_tasks_blocked()
        assert app.serving.admission.budget.held == 20
        client.send_body(body[20:])
        await anyio.wait_all_tasks_blocked()
        assert predict.running == 1
        assert app.serving.admission.budget.held == 0
        predict.release.set()
        assert (await client.response()).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("end", ["client", "host"])
async def test_bytes_are_given_back_wherever_a_request_ends(turns: int, end: str) -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1))
    body = gzip.compress(SIXTY)
    async with exchange(app, *PREDICT, json=1) as first:
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            scope = {
                **first.scope,
                "headers": [(b"content-encoding", b"gzip"), (b"content-type", b"application/json")],
            }
            client = Exchange(app, scope, timeout=10)
            group.start_soon(client.run)
            for turn in range(turns):
                await anyio.lowlevel.checkpoint()
                if turn < 2:
                    client.send_body(body[turn * 20 :][:20], more=True)
                elif turn == 2:
                    client.send_body(body[40:])
            if end == "client":
                client.hang_up()
                await client.ended()
            else:
                group.cancel_scope.cancel()
        assert app.serving.admission.budget.held == 0
        assert app.serving.statistics().waiting == 0
        predict.release.set()
        assert (await first.response()).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"[", b"\xff", b'{"a":}'])
async def test_a_body_that_cannot_be_decoded_holds_nothing(body: bytes) -> None:
    app = serve(Blocking())
    headers = {"content-type": "application/json"}
    async with exchange(app, *PREDICT, body=None, headers=headers) as client:
        client.send_body(body, more=True)
        client.send_body(b"")
        assert (await client.response()).status == 400
    assert app.serving.admission.budget.held == 0
