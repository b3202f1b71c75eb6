"""Requests that go through `predict` together: what may, and what each gets back."""

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import orjson
import pytest

from modelserve import (
    Batching,
    InferenceError,
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Limits,
    Model,
    ModelServer,
)
from modelserve.testing import Exchange, Response, exchange, request

pytestmark = pytest.mark.anyio


async def settle() -> None:
    """Let every task run as far as it can; cheaper than `wait_all_tasks_blocked` on asyncio."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


PREDICT = ("POST", "/v1/models/m:predict")
INFER = ("POST", "/v2/models/m/infer")
LENGTH = "inference-header-content-length"


class Gated(Model):
    """Calls of `predict` last until the test lets them go."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("m")
        self.batching = Batching(max_size=4)
        self.calls: list[Any] = []
        self.gates: list[anyio.Event] = []
        vars(self).update(settings)

    async def predict(self, payload: Any) -> Any:
        self.calls.append(payload)
        self.gates.append(anyio.Event())
        await self.gates[-1].wait()
        return self.answer(payload)

    def answer(self, payload: Any) -> Any:
        return {"predictions": [2 * x for x in payload["instances"]]}


class Clients:
    """Requests that arrive one after another; their responses are in the order of arrival."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model = model
        self.app = ModelServer([model], **options)
        self.responses: dict[int, Response] = {}
        self._number = 0

    async def arrive(self, group: anyio.abc.TaskGroup, *payloads: Any, **options: Any) -> None:
        for payload in payloads:
            group.start_soon(self._ask, self._number, payload, {**options})
            self._number += 1
            await settle()

    async def _ask(self, number: int, payload: Any, options: dict[str, Any]) -> None:
        where = options.pop("to", PREDICT)
        if isinstance(payload, bytes):
            self.responses[number] = await request(self.app, *where, body=payload, **options)
        else:
            self.responses[number] = await request(self.app, *where, json=payload, **options)

    async def finish(self, times: int = 1) -> None:
        for _ in range(times):
            self.model.gates[-1].set()
            await settle()

    def answers(self) -> list[tuple[int, Any]]:
        ordered = [response for _, response in sorted(self.responses.items())]
        return [(response.status, response.json()) for response in ordered]


def ok(*predictions: Any) -> tuple[int, Any]:
    return 200, {"predictions": list(predictions)}


# --- V1 -----------------------------------------------------------------------------------------


async def test_instances_of_several_requests_go_together() -> None:
    clients = Clients(model := Gated())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": some} for some in ([1], [2, 3], [4])))
        await clients.finish(2)
    assert model.calls == [{"instances": [1]}, {"instances": [2, 3, 4]}]
    assert clients.answers() == [ok(2), ok(4, 6), ok(8)]


async def test_what_else_is_in_a_payload_has_to_be_equal() -> None:
    clients = Clients(model := Gated())
    async with anyio.create_task_group() as group:
        await clients.arrive(
            group,
            {"instances": [1]},
            {"instances": [2], "top": {"a": 1, "b": 2}},
            {"top": {"b": 2, "a": 1}, "instances": [3]},
            {"instances": [4], "top": 2},
            {"instances": [5]},
        )
        await clients.finish(4)
    calls = [(call["instances"], call.get("top")) for call in model.calls]
    assert calls == [([1], None), ([2, 3], {"a": 1, "b": 2}), ([4], 2), ([5], None)]


async def test_what_else_is_in_a_result_goes_to_everybody() -> None:
    class Named(Gated):
        def answer(self, payload: Any) -> Any:
            return {"predictions": payload["instances"], "model": "1.0"}

    clients = Clients(Named())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": [n]} for n in (1, 2, 3)))
        await clients.finish(2)
    assert clients.answers()[1:] == [(200, {"predictions": [n], "model": "1.0"}) for n in (2, 3)]


@pytest.mark.parametrize(
    "payload", [[1, 2], {"rows": [1]}, {"instances": []}, {"inputs": [1]}, "text", b"\xff", 7]
)
async def test_other_payloads_go_alone(payload: Any) -> None:
    class Any_(Gated):
        def answer(self, payload: Any) -> Any:
            return {"got": payload if not isinstance(payload, bytes) else "bytes"}

    clients = Clients(model := Any_())
    headers = {"content-type": "image/png"} if isinstance(payload, bytes) else {}
    async with anyio.create_task_group() as group:
        await clients.arrive(group, payload, payload, payload, headers=headers)
        await clients.finish(3)
    assert model.calls == [payload] * 3
    assert [status for status, _ in clients.answers()] == [200] * 3


async def test_a_large_request_is_divided_and_put_together() -> None:
    clients = Clients(model := Gated())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, {"instances": [*range(10)], "k": 1})
        await clients.finish(3)
    assert [len(call["instances"]) for call in model.calls] == [4, 4, 2]
    assert all(call["k"] == 1 for call in model.calls)
    assert clients.answers() == [ok(*range(0, 20, 2))]


class Table:
    """A table of another library, known by its method."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def to_list(self) -> list[Any]:
        return self._rows


