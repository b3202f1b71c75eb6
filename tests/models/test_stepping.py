"""Models with `step`: their requests are streams like any other."""

import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Batching, InvalidInput, Limits, Model, ModelServer, Slot, Stepping
from modelserve.testing import Exchange, exchange, lifespan, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


class Countdown(Model):
    """Counts down from the first instance."""

    stepping: Stepping | None = Stepping(max_active=4, room=4)

    def join(self, slot: Slot) -> None:
        slot.state = slot.payload["instances"][0]
        if slot.state < 0:
            raise InvalidInput("No negative numbers.")

    def step(self, active: list[Slot]) -> None:
        for slot in active:
            slot.put({"n": slot.state})
            slot.state -= 1
            if slot.state == 0:
                slot.end()


class AsyncCountdown(Countdown):
    async def join(self, slot: Slot) -> None:  # type: ignore[override]
        Countdown.join(self, slot)

    async def step(self, active: list[Slot]) -> None:  # type: ignore[override]
        await anyio.lowlevel.checkpoint()
        Countdown.step(self, active)


KINDS = [Countdown, AsyncCountdown]


async def ask(app: ModelServer, number: Any, **headers: str) -> Any:
    return await request(app, *PREDICT, json={"instances": [number]}, headers=headers)


@pytest.mark.parametrize("kind", KINDS)
async def test_items_are_an_ordinary_stream_in_every_form(kind: type[Model]) -> None:
    app = ModelServer([kind("m")])
    lines = await ask(app, 3)
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.body == b'{"n":3}\n{"n":2}\n{"n":1}\n'
    events = await ask(app, 2, accept="text/event-stream")
    assert events.body == b'data: {"n":2}\n\ndata: {"n":1}\n\n'
    whole = await ask(app, 2, accept="application/json")
    assert whole.json() == {"predictions": [{"n": 2}, {"n": 1}]}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_before_the_first_item_is_an_honest_status(kind: type[Model]) -> None:
    response = await ask(ModelServer([kind("m")]), -1)
    assert (response.status, response.json()) == (400, {"error": "No negative numbers."})


async def test_a_later_error_is_the_last_record() -> None:
    class Fails(Countdown):
        def step(self, active: list[Slot]) -> None:
            super().step(active)
            for slot in active:
                if slot.state == 1:
                    slot.fail(InvalidInput("Too low."))

    response = await ask(ModelServer([Fails("m")]), 3)
    assert response.body == b'{"n":3}\n{"n":2}\n{"error":"Too low."}\n'


async def test_postprocess_may_wrap_the_stream() -> None:
    class Doubles(Countdown):
        async def preprocess(self, payload: Any) -> Any:
            return {"instances": [payload["instances"][0] + 1]}

        async def postprocess(self, items: Any) -> AsyncIterator[Any]:
            async for item in items:
                yield 2 * item["n"]

    response = await ask(ModelServer([Doubles("m")]), 1)
    assert response.body == b"4\n2\n"


@pytest.mark.parametrize("kind", KINDS)
async def test_many_clients_at_once_each_get_their_own(kind: type[Model]) -> None:
    app = ModelServer([kind("m")])
    counts: list[bool] = []

    async def count(number: int) -> None:
        response = await ask(app, number)
        counts.append(len(response.body.splitlines()) == number)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for number in range(1, 40):
                group.start_soon(count, number)
        assert counts == [True] * 39
        while app.serving.statistics().busy_threads:  # noqa: ASYNC110 - the thread says so
            await anyio.sleep(0.001)


async def test_load_and_steps_share_the_models_own_thread() -> None:
    threads: dict[str, int] = {}

    class Threaded(Countdown):
        def load(self) -> bool:
            threads["load"] = threading.get_ident()
            self.ready = True
            return True

        def preprocess(self, payload: Any) -> Any:
            threads["preprocess"] = threading.get_ident()
            return payload

        def step(self, active: list[Slot]) -> None:
            threads["step"] = threading.get_ident()
            super().step(active)

        def stop(self) -> None:
            threads["stop"] = threading.get_ident()

    app = ModelServer([Threaded("m")])
    async with lifespan(app):
        await app.ready()
        assert (await ask(app, 2)).status == 200
    assert len(threads) == 4
    assert len(set(threads.values())) == 1


