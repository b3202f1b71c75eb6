"""Stream text from a model, and serve a second model beside it.

Shows: a model is a class with `load` and `predict`; an `async def predict` that yields is streamed
piece by piece; a `def predict` that returns is answered whole; `load` and any other `def` hook run
in a worker thread; `InvalidInput`, which `instances` raises too, is answered with 400 and its
sentence.

Leaves out: batching, limits, the V2 protocol, and a language model of any size. This one learns
from Python's own documentation (textmodel.py): nothing to download, and not much sense.

    modelserve examples/01_quickstart/app.py

    curl -N localhost:8080/v1/models/writer:predict \\
        -d '{"instances": [{"prompt": "The interpreter", "max_tokens": 60, "seed": 1}]}'
    curl localhost:8080/v1/models/next-word:predict -d '{"instances": ["the built-in"]}'
    curl localhost:8080/v1/chat/completions \\
        -d '{"model": "writer", "messages": [{"role": "user", "content": "The interpreter"}]}'

Or open http://localhost:8080 in a browser: a page to try both in, which begins with their `example`.

The writer's text comes as plain text. Add `-H "Accept: text/event-stream"` for server-sent events,
`application/x-ndjson` for one JSON string per line, `application/json` for one document.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from textmodel import trained

from modelserve import Model, ModelServer, instances
from modelserve.errors import InvalidInput


class Writer(Model):
    """Continue one prompt, one word or punctuation mark at a time.

    The model takes well under a millisecond per word. `delay`, in seconds, imitates a larger one,
    so that you can see the stream; set it to 0 for full speed.
    """

    example = {"instances": [{"prompt": "The interpreter", "max_tokens": 60, "seed": 1}]}

    def __init__(self, name: str, *, delay: float = 0.05) -> None:
        super().__init__(name)
        self.delay = delay

    def load(self) -> bool:
        self.text = trained()
        return True

    async def predict(self, payload: Any) -> AsyncIterator[str]:
        options = read_options(payload)
        for piece in self.text.write(
            options.prompt, options.max_tokens, temperature=options.temperature, seed=options.seed
        ):
            await anyio.sleep(self.delay)
            yield piece

    async def chat(self, request: dict[str, Any]) -> AsyncIterator[str | dict[str, Any]]:
        """Continue the last message; the model does not know what a conversation is."""
        options = chat_options(request)
        count = 0
        async for piece in self.predict({"instances": [options]}):
            count += 1
            yield piece
        usage = {
            "prompt_tokens": len(self.text.read(options["prompt"])),
            "completion_tokens": count,
        }
        yield {"finish_reason": "length", "usage": usage}  # it never comes to an end by itself


class NextWord(Model):
    """Return the five likeliest words after each text, with their probabilities."""

    example = {"instances": ["the built-in"]}

    def load(self) -> bool:
        self.text = trained()
        return True

    def predict(self, payload: Any) -> dict[str, list[dict[str, float]]]:
        return {"predictions": [self.likeliest(text) for text in instances(payload, str)]}

    def likeliest(self, text: str) -> dict[str, float]:
        chances = self.text.following(self.text.read(text))
        best = sorted(chances, key=chances.__getitem__, reverse=True)[:5]
        return {word: round(chances[word], 4) for word in best}


@dataclass(frozen=True)
class Options:
    """What a client may ask the writer for; the same options give the same text."""

    prompt: str = ""
    max_tokens: int = 40
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        length, heat, seed = self.max_tokens, self.temperature, self.seed
        require(isinstance(self.prompt, str), "prompt must be a string", got=self.prompt)
        require(
            is_whole(length) and 1 <= length <= 1000, "max_tokens must be 1 to 1000", got=length
        )
        number = is_whole(heat) or isinstance(heat, float)
        require(number and 0 <= heat <= 5, "temperature must be a number from 0 to 5", got=heat)
        require(is_whole(seed), "seed must be a whole number", got=seed)


def read_options(payload: Any) -> Options:
    """Read the one instance of a payload: an object with these fields, or only a prompt."""
    found = instances(payload)
    require(len(found) == 1, "the writer takes one instance a request", got=len(found))
    options = {"prompt": found[0]} if isinstance(found[0], str) else found[0]
    require(isinstance(options, dict), "an instance must be an object or a string", got=options)
    known = Options.__match_args__
    for name in options:
        require(name in known, f"a field must be one of {', '.join(known)}", got=name)
    return Options(**options)


def chat_options(request: dict[str, Any]) -> dict[str, Any]:
    """Read the document of a chat: its last message, and those of its members that are options."""
    require(request["messages"] != [], "messages must be a list of at least one", got=[])
    given = {name: value for name, value in request.items() if value is not None}
    given["prompt"] = request["messages"][-1].get("content")
    if "max_completion_tokens" in given:  # its newer name
        given["max_tokens"] = given["max_completion_tokens"]
    return {name: given[name] for name in Options.__match_args__ if name in given}


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require(holds: bool, rule: str, *, got: object) -> None:
    if not holds:
        raise InvalidInput(f"{rule}, not {got!r:.40}.")


app = ModelServer([Writer("writer"), NextWord("next-word")])
