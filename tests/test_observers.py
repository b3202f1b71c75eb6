"""Observers: each is told once of each request to a model, whatever has ended it."""

import gc
import logging
import pickle
import time
from collections.abc import AsyncIterator, Sequence
from contextvars import Context
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Batching, InvalidInput, Limits, Model, ModelServer, RequestRecord
from modelserve.exchange.exchange import Exchange as ServedExchange
from modelserve.observers import Scope
from modelserve.testing import Exchange, exchange, lifespan, request, websocket

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


class Seen(list[RequestRecord]):
    """An observer that keeps what it is told."""

    def __call__(self, record: RequestRecord) -> None:
        self.append(record)

    @property
    def ends(self) -> list[tuple[str, str, int, str]]:
        return [(r.protocol, r.model, r.status, r.outcome) for r in self]


def served(function: Any, seen: Any, **settings: Any) -> ModelServer:
    app = ModelServer(observers=[seen])
    app.add_model(function, "m", **settings)
    return app


async def echo(payload: Any) -> Any:
    return payload


async def for_ever(payload: Any) -> AsyncIterator[int]:
    yield 1
    await anyio.sleep_forever()


async def never(payload: Any) -> None:
    await anyio.sleep_forever()


class Staged(Model):
    async def preprocess(self, payload: Any) -> Any:
        await anyio.sleep(0.02)
        return payload["instances"]

    def predict(self, instances: Any) -> Any:
        yield from instances

    async def postprocess(self, result: AsyncIterator[Any]) -> Any:
        async for item in result:
            yield item * 2


# --- what a record says --------------------------------------------------------------------------


async def test_the_record_of_a_request() -> None:
    seen = Seen()
    before = time.time()
    given = {"x-request-id": "one"}
    await request(served(echo, seen), *PREDICT, json={"predictions": []}, headers=given)
    [record] = seen
    assert (record.protocol, record.model, record.verb) == ("v1", "m", "predict")
    assert (record.status, record.outcome, record.request_id) == (200, "done", "one")
    assert set(record.hooks) == {"predict"}
    assert 0 <= record.hooks["predict"] <= record.seconds < 10
    assert before - 10 < record.started < time.time()
    assert (record.queued, record.queue_seconds) == (None, 0)
    assert (record.items, record.first_item_seconds, record.error) == (0, None, None)
    with pytest.raises(AttributeError):
        record.status = 201  # type: ignore[misc]


async def test_the_record_of_a_stream() -> None:
    seen = Seen()
    app = ModelServer([Staged("m")], observers=[seen])
    response = await request(app, *PREDICT, json={"instances": [1, 2, 3]})
    assert response.body == b"2\n4\n6\n"
    [record] = seen
    assert (record.outcome, record.items) == ("done", 3)
    assert set(record.hooks) == {"preprocess", "predict", "postprocess"}
    assert 0.02 <= record.hooks["preprocess"] <= (record.first_item_seconds or 0) <= record.seconds


async def test_how_long_a_request_has_waited_for_a_slot() -> None:
    seen = Seen()
    entered, go_on = anyio.Event(), anyio.Event()

    async def slow(payload: Any) -> Any:
        entered.set()
        await go_on.wait()
        return payload

    app = served(slow, seen, limits=Limits(concurrency=1))
    async with exchange(app, *PREDICT, json={"instances": [1]}) as first:
        await entered.wait()
        async with exchange(app, *PREDICT, json={"instances": [2]}) as second:
            while not app.serving.statistics().waiting:
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.03)
            go_on.set()
            await first.response()
            await second.response()
    one, two = seen
    assert one.queued is None
    assert two.queued is not None and two.started <= two.queued + 10
    assert 0.03 <= two.queue_seconds <= two.seconds


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_answer_of_a_language_model_says_of_itself(stream: bool) -> None:
    seen = Seen()

    class Chat(Model):
        async def chat(self, payload: Any) -> Any:
            yield "one"
            yield {"finish_reason": "length"}
            yield {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}

        async def embed(self, payload: Any) -> Any:
            return {"embeddings": [[1.0]], "usage": {"prompt_tokens": 7}}

    app = ModelServer([Chat("m")], observers=[seen])
    messages = [{"role": "user", "content": "hello"}]
    document = {"model": "m", "messages": messages, "stream": stream}
    assert (await request(app, "POST", "/v1/chat/completions", json=document)).status == 200
    await request(app, "POST", "/v1/embeddings", json={"model": "m", "input": "hello"})
    chat, embed = (record.generation for record in seen)
    assert chat is not None and embed is not None
    assert (chat.model, chat.streams, chat.finish_reasons) == ("m", stream, ("length",))
    assert (chat.input_tokens, chat.output_tokens) == (5, 2)
    assert chat.id is not None and chat.id.startswith("chatcmpl-")
    assert (embed.input_tokens, embed.output_tokens) == (7, None)
    assert "hello" not in repr(seen)


