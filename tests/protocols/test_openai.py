"""OpenAI's endpoints as a client sees them."""

import base64
import gzip
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import orjson
import pytest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from modelserve import InferenceError, InvalidInput, Limits, Model, ModelServer, Slot, Stepping
from modelserve.testing import Response, exchange, request

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
BELOW = ["/v1", "/openai/v1"]


class Words(Model):
    """Has every hook; yields the words of the last message."""

    async def chat(self, document: Any) -> AsyncIterator[str]:
        for word in document["messages"][-1]["content"].split():
            yield word

    def complete(self, document: Any) -> Iterator[str]:
        yield from document["prompt"]

    def embed(self, document: Any) -> Any:
        texts = document["input"]
        texts = [texts] if isinstance(texts, str) else texts
        return [[float(len(text)), 0.5] for text in texts]


async def post(app: ModelServer, path: str, document: Any, **options: Any) -> Response:
    return await request(app, "POST", path, json=document, **options)


async def chat(app: ModelServer, content: str = "a b", **more: Any) -> Response:
    messages = [{"role": "user", "content": content}]
    return await post(app, CHAT, {"model": "m", "messages": messages, **more})


def error_of(response: Response) -> tuple[int, Any]:
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status, error


# --- the forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("stream", [None, False, ...])
async def test_a_whole_chat_completion(below: str, stream: Any) -> None:
    more = {} if stream is ... else {"stream": stream}
    document = {"model": "m", "messages": MESSAGES, **more}
    response = await post(ModelServer([Words("m")]), f"{below}/chat/completions", document)
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    request_id = response.headers["x-request-id"]
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


@pytest.mark.parametrize("accept", [None, "application/json", "*/*", "text/event-stream", "a/b"])
async def test_a_streamed_one_whatever_accept_says(accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    document = {"model": "m", "messages": [{"content": "a b c"}], "stream": True}
    response = await post(ModelServer([Words("m")]), CHAT, document, headers=headers)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert len(response.chunks) == 4  # one event an item, then how it ends
    assert response.body.endswith(b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


async def test_a_value_can_be_streamed_and_a_stream_be_whole() -> None:
    class Value(Model):
        async def chat(self, document: Any) -> Any:
            return "all"

    app = ModelServer([Value("m")])
    assert (await chat(app)).json()["choices"][0]["message"]["content"] == "all"
    assert b'"content":"all"' in (await chat(app, stream=True)).body


@pytest.mark.parametrize("below", BELOW)
async def test_completions(below: str) -> None:
    app = ModelServer([Words("m")])
    document = {"model": "m", "prompt": ["a", "b"]}
    answer = (await post(app, f"{below}/completions", document)).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "ab"
    streamed = await post(app, f"{below}/completions", {**document, "stream": True})
    assert streamed.body.count(b'"text":') == 3
    assert streamed.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("given", ["four", ["four"], ["four", "six"]])
async def test_embeddings(below: str, given: Any) -> None:
    app = ModelServer([Words("m")])
    document = {"model": "m", "input": given}
    answer = (await post(app, f"{below}/embeddings", document)).json()
    vectors = [[float(len(text)), 0.5] for text in ([given] if given == "four" else given)]
    assert answer == {
        "object": "list",
        "model": "m",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    document["encoding_format"] = "base64"
    coded = (await post(app, f"{below}/embeddings", document)).json()["data"]
    decoded = [list(struct.unpack("<2f", base64.b64decode(row["embedding"]))) for row in coded]
    assert decoded == vectors


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8"])
async def test_embed_may_return_a_list_of_numpys_numbers_for_one_text(dtype: str) -> None:
    class Embeds(Model):
        def embed(self, document: Any) -> Any:
            return list(np.array([1, 2], dtype))

    document = {"model": "m", "input": "a"}
    answer = (await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)).json()
    assert [row["embedding"] for row in answer["data"]] == [[1, 2]]


@pytest.mark.parametrize("form", ["float", "base64"])
@pytest.mark.parametrize(
    "result",
    [
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[1.0, 2.0], [3.0, 4.0]], "f4"),
        [np.array([1.0, 2.0]), np.array([3.0, 4.0])],
        ((1.0, 2.0), (3.0, 4.0)),
        {"embeddings": [[1.0, 2.0], [3.0, 4.0]], "usage": {"prompt_tokens": 7}},
        {
            "data": [{"embedding": [1.0, 2.0]}, {"embedding": np.array([3.0, 4.0])}],
            "usage": {"prompt_tokens": 7},
        },
    ],
)
async def test_what_embed_may_return(result: Any, form: str) -> None:
    class Embeds(Model):
        def embed(self, document: Any) -> Any:
            return result

    document = {"model": "m", "input": ["a", "b"], "encoding_format": form}
    answer = (await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)).json()
    rows = [row["embedding"] for row in answer["data"]]
    if form == "base64":
        rows = [list(struct.unpack("<2f", base64.b64decode(row))) for row in rows]
    assert rows == [[1.0, 2.0], [3.0, 4.0]]
    if isinstance(result, dict):
        assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@pytest.mark.parametrize(
    "result", [None, 5, "text", {"x": 1}, [None], [[1.0], "a"], {"data": [{"embedding": 5}]}]
)
async def test_what_embed_may_not_return(result: Any) -> None:
    class Embeds(Model):
        async def embed(self, document: Any) -> Any:
            return result

    document = {"model": "m", "input": "a"}
    response = await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)
    status, error = error_of(response)
    assert status == 500
    assert error["message"].startswith("embed ")


