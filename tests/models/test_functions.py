"""Functions registered for a verb, several under one name."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.testing import Response, request

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


async def chat(app: ModelServer) -> Response:
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return await request(app, "POST", CHAT, json=document)


async def predict(app: ModelServer) -> Response:
    return await request(app, "POST", "/v1/models/m:predict", json={"instances": [1]})


async def embed(app: ModelServer) -> Response:
    return await request(app, "POST", "/v1/embeddings", json={"model": "m", "input": "a"})


def content(response: Response) -> Any:
    return response.json()["choices"][0]["message"]["content"]


async def test_a_function_is_the_hook_of_its_verb_alone() -> None:
    app = ModelServer()

    @app.model("m", verb="chat")
    async def answer(document: Any, headers: Any) -> AsyncIterator[str]:
        yield document["messages"][0]["content"]
        yield headers["x-request-id"][:0]

    assert content(await chat(app)) == "hi"
    assert (await predict(app)).status == 501
    assert (await embed(app)).status == 400
    assert [m async for m in answer({"messages": [{"content": "a"}]}, {"x-request-id": "b"})] == [
        "a",
        "",
    ]


@pytest.mark.parametrize("order", [("predict", "chat", "embed"), ("embed", "chat", "predict")])
async def test_functions_of_several_verbs_are_one_model(order: tuple[str, ...]) -> None:
    app = ModelServer()
    functions = {
        "predict": lambda payload: {"predictions": payload["instances"]},
        "chat": lambda document: "yes",
        "embed": lambda document: [1.0],
    }
    for verb in order:
        app.model("m", verb=verb)(functions[verb])
    assert content(await chat(app)) == "yes"
    assert (await predict(app)).json() == {"predictions": [1]}
    assert (await embed(app)).json()["data"][0]["embedding"] == [1.0]
    assert (await request(app, "GET", "/v1/models")).json()["models"] == ["m"]


async def test_a_second_function_of_a_verb_replaces_the_first_one_alone() -> None:
    app = ModelServer()
    app.model("m")(lambda payload: {"predictions": [1]})
    app.model("m", verb="chat")(lambda document: "old")
    app.model("m", verb="chat")(lambda document: "new")
    assert content(await chat(app)) == "new"
    app.model("m")(lambda payload: {"predictions": [2]})
    assert (await predict(app)).json() == {"predictions": [2]}
    assert content(await chat(app)) == "new"


async def test_settings_are_kept_and_the_last_ones_count() -> None:
    app = ModelServer()
    app.model("m", heartbeat=5.0, limits=Limits(concurrency=3))(lambda payload: payload)
    app.model("m", verb="chat", heartbeat=7.0)(lambda document: "a")
    model = app.serving.registry.get("m").model
    assert (model.heartbeat, model.limits) == (7.0, Limits(concurrency=3))


async def test_a_model_that_is_no_function_is_replaced() -> None:
    class Doubles(Model):
        async def predict(self, payload: Any) -> Any:
            return payload

    app = ModelServer([Doubles("m")])
    app.model("m", verb="chat")(lambda document: "a")
    assert (await predict(app)).status == 501
    app.model("m")(Doubles)
    assert (await chat(app)).status == 400


async def test_an_object_that_can_be_called_is_one_too() -> None:
    class Answers:
        def __init__(self, text: str) -> None:
            self.text = text

        def __call__(self, document: Any, **options: Any) -> str:
            assert not options
            return self.text

    def answer(text: str, document: Any) -> str:
        return text

    app = ModelServer()
    app.model("m", verb="chat")(Answers("object"))
    assert content(await chat(app)) == "object"
    app.model("m", verb="chat")(partial(answer, "partial"))
    assert content(await chat(app)) == "partial"


@pytest.mark.parametrize(
    ("verb", "target", "sentence"),
    [
        ("talk", len, "There is no verb 'talk': there are predict, explain, chat, complete, embed"),
        ("chat", Model, "is for a function"),
        ("chat", Model("x"), "is for a function"),
        ("chat", 5, "5 cannot be the chat of model 'm': it is not callable"),
    ],
)
def test_what_cannot_be_a_hook(verb: str, target: Any, sentence: str) -> None:
    app = ModelServer()
    with pytest.raises(TypeError, match=sentence):
        app.model("m", verb=verb)(target)
    assert "m" not in app.serving.registry


async def test_a_path_of_ones_own_is_the_verbs() -> None:
    app = ModelServer()
    app.model("m", path="/ask", verb="chat")(lambda document: "a")
    app.model("m", path="/why", verb="explain")(lambda payload: {"explanations": [1]})
    document = {"model": "m", "messages": [{"content": "hi"}]}
    assert content(await request(app, "POST", "/ask", json=document)) == "a"
    answer = await request(app, "POST", "/why", json={})
    assert answer.json() == {"explanations": [1]}
    with pytest.raises(ValueError, match="The verb 'talk' has no path"):
        app.model("m", path="/x", verb="talk")


def test_endpoints_of_openais_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "modelserve")
    app = ModelServer()
    app.model("m")(lambda payload: payload)
    assert not caplog.messages
    app.model("m", verb="embed")(lambda document: [1.0])
    app.model("m", verb="chat")(lambda document: "a")
    assert caplog.messages == [
        "Model m has endpoints of OpenAI's: embed",
        "Model m has endpoints of OpenAI's: chat, embed",
    ]