# --- once, whatever ends the request -------------------------------------------------------------


async def test_paths_that_run_no_model_are_not_told_of() -> None:
    seen = Seen()
    app = served(echo, seen)
    for path in ("/", "/v2/health/ready", "/v1/models/m", "/metrics", "/nothing"):
        await request(app, "GET", path)
    assert seen == []


async def test_a_model_that_is_not_there() -> None:
    seen = Seen()
    await request(served(echo, seen), "POST", "/v1/models/other:predict", json={})
    assert seen.ends == [("v1", "", 404, "error")]


async def test_what_is_refused_before_the_model_is_known() -> None:
    seen = Seen()
    app = ModelServer(token="secret", observers=[seen])
    app.add_model(echo, "m")
    await request(app, *PREDICT, json={})
    headers = {"authorization": "Bearer secret"}
    await request(app, "DELETE", PREDICT[1], headers=headers)
    async with lifespan(app):
        pass
    await request(app, *PREDICT, json={}, headers=headers)
    assert seen.ends == [
        ("v1", "", 401, "error"),
        ("v1", "", 405, "error"),
        ("v1", "", 503, "refused"),
    ]


async def test_a_body_that_is_no_payload() -> None:
    seen = Seen()
    app = served(echo, seen, limits=Limits(max_body_bytes=10))
    await request(app, *PREDICT, body=b"{")
    await request(app, *PREDICT, body=b'{"instances": [1, 2, 3]}')
    assert seen.ends == [("v1", "m", 400, "error"), ("v1", "m", 413, "error")]


@pytest.mark.parametrize(
    ("raised", "status"), [(InvalidInput("no"), 400), (ValueError("a secret"), 500)]
)
async def test_a_hook_that_raises(raised: Exception, status: int) -> None:
    seen = Seen()

    async def fails(payload: Any) -> None:
        raise raised

    await request(served(fails, seen), *PREDICT, json={"instances": []})
    assert seen.ends == [("v1", "m", status, "error")]
    assert seen[0].error is raised


async def test_a_stream_that_fails_after_its_first_item() -> None:
    seen = Seen()

    async def fails(payload: Any) -> Any:
        yield 1
        raise ValueError("a secret")

    await request(served(fails, seen), *PREDICT, json={"instances": []})
    assert seen.ends == [("v1", "m", 200, "error")]


@pytest.mark.parametrize("function", [for_ever, never])
async def test_a_client_that_leaves(function: Any) -> None:
    seen = Seen()
    async with exchange(served(function, seen), *PREDICT, json={"instances": []}) as client:
        if function is for_ever:
            await client.head()
        client.hang_up()
        await client.ended()
    assert [(r.outcome, r.status) for r in seen] == [
        ("disconnected", 200 if function is for_ever else 499)
    ]


@pytest.mark.parametrize(("function", "status"), [(for_ever, 200), (never, 504)])
async def test_a_time_limit(function: Any, status: int) -> None:
    seen = Seen()
    app = served(function, seen, limits=Limits(timeout=0.05))
    accept = {"accept": "text/event-stream"}
    await request(app, *PREDICT, json={"instances": []}, headers=accept)
    assert seen.ends == [("v1", "m", status, "timeout")]


async def test_a_full_queue() -> None:
    seen = Seen()
    app = served(for_ever, seen, limits=Limits(concurrency=1, queue=0))
    async with exchange(app, *PREDICT, json={"instances": []}) as client:
        await client.head()
        await request(app, *PREDICT, json={"instances": []})
        assert seen.ends == [("v1", "m", 503, "refused")]
        assert seen[0].queued is None


