"""The clients that people use for OpenAI's protocol, against our server on a socket.

Each test needs one of them and is skipped without: pip install openai langchain-openai litellm; and
for node, in the environment's folder: npm install openai ai @ai-sdk/openai-compatible.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from starlette.exceptions import HTTPException

from modelserve import InferenceError, InvalidInput, Limits, Model, ModelServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

GUIDE = Path(__file__).parent.parent / "examples" / "guides" / "openai.md"
MODULES = Path(sys.prefix) / "node_modules"
MESSAGES = [{"role": "user", "content": "one two three"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CALLS: Counter[str] = Counter()
ENDED = threading.Event()


class Words(Model):
    """The words of the last message or of the prompt, and the lengths of texts."""

    async def chat(self, document: Any) -> AsyncIterator[Any]:
        content = document["messages"][-1]["content"]
        for word in content.split():
            yield word + " "
        for extra in range(1, document.get("n") or 1):
            yield {"index": extra, "content": "another"}
        yield {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}

    async def complete(self, document: Any) -> AsyncIterator[Any]:
        prompt = document["prompt"]
        yield prompt if isinstance(prompt, str) else prompt[0]
        yield "!"

    async def embed(self, document: Any) -> Any:
        texts = document["input"]
        return [[float(len(t)), 0.5] for t in ([texts] if isinstance(texts, str) else texts)]


class Tools(Model):
    async def chat(self, document: Any) -> AsyncIterator[Any]:
        name = document["tools"][0]["function"]["name"]
        call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": '{"a":'}}
        yield {"tool_calls": [{"index": 0, **call}]}
        yield {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}


class Thinks(Model):
    async def chat(self, document: Any) -> AsyncIterator[Any]:
        yield {"reasoning_content": "hm"}
        yield "so"
        yield {"finish_reason": "length"}


class Refuses(Model):
    async def chat(self, document: Any) -> AsyncIterator[str]:
        CALLS[self.name] += 1
        raise InvalidInput("no such colour")
        yield ""


class Breaks(Model):
    async def chat(self, document: Any) -> AsyncIterator[str]:
        CALLS[self.name] += 1
        yield "a"
        raise InferenceError("out of paper")


class Slow(Model):
    limits = Limits(timeout=0.2)

    async def chat(self, document: Any) -> Any:
        CALLS[self.name] += 1
        await anyio.sleep(60)


class Busy(Model):
    async def chat(self, document: Any) -> Any:
        CALLS[self.name] += 1
        if CALLS[self.name] % 2:
            raise HTTPException(503, "busy", headers={"retry-after": "1"})
        return "at last"


class Endless(Model):
    async def chat(self, document: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
                await anyio.sleep(0.01)
        finally:
            ENDED.set()


class Waits(Model):
    async def chat(self, document: Any) -> Any:
        try:
            await anyio.sleep(60)
        finally:
            ENDED.set()


KINDS = [Words, Tools, Thinks, Refuses, Breaks, Slow, Busy, Endless, Waits]


@contextmanager
def serving(app: ModelServer) -> Iterator[str]:
    """Serve an application in a thread; yield where."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve a model of each kind; return the base URL for clients."""
    app = ModelServer([kind(kind.__name__.lower()) for kind in KINDS], token="secret")
    with serving(app) as address:
        yield f"{address}/openai/v1"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    CALLS.clear()
    ENDED.clear()


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


# --- openai for Python --------------------------------------------------------------------------

with_openai = needs("openai")


@pytest.fixture
def openai_client(url: str) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=url, api_key="secret") as client:
        yield client


