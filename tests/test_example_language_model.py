"""The language model of the examples, with a tiny one that is made and trained here.

Skipped where torch or transformers are missing: pip install torch transformers tokenizers.
"""

import importlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from modelserve import InvalidInput, Limits, ModelServer, Stepping
from modelserve.testing import exchange, lifespan, request

FOLDER = next((Path(__file__).parent.parent / "examples").glob("*_language_model"))
MODULES = ("generation", "language", "onebyone", "together", "tiny")
KINDS = ("OneByOne", "Together")
PREDICT = ("POST", "/v1/models/lm:predict")
CHAT = ("POST", "/v1/chat/completions")
COMPLETE = ("POST", "/v1/completions")
GREETING = [{"role": "user", "content": "Hello!"}]
ANSWER = "Grüße, 世界! 🙂"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers'
]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """What the example's modules have; its folder is on `sys.path`, as when its app.py is run."""
    torch.set_num_threads(1)  # more are slower where others use the processors
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        found: dict[str, Any] = {}
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        for name in MODULES:
            found |= vars(importlib.import_module(name))
        yield SimpleNamespace(**found)
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def checkpoint(example: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tiny"))
    loss = example.make(folder, width=64, steps=200, count=20)
    assert loss < 1.0, "it has not learned"
    return folder


@pytest.fixture(scope="module")
def loaded(example: Any, checkpoint: str) -> dict[str, Any]:
    """Both models, loaded once; they are registered anew by each test."""
    models = {kind: getattr(example, kind)("lm", checkpoint) for kind in KINDS}
    for model in models.values():
        model.load()
    return models


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, loaded: dict[str, Any]) -> Any:
    return fresh(loaded[request.param])


def fresh(model: Any) -> Any:
    """Return a model with what another has loaded."""
    copy = type(model)("lm", model.checkpoint)
    vars(copy).update({k: v for k, v in vars(model).items() if k not in ("_stepped", "ready")})
    copy.load = lambda: True
    return copy


async def asked(app: Any, route: tuple[str, str], **document: Any) -> Any:
    if route in (CHAT, COMPLETE):
        document = {"model": "lm", "temperature": 0, **document}
    return await request(app, *route, json=document, timeout=60)


def events(response: Any) -> list[Any]:
    """Return the documents of a stream of OpenAI's, which has to be complete."""
    *lines, end = [line for line in response.body.decode().split("\n") if line]
    assert end == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# -- text


def pieces_of(example: Any, tokenizer: Any, text: str, *stop: str) -> tuple[list[str], bool]:
    writer = example.Text(tokenizer, [], stop)
    pieces = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        pieces.append(writer.add(token))
        if writer.is_stopped:
            return pieces, True
    return [*pieces, writer.end()], writer.is_stopped


@pytest.mark.parametrize(
    "text", [ANSWER, "naïve 日本語", "🙂🙃", "a\n b\n\n  c", " x", "", "\ufffda"]
)
def test_pieces_are_the_text_and_no_half_characters(
    example: Any, loaded: dict[str, Any], text: str
) -> None:
    tokenizer = loaded["OneByOne"].tokenizer
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces, _ = pieces_of(example, tokenizer, text)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert "\ufffd" not in pieces[0:1] and all("\ufffd" not in piece for piece in pieces)
        assert len(tokens) >= len(text) / 8


def test_a_character_that_has_only_begun_is_left_out(example: Any, loaded: dict[str, Any]) -> None:
    tokenizer = loaded["OneByOne"].tokenizer
    tokens = tokenizer.encode("a🙂", add_special_tokens=False)
    assert len(tokens) == 5
    for count in range(2, 5):
        writer = example.Text(tokenizer, [], ())
        text = "".join(writer.add(token) for token in tokens[:count]) + writer.end()
        assert text == "a"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["two thread", "zzz"], "one two three"),  # begun, never completed
        ("one two three", ["e t"], "on"),
        ("aaab", ["aab"], "a"),
        ("abababac", ["ababac"], "ab"),
        ("x🙂y", ["🙂"], "x"),
        ("stop", ["stop"], ""),
        ("the end.", ["."], "the end"),
        ("ab", ["b", "ab"], ""),  # the one that begins first
    ],
)
def test_stop_strings_never_show_their_beginning(
    example: Any, loaded: dict[str, Any], text: str, stop: list[str], expected: str
) -> None:
    pieces, is_stopped = pieces_of(example, loaded["OneByOne"].tokenizer, text, *stop)
    assert "".join(pieces) == expected
    assert is_stopped == (expected != text)


