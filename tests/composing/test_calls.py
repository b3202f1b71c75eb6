"""Models that call other models of their application."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.concurrency.bridge import call_of_this_thread
from modelserve.concurrency.loops import event_loop
from modelserve.errors import Overloaded
from modelserve.testing import exchange, lifespan, request

pytestmark = pytest.mark.anyio

LINE = {"accept": "application/x-ndjson"}


async def ask(app: ModelServer, name: str, payload: Any = None, **options: Any) -> Any:
    with anyio.fail_after(10):
        return await request(app, "POST", f"/v1/models/{name}:predict", json=payload, **options)


def doubling(**settings: Any) -> ModelServer:
    """An application with models that double a number in each kind of hook."""
    app = ModelServer()

    @app.model("async", **settings)
    async def in_loop(payload: Any) -> Any:
        return 2 * payload

    @app.model("sync", **settings)
    def in_thread(payload: Any) -> Any:
        return 2 * payload

    @app.model("async-stream", **settings)
    async def streamed(payload: Any) -> AsyncIterator[int]:
        for number in range(payload):
            yield number

    @app.model("sync-stream", **settings)
    def streamed_in_thread(payload: Any) -> Iterator[int]:
        yield from range(payload)

    @app.model("call-async")
    async def calls_in_loop(payload: Any) -> Any:
        return {"got": await app.call(payload["name"], payload["value"])}

    @app.model("call-sync")
    def calls_in_thread(payload: Any) -> Any:
        return {"got": app.call(payload["name"], payload["value"]).result()}

    @app.model("stream-async")
    async def streams_in_loop(payload: Any) -> AsyncIterator[Any]:
        async for item in app.call(payload["name"], payload["value"]):
            yield {"item": item}

    @app.model("stream-sync")
    def streams_in_thread(payload: Any) -> Iterator[Any]:
        for item in app.call(payload["name"], payload["value"]):
            yield {"item": item}

    return app


@pytest.mark.parametrize("caller", ["call-async", "call-sync"])
@pytest.mark.parametrize(
    ("name", "result"),
    [("async", 6), ("sync", 6), ("async-stream", [0, 1, 2]), ("sync-stream", [0, 1, 2])],
)
async def test_a_model_calls_another(caller: str, name: str, result: Any) -> None:
    app = doubling()
    answer = await ask(app, caller, {"name": name, "value": 3})
    assert answer.json() == {"got": result}
    assert app.serving.statistics().running == 0


@pytest.mark.parametrize("caller", ["stream-async", "stream-sync"])
@pytest.mark.parametrize(
    ("name", "items"),
    [("async", [6]), ("sync", [6]), ("async-stream", [0, 1, 2]), ("sync-stream", [0, 1, 2])],
)
async def test_a_model_streams_what_another_gives(caller: str, name: str, items: Any) -> None:
    answer = await ask(doubling(), caller, {"name": name, "value": 3}, headers=LINE)
    assert answer.body.decode() == "".join(f'{{"item":{item}}}\n' for item in items)


async def test_a_call_has_all_hooks_their_headers_and_the_verb() -> None:
    app = ModelServer()

    class Called(Model):
        def preprocess(self, payload: Any, headers: Any) -> Any:
            return [payload, headers["x-kind"], headers["x-request-id"]]

        async def explain(self, payload: Any, headers: Any, response_headers: Any) -> Any:
            response_headers["x-lost"] = "1"
            return payload

        async def postprocess(self, result: Any) -> Any:
            return {"all": result}

    app.add_model(Called("called"))

    @app.model("m")
    async def predict(payload: Any) -> Any:
        headers = {"X-Kind": "k", "X-Request-Id": "own"}
        return await app.call("called", payload, verb="explain", headers=headers)

    answer = await ask(app, "m", 1)
    assert answer.json() == {"all": [1, "k", "own"]}
    assert "x-lost" not in answer.headers


@pytest.mark.parametrize("caller", ["call-async", "call-sync", "stream-sync"])
async def test_a_call_is_in_the_log_and_the_metrics_with_the_requests_id(
    caller: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = doubling()
    payload = {"name": "async", "value": 1}
    with caplog.at_level(logging.INFO, "modelserve.access"):
        for number in ("first", "second"):
            await ask(app, caller, payload, headers={"x-request-id": number, **LINE})
    lines = [vars(record) for record in caplog.records]
    seen = [
        (line["request_id"], line["protocol"], line["model"], line["outcome"]) for line in lines
    ]
    assert seen == [
        (number, *line)
        for number in ("first", "second")
        for line in (("call", "async", "done"), ("v1", caller, "done"))
    ]
    text = (await request(app, "GET", "/metrics")).body.decode()
    lines_of = [line for line in text.splitlines() if line.startswith("modelserve_requests_total{")]
    (counted,) = [line for line in lines_of if 'protocol="call"' in line]
    assert 'model_name="async"' in counted
    assert counted.endswith(" 2.0")


async def test_a_call_in_a_task_of_the_hooks_own_has_the_requests_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = doubling()

    @app.model("fan")
    async def fan(payload: Any) -> Any:
        async def double(number: int) -> None:
            await app.call("async", number)

        async with anyio.create_task_group() as group:
            for number in payload:
                group.start_soon(double, number)
        return "done"

    with caplog.at_level(logging.INFO, "modelserve.access"):
        await ask(app, "fan", [1, 2], headers={"x-request-id": "the-fans"})
    assert [vars(record)["request_id"] for record in caplog.records] == ["the-fans"] * 3


@pytest.mark.parametrize("caller", ["call-async", "call-sync"])
async def test_what_a_model_raises_its_caller_raises(caller: str) -> None:
    app = doubling()

    @app.model("picky")
    async def picky(payload: Any) -> Any:
        raise InvalidInput("too small")

    answer = await ask(app, caller, {"name": "picky", "value": 1})
    assert (answer.status, answer.json()) == (400, {"error": "too small"})
    answer = await ask(app, caller, {"name": "zz", "value": 1})
    assert (answer.status, answer.json()) == (404, {"error": "Model with name zz does not exist."})


async def test_an_unexpected_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    app = doubling()
    answer = await ask(app, "call-sync", {"name": "async", "value": {}})
    assert answer.status == 500
    assert len([r for r in caplog.records if r.exc_info]) == 1


# --- limits ---------------------------------------------------------------------------------------


class Gated(Model):
    """A model whose requests wait to be released; it knows how many run."""

    limits = Limits(concurrency=1, queue=1)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.began, self.release = anyio.Event(), anyio.Event()
        self.running = self.most = 0
        self.cleaned = False

    async def predict(self, payload: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.began.set()
        try:
            await self.release.wait()
            return payload
        finally:
            self.running -= 1
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.cleaned = True


def calling(app: ModelServer, name: str, caller: str) -> None:
    """Register a model that calls another."""
    if caller == "async":

        async def in_loop(payload: Any) -> Any:
            return await app.call(name, payload)

        app.add_model(in_loop, "caller")
    else:

        def in_thread(payload: Any) -> Any:
            return app.call(name, payload).result()

        app.add_model(in_thread, "caller")


@pytest.mark.parametrize("caller", ["async", "sync"])
async def test_calls_count_for_the_limits_of_the_called(caller: str) -> None:
    model = Gated("gated")
    app = ModelServer([model], limits=Limits(concurrency=3))
    calling(app, "gated", caller)
    answers: list[tuple[int, Any]] = []

    async def one() -> None:
        answer = await ask(app, "caller", 1)
        answers.append((answer.status, answer.json()))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(one)
        with anyio.fail_after(30):
            await model.began.wait()
            while not answers:  # noqa: ASYNC110 - an answer is no event
                await anyio.sleep(0.001)
        assert answers == [(503, {"error": "The server is busy and its queue is full."})]
        gate = app.serving.registry.get("gated").gate
        assert (gate.running, gate.waiting) == (1, 1)
        model.release.set()
    assert answers[1:] == [(200, 1)] * 2
    assert model.most == 1
    assert (gate.running, gate.waiting) == (0, 0)
    _, text = await app.serving.expose(None)
    shown = re.search(rb'modelserve_queue_seconds_total\{model_name="gated"\} (\S+)', text)
    assert shown is not None and float(shown[1]) > 0


async def test_callers_that_hold_every_slot_of_the_application_do_not_lock_it() -> None:
    """A request in the queue of the called model needs a slot of the application; a call does not."""
    model = Gated("gated")
    app = ModelServer([model], limits=Limits(concurrency=2))
    calling(app, "gated", "async")
    statuses: list[int] = []

    async def one(name: str) -> None:
        statuses.append((await ask(app, name, 1)).status)

    async with anyio.create_task_group() as group:
        group.start_soon(one, "caller")
        await model.began.wait()
        group.start_soon(one, "gated")  # waits for the model
        await anyio.wait_all_tasks_blocked()
        model.limits = None
        group.start_soon(one, "caller")
        await anyio.wait_all_tasks_blocked()
        model.release.set()
    assert sorted(statuses) in ([200, 200, 200], [200, 200, 503])


async def test_sync_models_that_hold_every_thread_do_not_lock_the_server() -> None:
    app = ModelServer(threads=1)
    app.add_model(lambda payload: payload + 1, "inner")
    app.add_model(lambda payload: app.call("inner", payload).result(), "middle")
    app.add_model(lambda payload: app.call("middle", payload).result(), "outer")
    assert (await ask(app, "outer", 1)).json() == 2


@pytest.mark.parametrize("own_thread", [False, None])
@pytest.mark.parametrize("caller", ["async", "sync"])
async def test_a_model_that_calls_itself_without_a_free_slot_is_refused(
    caller: str, own_thread: bool | None
) -> None:
    app = ModelServer()
    limits = Limits(concurrency=1)

    @app.model("async", limits=limits, own_thread=own_thread)
    async def in_loop(payload: Any) -> Any:
        return await app.call("between", payload)

    @app.model("sync", limits=limits, own_thread=own_thread)
    def in_thread(payload: Any) -> Any:
        return app.call("between", payload).result()

    @app.model("between")
    async def between(payload: Any) -> Any:
        async def in_a_task() -> None:
            results.append(await app.call(caller, payload))

        results: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(in_a_task)
        return results

    answer = await ask(app, caller, 1)
    assert answer.status == 503
    assert answer.json()["error"].startswith("The call would deadlock")
    assert app.serving.statistics().running == 0


async def test_a_model_that_calls_itself_from_a_task_of_its_own_is_refused() -> None:
    app = ModelServer()

    @app.model("itself", limits=Limits(concurrency=1))
    async def itself(payload: Any) -> Any:
        async def call() -> None:
            try:
                await app.call("itself", payload)
            except Overloaded as exc:
                refused.append(exc.reason)

        refused: list[str] = []
        async with anyio.create_task_group() as group:
            group.start_soon(call)
        return refused

    (reason,) = (await ask(app, "itself", 1)).json()
    assert reason.startswith("The call would deadlock")


def test_an_event_loop_ends_in_which_a_call_has_just_begun() -> None:
    app, began = ModelServer(), list[int]()

    @app.model("called")
    async def called(payload: Any) -> Any:
        return payload

    @app.model("calls")
    async def calls(payload: Any) -> Any:
        began.append(1)
        return await app.call("called", payload)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/models/calls:predict", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": b"1", "more_body": False}

    async def send(message: Any) -> None: ...

    async def main(turns: int) -> "asyncio.Task[None]":
        await app.ready()
        task = asyncio.ensure_future(app(scope, receive, send))
        for _ in range(turns):
            await asyncio.sleep(0)
        return task

    for turns in range(4):  # at the end of one of them, the call has begun, and not its first step
        assert asyncio.run(main(turns)).done()
    assert began
    assert not app.serving.flights


async def test_a_model_may_call_itself_while_it_has_slots() -> None:
    app = ModelServer()

    @app.model("factorial", limits=Limits(concurrency=4))
    async def factorial(payload: Any) -> Any:
        return payload * await app.call("factorial", payload - 1) if payload else 1

    assert (await ask(app, "factorial", 3)).json() == 6
    assert (await ask(app, "factorial", 4)).status == 503

    @app.model("endless")
    async def endless(payload: Any) -> Any:
        return await app.call("endless", payload)

    answer = await ask(app, "endless", 1)
    assert (answer.status, answer.json()) == (
        500,
        {"error": "Models call one another more than 64 deep."},
    )


@pytest.mark.parametrize("unusable", [{"verb": "chat"}, {"headers": {"x-user": "\u0141ukasz"}}])
async def test_a_call_that_cannot_be_made_takes_no_slot(unusable: dict[str, Any]) -> None:
    app = ModelServer()

    @app.model("called", limits=Limits(concurrency=1))
    async def called(payload: Any, headers: Any) -> Any:
        return payload

    with anyio.fail_after(10):
        with pytest.raises((InvalidInput, UnicodeEncodeError)):
            await app.call("called", 1, **unusable)
        assert await app.call("called", 2) == 2


async def test_two_models_that_wait_for_each_other_are_not_left_so() -> None:
    app = ModelServer()
    both = anyio.Event()
    arrived: list[str] = []

    def register(name: str, other: str) -> None:
        @app.model(name, limits=Limits(concurrency=1))
        async def predict(payload: Any) -> Any:
            if payload == "first":
                arrived.append(name)
                if len(arrived) == 2:
                    both.set()
                await both.wait()
                return await app.call(other, "second")
            return name

    register("a", "b")
    register("b", "a")
    statuses: list[int] = []

    async def one(name: str) -> None:
        statuses.append((await ask(app, name, "first")).status)

    async with anyio.create_task_group() as group:
        group.start_soon(one, "a")
        group.start_soon(one, "b")
    assert sorted(statuses) == [200, 503]


async def test_the_called_models_own_limits_on_time_hold() -> None:
    model = Gated("gated")
    model.limits = Limits(first_item_timeout=0.05)
    app = ModelServer([model])
    calling(app, "gated", "async")
    answer = await ask(app, "caller", 1)
    assert answer.status == 504
    assert model.cleaned


# --- early ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", ["async", "sync"])
async def test_a_call_is_cancelled_with_its_caller(caller: str) -> None:
    model = Gated("gated")
    app = ModelServer([model])
    calling(app, "gated", caller)
    async with exchange(app, "POST", "/v1/models/caller:predict", json=1) as client:
        with anyio.fail_after(30):
            await model.began.wait()
        client.hang_up()
        await client.ended()
    assert model.cleaned
    statistics = app.serving.statistics()
    assert (statistics.running, statistics.in_flight) == (0, 0)
    assert all(one.running == 0 for one in statistics.models.values())


@pytest.mark.parametrize("streams", [False, True])
async def test_a_sync_hook_whose_client_has_left_calls_no_model(streams: bool) -> None:
    app = ModelServer()
    began, ended, called = anyio.Event(), anyio.Event(), list[Any]()
    notify = event_loop().call_from_thread

    @app.model("called")
    async def called_model(payload: Any) -> Any:
        called.append(payload)

    @app.model("caller")
    def caller(payload: Any) -> Any:
        notify(began.set)
        thread = call_of_this_thread()
        while thread is not None and not thread.stop_requested:
            time.sleep(0.001)
        try:
            call = app.call("called", payload)
            return [*call] if streams else call.result()
        finally:
            notify(ended.set)

    async with exchange(app, "POST", "/v1/models/caller:predict", json=1) as client:
        with anyio.fail_after(30):
            await began.wait()
            client.hang_up()
            await ended.wait()
        await client.ended()
    assert called == []
    assert app.serving.statistics().running == 0


@pytest.mark.parametrize("caller", ["async", "sync"])
async def test_a_stream_is_cancelled_with_its_caller(caller: str) -> None:
    app = ModelServer()
    cleaned = anyio.Event()

    @app.model("words")
    async def words(payload: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    @app.model("async")
    async def in_loop(payload: Any) -> AsyncIterator[str]:
        async for word in app.call("words", payload):
            yield word

    @app.model("sync")
    def in_thread(payload: Any) -> Iterator[str]:
        yield from app.call("words", payload)

    async with exchange(app, "POST", f"/v1/models/{caller}:predict", json=1) as client:
        assert (await client.head()).status == 200
        assert await client.chunk() == b"a"
        client.hang_up()
        await client.ended()
    assert cleaned.is_set()
    assert app.serving.statistics().models["words"].running == 0


@pytest.mark.parametrize("way", ["block", "break", "for"])
async def test_a_stream_that_is_not_read_to_its_end_is_cancelled(way: str) -> None:
    app = ModelServer()
    cleaned = anyio.Event()

    @app.model("numbers")
    async def numbers(payload: Any) -> AsyncIterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            cleaned.set()

    @app.model("block")
    async def in_block(payload: Any) -> Any:
        async with app.call("numbers", payload) as items:
            async for item in items:
                if item == 3:
                    break
        return cleaned.is_set()

    @app.model("break")
    async def breaking(payload: Any) -> Any:
        async for item in app.call("numbers", payload):
            if item == 3:
                break
        with anyio.fail_after(30):
            await cleaned.wait()
        return True

    @app.model("for")
    def in_thread(payload: Any) -> Any:
        for item in app.call("numbers", payload):
            if item == 3:
                break
        return cleaned.is_set()

    assert (await ask(app, way, 1)).json() is True
    assert app.serving.statistics().models["numbers"].running == 0


async def test_a_hooks_own_time_limit_cancels_its_call() -> None:
    model = Gated("gated")
    app = ModelServer([model])

    @app.model("caller")
    async def caller(payload: Any) -> Any:
        with anyio.move_on_after(0.05):
            return await app.call("gated", payload)
        return {"cleaned": model.cleaned}

    assert (await ask(app, "caller", 1)).json() == {"cleaned": True}


async def test_a_drain_lets_calls_finish() -> None:
    model = Gated("gated")
    app = ModelServer([model])
    calling(app, "gated", "async")
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await ask(app, "caller", 1)).status)

    async with anyio.create_task_group() as group, lifespan(app):
        for _ in range(2):
            group.start_soon(one)
        with anyio.fail_after(30):
            await model.began.wait()
            gate = app.serving.registry.get("gated").gate
            while not gate.waiting:  # noqa: ASYNC110 - nor is a place in a queue
                await anyio.sleep(0.001)
        app.serving.refuse_new()
        model.release.set()
    assert statuses == [200, 200]


async def test_a_call_waits_for_a_model_that_is_loading_where_nobody_else_does() -> None:
    class Slow(Gated):
        def load(self) -> bool:
            time.sleep(0.02)
            return True

    model = Slow("gated")
    model.release.set()
    app = ModelServer([model])
    calling(app, "gated", "async")
    assert (await ask(app, "caller", 1)).json() == 1


# --- wrong use ------------------------------------------------------------------------------------


async def test_what_is_no_use_is_said() -> None:
    app = ModelServer()
    app.add_model(lambda payload: payload, "m")
    with pytest.raises(ValueError, match="There is no verb 'run': there are predict, explain"):
        app.call("m", 1, verb="run")
    with pytest.raises(RuntimeError, match="use await"):
        app.call("m", 1).result()
    call = app.call("m", 1)
    assert await call == 1
    with pytest.raises(RuntimeError, match="has been waited for already"):
        await call


async def test_outside_of_requests_a_model_can_be_called_too() -> None:
    app = doubling()
    before = threading.active_count()
    assert await app.call("async", 3) == 6
    assert [item async for item in app.call("sync-stream", 2)] == [0, 1]
    assert threading.active_count() <= before + 1  # the worker's
