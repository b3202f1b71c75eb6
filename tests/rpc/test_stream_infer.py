"""ModelStreamInfer: requests one after another, and any number of responses to each."""

import gc
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import Context
from typing import Any, ClassVar, Self

import anyio
import anyio.lowlevel
import pytest
from grpcweb import SERVICE, WEB

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.errors import Overloaded
from modelserve.observers import RequestRecord
from modelserve.protocols.grpc import classes
from modelserve.tensors import InferOutput, InferRequest, InferResponse
from modelserve.testing import Exchange, exchange, request
from modelserve.wire.grpc import Frames, frame, is_trailers, read_trailers

pytest.importorskip("google.protobuf")
pytestmark = pytest.mark.anyio

STREAM = f"{SERVICE}/ModelStreamInfer"
HEADERS = {"content-type": WEB}


def number_in(payload: InferRequest) -> int:
    return int(payload.inputs[0].data[0])


def response(number: int, id: str | None = None) -> InferResponse:
    return InferResponse(id, "m", [InferOutput("o", [1], "INT32", [number])])


async def count(payload: InferRequest) -> AsyncIterator[InferResponse]:
    if number_in(payload) < 0:
        raise InvalidInput("no negative numbers")
    for number in range(number_in(payload)):
        yield response(number, payload.id)


async def double(payload: InferRequest) -> InferResponse:
    return response(2 * number_in(payload), payload.id)


