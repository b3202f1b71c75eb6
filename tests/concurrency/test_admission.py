"""The numbers, and who may run, who waits and who is refused."""

import math
import threading
from dataclasses import FrozenInstanceError, fields
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.concurrency import admission
from modelserve.concurrency.admission import Admission, Gate
from modelserve.errors import Overloaded, ServerShuttingDown
from modelserve.limits import DEFAULTS, Deadlines
from modelserve.testing import exchange, lifespan, request

PREDICT = ("POST", "/v1/models/m:predict")
NAMES = [field.name for field in fields(Limits)]


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1, 0.5, math.inf, None, 10**6])
def test_a_limit_is_a_positive_number(name: str, value: Any) -> None:
    assert getattr(Limits(**{name: value}), name) == value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1, math.nan, -math.inf, True, "1", [], -0.001])
def test_a_limit_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"The limit {name} cannot be"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_zero_means_something_for_some(name: str) -> None:
    if name in ("queue", "max_body_bytes", "max_collected_bytes", "drain_timeout"):
        assert getattr(Limits(**{name: 0}), name) == 0
    else:
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})


def test_limits_are_values() -> None:
    assert Limits(timeout=1) == Limits(timeout=1)
    with pytest.raises(FrozenInstanceError):
        Limits().timeout = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[misc]


def test_the_defaults_are_those_of_the_protocol() -> None:
    assert (DEFAULTS.concurrency, DEFAULTS.queue) == (math.inf, 1000)
    assert DEFAULTS.max_body_bytes == 64 * 1024 * 1024
    assert (DEFAULTS.first_item_timeout, DEFAULTS.idle_timeout, DEFAULTS.timeout) == (math.inf,) * 3
    assert (DEFAULTS.send_timeout, DEFAULTS.drain_timeout, DEFAULTS.cleanup_timeout) == (60, 30, 5)
    assert DEFAULTS.deadlines() == Deadlines(None, None, None, 60, 5)


def test_defaults_fill_what_is_not_set() -> None:
    filled = Limits(timeout=3, queue=0).with_defaults(DEFAULTS)
    assert (filled.timeout, filled.queue) == (3, 0)
    assert filled.send_timeout == DEFAULTS.send_timeout
    assert None not in [getattr(filled, name) for name in NAMES]


@pytest.mark.parametrize(
    ("own", "outer", "both"),
    [
        ({}, {"timeout": 5}, {"timeout": 5}),
        ({"timeout": 3}, {"timeout": 5}, {"timeout": 3}),
        ({"timeout": 9}, {"timeout": 5}, {"timeout": 5}),
        ({"timeout": 9}, {}, {"timeout": 9}),
        ({"idle_timeout": 1}, {"timeout": 5}, {"idle_timeout": 1, "timeout": 5}),
        ({"max_body_bytes": 9}, {"max_body_bytes": 5}, {"max_body_bytes": 5}),
        ({"max_body_bytes": 0}, {"max_body_bytes": 5}, {"max_body_bytes": 0}),
        # the model's own; the application's has a gate of its own
        ({}, {"concurrency": 2, "queue": 3}, {"concurrency": math.inf, "queue": math.inf}),
        ({"concurrency": 9, "queue": 9}, {"concurrency": 2}, {"concurrency": 9, "queue": 9}),
        ({"concurrency": 1}, {"queue": 0}, {"concurrency": 1, "queue": math.inf}),
    ],
)
def test_the_limits_of_a_model_and_of_the_application_both_hold(
    own: dict[str, Any], outer: dict[str, Any], both: dict[str, Any]
) -> None:
    merged = Limits(**own).within(Limits(**outer).with_defaults(DEFAULTS))
    assert {name: getattr(merged, name) for name in both} == both
    assert None not in [getattr(merged, name) for name in NAMES]


def test_infinity_is_no_deadline() -> None:
    limits = Limits(timeout=math.inf, idle_timeout=math.inf, send_timeout=math.inf)
    assert limits.deadlines() == Deadlines(cleanup_timeout=5.0)
    assert Limits(first_item_timeout=2, cleanup_timeout=1).deadlines() == Deadlines(
        first_item_timeout=2, cleanup_timeout=1
    )