def test_a_piece_is_held_back_only_while_it_may_be_a_stop(
    example: Any, loaded: dict[str, Any]
) -> None:
    pieces, _ = pieces_of(example, loaded["OneByOne"].tokenizer, "abcabd", "abd")
    assert pieces[:3] == ["", "", "abc"]


# -- drawing


def generation(example: Any, loaded: dict[str, Any], **options: Any) -> Any:
    return loaded["OneByOne"].generation([5], example.Options.of(options))


def test_temperature_and_top_p_draw_from_the_distribution(
    example: Any, loaded: dict[str, Any]
) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    greedy = generation(example, loaded, temperature=0)
    assert {greedy.pick(logits) for _ in range(20)} == {0}
    drawn = generation(example, loaded, seed=1)
    picks = [drawn.pick(logits) for _ in range(2000)]
    assert picks.count(0) / 2000 == pytest.approx(0.5, abs=0.05)
    narrow = generation(example, loaded, seed=1, top_p=0.6)
    assert {narrow.pick(logits) for _ in range(200)} == {0, 1}
    assert {generation(example, loaded, top_p=0).pick(logits) for _ in range(20)} == {0}
    coldest = generation(example, loaded, temperature=5e-324)
    assert {coldest.pick(logits) for _ in range(20)} == {0}