def ask(client: Any, model: str, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": MESSAGES, **more})


@with_openai
def test_openai_lists_and_finds_models(openai_client: Any, url: str) -> None:
    import openai

    assert {m.id for m in openai_client.models.list()} == {k.__name__.lower() for k in KINDS}
    assert openai_client.models.retrieve("words").id == "words"
    with openai.OpenAI(base_url=url.replace("/openai", ""), api_key="secret") as other:
        assert other.models.retrieve("words").owned_by == "modelserve"
        assert len(list(other.models.list())) == len(KINDS)
        assert ask(other, "words").choices[0].message.content == "one two three "


@with_openai
def test_openai_asks_for_a_whole_answer(openai_client: Any) -> None:
    answer = ask(openai_client, "words", n=2)
    assert [c.message.content for c in answer.choices] == ["one two three ", "another"]
    assert {c.finish_reason for c in answer.choices} == {"stop"}
    assert answer.usage.total_tokens == 7
    assert (answer.object, answer.model) == ("chat.completion", "words")
    assert answer.id == f"chatcmpl-{answer._request_id}"


@with_openai
def test_openai_reads_a_stream(openai_client: Any) -> None:
    chunks = list(ask(openai_client, "words", stream=True, stream_options={"include_usage": True}))
    text = [c.choices[0].delta.content for c in chunks if c.choices]
    assert text == ["one ", "two ", "three ", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 4
    plain = list(ask(openai_client, "words", stream=True))
    assert not any(c.usage for c in plain)
    with openai_client.chat.completions.stream(model="words", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == "one two three "


@with_openai
def test_openai_calls_tools(openai_client: Any) -> None:
    (choice,) = ask(openai_client, "tools", tools=[TOOL]).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.arguments == '{"a":1}'
    with openai_client.chat.completions.stream(
        model="tools", messages=MESSAGES, tools=[TOOL]
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"a":1}')


@with_openai
def test_openai_reads_reasons_and_reasoning(openai_client: Any) -> None:
    (choice,) = ask(openai_client, "thinks").choices
    assert (choice.finish_reason, choice.message.reasoning_content) == ("length", "hm")


@with_openai
def test_openai_asks_for_completions_and_embeddings(openai_client: Any) -> None:
    answer = openai_client.completions.create(model="words", prompt="hey")
    assert answer.choices[0].text == "hey!"
    parts = openai_client.completions.create(model="words", prompt=["hey"], stream=True)
    assert [part.choices[0].text for part in parts] == ["hey", "!", ""]
    for more in ({}, {"encoding_format": "float"}):
        made = openai_client.embeddings.create(model="words", input=["a", "bcd"], **more)
        assert [row.embedding for row in made.data] == [[1.0, 0.5], [3.0, 0.5]]


@with_openai
@pytest.mark.parametrize("stream", [False, True])
def test_openai_raises_what_fails_before_the_start(openai_client: Any, stream: bool) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="no such colour"):
        ask(openai_client, "refuses", stream=stream)
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        ask(openai_client, "nobody", stream=stream)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(openai_client.with_options(api_key="wrong"), "words", stream=stream)
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError, match="does not support completions"):
        openai_client.completions.create(model="tools", prompt="a", stream=stream)
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        openai_client.responses.create(model="words", input="a", stream=stream)


@with_openai
def test_openai_raises_what_fails_in_the_stream(openai_client: Any) -> None:
    import openai

    stream = ask(openai_client, "breaks", stream=True)
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError, match="out of paper"):
        list(stream)


@with_openai
def test_openai_does_not_repeat_what_has_failed(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.InternalServerError) as caught:
        ask(openai_client, "slow")
    assert caught.value.status_code == 504
    with pytest.raises(openai.InternalServerError, match="out of paper"):
        ask(openai_client, "breaks")
    assert CALLS == {"slow": 1, "breaks": 1}


@with_openai
def test_openai_repeats_what_was_not_possible(openai_client: Any) -> None:
    before = time.monotonic()
    assert ask(openai_client, "busy").choices[0].message.content == "at last"
    assert CALLS["busy"] == 2
    assert time.monotonic() - before > 0.9


@with_openai
def test_a_model_ends_when_openai_leaves(openai_client: Any) -> None:
    import openai

    stream = ask(openai_client, "endless", stream=True)
    next(stream)
    stream.close()
    assert ENDED.wait(5)
    ENDED.clear()
    with pytest.raises(openai.APITimeoutError):
        ask(openai_client.with_options(timeout=0.3, max_retries=0), "waits")
    assert ENDED.wait(5)


@with_openai
def test_the_guides_client_talks_to_the_guides_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    model, client, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(model, found)  # noqa: S102 - our own document
    with serving(found["app"]) as address:
        exec(client.replace("http://localhost:8080", address), found)  # noqa: S102
        found["main"]()
    assert capsys.readouterr().out == "one two three "


# --- LangChain ----------------------------------------------------------------------------------


with_langchain = needs("langchain_openai")


def langchain(url: str, model: str, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=model, base_url=url, api_key="secret", **more)