@pytest.mark.parametrize("kind", [tuple, np.array, Table, lambda rows: np.array(rows, object)])
@pytest.mark.parametrize("size", [1, 2, 9])
async def test_predictions_may_be_a_tuple_or_an_array(kind: Any, size: int) -> None:
    class Kind(Gated):
        def answer(self, payload: Any) -> Any:
            return {"predictions": kind([[x, 2 * x] for x in payload["instances"]])}

    clients = Clients(Kind())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, {"instances": [0]}, {"instances": [*range(size)]})
        await clients.arrive(group, {"instances": [5]})
        await clients.finish(5)
    assert clients.answers() == [
        ok([0, 0]),
        ok(*([n, 2 * n] for n in range(size))),
        ok([5, 10]),
    ]


@pytest.mark.parametrize("instances", [[1], [1, 2]])
@pytest.mark.parametrize("others", [[], [[3]]])
async def test_another_number_of_predictions_is_an_error_that_says_both_numbers(
    instances: list[int], others: list[list[int]]
) -> None:
    class Short(Gated):
        def answer(self, payload: Any) -> Any:
            return {"predictions": [0] * (len(payload["instances"]) + 1)}

    clients = Clients(Short(batching=Batching(max_size=4, isolate=False)))
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": some} for some in (instances, *others)))
        await clients.finish(2)
    for (status, document), some in zip(clients.answers(), (instances, *others), strict=True):
        count = len(some)
        sentence = f"predict returned {count + 1} predictions for {count} instances"
        assert (status, document) == (500, {"error": sentence})


@pytest.mark.parametrize("result", [None, [1], {"outputs": [1]}, {"predictions": "a"}, "text"])
async def test_a_result_without_predictions_is_the_authors_error(
    result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Model):
        batching = Batching()

        async def predict(self, payload: Any) -> Any:
            return result

    response = await request(ModelServer([Wrong("m")]), *PREDICT, json={"instances": [1]})
    assert (response.status, response.json()) == (500, {"error": "Internal Server Error"})
    assert 'must return {"predictions": [...]} with a prediction for each' in caplog.text


async def test_an_exception_in_a_predictions_place_is_that_requests_own() -> None:
    class Picky(Gated):
        def answer(self, payload: Any) -> Any:
            return {
                "predictions": [
                    InvalidInput("No negative numbers.") if x < 0 else x
                    for x in payload["instances"]
                ]
            }

    clients = Clients(Picky())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": some} for some in ([-1], [2], [3, -3], [4])))
        await clients.finish(2)
    refused = (400, {"error": "No negative numbers."})
    assert clients.answers() == [refused, ok(2), refused, ok(4)]


