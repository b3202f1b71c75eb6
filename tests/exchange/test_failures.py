"""What is reported and logged of a request that has failed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelserve import Model, ModelServer
from modelserve.testing import request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


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
        ("Request r-1 failed", "r-1"),
    ]