class Held(Model):
    """Steps once each time the test lets it."""

    stepping = Stepping(max_active=2)

    def __init__(self) -> None:
        super().__init__("m")
        self.go = anyio.Event()
        self.left: list[Any] = []
        self.may_leave = anyio.Event()

    async def step(self, active: list[Slot]) -> None:
        await self.go.wait()
        self.go = anyio.Event()
        for slot in active:
            slot.put("item ")

    async def leave(self, slot: Slot) -> None:
        await self.may_leave.wait()
        self.left.append(slot.payload["instances"][0])


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def open_stream(app: ModelServer, client: Exchange, model: Held) -> None:
    await settle()
    model.go.set()
    assert (await client.head()).status == 200
    assert await client.chunk() == b"item "


async def leave(app: ModelServer, client: Exchange) -> None:
    """Hang up, and wait until that is noticed."""
    client.hang_up()
    (flight,) = app.serving.flights
    while flight.request.reason is None:  # noqa: ASYNC110 - the watcher says so
        await anyio.sleep(0.001)
    await settle()


async def test_a_client_that_leaves_is_out_and_its_slot_free_only_after_leave() -> None:
    model = Held()
    app = ModelServer([model])
    gate = app.serving.registry.get("m").gate
    async with exchange(app, *PREDICT, json={"instances": ["a"]}) as client:
        await open_stream(app, client, model)
        await leave(app, client)
        assert gate.running == 1
        assert model.left == []
        model.may_leave.set()
        with anyio.fail_after(5):
            await client.ended()
    assert model.left == ["a"]
    assert gate.running == 0


async def test_active_slots_are_shown() -> None:
    model = Held()
    app = ModelServer([model])
    async with exchange(app, *PREDICT, json={"instances": ["a"]}) as client:
        await open_stream(app, client, model)
        metrics = (await request(app, "GET", "/metrics")).body.decode()
        assert 'modelserve_active_slots{model_name="m"} 1.0' in metrics
        await leave(app, client)
        model.may_leave.set()
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'modelserve_active_slots{model_name="m"} 0.0' in metrics


async def test_predict_of_a_stepped_model_can_be_called_by_its_other_methods() -> None:
    class Twice(Countdown):
        async def explain(self, payload: Any) -> AsyncIterator[Any]:
            async for item in await self.predict(payload):
                yield 2 * item["n"]

    app = ModelServer([Twice("m")])
    response = await request(app, "POST", "/v1/models/m:explain", json={"instances": [2]})
    assert response.body == b"4\n2\n"


async def test_an_application_with_a_stepped_model_can_be_pickled() -> None:
    app = ModelServer([Countdown("m")])
    assert (await ask(app, 1)).status == 200
    again = pickle.loads(pickle.dumps(app))
    assert (await ask(again, 2)).body == b'{"n":2}\n{"n":1}\n'


def test_the_next_requests_wait_where_a_slot_becomes_free() -> None:
    def concurrency(model: Model) -> float:
        return ModelServer([model]).serving.registry.get("m").gate.concurrency

    assert concurrency(Countdown("m")) == 8
    limited = Countdown("m")
    limited.limits = Limits(concurrency=3)
    assert concurrency(limited) == 3


# --- registration -------------------------------------------------------------------------------


def generator(argument: Any) -> Iterator[Any]:
    yield argument


async def coroutine(argument: Any) -> None: ...


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"stepping": 8}, "stepping of model 'm' must be a Stepping"),
        ({"batching": Batching()}, "model 'm' has both batching and stepping"),
        ({"predict": coroutine}, "model 'm' has stepping, and so takes no predict"),
        ({"step": None}, r"model 'm' has stepping, and so must have a step\(active\)"),
        ({"step": generator}, "step of model 'm' must not be a generator"),
        ({"leave": generator}, "leave of model 'm' must not be a generator"),
        ({"join": coroutine}, "join of model 'm' is async and its step is not"),
    ],
)
def test_what_cannot_be_stepped_is_refused(attributes: dict[str, Any], sentence: str) -> None:
    model = Countdown("m")
    vars(model).update(attributes)
    with pytest.raises(TypeError, match=sentence):
        ModelServer([model])


@pytest.mark.parametrize("name", ["max_active", "room"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_meaningless_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} of Stepping"):
        Stepping(**{name: value})