async def test_embeddings_of_another_server_in_base64_pass() -> None:
    class Embeds(Model):
        async def embed(self, document: Any) -> Any:
            return {"data": [{"embedding": "AACAPw==", "index": 0}], "model": "theirs"}

    document = {"model": "m", "input": "a", "encoding_format": None}
    answer = (await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)).json()
    assert answer["data"] == [{"embedding": "AACAPw==", "index": 0}]
    assert answer["model"] == "theirs"


async def test_embeddings_that_are_yielded() -> None:
    class Embeds(Model):
        async def embed(self, document: Any) -> AsyncIterator[Any]:
            for text in document["input"]:
                yield [float(len(text))]

    document = {"model": "m", "input": ["a", "bb"]}
    answer = (await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)).json()
    assert [row["embedding"] for row in answer["data"]] == [[1.0], [2.0]]


async def test_one_vector_for_one_text() -> None:
    class Embeds(Model):
        async def embed(self, document: Any) -> Any:
            return np.array([1.0, 2.0])

    answer = await post(ModelServer([Embeds("m")]), "/v1/embeddings", {"model": "m", "input": "a"})
    assert answer.json()["data"][0]["embedding"] == [1.0, 2.0]


async def test_another_number_of_embeddings_is_an_error_that_says_both() -> None:
    class Embeds(Model):
        async def embed(self, document: Any) -> Any:
            return [[1.0]]

    document = {"model": "m", "input": ["a", "b"]}
    response = await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)
    status, error = error_of(response)
    assert (status, error["message"]) == (500, "embed returned 1 embeddings for 2 texts")


@pytest.mark.parametrize("result", [[1.0, 2.0], [{"a": 1}, {"a": 2}], [[1.0], 2.0]])
async def test_what_are_no_vectors_is_an_error_that_says_so(result: Any) -> None:
    class Embeds(Model):
        async def embed(self, document: Any) -> Any:
            return result

    document = {"model": "m", "input": ["a", "b"]}
    response = await post(ModelServer([Embeds("m")]), "/v1/embeddings", document)
    status, error = error_of(response)
    assert status == 500
    assert error["message"].startswith("embed must return a vector for each text")


# --- hooks --------------------------------------------------------------------------------------


