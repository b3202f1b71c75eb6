import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelserve.errors import InvalidInput

FOLDER = Path(__file__).parent.parent / "examples" / "01_quickstart"


@pytest.fixture(scope="module")
def textmodel() -> Iterator[ModuleType]:
    """The example's model; its folder is on `sys.path`, as the loader puts it, while in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.delitem(sys.modules, "textmodel", raising=False)
        yield importlib.import_module("textmodel")
        sys.modules.pop("textmodel", None)


@pytest.fixture(scope="module")
def model(textmodel: ModuleType) -> Any:
    return textmodel.trained()


@pytest.fixture(scope="module")
def app(textmodel: ModuleType) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_app", FOLDER / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(model: Any, prompt: str, *, temperature: float = 0.7, seed: int = 1) -> str:
    return "".join(model.write(prompt, 30, temperature=temperature, seed=seed))


def test_corpus_is_plain_sentences(textmodel: ModuleType) -> None:
    text = textmodel.sentences()
    assert len(text) > 500
    assert len(set(text)) == len(text)
    assert not set('"`*()[]{}<>=|/\\#@’“”\n') & set("".join(text))  # noqa: RUF001
    assert all(line[0].isupper() and line[-1] in ".?!" for line in text)


@pytest.mark.slow
def test_training_happens_once(textmodel: ModuleType, model: Any) -> None:
    assert textmodel.trained() is model


@pytest.mark.parametrize("prompt", ["", ".", "the", "The class", "flurble", "((", "x" * 2000])
def test_distribution_adds_up_to_one(model: Any, prompt: str) -> None:
    chances = model.following(model.read(prompt))
    assert sum(chances.values()) == pytest.approx(1)
    assert min(chances.values()) > 0


def test_same_seed_same_text(model: Any) -> None:
    assert written(model, "The class") == written(model, "The class")


def test_other_seed_other_text(model: Any) -> None:
    assert len({written(model, "The class", seed=seed) for seed in range(10)}) > 3


@pytest.mark.slow
def test_text_does_not_depend_on_the_hash_seed() -> None:
    program = "import textmodel as t; print(*t.trained().write('The', 50, temperature=1, seed=3))"
    texts = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=FOLDER,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 100


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_max_tokens_is_the_number_of_pieces(model: Any, count: int) -> None:
    assert len(list(model.write("The", count, temperature=0.7, seed=1))) == count


def test_temperature_zero_is_greedy(model: Any) -> None:
    texts = {written(model, "The class", temperature=0, seed=seed) for seed in range(5)}
    chances = model.following(model.read("The class"))
    assert len(texts) == 1
    assert texts.pop().startswith(f" {max(chances, key=chances.get)}")


def test_lowest_temperature_is_greedy_too(model: Any) -> None:
    greedy = written(model, "The class", temperature=0)
    assert written(model, "The class", temperature=5e-324) == greedy


def test_temperature_one_draws_from_the_distribution(model: Any) -> None:
    chances = model.following(model.read("the class"))
    likeliest = max(chances, key=chances.get)
    drawn = [next(model.write("the class", 1, temperature=1, seed=n)) for n in range(2000)]
    assert drawn.count(f" {likeliest}") / 2000 == pytest.approx(chances[likeliest], abs=0.05)


def test_higher_temperature_is_more_varied(model: Any) -> None:
    def variety(temperature: float) -> int:
        return len({written(model, "The", temperature=temperature, seed=n)[:12] for n in range(40)})

    assert variety(0.1) < variety(2)


def test_prompt_conditions_the_first_word(model: Any) -> None:
    after_built = model.following(model.read("the built-in"))
    after_raises = model.following(model.read("raises a"))
    assert max(after_built, key=after_built.get) != max(after_raises, key=after_raises.get)


def test_prompt_is_read_whatever_its_case(model: Any) -> None:
    assert written(model, "the interpreter") == written(model, "THE Interpreter")


def test_unknown_words_are_continued(model: Any) -> None:
    assert len(written(model, "Flurble grobnik")) > 30


def test_pieces_join_to_the_spacing_of_prose(model: Any) -> None:
    for seed, prompt in itertools.product(range(20), ("", "The class", "Once upon a time.")):
        text = prompt + written(model, prompt, seed=seed)
        assert "  " not in text and " ." not in text and " ," not in text
        assert text[0].isupper()
        starts = [part[0] for part in text.split(". ") if part]
        assert not any(start.islower() for start in starts)


@pytest.mark.parametrize(("prompt", "space"), [("The class", " "), ("The class ", ""), ("", "")])
def test_first_piece_brings_the_space_that_is_missing(model: Any, prompt: str, space: str) -> None:
    first = next(
        piece
        for seed in range(100)
        if (piece := next(model.write(prompt, 1, temperature=1, seed=seed))) not in ".,;:?!"
    )
    assert first == space + first.strip()


def test_options_of_an_object(app: ModuleType) -> None:
    options = {"prompt": "The", "max_tokens": 3, "temperature": 0, "seed": 9}
    assert app.read_options({"instances": [options]}) == app.Options(**options)


def test_options_of_a_string(app: ModuleType) -> None:
    assert app.read_options({"instances": ["The"]}) == app.Options(prompt="The")


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"text", 'Expected a JSON object with "instances", not bytes'),
        ({"instances": "The"}, 'Expected "instances" to be a list'),
        ({"instances": []}, "the writer takes one instance a request, not 0."),
        ({"instances": ["a", "b"]}, "the writer takes one instance a request, not 2."),
        ({"instances": [5]}, "an instance must be an object or a string, not 5."),
    ],
)
def test_unusable_payload(app: ModuleType, payload: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        app.read_options(payload)
    assert caught.value.reason == sentence


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("prompt", None, "prompt must be a string, not None."),
        ("max_tokens", 0, "max_tokens must be 1 to 1000, not 0."),
        ("max_tokens", 1001, "max_tokens must be 1 to 1000, not 1001."),
        ("max_tokens", True, "max_tokens must be 1 to 1000, not True."),
        ("max_tokens", 2.5, "max_tokens must be 1 to 1000, not 2.5."),
        ("temperature", -1, "temperature must be a number from 0 to 5, not -1."),
        ("temperature", "hot", "temperature must be a number from 0 to 5, not 'hot'."),
        ("temperature", float("nan"), "temperature must be a number from 0 to 5, not nan."),
        ("seed", 1.5, "seed must be a whole number, not 1.5."),
        (
            "tokens",
            3,
            "a field must be one of prompt, max_tokens, temperature, seed, not 'tokens'.",
        ),
    ],
)
def test_unusable_field(app: ModuleType, field: str, value: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        app.read_options({"instances": [{field: value}]})
    assert caught.value.reason == sentence


def test_a_long_value_is_cut_in_the_sentence(app: ModuleType) -> None:
    with pytest.raises(InvalidInput) as caught:
        app.read_options({"instances": [{"prompt": ["x" * 10_000]}]})
    assert len(caught.value.reason) < 100


def test_next_word(app: ModuleType, model: Any) -> None:
    named = app.NextWord("next-word")
    named.load()
    answer = named.predict({"instances": ["the built-in", "raises a"]})["predictions"]
    assert [len(words) for words in answer] == [5, 5]
    for words in answer:
        assert list(words.values()) == sorted(words.values(), reverse=True)
        assert 0 < sum(words.values()) <= 1.001


def test_next_word_wants_strings(app: ModuleType) -> None:
    named = app.NextWord("next-word")
    named.load()
    with pytest.raises(InvalidInput, match=r"^Expected instances\[0\] to be a string$"):
        named.predict({"instances": [5]})


async def chatted(app: ModuleType, **request: Any) -> list[Any]:
    writer = app.Writer("writer", delay=0)
    writer.load()
    return [item async for item in writer.chat(request)]


@pytest.mark.anyio
async def test_a_chat_continues_the_last_message(app: ModuleType, model: Any) -> None:
    messages = [{"role": "user", "content": "no"}, {"role": "user", "content": "The class"}]
    options = {"max_completion_tokens": 5, "seed": 3, "temperature": None, "user": "u"}
    *pieces, end = await chatted(app, messages=messages, max_tokens=9, **options)
    assert pieces == list(model.write("The class", 5, temperature=0.7, seed=3))
    assert end["finish_reason"] == "length"
    assert end["usage"]["completion_tokens"] == 5


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages must be a list of at least one, not []."),
        ([{"role": "user"}], "prompt must be a string, not None."),
        ([{"role": "user", "content": [1]}], "prompt must be a string, not [1]."),
    ],
)
async def test_unusable_messages(app: ModuleType, messages: list[Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await chatted(app, messages=messages)
    assert caught.value.reason == sentence
