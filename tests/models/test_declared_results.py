"""Results that are objects of declared classes are JSON, whole and streamed."""

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pydantic
import pytest

from modelserve import Model, ModelServer, ServerSentEvent
from modelserve.testing import request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


class Pydantic(pydantic.BaseModel):
    age: int


class Struct(msgspec.Struct):
    age: int


@dataclasses.dataclass
class Data:
    age: int


@pydantic.dataclasses.dataclass
class PydanticData:
    age: int


KINDS = [Pydantic, Struct, Data, PydanticData]


def serve(predict: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict)
    return ModelServer([model])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_loop", [True, False])
async def test_a_result_is_json(kind: Any, on_loop: bool) -> None:
    for wrap in (
        lambda item: item,
        lambda item: [item, item],
        lambda item: {"predictions": [item], "more": (item,)},
    ):

        async def predict(payload: Any, wrap: Any = wrap) -> Any:
            return wrap(kind(age=1))

        def predict_in_thread(payload: Any, wrap: Any = wrap) -> Any:
            return wrap(kind(age=1))

        answer = await request(serve(predict if on_loop else predict_in_thread), *PREDICT, json={})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == json.loads(json.dumps(wrap({"age": 1})))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        ("*/*", "application/x-ndjson", b'{"age":1}\n[{"age":2}]\n'),
        ("application/x-ndjson", "application/x-ndjson", b'{"age":1}\n[{"age":2}]\n'),
        ("text/event-stream", "text/event-stream", b'data: {"age":1}\n\ndata: [{"age":2}]\n\n'),
        ("application/json", "application/json", b'{"predictions":[{"age":1},[{"age":2}]]}'),
    ],
)
async def test_items_are_json_in_each_form(
    kind: Any, accept: str, content_type: str, body: bytes
) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield kind(age=1)
        yield [kind(age=2)]

    def predict_in_thread(payload: Any) -> Iterator[Any]:
        yield kind(age=1)
        yield [kind(age=2)]

    for hook in (predict, predict_in_thread):
        answer = await request(serve(hook), *PREDICT, json={}, headers={"accept": accept})
        assert (answer.headers["content-type"], answer.body) == (content_type, body)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_data_of_an_event_is_json(kind: Any) -> None:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        yield ServerSentEvent(kind(age=1), event="item")

    headers = {"accept": "text/event-stream"}
    answer = await request(serve(predict), *PREDICT, json={}, headers=headers)
    assert answer.body == b'event: item\ndata: {"age":1}\n\n'
