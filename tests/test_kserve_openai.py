"""Models written for KServe's classes of OpenAI's protocol."""

import importlib
import subprocess
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from modelserve import Model, ModelServer
from modelserve.errors import InvalidInput
from modelserve.kserve.protocol.rest.openai import (
    ChatPrompt,
    OpenAIChatAdapterModel,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
    OpenAIProxyModel,
)
from modelserve.kserve.protocol.rest.openai.errors import OpenAIError, create_error_response
from modelserve.kserve.protocol.rest.openai.openai_model import AsyncMappingIterator
from modelserve.kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionRequest,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogProbs,
    Embedding,
    EmbeddingResponseData,
    ErrorResponse,
    UsageInfo,
)
from modelserve.testing import Response, exchange, request

pytestmark = pytest.mark.anyio

CHAT = "/openai/v1/chat/completions"
TEXT = "/openai/v1/completions"
PACKAGE = "modelserve.kserve.protocol.rest.openai"
NAMES = {
    PACKAGE: (
        "OpenAIModel OpenAIGenerativeModel OpenAIEncoderModel OpenAIChatAdapterModel "
        "OpenAIProxyModel ChatPrompt CompletionRequest ChatCompletionRequest "
        "ChatCompletionMessageParam"
    ),
    f"{PACKAGE}.errors": "OpenAIError create_error_response",
    f"{PACKAGE}.openai_model": "OpenAIModel AsyncMappingIterator ChatPrompt",
    f"{PACKAGE}.types": (
        "ChatCompletion ChatCompletionChoice ChatCompletionChunk CompletionChunk "
        "CompletionChunkChoice ChatMessage ChatCompletionLogProb ChatCompletionLogProbs "
        "ChoiceDelta ChunkChoice Completion CompletionChoice ChatCompletionRequest "
        "CompletionRequest ChatCompletionContentPartParam CustomChatCompletionMessageParam "
        "ChatCompletionMessageParam ChatCompletionToolMessageParam "
        "ChatCompletionContentPartTextParam ChatCompletionAssistantMessageParam "
        "ConversationMessage Error ErrorResponse CompletionLogProbs UsageInfo "
        "ChatCompletionLogProbsContent Embedding EmbeddingCompletionRequest EmbeddingRequest "
        "EmbeddingResponseData Model ModelList RerankRequest Rerank"
    ),
}


@pytest.mark.parametrize("path", NAMES)
def test_the_names_of_a_module(path: str) -> None:
    module = importlib.import_module(path)
    assert set(NAMES[path].split()) <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_importing_reads_nothing_and_needs_no_client() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['x', '--http_port', 'nonsense']\n"
        f"import {PACKAGE}\n"
        "assert [m for m in ('vllm', 'httpx', 'pydantic', 'numpy') if m in sys.modules] == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


async def post(app: ModelServer, path: str = CHAT, **more: Any) -> Response:
    document = {"model": "m", "prompt": "ab", "messages": [{"role": "user", "content": "ab"}]}
    return await request(app, "POST", path, json={**document, **more})


def events(response: Response) -> list[Any]:
    parts = response.body.decode().split("\n\n")[:-1]
    assert parts[-1] == "data: [DONE]"
    return [orjson.loads(part.removeprefix("data: ")) for part in parts[:-1]]


def content(response: Response) -> Any:
    assert response.status == 200, response.body
    return response.json()["choices"][0]["message"]["content"]


# --- what is given, and what is returned --------------------------------------------------------