def test_the_same_seed_draws_the_same(example: Any, loaded: dict[str, Any]) -> None:
    logits = torch.zeros(100)
    draws = [
        [writer.pick(logits) for _ in range(10)]
        for writer in (generation(example, loaded, seed=seed) for seed in (7, 7, 8))
    ]
    assert draws[0] == draws[1] != draws[2]
    unseeded = [generation(example, loaded).pick(torch.zeros(10**6)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be 1 or more."),
        ({"max_tokens": True}, "max_tokens must be 1 or more."),
        ({"max_completion_tokens": "9"}, "max_tokens must be 1 or more."),
        ({"temperature": -1}, "temperature must be a number from 0 to 5."),
        ({"temperature": math.nan}, "temperature must be a number from 0 to 5."),
        ({"temperature": "0"}, "temperature must be a number from 0 to 5."),
        ({"top_p": 1.5}, "top_p must be a number from 0 to 1."),
        ({"seed": 1.5}, "seed must be a whole number of 64 bits."),
        ({"seed": 1 << 64}, "seed must be a whole number of 64 bits."),
        ({"stop": ""}, "stop must be a text or a list of texts."),
        ({"stop": ["a", 1]}, "stop must be a text or a list of texts."),
        ({"stop": 5}, "stop must be a text or a list of texts."),
    ],
)
def test_unusable_options(example: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        example.Options.of(options)
    assert caught.value.reason == sentence


# -- both models


async def test_one_model_answers_predict_generate_chat_and_complete(model: Any) -> None:
    prompt, options = "The current", {"max_tokens": 12, "temperature": 0}
    async with lifespan(app := ModelServer([model]), timeout=60):
        await app.ready()
        predicted = await asked(app, PREDICT, instances=[{"prompt": prompt, **options}])
        assert predicted.headers["content-type"].startswith("text/plain")
        text = predicted.body.decode()
        assert text.startswith(" ") and len(text) > 20
        generate = ("POST", "/v2/models/lm/generate_stream")
        streamed = await asked(app, generate, text_input=prompt, parameters=options)
        found = re.findall(r"^data: (.*)$", streamed.body.decode(), re.MULTILINE)
        assert "".join(json.loads(line)["text_output"] for line in found) == text
        completed = (await asked(app, COMPLETE, prompt=prompt, max_tokens=12)).json()
        assert completed["choices"][0]["text"] == text
        assert completed["choices"][0]["finish_reason"] == "length"
        assert completed["usage"]["completion_tokens"] == 12
        chat = (await asked(app, CHAT, messages=GREETING)).json()
        assert chat["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}
        assert chat["choices"][0]["finish_reason"] == "stop"
        parts = [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
        assert (await asked(app, CHAT, messages=parts)).json()["choices"] == chat["choices"]


async def test_a_chat_streams_whole_characters_then_reason_and_usage(model: Any) -> None:
    app = ModelServer([model])
    options = {"include_usage": True}
    response = await asked(app, CHAT, messages=GREETING, stream=True, stream_options=options)
    *chunks, last, usage = events(response)
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert "".join(pieces) == ANSWER
    assert "\ufffd" not in "".join(pieces) and "🙂" in "".join(pieces[-1:])
    assert last["choices"][0]["finish_reason"] == "stop"
    written = len(model.tokenizer.encode(ANSWER)) + 1  # and the end
    counts = {"prompt_tokens": len(model.tokenizer.encode("Hello!")) + 3}
    counts |= {"completion_tokens": written}
    assert usage["usage"] == {**counts, "total_tokens": sum(counts.values())}
    assert written > len(pieces), "a character of several tokens"


async def test_a_stop_string_ends_the_text_and_the_work(model: Any) -> None:
    app = ModelServer([model])
    whole = (await asked(app, CHAT, messages=GREETING)).json()
    for stop in (["界!"], ["!", "zzz"]):
        response = await asked(app, CHAT, messages=GREETING, stop=stop, stream=True)
        chunks = events(response)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == ANSWER[: ANSWER.index(stop[0])]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    stopped = (await asked(app, CHAT, messages=GREETING, stop="!")).json()
    assert stopped["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


async def test_each_prompt_has_n_choices_of_its_own(model: Any) -> None:
    app = ModelServer([model])
    options = {"seed": 3, "temperature": 1, "max_tokens": 8}
    many = (await asked(app, COMPLETE, prompt=["The current", "The value"], n=2, **options)).json()
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    for index, prompt, seed in ((0, "The current", 3), (1, "The current", 4), (3, "The value", 4)):
        one = await asked(app, COMPLETE, prompt=prompt, **options | {"seed": seed})
        assert one.json()["choices"][0]["text"] == many["choices"][index]["text"]
    once = len(model.tokenizer.encode("The current")) + len(model.tokenizer.encode("The value"))
    assert many["usage"]["prompt_tokens"] == once


@pytest.mark.parametrize(
    ("route", "document", "sentence"),
    [
        (COMPLETE, {"prompt": "a " * 300}, r"context is 256 tokens: there is no room for \d+ "),
        (COMPLETE, {"prompt": "a", "max_tokens": 256}, "context is 256 tokens"),
        (COMPLETE, {"prompt": "a", "n": 9}, "^n must be 1 to 8.$"),
        (COMPLETE, {"prompt": "a", "logprobs": 1}, "^logprobs must be left out"),
        (CHAT, {"messages": []}, "to be a list of one object or more"),
        (CHAT, {"messages": [{"role": "user"}]}, "content of a message must be text"),
        (CHAT, {"messages": [{"content": "a"}]}, "role of a message must be text"),
        (CHAT, {"messages": GREETING, "tools": [{"type": "function"}]}, "^tools must be left out"),
        (PREDICT, {"instances": [1]}, "a prompt must be text."),
        (PREDICT, {"instances": []}, "instances must be a list of one."),
        (PREDICT, {"inputs": []}, "instances must be a list of one."),
    ],
)
async def test_what_cannot_be_written_is_a_400(
    model: Any, route: tuple[str, str], document: dict[str, Any], sentence: str
) -> None:
    response = await asked(ModelServer([model]), route, **document)
    assert response.status == 400
    error = response.json()["error"]
    assert re.search(sentence, error if isinstance(error, str) else error["message"])


async def test_an_empty_prompt_begins_a_text(model: Any) -> None:
    response = await asked(ModelServer([model]), COMPLETE, prompt="", max_tokens=3)
    assert response.status == 200
    assert response.json()["usage"]["prompt_tokens"] == 1


async def test_without_a_chat_template_it_completes(model: Any, checkpoint: str) -> None:
    from transformers import AutoTokenizer

    model.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model.tokenizer.chat_template = None
    app = ModelServer([model])
    assert "no chat template" in (await asked(app, CHAT, messages=GREETING)).body.decode()
    model.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    refused = await asked(app, CHAT, messages=GREETING)
    assert (refused.status, b"roles must alternate" in refused.body) == (400, True)
    assert (await asked(app, COMPLETE, prompt="The", max_tokens=1)).status == 200


class Gate:
    """Holds a model's forward passes until it is opened, and counts them."""

    def __init__(self, model: Any) -> None:
        self.begun, self.is_open = threading.Event(), threading.Event()
        self.count = 0
        self.hook = model.model.register_forward_pre_hook(self.pass_through)

    def pass_through(self, *arguments: Any) -> None:
        self.count += 1
        self.begun.set()
        assert self.is_open.wait(30)


@pytest.fixture
def gate(model: Any) -> Iterator[Gate]:
    gate = Gate(model)
    yield gate
    gate.is_open.set()
    gate.hook.remove()


@pytest.mark.parametrize("when", ["before the first token", "after some"])
async def test_a_client_that_leaves_ends_its_text(model: Any, gate: Gate, when: str) -> None:
    model.ends = frozenset()
    limit_to_one(model)
    async with lifespan(app := ModelServer([model]), timeout=60):
        await app.ready()
        document = {"model": "lm", "prompt": "The", "max_tokens": 250, "stream": True}
        async with exchange(app, *COMPLETE, json=document, timeout=60) as client:
            await anyio.to_thread.run_sync(gate.begun.wait)
            if when == "after some":
                gate.is_open.set()
                assert (await client.head()).status == 200
                await client.chunk()
                gate.is_open.clear()
            client.hang_up()
            await anyio.wait_all_tasks_blocked()
            gate.is_open.set()
            await client.ended()
            made = gate.count
            one = await asked(app, COMPLETE, prompt="The", max_tokens=2)  # the one slot is free
        assert one.json()["usage"]["completion_tokens"] == 2
        assert made < 200 and gate.count == made + 2, "nothing goes on for nobody"
        assert not any("generate" in thread.name for thread in threading.enumerate())


def limit_to_one(model: Any) -> None:
    if model.stepping is None:
        model.limits = Limits(concurrency=1)
    else:
        model.stepping = Stepping(max_active=1)


async def test_a_client_that_leaves_while_it_waits_costs_nothing(model: Any, gate: Gate) -> None:
    limit_to_one(model)
    async with lifespan(app := ModelServer([model]), timeout=60):
        await app.ready()
        document = {"model": "lm", "prompt": "The", "max_tokens": 2, "stream": True}
        async with exchange(app, *COMPLETE, json=document, timeout=60) as first:
            await anyio.to_thread.run_sync(gate.begun.wait)
            async with exchange(app, *COMPLETE, json=document, timeout=60) as second:
                await anyio.wait_all_tasks_blocked()
                second.hang_up()
                await second.ended()
                gate.is_open.set()
            assert (await first.response()).body.endswith(b"data: [DONE]\n\n")
        assert gate.count == 2


@pytest.mark.parametrize("at", [1, 3])
async def test_a_model_that_fails_answers_and_serves_on(model: Any, at: int) -> None:
    passes = 0

    def fail(*arguments: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == at:
            raise RuntimeError("out of memory")

    hook = model.model.register_forward_pre_hook(fail)
    try:
        app = ModelServer([model])
        response = await asked(app, COMPLETE, prompt="The", max_tokens=5)
        assert response.status == 500 and b"memory" not in response.body
        after = await asked(app, COMPLETE, prompt="The", max_tokens=5)
        assert after.json()["usage"]["completion_tokens"] == 5
    finally:
        hook.remove()


# -- both models, against each other


PROMPTS = ["The", "The current code", "A", "If the", "An object that has a value of " * 4, "When"]


async def texts_of(app: Any, **options: Any) -> list[str]:
    """Ask for all at once; they have different lengths, so that they end at different times."""
    texts = [""] * len(PROMPTS) * 2

    async def ask(number: int) -> None:
        prompt, tokens = PROMPTS[number % len(PROMPTS)], 5 + 5 * number
        document = {"prompt": prompt, "max_tokens": tokens, **options}
        texts[number] = (await asked(app, COMPLETE, **document)).json()["choices"][0]["text"]

    async with anyio.create_task_group() as group:
        for number in range(len(texts)):
            group.start_soon(ask, number)
    return texts


@pytest.mark.parametrize(
    ("max_active", "options"),
    [(1, {}), (3, {}), (8, {}), (3, {"temperature": 0.8, "seed": 1})],
    ids=["1", "3", "8", "drawn"],
)
async def test_texts_written_together_are_those_written_alone(
    loaded: dict[str, Any], max_active: int, options: dict[str, Any]
) -> None:
    alone, together = (fresh(loaded[kind]) for kind in KINDS)
    alone.ends = together.ends = frozenset()  # each goes on to its limit
    together.stepping = Stepping(max_active=max_active)
    sizes: list[int] = []
    hook = together.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        expected = await texts_of(ModelServer([alone]), **options)
        texts = await texts_of(ModelServer([together]), **options)
    finally:
        hook.remove()
    assert texts == expected
    assert len(set(texts)) > len(PROMPTS)
    assert max(sizes) == max_active


async def test_a_slow_reader_keeps_its_place(loaded: dict[str, Any]) -> None:
    """A slot that is left out of steps has its own keys and values when it comes back."""
    alone, together = (fresh(loaded[kind]) for kind in KINDS)
    alone.ends = together.ends = frozenset()
    together.stepping = Stepping(max_active=4, room=2)
    document = {"model": "lm", "prompt": "The current", "max_tokens": 60, "temperature": 0}
    expected = (await request(ModelServer([alone]), *COMPLETE, json=document)).json()
    async with lifespan(app := ModelServer([together]), timeout=60):
        await app.ready()
        async with exchange(app, *COMPLETE, json=document | {"stream": True}, timeout=60) as client:
            await client.head()
            first = await client.chunk()
            assert first is not None
            client.hold()
            await texts_of(app)
            client.resume()
            body = first + b"".join([chunk async for chunk in client])
    *lines, end = body.decode().split("\n\n")[:-1]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert (text, end) == (expected["choices"][0]["text"], "data: [DONE]")
    assert together.batch is None, "the keys and values of all are let go"


# -- as a program


@contextmanager
def served(checkpoint: str, *options: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(FOLDER / "app.py"), checkpoint, "--name", "tiny-llama"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, "the server has ended"
            try:
                if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_the_program_and_the_openai_client_of_its_readme(checkpoint: str) -> None:
    pytest.importorskip("openai", reason="openai is not installed")
    [snippet] = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    with served(checkpoint) as url:
        run = subprocess.run(
            [sys.executable, "-c", snippet.replace("http://localhost:8080", url)],
            capture_output=True,
            encoding="utf-8",
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
    assert (run.stdout.strip(), run.stderr) == (f"{ANSWER} (stop)", "")


def test_the_benchmark_prints_its_table(checkpoint: str) -> None:
    run = subprocess.run(
        [sys.executable, str(FOLDER / "bench.py"), checkpoint, "--requests", "8", "--runs", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| x[\d.]+ \|", run.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 4, 8]
    assert all(int(figure) > 0 for row in rows for figure in row)


def test_each_program_and_flag_of_the_readme_is_one() -> None:
    lines = re.findall(r"python (examples/\S+/(\w+\.py).*)", (FOLDER / "README.md").read_text())
    assert {name for _, name in lines} == {"tiny.py", "app.py", "bench.py"}
    for line, name in lines:
        assert (FOLDER.parent.parent / line.split()[0]).exists(), line
        source = (FOLDER / name).read_text()
        assert [flag for flag in re.findall(r"--[a-z-]+", line) if f'"{flag}"' not in source] == []