async def test_hooks_take_headers_and_preprocess_does_not_run() -> None:
    class Headed(Model):
        async def preprocess(self, payload: Any) -> Any:
            raise AssertionError

        async def predict(self, payload: Any) -> Any:
            raise AssertionError

        def chat(self, document: Any, headers: Any, response_headers: Any) -> Any:
            response_headers["x-seen"] = headers["user-agent"]
            return {"content": "ok", "finish_reason": "length"}

    document = {"model": "m", "messages": MESSAGES}
    response = await post(ModelServer([Headed("m")]), CHAT, document, headers={"user-agent": "me"})
    assert response.headers["x-seen"] == "me"
    assert response.json()["choices"][0]["finish_reason"] == "length"


class Message(BaseModel):
    role: str
    content: str


class Asked(BaseModel):
    messages: list[Message]
    seed: int | None = None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_declared_request_is_validated(stream: bool) -> None:
    class Typed(Model):
        async def chat(self, document: Asked) -> AsyncIterator[str]:
            yield document.messages[0].content

    app = ModelServer([Typed("m")])
    app.model("f", verb="chat")(lambda document: "any")
    response = await chat(app, "Hi", stream=stream)
    assert b'"content":"Hi"' in response.body
    status, error = error_of(await chat(app, "Hi", stream=stream, seed="x"))
    assert status == 400
    assert error["message"].startswith("seed: ")


async def test_what_v1_declares_is_not_asked_of_a_chat() -> None:
    class Both(Model):
        input_schema = Asked

        async def predict(self, payload: Any) -> Any:
            return payload

        async def chat(self, document: Any) -> str:
            return str(type(document))

    app = ModelServer([Both("m")])
    assert (await chat(app, seed="x")).status == 200


async def test_a_token_generator_becomes_a_chat_in_one_line() -> None:
    class Writer(Model):
        def predict(self, payload: Any) -> Iterator[str]:
            yield from payload["instances"][0]

        def chat(self, document: Any) -> Any:
            return self.predict({"instances": [document["messages"][-1]["content"]]})

    response = await chat(ModelServer([Writer("m")]), "abc", stream=True)
    assert response.body.count(b'"delta":{') == 4


async def test_a_stepped_model_chats() -> None:
    class Steps(Model):
        stepping = Stepping()

        def join(self, slot: Slot) -> None:
            slot.state = list(slot.payload["instances"][0])

        def step(self, active: list[Slot]) -> None:
            for slot in active:
                slot.put(slot.state.pop(0))
                if not slot.state:
                    slot.end()

        async def chat(self, document: Any) -> Any:
            return await self.predict({"instances": [document["messages"][-1]["content"]]})

    answer = (await chat(ModelServer([Steps("m")]), "abc")).json()
    assert answer["choices"][0]["message"]["content"] == "abc"