async def test_an_input_that_fails_fails_alone() -> None:
    class Failing(Gated):
        def answer(self, payload: Any) -> Any:
            if 13 in payload["instances"]:
                raise InferenceError("thirteen")
            return super().answer(payload)

    clients = Clients(model := Failing())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": [n]} for n in (1, 2, 13, 4)))
        await clients.finish(5)
    assert [call["instances"] for call in model.calls] == [[1], [2, 13, 4], [2], [13], [4]]
    assert clients.answers() == [ok(2), ok(4), (500, {"error": "thirteen"}), ok(8)]


# --- V2 -----------------------------------------------------------------------------------------


class Doubling(Gated):
    """V2: doubles the input x."""

    def answer(self, payload: InferRequest) -> InferResponse:
        (tensor,) = payload.inputs
        output = InferOutput("y", list(tensor.shape), tensor.datatype)
        output.set_data_from_numpy(2 * tensor.as_numpy(), binary_data=False)
        return InferResponse(payload.id, "m", [output])


def infer(data: list[Any], *, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    entry = {"name": "x", "shape": shape or [len(data)], "datatype": "INT32", "data": data}
    return {"inputs": [entry], **more}


def binary(array: Any, **more: Any) -> tuple[bytes, dict[str, str]]:
    entry = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": "INT32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    head = orjson.dumps({"inputs": [entry], **more})
    return head + array.tobytes(), {LENGTH: str(len(head))}


async def test_rows_of_several_v2_requests_go_together() -> None:
    clients = Clients(model := Doubling())
    async with anyio.create_task_group() as group:
        rows = ([1], [2, 3], [4])
        payloads = [infer(some, id=f"id-{some[0]}") for some in rows]
        await clients.arrive(group, *payloads, to=INFER)
        await clients.finish(2)
    assert [call.inputs[0].as_numpy().tolist() for call in model.calls] == [[1], [2, 3, 4]]
    answers = [document for _, document in clients.answers()]
    assert [answer["id"] for answer in answers] == ["id-1", "id-2", "id-4"]
    assert [answer["outputs"][0]["data"] for answer in answers] == [[2], [4, 6], [8]]
    assert [answer["outputs"][0]["shape"] for answer in answers] == [[1], [2], [1]]


async def test_binary_requests_are_joined_and_their_responses_divided() -> None:
    clients = Clients(model := Doubling())
    arrays = [np.arange(n, n + 2 * rows, dtype="<i4").reshape(rows, 2) for n, rows in
              ((0, 1), (10, 2), (20, 1), (30, 9))]  # fmt: skip
    async with anyio.create_task_group() as group:
        for array in arrays:
            body, headers = binary(array, parameters={"binary_data_output": True})
            await clients.arrive(group, body, headers=headers, to=INFER)
        await clients.finish(5)
    assert [call.inputs[0].shape for call in model.calls] == [[1, 2], [4, 2], [4, 2], [4, 2]]
    for number, array in enumerate(arrays):
        response = clients.responses[number]
        raw = response.body[int(response.headers[LENGTH]) :]
        assert np.array_equal(np.frombuffer(raw, "<i4").reshape(array.shape), 2 * array)


@pytest.mark.parametrize(
    "other",
    [
        infer([1, 2], shape=[1, 2]),
        {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]},
        {"inputs": [{"name": "z", "shape": [1], "datatype": "INT32", "data": [1]}]},
        infer([1], parameters={"top": 1}),
        infer([1], outputs=[{"name": "y"}]),
        {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1],
                     "parameters": {"unit": "m"}}]},
    ],
)  # fmt: skip
async def test_v2_requests_that_differ_in_more_than_rows_go_apart(other: Any) -> None:
    clients = Clients(model := Doubling())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *[infer([1])] * 2, other, infer([2]), other, to=INFER)
        await clients.finish(3)
    assert [call.inputs[0].shape[0] for call in model.calls] == [1, 2, 2]
    assert [status for status, _ in clients.answers()] == [200] * 5