async def test_a_drain() -> None:
    seen = Seen()
    app = ModelServer(limits=Limits(drain_timeout=0.05), observers=[seen])
    app.add_model(for_ever, "m")
    async with exchange(app, *PREDICT, json={"instances": []}) as client, lifespan(app):
        await client.head()
    assert seen.ends == [("v1", "m", 200, "shutdown")]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_hosts_own_cancellation() -> None:
    seen = Seen()
    async with exchange(served(for_ever, seen), *PREDICT, json={"instances": []}) as client:
        await client.head()
        assert client.task is not None
        client.task.cancel()
        await client.ended()
    assert [(r.model, r.outcome) for r in seen] == [("m", "shutdown")]


async def test_a_websocket() -> None:
    seen = Seen()

    async def double(instances: AsyncIterator[int]) -> AsyncIterator[int]:
        async for x in instances:
            yield 2 * x

    async with websocket(served(double, seen), "/v1/models/m:predict") as client:
        client.send("1")
        assert await client.message() == "2"
        client.send("")
        await client.closed()
        await client.ended()
    assert [(r.model, r.outcome, r.items) for r in seen] == [("m", "done", 1)]


async def test_a_request_that_is_streamed() -> None:
    seen = Seen()

    async def double(payload: Any) -> Any:
        return {"predictions": [2 * x for x in payload["instances"]]}

    body = {"headers": {"content-type": "application/x-ndjson"}, "body": b"1\n2\n3\n"}
    response = await request(served(double, seen), *PREDICT, **body)
    assert response.body == b"2\n4\n6\n"
    assert [(r.model, r.outcome, r.items) for r in seen] == [("m", "done", 3)]
    assert set(seen[0].hooks) == {"predict"}


async def test_a_batch_is_a_request_each() -> None:
    seen = Seen()

    async def double(payload: Any) -> Any:
        await anyio.sleep(0.01)
        return {"predictions": [2 * x for x in payload["instances"]]}

    app = served(double, seen, batching=Batching())
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(predict, app, number)
    assert seen.ends == [("v1", "m", 200, "done")] * 5
    assert len({record.request_id for record in seen}) == 5


async def predict(app: Any, number: int) -> None:
    response = await request(app, *PREDICT, json={"instances": [number]})
    assert response.json() == {"predictions": [2 * number]}


async def test_a_call_of_another_model() -> None:
    seen = Seen()
    app = served(echo, seen)

    @app.model("outer")
    async def outer(payload: Any) -> Any:
        return await app.call("m", payload)

    given = {"x-request-id": "one"}
    await request(app, "POST", "/v1/models/outer:predict", json={}, headers=given)
    assert seen.ends == [("call", "m", 200, "done"), ("v1", "outer", 200, "done")]
    assert {record.request_id for record in seen} == {"one"}


# --- observers -----------------------------------------------------------------------------------


class Cancelled(BaseException):
    """What an event loop cancels with is no `Exception`."""