# --- admission ----------------------------------------------------------------------------------


class Line:
    """Requests at an admission, and what became of each."""

    def __init__(self, **limits: Any) -> None:
        self.admission = Admission(Limits(**limits).with_defaults(DEFAULTS))
        self.admitted: list[str] = []
        self.refused: dict[str, BaseException] = {}

    def gate(self, **limits: Any) -> Gate:
        return Gate(Limits(**limits).within(DEFAULTS))

    async def enter(self, name: str, gate: Gate) -> None:
        try:
            await self.admission.enter(gate)
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


async def entered(group: Any, line: Line, *requests: tuple[str, Gate]) -> None:
    """Let requests enter in this order, each as far as it gets."""
    for name, gate in requests:
        group.start_soon(line.enter, name, gate)
        await anyio.wait_all_tasks_blocked()


@pytest.mark.anyio
async def test_without_limits_all_may_run() -> None:
    line = Line()
    gate = line.gate()
    assert [line.admission.enter_nowait(gate) for _ in range(1000)] == [True] * 1000
    assert (gate.running, line.running, line.waiting) == (1000, 1000, 0)
    for _ in range(1000):
        line.admission.leave(gate)
    assert (gate.running, line.running) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["model", "application"])
async def test_those_who_wait_are_let_in_in_order(where: str) -> None:
    line = Line(concurrency=2 if where == "application" else math.inf)
    gate = line.gate(concurrency=2 if where == "model" else math.inf)
    async with anyio.create_task_group() as group:
        await entered(group, line, *[(name, gate) for name in "abcdef"])
        assert (line.admitted, line.waiting, line.running) == (["a", "b"], 4, 2)
        for count in range(3, 7):
            line.admission.leave(gate)
            await anyio.wait_all_tasks_blocked()
            assert line.admitted == list("abcdef")[:count]
            assert line.running == 2
    assert line.waiting == 0


@pytest.mark.anyio
async def test_nobody_overtakes_those_who_wait() -> None:
    line = Line()
    gate = line.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("a", gate), ("b", gate))
        line.admission.leave(gate)  # b has the slot, though it has not run yet
        assert not line.admission.enter_nowait(gate)
        await entered(group, line, ("c", gate))
        assert line.admitted == ["a", "b"]
        line.admission.leave(gate)
        await anyio.wait_all_tasks_blocked()
        assert line.admitted == ["a", "b", "c"]
        line.admission.leave(gate)


@pytest.mark.anyio
async def test_no_slot_of_one_is_held_while_waiting_for_the_other() -> None:
    line = Line(concurrency=2)
    full, free = line.gate(concurrency=1), line.gate()
    async with anyio.create_task_group() as group:
        await entered(group, line, ("full 1", full), ("full 2", full), ("free 1", free))
        assert line.admitted == ["full 1", "free 1"]  # the waiting one holds nothing
        assert (line.running, full.running, full.waiting) == (2, 1, 1)
        line.admission.leave(full)
        await anyio.wait_all_tasks_blocked()
        assert line.admitted[-1] == "full 2"
        for gate in (full, free):
            line.admission.leave(gate)
    assert (line.running, full.running, free.running, line.waiting) == (0, 0, 0, 0)