async def test_a_model_is_given_what_kserve_gives() -> None:
    class Given(OpenAIGenerativeModel):
        async def create_chat_completion(
            self, request: Any, raw_request: Any = None, context: Any = None
        ) -> Any:
            assert isinstance(request, ChatCompletionRequest)
            assert (request.model, request.n, request.stream, request.seed) == ("m", 1, False, None)
            assert request.messages[0]["content"] == request.messages[0].content == "ab"
            assert request.model_dump(exclude_unset=True)["chat_template_kwargs"] == {"a": [1]}
            assert raw_request.headers["x-who"] == context["headers"]["x-who"] == "me"
            assert not await raw_request.is_disconnected()
            context["response"].headers["x-seen"] = "yes"
            message = ChatMessage(role="assistant", content="hi")
            choice = ChatCompletionChoice(index=0, message=message, finish_reason="length")
            usage = UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3)
            return ChatCompletion(id="1", created=5, model="x", choices=[choice], usage=usage)

    model = Given("m")
    assert model.ready
    document = {
        "model": "m", "messages": [{"role": "user", "content": "ab"}],
        "chat_template_kwargs": {"a": [1]},
    }  # fmt: skip
    app = ModelServer([model])
    response = await request(app, "POST", CHAT, json=document, headers={"x-who": "me"})
    assert content(response) == "hi"
    answer = response.json()
    assert (answer["id"], answer["created"], answer["model"]) == ("1", 5, "x")
    assert answer["usage"]["total_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"
    assert response.headers["x-seen"] == "yes"
    assert response.headers["content-type"] == "application/json"


async def test_the_request_can_be_read() -> None:
    class Reads(OpenAIGenerativeModel):
        async def create_completion(
            self, request: Any, raw_request: Any = None, context: Any = None
        ) -> Any:
            return (await raw_request.json())["prompt"] + request.prompt

    response = await post(ModelServer([Reads("m")]), TEXT)
    assert response.json()["choices"][0]["text"] == "abab"


def chunk(text: str, finish: str | None = None) -> CompletionChunk:
    choice = CompletionChunkChoice(index=0, text=text, finish_reason=finish)
    return CompletionChunk(id="1", created=5, model="x", choices=[choice])


class Letters(OpenAIChatAdapterModel):
    """Completes a prompt with its letters, in KServe's way."""

    def apply_chat_template(self, request: Any) -> ChatPrompt:
        return ChatPrompt(prompt="".join(m["content"] for m in request.messages))

    async def create_completion(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        if request.prompt == "bad":
            return create_error_response("no such letter", status_code=HTTPStatus.CONFLICT)
        if request.stream:
            return self.stream(request.prompt)
        logprobs = CompletionLogProbs(
            tokens=["a"], token_logprobs=[-1.0], top_logprobs=[{"a": -1.0, "b": -2.0}]
        )
        choice = CompletionChoice(
            index=0, text=request.prompt.upper(), finish_reason="stop", logprobs=logprobs
        )
        return Completion(id="1", created=5, model="x", choices=[choice], usage=UsageInfo())

    async def stream(self, prompt: str) -> AsyncIterator[str]:
        for letter in prompt:
            yield f"data: {chunk(letter).model_dump_json()}\n\n"
        yield f"data: {chunk('', 'length').model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"


async def test_a_stream_of_framed_text_becomes_documents() -> None:
    made = events(await post(ModelServer([Letters("m")]), TEXT, stream=True))
    assert [event["choices"][0]["text"] for event in made] == ["a", "b", ""]
    assert [event["choices"][0]["finish_reason"] for event in made] == [None, None, "length"]
    assert {event["id"] for event in made} == {"1"}


async def test_a_chat_by_completing_a_text() -> None:
    app = ModelServer([Letters("m")])
    response = await post(app)
    assert content(response) == "AB"
    (choice,) = response.json()["choices"]
    (logprob,) = choice["logprobs"]["content"]
    assert (logprob["token"], logprob["bytes"], logprob["logprob"]) == ("a", [97], -1.0)
    assert [other["token"] for other in logprob["top_logprobs"]] == ["a", "b"]
    made = events(await post(app, stream=True))
    deltas = [event["choices"][0]["delta"] for event in made]
    assert [delta["content"] for delta in deltas] == ["a", "b", ""]
    assert deltas[0]["role"] == "assistant"
    assert {event["object"] for event in made} == {"chat.completion.chunk"}
    refused = await post(app, n=2)
    assert refused.json()["error"]["message"] == "n != 1 is not supported"
    assert refused.status == 400


async def test_events_may_be_cut_anywhere_and_joined() -> None:
    text = "".join(f"data: {chunk(c).model_dump_json()}\n\n" for c in "abc") + "data: [DONE]\n\n"

    class Cut(Letters):
        async def stream(self, prompt: str) -> AsyncIterator[Any]:
            for start in range(0, len(text), 7):
                yield text[start : start + 7]

    made = events(await post(ModelServer([Cut("m")]), TEXT, stream=True))
    assert "".join(event["choices"][0]["text"] for event in made) == "abc"


async def test_a_mapping_iterator_streams_too() -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    class Maps(OpenAIGenerativeModel):
        async def create_completion(
            self, request: Any, raw_request: Any = None, context: Any = None
        ) -> Any:
            return AsyncMappingIterator(
                numbers(), lambda n: chunk(str(n)) if n else None, close=lambda: closed.append("x")
            )

    made = events(await post(ModelServer([Maps("m")]), TEXT, stream=True))
    assert [event["choices"][0]["text"] for event in made] == ["1", "2", ""]
    assert closed == ["x"]


async def test_a_client_that_leaves_ends_the_generator() -> None:
    ended = anyio.Event()

    class Endless(Letters):
        async def stream(self, prompt: str) -> AsyncIterator[str]:
            try:
                yield f"data: {chunk('a').model_dump_json()}\n\n"
                await anyio.sleep(60)
            finally:
                ended.set()

    app = ModelServer([Endless("m")])
    document = {"model": "m", "messages": [{"content": "a"}], "stream": True}
    async with exchange(app, "POST", CHAT, json=document) as client:
        await client.head()
        await client.chunk()
        client.hang_up()
        with anyio.fail_after(5):
            await ended.wait()


async def test_embeddings() -> None:
    class Embeds(OpenAIEncoderModel):
        async def create_embedding(
            self, request: Any, raw_request: Any = None, context: Any = None
        ) -> Any:
            data = [EmbeddingResponseData(index=0, embedding=[float(len(request.input))])]
            return Embedding(id="1", model="x", created=5, data=data, usage=UsageInfo())

    app = ModelServer([Embeds("m")])
    answer = (await post(app, "/openai/v1/embeddings", input="abc")).json()
    assert answer["data"][0]["embedding"] == [3.0]
    assert (answer["object"], answer["model"]) == ("list", "x")
    assert (await post(app)).status == 400
    assert (await post(app, "/openai/v1/rerank")).status == 404


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_an_error_response_is_an_error(path: str, stream: bool) -> None:
    more = {"prompt": "bad", "messages": [{"role": "user", "content": "bad"}]}
    response = await post(ModelServer([Letters("m")]), path, stream=stream, **more)
    assert response.status == 409
    assert response.json() == {
        "error": {
            "message": "no such letter",
            "type": "BadRequestError",
            "param": "",
            "code": "409",
        }
    }


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (OpenAIError("broken"), 500, "broken"),
        (OpenAIError(create_error_response("no", status_code=HTTPStatus.FORBIDDEN)), 403, "no"),
        (InvalidInput("odd"), 400, "odd"),
        (ValueError("secret"), 500, "Internal Server Error"),
    ],
)
async def test_what_a_model_raises(raised: Exception, status: int, message: str) -> None:
    class Fails(OpenAIGenerativeModel):
        async def create_chat_completion(
            self, request: Any, raw_request: Any = None, context: Any = None
        ) -> Any:
            raise raised

    response = await post(ModelServer([Fails("m")]))
    assert (response.status, response.json()["error"]["message"]) == (status, message)
    assert not isinstance(raised, OpenAIError) or str(raised) == message