async def test_a_helper_of_another_object_is_no_endpoint() -> None:
    class Plain:
        name = "m"

        def predict(self, payload: Any) -> Any:
            return payload

        def chat(self, whom: str, about: str) -> None:
            raise AssertionError

    app = ModelServer([Plain()])
    assert error_of(await chat(app)) == (
        400,
        {
            "message": "Model m does not support chat completions.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
    )
    assert (await request(app, "GET", "/v1/models")).body == b'{"models":["m"]}'


async def test_slots_and_metrics_are_as_everywhere() -> None:
    app = ModelServer([Words("m")])
    await chat(app)
    await chat(app, stream=True)
    await post(app, CHAT, {"model": "zz", "messages": MESSAGES})
    await post(app, CHAT, {"model": "m", "messages": 5})
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    labels = 'model_name="{}",outcome="{}",protocol="openai",status="{}",verb="chat"'
    for name, outcome, status, count in (
        ("m", "done", 200, 2),
        ("", "error", 404, 1),
        ("m", "error", 400, 1),
    ):
        line = f"modelserve_requests_total{{{labels.format(name, outcome, status)}}} {count}.0"
        assert line in metrics
    assert app.serving.registry.get("m").gate.running == 0
    assert app.serving.admission.budget.held == 0


NO_TOKENS = (
    'Expected "input" to be text or a list of texts, not tokens (LangChain sends text with'
    " check_embedding_ctx_length=False)"
)

# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "document", "param", "message"),
    [
        (CHAT, [], None, "Expected the request to be a JSON object"),
        (CHAT, {"messages": MESSAGES}, "model", 'Expected "model" to be the name of a model'),
        (CHAT, {"model": 5}, "model", 'Expected "model" to be the name of a model'),
        (CHAT, {"model": "m"}, "messages", 'Expected "messages" to be a list of objects'),
        (CHAT, {"model": "m", "messages": ["a"]}, "messages",
         'Expected "messages" to be a list of objects'),
        (CHAT, {"model": "m", "messages": MESSAGES, "stream": "yes"}, "stream",
         'Expected "stream" to be a boolean'),
        (CHAT, {"model": "m", "messages": []}, "messages",
         'Expected "messages" to be a list of one object or more'),
        (CHAT, {"model": "m", "messages": MESSAGES, "stream_options": [1]}, "stream_options",
         'Expected "stream_options" to be an object'),
        ("/v1/completions", {"model": "m"}, "prompt",
         'Expected "prompt" to be text or a list of texts'),
        ("/v1/completions", {"model": "m", "prompt": []}, "prompt",
         'Expected "prompt" to be text or a list of texts'),
        ("/v1/embeddings", {"model": "m", "input": [1]}, "input",
         NO_TOKENS),
        ("/v1/embeddings", {"model": "m", "input": "a", "encoding_format": "int8"},
         "encoding_format", 'Expected "encoding_format" to be "float" or "base64"'),
    ],
)  # fmt: skip
async def test_a_bad_request_names_what_is_wrong(
    path: str, document: Any, param: str | None, message: str
) -> None:
    response = await post(ModelServer([Words("m")]), path, document)
    expected = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    assert error_of(response) == (400, expected)