@pytest.mark.parametrize("kind", [ValueError, Cancelled])
async def test_an_observer_that_fails_is_logged_once(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    def fails(record: RequestRecord) -> None:
        raise kind("of the observer")

    app = ModelServer(observers=[fails, seen])
    app.add_model(echo, "m")
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert (await request(app, *PREDICT, json={"predictions": []})).status == 200
    assert len(seen) == 2
    [told] = [entry for entry in caplog.records if "observer" in entry.message]
    assert told.exc_info is not None and "fails" in told.message


async def test_an_observer_that_blocks_is_told_of_and_holds_no_slot_and_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[Any] = []
    told_after: list[tuple[Any, int]] = []

    def slow(record: RequestRecord) -> None:
        told_after.append((sent[-1], app.serving.statistics().running))
        time.sleep(0.15)

    app = served(echo, slow)

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_note(message: Any) -> None:
            await send(message)
            sent.append((message["type"], message.get("more_body", False)))

        await app(scope, receive, send_and_note)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await request(host, *PREDICT, json={"predictions": []})
    assert told_after == [(("http.response.body", False), 0)] * 2
    [told] = [entry for entry in caplog.records if "observer" in entry.message]
    assert "slow" in told.message and "belongs in a thread" in told.message


def test_an_observer_is_a_function_and_not_async() -> None:
    async def waits(record: RequestRecord) -> None: ...

    class Waits:
        async def __call__(self, record: RequestRecord) -> None: ...

    for observer in (waits, Waits()):
        with pytest.raises(TypeError, match="is async: it is called, and not awaited"):
            ModelServer(observers=[observer])
    with pytest.raises(TypeError, match="must be a function of one record, not 3"):
        ModelServer(observers=[3])  # type: ignore[list-item]


async def test_a_copy_has_the_same_observers() -> None:
    app = pickle.loads(pickle.dumps(ModelServer([Staged("m")], observers=[Seen()])))
    await request(app, *PREDICT, json={"instances": [1]})
    [seen] = app.serving.telemetry.observers.given
    assert seen.ends == [("v1", "m", 200, "done")]


async def test_it_is_told_before_the_application_returns_in_the_context_of_the_request() -> None:
    """So that a host's middleware still has its span or scope there."""
    told: list[bool] = []
    running: list[Exchange] = []
    app = served(echo, lambda record: told.append(running[0].over))
    async with exchange(app, *PREDICT, json={"predictions": []}) as client:
        running.append(client)
        await client.response()
        await client.ended()
    assert told == [False]


# --- followers -----------------------------------------------------------------------------------


class Steps:
    """A follower that notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, record: RequestRecord) -> None:
        self.told.append(f"ended {record.outcome}")

    def answer(self, record: RequestRecord) -> None:
        self.told.append(f"answer {record.status} {record.outcome}")

    def start_step(self, model: str, step: str, joined: Sequence[Context]) -> Scope:
        self.told.append(f"start {model} {step}")
        return Step(self.told, step)


class Step:
    def __init__(self, told: list[str], name: str) -> None:
        self.told, self.name = told, name

    def enter(self) -> None:
        self.told.append(f"enter {self.name}")

    def leave(self) -> None:
        self.told.append(f"leave {self.name}")

    def end(self, error: BaseException | None) -> None:
        self.told.append(f"end {self.name} {type(error).__name__}")


async def two_items(payload: Any) -> AsyncIterator[int]:
    yield 1
    yield 2


async def refuses(payload: Any) -> None:
    raise InvalidInput("no")


RUNS = ["enter predict", "leave predict"]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (echo, [*RUNS, "end predict NoneType", "answer 200 done", "ended done"]),
        (refuses, [*RUNS, "end predict InvalidInput", "answer 400 error", "ended error"]),
        (two_items, [*RUNS * 4, "end predict NoneType", "answer 200 done", "ended done"]),
    ],
)
async def test_a_follower_is_told_of_each_step(function: Any, told: list[str]) -> None:
    steps = Steps()
    await request(served(function, steps), *PREDICT, json={"predictions": []})
    assert steps.told == ["start m predict", *told]


async def test_a_follower_that_fails_harms_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Steps):
        def start_step(self, model: str, step: str, joined: Sequence[Context]) -> Scope:
            raise ValueError("of the observer")

        def answer(self, record: RequestRecord) -> None:
            raise ValueError("of the observer")

    steps = Fails()
    response = await request(served(two_items, steps), *PREDICT, json={})
    assert (response.status, response.body) == (200, b"1\n2\n")
    assert steps.told == ["ended done"]
    assert len([entry for entry in caplog.records if "observer" in entry.message]) == 1


def alive() -> set[int]:
    return {id(found) for found in gc.get_objects() if type(found) is ServedExchange}


@pytest.mark.slow
@pytest.mark.parametrize("function", [echo, refuses, two_items])
async def test_a_followed_request_leaves_nothing_to_the_garbage_collector(function: Any) -> None:
    app = served(function, Steps())
    await request(app, *PREDICT, json={"predictions": []})
    gc.collect()
    gc.disable()
    others = alive()
    try:
        await request(app, *PREDICT, json={"predictions": []})
        assert alive() <= others
    finally:
        gc.enable()