@with_langchain
def test_langchain_asks_and_streams(url: str) -> None:
    chat = langchain(url, "words", stream_usage=True)
    answer = chat.invoke("one two")
    assert (answer.content, answer.usage_metadata["total_tokens"]) == ("one two ", 7)
    chunks = list(chat.stream("one two"))
    assert "".join(chunk.content for chunk in chunks) == "one two "
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) == 4


@with_langchain
def test_langchain_calls_tools(url: str) -> None:
    chat = langchain(url, "tools").bind_tools([TOOL])
    (call,) = chat.invoke("add").tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1})
    first, *others = chat.stream("add")
    for chunk in others:
        first += chunk
    assert first.tool_calls[0]["args"] == {"a": 1}


@with_langchain
def test_langchain_completes_and_embeds(url: str) -> None:
    from langchain_openai import OpenAI, OpenAIEmbeddings

    told = {"base_url": url, "api_key": "secret", "model": "words"}
    assert OpenAI(**told).invoke("hey") == "hey!"
    assert "".join(OpenAI(**told).stream("hey")) == "hey!"
    embeddings = OpenAIEmbeddings(**told, check_embedding_ctx_length=False)
    assert embeddings.embed_documents(["a", "bcd"]) == [[1.0, 0.5], [3.0, 0.5]]


@with_langchain
def test_langchain_raises_errors(url: str) -> None:
    with pytest.raises(Exception, match="no such colour"):
        langchain(url, "refuses").invoke("a")
    with pytest.raises(Exception, match="out of paper"):
        list(langchain(url, "breaks").stream("a"))
    with pytest.raises(Exception, match="504"):
        langchain(url, "slow").invoke("a")
    assert CALLS["slow"] == 1


# --- litellm ------------------------------------------------------------------------------------


with_litellm = needs("litellm")


def litellm(url: str, model: str, **more: Any) -> Any:
    import litellm as client

    return client.completion(
        model=f"openai/{model}", messages=MESSAGES, api_base=url, api_key="secret", **more
    )


@with_litellm
def test_litellm_asks_and_streams(url: str) -> None:
    answer = litellm(url, "words")
    assert answer.choices[0].message.content == "one two three "
    assert answer.usage.total_tokens == 7
    chunks = list(litellm(url, "words", stream=True, stream_options={"include_usage": True}))
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three "
    )
    assert chunks[-1].usage.completion_tokens == 4
    length = list(litellm(url, "thinks", stream=True))
    assert length[-1].choices[0].finish_reason == "length"


@with_litellm
def test_litellm_calls_tools_and_embeds(url: str) -> None:
    import litellm as client

    (call,) = litellm(url, "tools", tools=[TOOL]).choices[0].message.tool_calls
    assert call.function.arguments == '{"a":1}'
    chunks = list(litellm(url, "tools", tools=[TOOL], stream=True))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    made = client.embedding(
        model="openai/words", input=["a"], api_base=url, api_key="secret", encoding_format="float"
    )
    assert made.data[0]["embedding"] == [1.0, 0.5]


@with_litellm
def test_litellm_raises_errors(url: str) -> None:
    with pytest.raises(Exception, match="no such colour"):
        litellm(url, "refuses")
    with pytest.raises(Exception, match="out of paper"):
        list(litellm(url, "breaks", stream=True))
    with pytest.raises(Exception, match=r"[Tt]ime"):
        litellm(url, "slow")
    assert CALLS["slow"] == 1


# --- node ---------------------------------------------------------------------------------------

NODE = """
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "secret" });
const messages = [{ role: "user", content: "one two three" }];
const tools = [JSON.parse(process.argv[3])];
const result = {};
const failing = async (action) => {
  try { await action(); return null; } catch (error) { return `${error.status} ${error.message}`; }
};
const read = async (model, more = {}) => {
  const parts = [];
  const given = { model, messages, stream: true, ...more };
  for await (const chunk of await client.chat.completions.create(given)) parts.push(chunk);
  return parts;
};
result.models = (await client.models.list()).data.length;
result.whole = (await client.chat.completions.create({ model: "words", messages })).choices[0].message.content;
const parts = await read("words", { stream_options: { include_usage: true } });
result.streamed = parts.map((part) => part.choices[0]?.delta.content ?? "").join("");
result.usage = parts.at(-1).usage.total_tokens;
const runner = client.chat.completions.stream({ model: "tools", messages, tools });
result.call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;
result.floats = (await client.embeddings.create({ model: "words", input: "abc" })).data[0].embedding;
result.refused = await failing(() => client.chat.completions.create({ model: "refuses", messages }));
result.broken = await failing(() => read("breaks"));
result.slow = await failing(() => client.chat.completions.create({ model: "slow", messages }));
result.busy = (await client.chat.completions.create({ model: "busy", messages })).choices[0].message.content;
const endless = await client.chat.completions.create({ model: "endless", messages, stream: true });
for await (const chunk of endless) break;
console.log(JSON.stringify(result));
"""

