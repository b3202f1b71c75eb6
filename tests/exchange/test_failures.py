"""What is reported and logged of a request that has failed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelserve import InferenceError, Model, ModelServer
from modelserve.testing import request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")
ADVICE = "; if the client is at fault, check for it and raise InvalidInput, which is a 400"


def serve(predict: Any, **hooks: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict, **hooks)
    return ModelServer([model])


async def test_what_is_logged_of_a_failure_has_the_id_of_its_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            yield {"n": 1}
            raise RuntimeError("in the middle")
        finally:
            raise ValueError("at the end")

    async def postprocess(result: Any) -> Any:
        await anext(result)
        raise KeyError("before the stream is closed")

    for hooks in ({}, {"postprocess": postprocess}):
        await request(serve(predict, **hooks), *PREDICT, json=[], headers={"x-request-id": "r-1"})
    logged = [(record.getMessage(), vars(record)["request_id"]) for record in caplog.records]
    assert logged == [
        ("Request r-1 failed", "r-1"),
        ("Closing a stream of m failed", "r-1"),
        (f"Request r-1 failed{ADVICE}", "r-1"),
    ]


def fails_with(exc: Exception) -> Any:
    def predict(payload: Any) -> Any:
        raise exc

    return predict


@pytest.mark.parametrize(
    "predict",
    [
        lambda payload: payload["instances"],
        lambda payload: payload["other"][0],
        lambda payload: payload["other"] + 1,
        lambda payload: payload["other"].split(),
        lambda payload: int("x"),
        lambda payload: 1 / len(payload["other"]),
        fails_with(ExceptionGroup("of a task group", [KeyError("instances")])),
    ],
)
async def test_what_bad_input_may_raise_is_logged_with_the_remedy(
    predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    response = await request(serve(predict), *PREDICT, json={"other": []})
    assert (response.status, response.json()) == (500, {"error": "Internal Server Error"})
    [record] = caplog.records
    assert record.getMessage().endswith(ADVICE)
    assert "InvalidInput" in caplog.text


@pytest.mark.parametrize(
    "predict",
    [
        fails_with(RuntimeError("the model's")),
        fails_with(OSError("the disk's")),
        fails_with(InferenceError("the author's")),
        lambda payload: {"predictions": object()},
        lambda payload: {"predictions": {(1, 2): 3}},
        lambda payload: iter([object()]),
    ],
)
async def test_other_failures_have_no_remedy_in_the_log(
    predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await request(serve(predict), *PREDICT, json={})).status == 500
    [record] = caplog.records
    assert "InvalidInput" not in record.getMessage()


async def test_a_failure_after_the_start_has_no_remedy_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield {}
        raise KeyError("a")

    await request(serve(predict), *PREDICT, json={})
    [record] = caplog.records
    assert record.getMessage().endswith("failed")