async def test_an_error_in_the_stream_never_looks_complete() -> None:
    class Fails(Letters):
        async def stream(self, prompt: str) -> AsyncIterator[str]:
            yield f"data: {chunk('a').model_dump_json()}\n\n"
            error = create_error_response("broken", "Odd").model_dump_json()
            yield f"data: {error}\n\n"
            yield "data: [DONE]\n\n"

    response = await post(ModelServer([Fails("m")]), stream=True)
    assert b'event: error\ndata: {"error":{"message":"broken","type":"Odd"' in response.body
    assert b"[DONE]" not in response.body


async def test_what_is_not_overridden_is_not_supported() -> None:
    class Nothing(OpenAIGenerativeModel, OpenAIEncoderModel):
        pass

    app = ModelServer([Nothing("m")])
    for path in (CHAT, TEXT, "/openai/v1/embeddings"):
        response = await post(app, path, input="a")
        assert response.status == 400
        assert "Model m does not support" in response.json()["error"]["message"]


# --- a proxy ------------------------------------------------------------------------------------


class Upstream(Model):
    """The other server's model."""

    async def chat(self, document: Any) -> AsyncIterator[Any]:
        if document["messages"][-1]["content"] == "fail":
            raise InvalidInput("no such thing")
        yield "up "
        if document["messages"][-1]["content"] == "break":
            raise OpenAIError("broken")
        yield f"n={document.get('n')}"

    async def complete(self, document: Any) -> AsyncIterator[Any]:
        yield document["prompt"]
        yield "!"