async def running_sum(payload: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
    total = 0
    async for each in payload:
        total += number_in(each)
        yield response(total)


def running_sum_in_thread(payload: Iterator[InferRequest]) -> Iterator[InferResponse]:
    total = 0
    for each in payload:
        total += number_in(each)
        yield response(total)


async def total(payload: AsyncIterator[InferRequest]) -> InferResponse:
    return response(sum([number_in(each) async for each in payload]))


def serve(*functions: Any, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    for function in functions:
        app.add_model(function, function.__name__)
    return app


def asked(model: str, number: int, id: str = "", **parameters: Any) -> bytes:
    contents = {"int_contents": [number]}
    tensor = {"name": "x", "datatype": "INT32", "shape": [1], "contents": contents}
    message = classes()["ModelInferRequest"](model_name=model, id=id, inputs=[tensor])
    for key, value in parameters.items():
        message.parameters[key].bool_param = value
    return frame(message.SerializeToString())


class Client:
    """Reads a stream of responses, one at a time."""

    def __init__(self, client: Exchange) -> None:
        self.client = client
        self._frames = Frames(float("inf"))
        self._found: list[tuple[int, bytes]] = []
        self.status: dict[bytes, bytes] = {}

    def ask(self, *requests: bytes) -> None:
        self.client.send_body(b"".join(requests), more=True)

    def end(self) -> None:
        self.client.send_body(b"")

    async def read(self) -> Any:
        """Return the next message; None at the end, with its `status`."""
        with anyio.fail_after(20):
            while not self._found:
                chunk = await self.client.chunk()
                if chunk is None:
                    return None
                self._found += self._frames.feed(chunk)
        flags, payload = self._found.pop(0)
        if is_trailers(flags):
            self.status = dict(read_trailers(payload))
            return None
        return classes()["ModelStreamInferResponse"].FromString(payload)

    async def number(self) -> int:
        message = await self.read()
        assert message.error_message == ""
        if raw := message.infer_response.raw_output_contents:  # as the request was
            return int.from_bytes(raw[0], "little")
        return int(message.infer_response.outputs[0].contents.int_contents[0])

    async def error(self) -> str:
        return str((await self.read()).error_message)

    async def ended(self) -> int:
        assert await self.read() is None
        return int(self.status[b"grpc-status"])


def opened(app: Any, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return exchange(app, "POST", STREAM, body=None, headers=HEADERS | named)


async def test_each_item_is_a_response_when_it_comes() -> None:
    events = [anyio.Event() for _ in range(3)]

    async def slowly(payload: InferRequest) -> AsyncIterator[InferResponse]:
        for number, event in enumerate(events):
            await event.wait()
            yield response(number, payload.id)

    async with opened(serve(slowly)) as started:
        client = Client(started)
        client.ask(asked("slowly", 0, "7"))
        events[0].set()
        await started.head()
        message = await client.read()
        assert (message.infer_response.id, message.infer_response.model_name) == ("7", "m")
        for number in (1, 2):
            events[number].set()
            assert await client.number() == number
        client.end()
        assert await client.ended() == 0


async def test_requests_are_answered_in_their_order_by_any_model() -> None:
    async with opened(serve(count, double)) as started:
        client = Client(started)
        client.ask(asked("count", 2), asked("double", 5), asked("count", 1))
        await started.head()
        assert [await client.number() for _ in range(4)] == [0, 1, 10, 0]
        client.ask(asked("double", 6))
        assert await client.number() == 12
        client.end()
        assert await client.ended() == 0


async def test_an_error_stands_in_its_place_and_the_stream_goes_on() -> None:
    async with opened(serve(count, double)) as started:
        client = Client(started)
        client.ask(asked("count", -1, "7"), asked("none", 1), frame(b"\xff"), asked("double", 4))
        await started.head()
        message = await client.read()
        assert message.error_message == "no negative numbers"
        assert message.infer_response.id == "7"
        assert await client.error() == "Model with name none does not exist."
        assert await client.error() == "The call's message is not a ModelInferRequest."
        assert await client.number() == 8
        client.end()
        assert await client.ended() == 0


async def test_a_stream_that_fails_has_its_error_after_its_items() -> None:
    async def fails(payload: InferRequest) -> AsyncIterator[InferResponse]:
        yield response(1)
        raise ValueError("secret")

    async with opened(serve(fails, double)) as started:
        client = Client(started)
        client.ask(asked("fails", 0), asked("double", 1))
        await started.head()
        assert await client.number() == 1
        assert await client.error() == "Internal Server Error"
        assert await client.number() == 2


@pytest.mark.parametrize("hook", [running_sum, running_sum_in_thread])
async def test_a_hook_that_iterates_answers_while_requests_come(hook: Any) -> None:
    async with opened(serve(hook)) as started:
        client = Client(started)
        client.ask(asked(hook.__name__, 1))
        await started.head()
        assert await client.number() == 1
        client.ask(asked(hook.__name__, 2), frame(b"\xff"), asked(hook.__name__, 3))
        assert await client.number() == 3
        assert "not a ModelInferRequest" in await client.error()
        assert await client.number() == 6
        client.end()
        assert await client.ended() == 0


async def test_the_requests_of_another_model_end_the_iterator() -> None:
    async with opened(serve(total, double)) as started:
        client = Client(started)
        client.ask(asked("total", 1), asked("total", 2), asked("double", 5), asked("total", 4))
        await started.head()
        assert [await client.number(), await client.number()] == [3, 10]
        client.end()
        assert await client.number() == 4
        assert await client.ended() == 0


async def test_an_iterator_that_is_not_read_does_not_stop_the_stream() -> None:
    calls = []

    async def refuses(payload: AsyncIterator[InferRequest]) -> InferResponse:
        calls.append(1)
        raise InvalidInput("never")

    async with opened(serve(refuses, double)) as started:
        client = Client(started)
        client.ask(asked("refuses", 1), asked("refuses", 2), asked("double", 1))
        await started.head()
        assert [await client.error(), await client.error()] == ["never", "never"]
        assert await client.number() == 2
    assert len(calls) == 2


async def test_a_stream_keeps_no_task_of_the_requests_that_it_has_answered() -> None:
    def takes_one(payload: Iterator[InferRequest]) -> Iterator[InferResponse]:
        yield response(number_in(next(payload)))

    async with opened(serve(takes_one)) as started:
        client = Client(started)
        client.ask(asked("takes_one", 0))
        await started.head()
        tasks = []
        for number in range(50):
            assert await client.number() == number
            await anyio.wait_all_tasks_blocked()
            tasks.append(len(anyio.get_running_tasks()))
            client.ask(asked("takes_one", number + 1))
        assert tasks[-1] < tasks[0] + 10


async def test_clients_may_ask_where_the_responses_end() -> None:
    def final(message: Any) -> Any:
        parameters = message.infer_response.parameters
        found = parameters.get("triton_final_response")
        return None if found is None else found.bool_param

    ask = {"triton_enable_empty_final_response": True}
    async with opened(serve(count, double)) as started:
        client = Client(started)
        client.ask(asked("count", 2, "7", **ask), asked("double", 1, **ask), asked("double", 1))
        await started.head()
        messages = [await client.read() for _ in range(5)]
        assert [final(message) for message in messages] == [False, False, True, True, None]
        assert (messages[2].infer_response.id, len(messages[2].infer_response.outputs)) == ("7", 0)


async def test_a_client_that_leaves_ends_the_hook() -> None:
    cleaned = anyio.Event()

    async def endless(payload: InferRequest) -> AsyncIterator[InferResponse]:
        try:
            yield response(0)
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            cleaned.set()

    app = serve(endless)
    async with opened(app) as started:
        client = Client(started)
        client.ask(asked("endless", 0))
        await started.head()
        assert await client.number() == 0
        started.hang_up()
        with anyio.fail_after(10):
            await cleaned.wait()
    text = (await request(app, "GET", "/metrics")).body.decode()
    assert 'outcome="disconnected",protocol="grpc",status="499",verb="stream_infer"' in text


async def test_a_deadline_ends_the_stream_with_its_status() -> None:
    async def waits(payload: InferRequest) -> InferResponse:
        await anyio.sleep_forever()
        return response(0)

    async with opened(serve(double, waits), grpc_timeout="200m") as started:
        client = Client(started)
        client.ask(asked("double", 1), asked("waits", 0))
        await started.head()
        assert await client.number() == 2
        assert await client.ended() == 4
        assert client.status[b"grpc-message"] == b"timeout: the request took longer than 0.2 s"
    limited = serve(waits)
    limited.add_model(waits, "limited", limits=Limits(timeout=0.05))
    async with opened(limited) as started:
        client = Client(started)
        await anyio.sleep(0.1)  # the stream is being watched
        client.ask(asked("limited", 0))
        head = await started.head()
        assert head.headers["grpc-status"] == "4"


async def test_a_stream_has_arrived_when_it_came_whatever_its_requests_do() -> None:
    app = serve(double)
    async with opened(app) as started:
        client = Client(started)
        client.ask(asked("double", 1))
        await started.head()
        await client.number()
        (flight,) = app.serving.flights
        arrived = flight.request.arrived
        client.ask(asked("double", 2))
        await client.number()
        assert flight.request.arrived == arrived


async def test_a_drain_ends_a_stream_without_a_running_request() -> None:
    app = serve(double)
    async with opened(app) as started:
        client = Client(started)
        client.ask(asked("double", 1))
        await started.head()
        assert await client.number() == 2
        app.serving.refuse_new()
        assert await client.ended() == 14


@pytest.mark.parametrize(("more", "code"), [(False, 0), (True, 14)])
async def test_a_drain_lets_a_stream_end_well_that_is_answered_in_full(
    more: bool, code: int
) -> None:
    app, go = serve(), anyio.Event()

    async def waits(payload: InferRequest) -> AsyncIterator[InferResponse]:
        yield response(1)
        await go.wait()
        yield response(2)

    app.add_model(waits, "waits")
    async with opened(app) as started:
        client = Client(started)
        client.ask(asked("waits", 0))
        if more:
            client.ask(asked("waits", 0))
        client.end()
        await started.head()
        assert await client.number() == 1
        await anyio.wait_all_tasks_blocked()
        app.serving.refuse_new()
        go.set()
        assert await client.number() == 2
        assert await client.ended() == code


async def test_a_stream_without_a_running_request_holds_no_slot() -> None:
    app = serve(double, limits=Limits(concurrency=1, queue=0))
    async with opened(app) as first, opened(app) as second:
        for started in (first, second):
            client = Client(started)
            client.ask(asked("double", 1))
            await started.head()
            assert await client.number() == 2


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    made = 0

    async def fast(payload: InferRequest) -> AsyncIterator[InferResponse]:
        nonlocal made
        for _ in range(100):
            made += 1
            yield response(made)

    async with opened(serve(fast)) as started:
        client = Client(started)
        started.hold()
        client.ask(asked("fast", 0))
        await anyio.wait_all_tasks_blocked()
        assert made == 1
        started.resume()
        await started.head()
        assert [await client.number() for _ in range(100)] == [*range(1, 101)]


async def test_each_request_is_counted() -> None:
    app = serve(count, double)
    async with opened(app) as started:
        client = Client(started)
        client.ask(asked("count", 3), asked("double", 1), asked("double", 1), asked("count", -1))
        client.end()
        await started.ended()
    text = (await request(app, "GET", "/metrics")).body.decode()
    end = 'protocol="grpc",status="200",verb="stream_infer"}'
    assert f'modelserve_requests_total{{model_name="count",outcome="done",{end} 1.0' in text
    assert f'modelserve_requests_total{{model_name="double",outcome="done",{end} 2.0' in text
    assert 'model_name="count",outcome="error",protocol="grpc",status="400"' in text


async def test_observers_are_told_of_each_requests_wait_and_steps() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    async def slow(payload: InferRequest) -> InferResponse:
        entered.set()
        await go_on.wait()
        return response(1)

    class Follower:
        steps: ClassVar[list[str]] = []
        waits: ClassVar[list[bool]] = []

        def __call__(self, record: RequestRecord) -> None:
            self.waits.append(record.queued is not None and record.queue_seconds > 0)

        def answer(self, record: RequestRecord) -> None:
            pass

        def start_step(self, model: str, step: str, joined: Sequence[Context]) -> Self:
            self.steps.append(f"{model} {step}")
            return self

        def enter(self) -> None:
            pass

        leave = enter

        def end(self, error: BaseException | None) -> None:
            self.steps.append("end")

    app = ModelServer(observers=[Follower()])
    app.add_model(slow, "slow", limits=Limits(concurrency=1))
    async with opened(app) as one, opened(app) as two:
        Client(one).ask(asked("slow", 1))
        await entered.wait()
        Client(two).ask(asked("slow", 1))
        while not app.serving.statistics().waiting:
            await anyio.lowlevel.checkpoint()
        go_on.set()
        for client in (one, two):
            await client.head()
            client.send_body(b"")
            await client.ended()
    assert Follower.waits == [False, True]
    assert Follower.steps == ["slow predict", "end"] * 2


async def test_a_call_that_would_wait_for_its_own_request_is_refused() -> None:
    app = ModelServer()

    @app.model("itself", limits=Limits(concurrency=1))
    async def itself(payload: InferRequest) -> Any:
        return await app.call("itself", payload)

    async with opened(app) as started:
        client = Client(started)
        client.ask(asked("itself", 1))
        await started.head()
        assert "would deadlock" in await client.error()
        client.end()
        assert await client.ended() == 0


async def test_what_is_not_a_message_is_said() -> None:
    app = serve(double, limits=Limits(max_body_bytes=100))
    async with opened(app) as started:
        client = Client(started)
        client.ask(frame(bytes(101)), b"\x02\0\0\0\1x", asked("double", 1), b"\0\0")
        client.end()
        await started.head()
        assert await client.error() == "The message is larger than 100 bytes."
        assert await client.error() == "The message is not in a frame of gRPC."
        assert await client.number() == 2
        assert await client.error() == "The stream ends within a message."
        assert await client.ended() == 0


async def test_a_stream_of_nothing_is_empty() -> None:
    async with opened(serve(double)) as started:
        client = Client(started)
        client.end()
        await started.head()
        assert await client.ended() == 0


async def test_what_is_refused_before_a_request_is_a_status() -> None:
    app = serve(double, token="t")
    async with opened(app) as started:
        assert (await started.head()).headers["grpc-status"] == "16"
    async with opened(serve(double), grpc_timeout="x") as started:
        assert (await started.head()).headers["grpc-status"] == "3"


async def test_headers_of_the_first_answer_start_the_stream() -> None:
    async def named(payload: InferRequest, headers: Any, response_headers: Any) -> InferResponse:
        response_headers["x-model"] = headers["x-client"]
        return response(1)

    async with opened(serve(named), x_client="c") as started:
        client = Client(started)
        client.ask(asked("named", 1))
        assert (await started.head()).headers["x-model"] == "c"


async def test_a_models_own_thread_streams() -> None:
    class Own(Model):
        def predict(self, payload: InferRequest) -> Iterator[InferResponse]:
            for number in range(number_in(payload)):
                yield response(number)

    async with opened(ModelServer([Own("own")])) as started:
        client = Client(started)
        client.ask(asked("own", 3), asked("own", 1))
        await started.head()
        assert [await client.number() for _ in range(4)] == [0, 1, 2, 0]


async def test_a_request_that_failed_is_freed_without_a_collection_of_garbage() -> None:
    kept: list[weakref.ref[InferRequest]] = []

    async def fails(payload: InferRequest) -> None:
        kept.append(weakref.ref(payload))
        raise InvalidInput("bad")

    gc.disable()
    try:
        async with opened(serve(fails, double)) as started:
            client = Client(started)
            client.ask(asked("fails", 0), asked("double", 1))
            await started.head()
            assert await client.error() == "bad"
            assert await client.number() == 2
            assert kept[0]() is None
            client.end()
            assert await client.ended() == 0
    finally:
        gc.enable()


# --- what waits is counted -----------------------------------------------------------------------

MEBIBYTE = 1 << 20
FULL = Limits(max_queued_bytes=MEBIBYTE)


def large(model: str, size: int) -> bytes:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [size]}
    message = classes()["ModelInferRequest"](model_name=model, inputs=[tensor])
    message.raw_input_contents.append(bytes(size))
    return frame(message.SerializeToString())


async def size_of(payload: InferRequest) -> InferResponse:
    return response(payload.inputs[0].shape[0])


async def held(app: ModelServer, size: int) -> None:
    with anyio.fail_after(10):
        while app.serving.admission.budget.held != size:  # noqa: ASYNC110 - a task says so
            await anyio.sleep(0.001)


async def test_a_message_that_arrives_is_counted_and_refused_as_a_body_is() -> None:
    message = large("size_of", 2 * MEBIBYTE)
    part, rest = message[:-5], message[-5:]
    app = serve(size_of, limits=FULL)
    async with opened(app) as started:
        alone = Client(started)
        started.send_body(part, more=True)
        await held(app, len(part))
        heads = []
        for path in (STREAM, f"{SERVICE}/ModelInfer"):
            async with exchange(app, "POST", path, body=None, headers=HEADERS) as refused:
                refused.send_body(part[:MEBIBYTE], more=True)
                heads.append((await refused.head()).headers)
        streamed, unary = ((h["grpc-status"], h["grpc-message"]) for h in heads)
        assert streamed == unary
        assert streamed[0] == "14"
        started.send_body(rest, more=True)
        await started.head()
        assert await alone.number() == 2 * MEBIBYTE
        await held(app, 0)


async def test_a_message_without_room_ends_its_stream_behind_the_requests_before_it() -> None:
    part = large("size_of", 2 * MEBIBYTE)[:-5]
    app = serve(size_of, double, limits=FULL)
    async with opened(app) as first, opened(app) as second:
        first.send_body(part, more=True)
        await held(app, len(part))
        client = Client(second)
        client.ask(asked("double", 1), asked("double", 2), part, asked("double", 3))
        await second.head()
        assert [await client.number(), await client.number()] == [2, 4]  # few bytes always fit
        assert await client.ended() == 14
        assert app.serving.admission.budget.held == len(part)
    await held(app, 0)


async def test_a_whole_message_that_waits_is_counted() -> None:
    release = anyio.Event()

    async def waits(payload: InferRequest) -> InferResponse:
        await release.wait()
        return response(1)

    message = large("size_of", MEBIBYTE)
    app = serve(size_of, waits, limits=FULL)
    async with opened(app) as first, opened(app) as second:
        first.send_body(asked("waits", 0) + message, more=True)
        await held(app, len(message) - 5)
        second.send_body(message, more=True)
        assert (await second.head()).headers["grpc-status"] == "14"
        release.set()
        await first.head()
        client = Client(first)
        assert [await client.number(), await client.number()] == [1, MEBIBYTE]
    await held(app, 0)


async def test_a_hook_that_iterates_is_told_of_a_message_without_room() -> None:
    part = large("sizes", 2 * MEBIBYTE)[:-5]
    told: list[BaseException] = []

    async def sizes(payload: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        try:
            async for each in payload:
                yield response(each.inputs[0].shape[0])
        except Overloaded as exc:
            told.append(exc)
            raise

    app = serve(sizes, limits=FULL)
    async with opened(app) as first, opened(app) as second:
        first.send_body(part, more=True)
        await held(app, len(part))
        client = Client(second)
        client.ask(large("sizes", 3), part)
        await second.head()
        assert await client.number() == 3
        assert await client.error() == str(told[0])
        assert await client.ended() == 14
    await held(app, 0)


async def test_what_is_skipped_is_not_counted() -> None:
    app = serve(double, limits=Limits(max_queued_bytes=MEBIBYTE, max_body_bytes=MEBIBYTE))
    async with opened(app) as started:
        started.send_body(large("double", 3 * MEBIBYTE)[: 2 * MEBIBYTE], more=True)
        client = Client(started)
        await started.head()
        assert await client.error() == f"The message is larger than {MEBIBYTE} bytes."
        assert app.serving.admission.budget.held == 0