async def test_v2_inputs_without_one_number_of_rows_go_alone() -> None:
    class Sum(Gated):
        def answer(self, payload: InferRequest) -> InferResponse:
            return InferResponse(payload.id, "m", [InferOutput("y", [1], "INT8", [1])])

    two = infer([1])
    two["inputs"].append({"name": "z", "shape": [2], "datatype": "INT32", "data": [1, 2]})
    scalar = infer([1], shape=[])
    scalar["inputs"][0]["shape"] = []
    clients = Clients(model := Sum())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, two, two, scalar, scalar, to=INFER)
        await clients.finish(4)
    assert len(model.calls) == 4
    assert [status for status, _ in clients.answers()] == [200] * 4


@pytest.mark.parametrize("many", [1, 3])
async def test_an_output_with_another_number_of_rows_is_an_error_that_says_so(many: int) -> None:
    class Mean(Gated):
        def answer(self, payload: InferRequest) -> InferResponse:
            return InferResponse(payload.id, "m", [InferOutput("mean", [2], "INT8", [1, 1])])

    clients = Clients(Mean(batching=Batching(max_size=4, isolate=False)))
    async with anyio.create_task_group() as group:
        await clients.arrive(group, infer([1]), *[infer([1])] * many, to=INFER)
        await clients.finish(2)
    sentence = "predict returned output 'mean' of shape [2] for {} rows"
    assert clients.answers()[0] == (500, {"error": sentence.format(1)})
    assert clients.answers()[-1] == (500, {"error": sentence.format(many)})


async def test_v1_and_v2_requests_do_not_mix() -> None:
    class Both(Doubling):
        def answer(self, payload: Any) -> Any:
            v1 = isinstance(payload, dict)
            return Gated.answer(self, payload) if v1 else super().answer(payload)

    clients = Clients(model := Both())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, {"instances": [1]})
        await clients.arrive(group, infer([1]), infer([2]), to=INFER)
        await clients.arrive(group, {"instances": [2]})
        await clients.finish(3)
    assert [type(call) for call in model.calls] == [dict, InferRequest, dict]
    assert [status for status, _ in clients.answers()] == [200] * 4


# --- beside the batch ---------------------------------------------------------------------------


async def test_preprocess_and_postprocess_are_each_requests_own() -> None:
    class Staged(Gated):
        async def preprocess(self, payload: Any, headers: Any) -> Any:
            return {"instances": [int(headers["x-add"]) + x for x in payload["instances"]]}

        async def postprocess(self, result: Any, headers: Any, response_headers: Any) -> Any:
            response_headers["x-added"] = headers["x-add"]
            return {"sum": sum(result["predictions"])}

    clients = Clients(model := Staged())
    async with anyio.create_task_group() as group:
        for number in range(4):
            headers = {"x-add": str(10 * number)}
            await clients.arrive(group, {"instances": [1]}, headers=headers)
        await clients.finish(2)
    assert model.calls == [{"instances": [1]}, {"instances": [11, 21, 31]}]
    assert [document["sum"] for _, document in clients.answers()] == [2, 22, 42, 62]
    added = [clients.responses[number].headers["x-added"] for number in range(4)]
    assert added == ["0", "10", "20", "30"]


async def test_a_sync_hook_is_called_in_one_thread_at_a_time() -> None:
    sizes: list[int] = []
    lock = threading.Lock()

    class Sync(Model):
        batching = Batching(max_size=8)

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            assert lock.acquire(blocking=False)
            assert headers is None
            sizes.append(len(payload["instances"]))
            lock.release()
            return {"predictions": payload["instances"]}

    app = ModelServer([Sync("m")])
    answers: list[Any] = []

    async def ask(number: int) -> None:
        response = await request(app, *PREDICT, json={"instances": [number]})
        answers.append(response.json()["predictions"][0] == number)

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(ask, number)
    assert answers == [True] * 100
    assert sum(sizes) == 100
    assert max(sizes) == 8


async def test_a_function_can_be_batched() -> None:
    app = ModelServer()

    class Short(Model):
        batching = Batching()

    def predict(payload: Any) -> Any:
        return {"predictions": payload["instances"]}

    predict.batching = Batching(max_size=2)  # type: ignore[attr-defined]
    app.model("f")(predict)
    response = await request(app, "POST", "/v1/models/f:predict", json={"instances": [1, 2, 3]})
    assert response.json() == {"predictions": [1, 2, 3]}
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'modelserve_batch_size_count{model_name="f"} 2.0' in metrics