class Proxy(OpenAIProxyModel):
    def preprocess_chat_completion_request(self, request: Any, raw_request: Any = None) -> None:
        request.model = "up"
        request.n = 3

    def postprocess_chat_completion(
        self, chat_completion: Any, request: Any, raw_request: Any = None
    ) -> None:
        chat_completion.choices[0].message.content += " post"

    def postprocess_chat_completion_chunk(
        self, chat_completion_chunk: Any, request: Any, raw_request: Any = None
    ) -> None:
        for choice in chat_completion_chunk.choices:
            if choice.delta.content:
                choice.delta.content = choice.delta.content.upper()

    def preprocess_completion_request(self, request: Any, raw_request: Any = None) -> None:
        request.model = "up"


def proxy(kind: type[OpenAIProxyModel] = Proxy, upstream: Any = None) -> ModelServer:
    transport = httpx.ASGITransport(upstream or ModelServer([Upstream("up")]))
    client = httpx.AsyncClient(transport=transport)
    return ModelServer([kind("m", "http://up/", client, health_endpoint=None)])


async def test_a_proxy_changes_requests_and_answers() -> None:
    app = proxy()
    assert content(await post(app)) == "up n=3 post"
    made = events(await post(app, stream=True))
    assert [e["choices"][0]["delta"].get("content") for e in made] == ["UP ", "N=3", None]
    assert [e["choices"][0]["finish_reason"] for e in made] == [None, None, "stop"]
    assert (await post(app, TEXT)).json()["choices"][0]["text"] == "ab!"
    texts = [e["choices"][0]["text"] for e in events(await post(app, TEXT, stream=True))]
    assert texts == ["ab", "!", ""]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_other_servers_error_is_the_proxys(stream: bool) -> None:
    messages = [{"role": "user", "content": "fail"}]
    response = await post(proxy(), stream=stream, messages=messages)
    assert (response.status, response.json()["error"]["message"]) == (400, "no such thing")

    class Elsewhere(Proxy):
        def preprocess_chat_completion_request(self, request: Any, raw_request: Any = None) -> None:
            request.model = "nobody"

    response = await post(proxy(Elsewhere), stream=stream)
    assert (response.status, response.json()["error"]["code"]) == (404, "model_not_found")


# httpx leaves generators of its own to the garbage collector, of which trio tells.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_other_servers_error_in_the_stream_is_the_proxys() -> None:
    messages = [{"role": "user", "content": "break"}]
    response = await post(proxy(), stream=True, messages=messages)
    assert b"event: error" in response.body
    assert b"broken" in response.body
    assert b"[DONE]" not in response.body


async def test_an_upstream_that_does_not_stream_or_speak_json() -> None:
    async def whole(scope: Any, receive: Any, send: Any) -> None:
        status, body = answers[0]
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"7")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": "stop",
    }
    answers = [(200, orjson.dumps({"id": "1", "choices": [choice]}))]
    app = proxy(OpenAIProxyModel, whole)
    (event,) = events(await post(app, stream=True))
    assert event["choices"][0]["delta"]["content"] == "hi"
    for answers[0] in [(200, b"<html>"), (200, b"[]"), (500, b"<html>"), (500, b'{"error":"x"}')]:
        for stream in (False, True):
            response = await post(app, stream=stream)
            assert response.status == 502, answers
            sentence = "Received invalid response from upstream"
            assert response.json()["error"]["message"] == sentence
    answers[0] = (429, b'{"error":{"message":"slow down","code":null}}')
    response = await post(app)
    assert (response.status, response.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (httpx.ReadTimeout("http://up"), 504, "Timed out when communicating with upstream"),
        (httpx.ConnectError("http://up"), 503, "Failed to communicate with upstream"),
        (httpx.RemoteProtocolError("http://up"), 500, "Upstream request failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_goes_wrong_on_the_way(
    raised: Exception, status: int, message: str, stream: bool
) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise raised

    response = await post(proxy(upstream=fails), stream=stream)
    assert (response.status, response.json()["error"]["message"]) == (status, message)


async def test_the_health_of_a_proxy_is_the_other_servers() -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(ModelServer()))
    for endpoint, healthy in (("/", True), ("/health", False), (None, True)):
        model = OpenAIProxyModel("m", "http://up", client, health_endpoint=endpoint)
        assert await model.healthy() is healthy