@pytest.mark.anyio
async def test_a_slot_goes_to_who_has_waited_longest_of_those_that_can_use_it() -> None:
    line = Line(concurrency=2)
    one, other = line.gate(concurrency=1), line.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("one 1", one), ("other 1", other))
        await entered(group, line, ("one 2", one), ("other 2", other), ("other 3", other))
        line.admission.leave(other)  # one 2 has waited longest, but its model is full
        await anyio.wait_all_tasks_blocked()
        assert line.admitted == ["one 1", "other 1", "other 2"]
        line.admission.leave(one)
        await anyio.wait_all_tasks_blocked()
        assert line.admitted[-1] == "one 2"
        line.admission.leave(other)
        await anyio.wait_all_tasks_blocked()
        assert line.admitted[-1] == "other 3"
        line.admission.leave(one)
        line.admission.leave(other)
    assert (line.running, line.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_slot_of_the_application_goes_to_the_first_of_all_models() -> None:
    line = Line(concurrency=1)
    gates = {name: line.gate() for name in "abc"}
    async with anyio.create_task_group() as group:
        await entered(group, line, *[(name, gates[name]) for name in "abc"])
        await entered(group, line, ("a2", gates["a"]))
        for expected, gate in (("b", "a"), ("c", "b"), ("a2", "c")):
            line.admission.leave(gates[gate])
            await anyio.wait_all_tasks_blocked()
            assert line.admitted[-1] == expected
        line.admission.leave(gates["a"])


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
    line = Line(**application)
    gate = line.gate(**model)
    async with anyio.create_task_group() as group:
        names = [str(number) for number in range(waiting + 1)]
        await entered(group, line, *[(name, gate) for name in names])
        assert (line.admitted, line.waiting, line.refused) == (["0"], waiting, {})
        await entered(group, line, ("late", gate))
        assert type(line.refused["late"]) is Overloaded
        assert (gate.waiting, line.waiting) == (waiting, waiting)
        for _ in names:
            line.admission.leave(gate)
            await anyio.wait_all_tasks_blocked()
    assert sorted(line.admitted) == names
    assert (gate.running, gate.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_full_queue_of_one_model_does_not_refuse_others() -> None:
    line = Line()
    full, free = line.gate(concurrency=1, queue=0), line.gate()
    await line.enter("a", full)
    await line.enter("b", full)
    await line.enter("c", free)
    assert (line.admitted, list(line.refused)) == (["a", "c"], ["b"])


@pytest.mark.anyio
async def test_who_leaves_the_queue_gives_up_the_place() -> None:
    line = Line()
    gate = line.gate(concurrency=1, queue=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("a", gate))
        async with anyio.create_task_group() as leaving:
            await entered(leaving, line, ("b", gate))
            assert gate.waiting == 1
            leaving.cancel_scope.cancel()
        assert (gate.waiting, line.waiting) == (0, 0)
        await entered(group, line, ("c", gate))
        line.admission.leave(gate)
        await anyio.wait_all_tasks_blocked()
        assert line.admitted == ["a", "c"]
        line.admission.leave(gate)
    assert (gate.running, line.running) == (0, 0)


@pytest.mark.anyio
async def test_a_slot_given_to_one_that_is_leaving_goes_to_the_next() -> None:
    line = Line()
    gate = line.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("a", gate))
        async with anyio.create_task_group() as leaving:
            await entered(leaving, line, ("b", gate))
            await entered(group, line, ("c", gate))
            leaving.cancel_scope.cancel()
            line.admission.leave(gate)  # both in the same turn of the loop
        await anyio.wait_all_tasks_blocked()
        assert "c" in line.admitted
        for _ in range(gate.running):
            line.admission.leave(gate)
    assert (gate.running, gate.waiting, line.running, line.waiting) == (0, 0, 0, 0)


@pytest.mark.anyio
async def test_a_drain_refuses_all_who_wait() -> None:
    line = Line()
    one, other = line.gate(concurrency=1), line.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("a", one), ("b", other), ("c", one), ("d", other), ("e", one))
        line.admission.refuse_waiting(ServerShuttingDown)
        await anyio.wait_all_tasks_blocked()
        assert sorted(line.refused) == ["c", "d", "e"]
        assert (line.waiting, one.waiting, other.waiting, line.running) == (0, 0, 0, 2)
        line.admission.leave(one)
        line.admission.leave(other)
    assert all(type(exc) is ServerShuttingDown for exc in line.refused.values())
    assert line.running == 0


@pytest.mark.anyio
async def test_those_who_are_refused_do_not_share_an_exception() -> None:
    line = Line()
    gate = line.gate(concurrency=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("a", gate), ("b", gate), ("c", gate))
        line.admission.refuse_waiting(ServerShuttingDown)
    assert line.refused["b"] is not line.refused["c"]


# --- when to come back --------------------------------------------------------------------------


def refusal_of(gate: Gate) -> float:
    refusal = gate._pace.refusal(gate.waiting)
    assert refusal.retry_after is not None
    return refusal.retry_after