async def test_explain_is_not_batched() -> None:
    class Explained(Gated):
        async def explain(self, payload: Any) -> Any:
            return {"explained": payload["instances"]}

    app = ModelServer([Explained()])
    response = await request(app, "POST", "/v1/models/m:explain", json={"instances": [1]})
    assert response.json() == {"explained": [1]}
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'modelserve_batch_size_count{model_name="m"} 0.0' in metrics


async def leave(client: Exchange) -> None:
    client.hang_up()
    with anyio.fail_after(5):
        await client.ended()
    await settle()


async def test_a_client_that_leaves_while_it_waits_is_not_in_the_batch() -> None:
    clients = Clients(model := Gated())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, {"instances": [1]})
        async with exchange(clients.app, *PREDICT, json={"instances": [2]}) as leaver:
            await settle()
            await clients.arrive(group, {"instances": [3]})
            await leave(leaver)
        await clients.finish(2)
    assert [call["instances"] for call in model.calls] == [[1], [3]]


async def test_the_last_client_that_leaves_ends_the_call_and_pays_for_its_clean_up() -> None:
    class Careful(Gated):
        cleaned = False

        async def predict(self, payload: Any) -> Any:
            try:
                return await super().predict(payload)
            except BaseException:
                await anyio.sleep(0.01)
                self.cleaned = True
                raise

    clients = Clients(model := Careful())
    entry = clients.app.serving.registry.get("m")
    async with anyio.create_task_group() as group:
        await clients.arrive(group, {"instances": [1]})
        async with exchange(clients.app, *PREDICT, json={"instances": [2]}) as first:
            await settle()
            async with exchange(clients.app, *PREDICT, json={"instances": [3]}) as last:
                await settle()
                await clients.finish()
                assert [call["instances"] for call in model.calls] == [[1], [2, 3]]
                await leave(first)
                assert not model.cleaned
                assert entry.gate.running == 1
                await leave(last)
        assert model.cleaned
        assert entry.gate.running == 0
        await clients.arrive(group, {"instances": [4]})
        await clients.finish()
    assert clients.answers() == [ok(2), ok(8)]


async def test_a_deadline_is_each_requests_own() -> None:
    clients = Clients(Gated(), limits=Limits(cleanup_timeout=1))
    async with anyio.create_task_group() as group:
        await clients.arrive(group, {"instances": [1]})
        short = {"x-request-timeout-seconds": "0.1"}
        await clients.arrive(group, {"instances": [2]}, headers=short)
        await clients.arrive(group, {"instances": [3]})
        await clients.finish()
        with anyio.fail_after(5):
            while 1 not in clients.responses:  # noqa: ASYNC110 - a deadline that passes
                await anyio.sleep(0.01)
        await clients.finish()
    assert [status for status, _ in clients.answers()] == [200, 504, 200]


async def test_every_request_has_a_slot_while_batches_gather() -> None:
    app = ModelServer([Gated(batching=Batching(max_size=5, concurrency=2))])
    assert app.serving.registry.get("m").gate.concurrency == 15
    limited = Gated(batching=Batching(max_size=2), limits=Limits(concurrency=3))
    assert ModelServer([limited]).serving.registry.get("m").gate.concurrency == 3


def test_a_limit_that_keeps_batches_small_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ModelServer([Gated(batching=Batching(max_size=8), limits=Limits(concurrency=3))])
    assert "its limit on concurrency is 3 requests, and max_size is 8 items" in caplog.text