@pytest.mark.parametrize("messages", [MESSAGES, 5])
async def test_an_unknown_model(messages: Any) -> None:
    response = await post(ModelServer(), CHAT, {"model": "zz", "messages": messages})
    assert error_of(response) == (
        404,
        {
            "message": "Model with name zz does not exist.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        },
    )


async def test_a_model_that_is_not_ready_is_told_before_what_is_wrong_with_the_request() -> None:
    class Cold(Words):
        def load(self) -> bool:
            return False

    app = ModelServer([Cold("m")])
    async with app.lifespan():
        response = await post(app, "/v1/embeddings", {"model": "m", "input": 5})
    assert response.status == 503


@pytest.mark.parametrize(
    ("raised", "status", "kind", "message", "retried"),
    [
        (InvalidInput("no"), 400, "invalid_request_error", "no", True),
        (HTTPException(429, "slow down"), 429, "rate_limit_error", "slow down", True),
        (HTTPException(403, "no"), 403, "permission_error", "no", True),
        (InferenceError("broken"), 500, "server_error", "broken", False),
        (ValueError("secret"), 500, "server_error", "Internal Server Error", False),
        (HTTPException(501, "not yet"), 501, "server_error", "not yet", False),
        (HTTPException(503, "busy"), 503, "server_error", "busy", True),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_hook_raises_before_its_first_item(
    raised: Exception, status: int, kind: str, message: str, retried: bool, stream: bool
) -> None:
    class Fails(Model):
        async def chat(self, document: Any) -> AsyncIterator[str]:
            raise raised
            yield ""

    response = await chat(ModelServer([Fails("m")]), stream=stream)
    expected = {"message": message, "type": kind, "param": None, "code": None}
    assert error_of(response) == (status, expected)
    assert response.headers.get("x-should-retry") == (None if retried else "false")


async def test_an_error_of_the_models_own_shape_passes() -> None:
    detail = {"message": "too long", "code": "context_length_exceeded", "param": "messages"}

    class Fails(Model):
        async def chat(self, document: Any) -> Any:
            raise HTTPException(400, detail)

    response = await chat(ModelServer([Fails("m")]))
    assert error_of(response) == (400, {"type": "invalid_request_error", **detail})


async def test_an_error_in_openais_envelope_is_not_wrapped_again() -> None:
    class Fails(Model):
        async def chat(self, document: Any) -> Any:
            raise HTTPException(422, {"error": {"message": "too odd", "code": "odd"}})

    response = await chat(ModelServer([Fails("m")]))
    assert error_of(response) == (
        422,
        {"message": "too odd", "type": "invalid_request_error", "param": None, "code": "odd"},
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_another_servers_error_as_an_item_ends_the_answer(stream: bool) -> None:
    class Proxy(Model):
        async def chat(self, document: Any) -> AsyncIterator[Any]:
            yield "a"
            yield {"error": {"message": "out of memory", "code": "507"}}

    response = await chat(ModelServer([Proxy("m")]), stream=stream)
    assert response.status == (200 if stream else 507)
    assert b'"message":"out of memory"' in response.body
    assert b"[DONE]" not in response.body


async def test_a_failure_in_the_stream_never_looks_complete() -> None:
    class Fails(Model):
        async def chat(self, document: Any) -> AsyncIterator[str]:
            yield "a"
            raise InferenceError("broken")

    response = await chat(ModelServer([Fails("m")]), stream=True)
    assert response.status == 200
    start, _, last = response.body.rpartition(b"event: error\ndata: ")
    assert orjson.loads(last)["error"]["message"] == "broken"
    assert last.endswith(b"\n\n")
    assert b"[DONE]" not in response.body
    assert b'"finish_reason":"stop"' not in start
    assert (await chat(ModelServer([Fails("m")]))).status == 500  # whole, it is an honest status


async def test_a_deadline_is_not_tried_again() -> None:
    class Slow(Model):
        limits = Limits(timeout=0.05)

        async def chat(self, document: Any) -> Any:
            await anyio.sleep(60)

    response = await chat(ModelServer([Slow("m")]))
    status, error = error_of(response)
    assert (status, error["type"]) == (504, "server_error")
    assert response.headers["x-should-retry"] == "false"


async def test_a_body_that_never_ends_is_bounded_by_the_applications_limit() -> None:
    app = ModelServer([Words("m")], limits=Limits(timeout=0.05))
    async with exchange(app, "POST", CHAT, body=None) as client:
        client.send_body(b'{"model":', more=True)
        assert (await client.head()).status == 408


async def test_a_model_that_is_not_ready() -> None:
    class Loads(Words):
        def load(self) -> bool:
            return False

    app = ModelServer([Loads("m")])
    response = await chat(app)
    status, error = error_of(response)
    assert (status, error["type"]) == (503, "server_error")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("grouped", [False, True])
async def test_the_models_own_word_on_when_to_try_again_counts(grouped: bool) -> None:
    busy = HTTPException(503, "busy", headers={"Retry-After": "9"})

    class Busy(Model):
        async def chat(self, document: Any) -> Any:
            raise ExceptionGroup("", [busy]) if grouped else busy

    response = await chat(ModelServer([Busy("m")]))
    assert response.headers.getlist("retry-after") == ["9"]


async def test_a_body_over_the_limit_of_the_model_that_it_names() -> None:
    class Small(Words):
        limits = Limits(max_body_bytes=100)

    app = ModelServer([Small("m")])
    assert (await chat(app, "a")).status == 200
    status, error = error_of(await chat(app, "a" * 100))
    assert (status, error["message"]) == (413, "The request body is larger than 100 bytes.")
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'model_name="m",outcome="error",protocol="openai",status="413"' in metrics
    assert app.serving.admission.budget.held == 0


@pytest.mark.parametrize("before_first", [False, True])
async def test_a_heartbeat_is_a_comment_whatever_accept_says(before_first: bool) -> None:
    class Quiet(Model):
        heartbeat = 0.01
        heartbeat_before_first = before_first

        async def chat(self, document: Any) -> AsyncIterator[str]:
            if not before_first:
                yield "a"
            await go_on.wait()
            yield "b"

    go_on = anyio.Event()
    headers = {"accept": "application/json"}
    document = {"model": "m", "messages": MESSAGES, "stream": True}
    async with exchange(
        ModelServer([Quiet("m")]), "POST", CHAT, json=document, headers=headers
    ) as client:
        assert (await client.head()).headers["content-type"] == "text/event-stream"
        if not before_first:
            await client.chunk()
        assert (await client.chunk()).startswith(b":")
        go_on.set()
        rest = b""
        while b"[DONE]" not in rest:
            rest += await client.chunk()
    assert b'"content":"b"' in rest


async def test_items_made_without_a_pause_are_one_event_where_that_is_asked_for() -> None:
    class Joined(Words):
        coalesce = True

    response = await chat(ModelServer([Joined("m")]), "a b c d", stream=True)
    assert response.body.count(b'"content":') == 4


async def test_a_body_in_gzip_and_an_event() -> None:
    app = ModelServer([Words("m")])
    body = orjson.dumps({"model": "m", "messages": MESSAGES})
    coded = {"content-encoding": "gzip", "content-type": "application/json"}
    response = await request(app, "POST", CHAT, body=gzip.compress(body), headers=coded)
    assert response.status == 200
    response = await request(app, "POST", CHAT, body=body, headers={"content-encoding": "zz"})
    assert error_of(response)[0] == 415
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    response = await request(app, "POST", CHAT, body=body, headers=event)
    assert response.status == 200
    assert not any(name.startswith("ce-") for name in response.headers)
    form = {"content-type": "multipart/form-data; boundary=x"}
    response = await request(app, "POST", CHAT, body=b"--x--", headers=form)
    assert error_of(response)[0] == 400


async def test_a_token() -> None:
    app = ModelServer([Words("m")], token="secret")
    response = await chat(app)
    status, error = error_of(response)
    assert (status, error["code"]) == (401, "invalid_api_key")
    document = {"model": "m", "messages": MESSAGES}
    headers = {"authorization": "Bearer secret"}
    assert (await post(app, CHAT, document, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("GET", "/openai/v1/embeddings", 405),
        ("DELETE", "/openai/v1/models", 405),
        ("POST", "/openai/v1/responses", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/v1/audio/speech", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/openai/v1", 404),
        ("GET", "/openai/v1/models/zz", 404),
    ],
)
async def test_paths_and_methods_that_do_not_exist(method: str, path: str, status: int) -> None:
    response = await request(ModelServer([Words("m")]), method, path)
    assert error_of(response)[0] == status
    if status == 405:
        assert "allow" in response.headers


# --- models -------------------------------------------------------------------------------------


async def test_the_list_of_models_is_for_both_worlds() -> None:
    class Doubles(Model):
        async def predict(self, payload: Any) -> Any:
            return payload

    app = ModelServer([Doubles("d"), Words("m")])
    listed = (await request(app, "GET", "/v1/models")).json()
    assert list(listed) == ["models", "object", "data"]
    assert listed["models"] == ["d", "m"]
    (row,) = listed["data"]
    assert (row["id"], row["object"], row["owned_by"]) == ("m", "model", "modelserve")
    assert (await request(app, "GET", "/openai/v1/models")).json() == {
        "object": "list",
        "data": [row],
    }
    assert (await request(app, "GET", "/v1/models/m")).json() == {"name": "m", "ready": True, **row}
    assert (await request(app, "GET", "/v1/models/d")).body == b'{"name":"d","ready":true}'
    assert (await request(app, "GET", "/openai/v1/models/m")).json() == row
    missing = await request(app, "GET", "/openai/v1/models/d")
    assert error_of(missing)[1]["code"] == "model_not_found"


async def test_a_client_that_leaves_ends_the_chat() -> None:
    ended = anyio.Event()

    class Endless(Model):
        async def chat(self, document: Any) -> AsyncIterator[str]:
            try:
                yield "a"
                await anyio.sleep(60)
            finally:
                await anyio.lowlevel.checkpoint()
                ended.set()

    app = ModelServer([Endless("m")])
    document = {"model": "m", "messages": MESSAGES, "stream": True}
    async with exchange(app, "POST", CHAT, json=document) as client:
        await client.head()
        await client.chunk()
        client.hang_up()
        with anyio.fail_after(5):
            await ended.wait()
    assert app.serving.registry.get("m").gate.running == 0