AI_SDK = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({
  name: "ours", baseURL: process.argv[2], apiKey: "secret", includeUsage: true,
});
const prompt = "one two three";
const given = JSON.parse(process.argv[3]).function;
const tools = { add: tool({ description: given.description, inputSchema: jsonSchema(given.parameters) }) };
const result = {};
const failing = async (action) => {
  try { await action(); return null; } catch (error) { return String(error.message); }
};
const read = async (model, more = {}) => {
  let text = "";
  const failed = [];
  const stream = streamText({ model: provider(model), prompt, onError: () => {}, ...more });
  for await (const part of stream.fullStream) {
    if (part.type === "text-delta") text += part.text;
    if (part.type === "error") failed.push(part.error.message ?? JSON.stringify(part.error));
  }
  return { text, failed, stream };
};
const whole = await generateText({ model: provider("words"), prompt });
result.whole = [whole.text, whole.finishReason, whole.usage.totalTokens];
const { text, stream } = await read("words");
result.streamed = [text, await stream.finishReason, (await stream.usage).totalTokens];
const called = await read("tools", { tools });
result.call = [(await called.stream.toolCalls)[0].input, await called.stream.finishReason];
result.thinks = (await generateText({ model: provider("thinks"), prompt })).reasoningText;
result.floats = (await embed({ model: provider.embeddingModel("words"), value: "abc" })).embedding;
result.refused = await failing(() => generateText({ model: provider("refuses"), prompt, maxRetries: 0 }));
result.broken = (await read("breaks")).failed;
result.busy = (await generateText({ model: provider("busy"), prompt })).text;
const leaving = new AbortController();
const left = streamText({ model: provider("endless"), prompt, abortSignal: leaving.signal });
for await (const part of left.textStream) { leaving.abort(); break; }
console.log(JSON.stringify(result));
"""


def needs_node(package: str) -> pytest.MarkDecorator:
    missing = shutil.which("node") is None or not (MODULES / package).is_dir()
    return pytest.mark.skipif(missing, reason=f"node or its package {package} is not installed")


def run_node(program: str, url: str, directory: Path) -> Any:
    (directory / "node_modules").symlink_to(MODULES)
    script = directory / "program.mjs"
    script.write_text(program, encoding="utf-8")
    command = ["node", str(script), url, json.dumps(TOOL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node("openai")
def test_openai_for_node(url: str, tmp_path: Path) -> None:
    result = run_node(NODE, url, tmp_path)
    assert result["models"] == len(KINDS)
    assert result["whole"] == result["streamed"] == "one two three "
    assert result["usage"] == 7
    assert result["call"]["arguments"] == '{"a":1}'
    assert result["floats"] == [3.0, 0.5]
    assert result["refused"].endswith("no such colour")
    assert result["broken"].endswith("out of paper")
    assert result["slow"].startswith("504")
    assert CALLS["slow"] == 1
    assert (result["busy"], CALLS["busy"]) == ("at last", 2)
    assert ENDED.wait(5)


@needs_node("@ai-sdk/openai-compatible")
def test_the_ai_sdk(url: str, tmp_path: Path) -> None:
    result = run_node(AI_SDK, url, tmp_path)
    assert result["whole"] == result["streamed"] == ["one two three ", "stop", 7]
    assert result["call"] == [{"a": 1}, "tool-calls"]
    assert result["thinks"] == "hm"
    assert result["floats"] == [3.0, 0.5]
    assert "no such colour" in result["refused"]
    assert "out of paper" in result["broken"][0]
    assert (result["busy"], CALLS["busy"]) == ("at last", 2)
    assert ENDED.wait(5)