def test_without_a_pace_a_line_is_assumed_to_move_once_a_second() -> None:
    gate = Gate(DEFAULTS)
    assert refusal_of(gate) == 1
    gate.waiting = 7
    assert refusal_of(gate) == 7
    gate.waiting = 1000
    assert refusal_of(gate) == 120


class Clock:
    """A clock that a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(admission, "monotonic", lambda: self.now)


@pytest.mark.anyio
@pytest.mark.parametrize(("gap", "retry_after"), [(0.001, 1), (2.0, 20), (5.0, 50), (1000.0, 120)])
async def test_a_line_is_judged_by_its_pace(
    gap: float, retry_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    line = Line()
    gate = line.gate(concurrency=1, queue=10)
    async with anyio.create_task_group() as group:
        await entered(group, line, *[(str(number), gate) for number in range(11)])
        for number in range(11, 17):  # each that leaves lets one in, and another joins the line
            clock.now += gap
            line.admission.leave(gate)
            await entered(group, line, (str(number), gate))
        await line.enter("late", gate)
        for _ in range(11):
            line.admission.leave(gate)
            await anyio.wait_all_tasks_blocked()
    refusal = line.refused["late"]
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after == pytest.approx(retry_after, abs=1)


@pytest.mark.anyio
async def test_a_pause_is_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    line = Line()
    gate = line.gate(concurrency=1, queue=1)
    async with anyio.create_task_group() as group:
        await entered(group, line, ("a", gate), ("b", gate))
        for name in "cdefgh":
            clock.now += 0.1
            line.admission.leave(gate)
            await entered(group, line, (name, gate))
        for _ in range(2):
            line.admission.leave(gate)
            await anyio.wait_all_tasks_blocked()
        clock.now += 3600
        await entered(group, line, ("i", gate), ("j", gate))
        clock.now += 0.1
        line.admission.leave(gate)
        await entered(group, line, ("k", gate), ("late", gate))
        for _ in range(2):
            line.admission.leave(gate)
            await anyio.wait_all_tasks_blocked()
    refusal = line.refused["late"]
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after is not None and refusal.retry_after <= 2


# --- the whole way ------------------------------------------------------------------------------


class Blocking:
    """A handler that runs until it is released, and counts."""

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


def serve(predict: Any, *, limits: Limits | None = None, own: Limits | None = None) -> ModelServer:
    model = Model("m")
    model.limits = own
    vars(model)["predict"] = predict
    return ModelServer([model], limits=limits)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["model", "application"])
async def test_no_more_run_than_may(where: str) -> None:
    predict = Blocking()
    limits = Limits(concurrency=2, queue=1)
    app = serve(predict, limits=limits) if where == "application" else serve(predict, own=limits)
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
    assert (app.serving.admission.gate.running, app.serving.admission.gate.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_client_that_leaves_the_queue_makes_room() -> None:
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
async def test_a_slot_is_free_only_when_clean_up_is_done() -> None:
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
async def test_a_slot_is_free_only_when_a_thread_has_ended() -> None:
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
async def test_a_deadline_holds_in_the_queue_too() -> None:
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
async def test_the_wait_for_the_first_item_begins_with_admission() -> None:
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
async def test_a_drain_refuses_the_queue_and_lets_the_rest_finish() -> None:
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
async def test_during_a_drain_nobody_begins_to_wait() -> None:
    predict = Blocking()
    app = serve(predict, limits=Limits(concurrency=1))
    async with (
        exchange(app, *PREDICT, json=1) as first,
        exchange(app, *PREDICT, body=None, timeout=1) as late,
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
async def test_many_requests_come_through_a_narrow_gate() -> None:
    running: list[int] = []
    most: list[int] = []

    async def predict(payload: Any) -> Any:
        running.append(1)
        most.append(len(running))
        await anyio.lowlevel.checkpoint()
        running.pop()
        return payload

    app = serve(predict, limits=Limits(concurrency=3), own=Limits(concurrency=2))
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
    gate = app.serving.admission.gate
    assert (gate.running, gate.waiting) == (0, 0)