async def test_a_proxy_makes_and_closes_a_client_of_its_own() -> None:
    model = OpenAIProxyModel("m", "http://127.0.0.1:9")
    await model.stop()
    response = await post(
        ModelServer([OpenAIProxyModel("m", "http://127.0.0.1:9", health_endpoint=None)])
    )
    assert response.status == 503


# --- types --------------------------------------------------------------------------------------


def test_documents_have_members_as_attributes() -> None:
    request = ChatCompletionRequest.model_validate_json(
        b'{"model":"m","messages":[{"role":"user"}],"stop":null}'
    )
    assert (request.messages[0].role, request.stop, request.anything) == ("user", None, None)
    request.seed = 5
    assert request.model_dump(exclude_unset=True, exclude_none=True) == {
        "model": "m", "messages": [{"role": "user"}], "seed": 5,
    }  # fmt: skip
    assert request.model_dump(exclude={"messages"})["n"] == 1
    assert type(request.model_dump()["messages"][0]) is dict
    copy = request.model_copy(update={"n": 2})
    assert (copy.n, request.n, type(copy)) == (2, 1, ChatCompletionRequest)
    assert ErrorResponse.model_construct(error={"message": "a"}).error.message == "a"
    assert orjson.loads(copy.model_dump_json(indent=2))["n"] == 2
    with pytest.raises(AttributeError):
        request._private  # noqa: B018


VLLM = {
    "openai/chat_completion/protocol.py",
    "openai/completion/protocol.py",
    "openai/engine/protocol.py",
    "pooling/embed/protocol.py",
    "pooling/scoring/protocol.py",
    "chat_utils.py",
}


@pytest.mark.parametrize("missing", [None, "chat_utils.py", "pooling/embed/protocol.py"])
@pytest.mark.slow
def test_vllms_classes_are_taken_if_all_are_there(tmp_path: Path, missing: str | None) -> None:
    for path in VLLM - {missing}:
        module = tmp_path / "vllm" / "entrypoints" / path
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(
            "def __getattr__(name):\n    return type(name, (), {'__doc__': 'theirs'})\n"
        )
    code = (
        f"from {PACKAGE} import types\n"
        "assert (types.ChatCompletionRequest.__doc__ == 'theirs') is THEIRS\n"
        "assert (types.Completion.__name__ == 'CompletionResponse') is THEIRS\n"
        "assert types.ErrorResponse.__mro__[1].__name__ == 'Document'\n"
    ).replace("THEIRS", str(missing is None))
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=30, env=environment, cwd=tmp_path
    )


async def test_a_request_that_vllms_classes_refuse_is_a_400(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pydantic import BaseModel

    class Strict(BaseModel):
        model: str
        messages: list[dict[str, str]]
        seed: int | None = None

    class Says(OpenAIGenerativeModel):
        async def create_chat_completion(
            self, request: Any, raw_request: Any = None, context: Any = None
        ) -> Any:
            return f"seed {request.seed}"

    monkeypatch.setattr(f"{PACKAGE}.openai_model.ChatCompletionRequest", Strict)
    app = ModelServer([Says("m")])
    assert content(await post(app, seed=4)) == "seed 4"
    response = await post(app, seed="x")
    assert response.status == 400
    assert response.json()["error"]["message"].startswith('Expected "seed" to be valid: ')