async def test_batches_are_counted() -> None:
    class Failing(Gated):
        def answer(self, payload: Any) -> Any:
            if payload["instances"] == [13]:
                raise InferenceError("thirteen")
            return super().answer(payload)

    clients = Clients(Failing())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": [n]} for n in (1, 2, 3)))
        await clients.finish(2)
        await clients.arrive(group, {"instances": [13]})
        await clients.finish()
        async with exchange(clients.app, *PREDICT, json={"instances": [4]}) as leaver:
            await settle()
            await leave(leaver)
    metrics = (await request(clients.app, "GET", "/metrics")).body.decode()
    for line in (
        'modelserve_batch_size_bucket{le="1.0",model_name="m"} 3.0',
        'modelserve_batch_size_bucket{le="2.0",model_name="m"} 4.0',
        'modelserve_batch_size_sum{model_name="m"} 5.0',
        'modelserve_batch_wait_seconds_count{model_name="m"} 5.0',
        'modelserve_batches_total{model_name="m",outcome="done"} 2.0',
        'modelserve_batches_total{model_name="m",outcome="error"} 1.0',
        'modelserve_batches_total{model_name="m",outcome="cancelled"} 1.0',
    ):
        assert line in metrics


# --- registration -------------------------------------------------------------------------------


async def yields(payload: Any) -> AsyncIterator[Any]:
    yield payload


def yields_sync(payload: Any) -> Iterator[Any]:
    yield payload


async def needs_headers(payload: Any, headers: Any) -> Any: ...


def needs_both(payload: Any, headers: Any, response_headers: Any) -> Any: ...


@pytest.mark.parametrize(
    ("predict", "sentence"),
    [
        (yields, "predict of model 'm' is a generator, which cannot be batched"),
        (yields_sync, "predict of model 'm' is a generator, which cannot be batched"),
        (needs_headers, "headers must have a default, which is used then"),
        (needs_both, "headers and response_headers must have a default, which is used then"),
    ],
)
def test_what_cannot_be_batched_is_refused(predict: Any, sentence: str) -> None:
    model = Model("m")
    model.batching = Batching()
    model.predict = predict  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=sentence):
        ModelServer([model])


def test_another_value_is_refused() -> None:
    with pytest.raises(TypeError, match="batching of model 'm' must be a Batching"):
        ModelServer([Gated(batching=8)])


@pytest.mark.parametrize("predict", [yields, yields_sync])
async def test_a_stream_that_a_batched_hook_returns_is_closed_and_an_error(
    predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Streams(Model):
        batching = Batching()

        def predict(self, payload: Any) -> Any:
            return predict(payload)

    caplog.set_level(logging.ERROR)
    for payload in ({"instances": [1]}, [1]):
        response = await request(ModelServer([Streams("m")]), *PREDICT, json=payload)
        assert response.status == 500
    assert caplog.text.count("predict of m is batched, and must not return a stream") >= 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_size": 0}, "max_size"),
        ({"max_size": 2.5}, "max_size"),
        ({"max_size": True}, "max_size"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_wait": float("nan")}, "max_wait"),
        ({"max_wait": float("inf")}, "max_wait"),
        ({"max_wait": "1"}, "max_wait"),
    ],
)
def test_meaningless_numbers_are_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of Batching"):
        Batching(**arguments)


class Item(msgspec.Struct):
    n: int


class Declaring(Gated):
    """The hook is given the instances alone, as objects."""

    async def predict(self, instances: list[Item]) -> Any:
        self.calls.append(instances)
        self.gates.append(anyio.Event())
        await self.gates[-1].wait()
        return [2 * item.n for item in instances]


async def test_declared_instances_are_joined_as_lists() -> None:
    clients = Clients(Declaring())
    async with anyio.create_task_group() as group:
        await clients.arrive(group, *({"instances": [{"n": n}]} for n in (1, 2, 3)))
        await clients.arrive(group, {"instances": [{"n": "x"}]})
        await settle()
        clients.model.gates[0].set()
        await settle()
        clients.model.gates[1].set()
    assert [len(call) for call in clients.model.calls] == [1, 2]
    answers = [clients.responses[number].json() for number in range(4)]
    assert answers[:3] == [{"predictions": [2]}, {"predictions": [4]}, {"predictions": [6]}]
    assert answers[3] == {"error": "instances[0].n: Expected `int`, got `str`"}
