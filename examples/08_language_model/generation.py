"""One text that is being written: what was asked for, and how far it has come.

The same for both models of this example. Nothing in this file is about serving.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from modelserve import InvalidInput

UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character
MOST_TOKENS = 1024  # where the request does not say
LEAST_TEMPERATURE = 1e-5  # below it the likeliest token is as good as certain


@dataclass(frozen=True)
class Options:
    """What a client may ask for, under OpenAI's names. Raises InvalidInput.

    Attributes:
        max_tokens: None for as many as the context has room for, up to 1024.
        temperature: 0 takes the likeliest token.
        top_p: Draws among the likeliest tokens that together have this probability.
        seed: The same seed draws the same tokens; None draws others each time.
        stop: The text ends before the first of these.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Options":
        """Read what a document has; others of its members are for others."""
        given = {name: value for name, value in document.items() if value is not None}
        if "max_completion_tokens" in given:  # its newer name
            given["max_tokens"] = given["max_completion_tokens"]
        stop = given.get("stop", ())
        given["stop"] = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
        return cls(**{name: given[name] for name in cls.__match_args__ if name in given})

    def for_choice(self, number: int) -> "Options":
        """Return the options of another choice, which has a seed of its own."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % (1 << 63))

    def __post_init__(self) -> None:
        require(self.max_tokens is None or is_whole(self.max_tokens, 1), "max_tokens", "1 or more")
        require(is_number(self.temperature, 0, 5), "temperature", "a number from 0 to 5")
        require(is_number(self.top_p, 0, 1), "top_p", "a number from 0 to 1")
        require(
            self.seed is None or is_whole(self.seed, -(1 << 63), (1 << 63) - 1),
            "seed",
            "a whole number of 64 bits",
        )
        stops = all(isinstance(text, str) and text for text in self.stop)
        require(stops, "stop", "a text or a list of texts")


class Text:
    """Turn tokens into pieces of text, each as soon as nothing that follows can change it.

    A piece never ends in the middle of a character, and never has the beginning of a stop string
    that may yet be completed.

    Args:
        context: The tokens before the first, which decide whether it begins with a space.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens = list(context[-4:])
        self._start = 0  # the tokens from here up to `_read` are decoded again, for their spaces
        self._read = len(self._tokens)
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Return the text that is certain with one token more."""
        self._tokens.append(token)
        known, text = self._decode(self._start, self._read), self._decode(self._start, None)
        if text.endswith(UNFINISHED) or len(text) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return self._until_stop(text[len(known) :])

    def end(self) -> str:
        """Return what was held back, without a character that has only begun."""
        known, text = self._decode(self._start, self._read), self._decode(self._start, None)
        piece = self._until_stop(text[len(known) :].rstrip(UNFINISHED))
        rest = "" if self.is_stopped else self._held
        self._held = ""
        return piece + rest

    def _decode(self, start: int, stop: int | None) -> str:
        tokens = self._tokens[start:stop]
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _until_stop(self, piece: str) -> str:
        text = self._held + piece
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop string."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


class Generation:
    """One text that is being written.

    Attributes:
        prompt: Its tokens.
        count: How many tokens have been written.
        last: The last one of the prompt, or of those written.
        finish_reason: "stop" or "length" once it is complete.
    """

    def __init__(
        self, tokenizer: Any, ends: frozenset[int], prompt: list[int], limit: int, options: Options
    ) -> None:
        self.prompt = prompt
        self.limit = limit
        self.count = 0
        self.last = prompt[-1]
        self.finish_reason: str | None = None
        self._ends = ends
        self._options = options
        self._text = Text(tokenizer, prompt, options.stop)
        self._chance = torch.Generator()
        if options.seed is not None:
            self._chance.manual_seed(options.seed % (1 << 63))
        else:
            self._chance.seed()

    def pick(self, logits: torch.Tensor) -> int:
        """Choose the next token; `logits` is one row."""
        temperature = self._options.temperature
        if temperature < LEAST_TEMPERATURE:
            return int(logits.argmax())
        logits = logits.float().cpu()
        chances = torch.softmax((logits - logits.max()) / temperature, -1)
        if self._options.top_p < 1:
            chances, tokens = chances.sort(descending=True)
            chances[chances.cumsum(-1) - chances > self._options.top_p] = 0
            return int(tokens[torch.multinomial(chances, 1, generator=self._chance)])
        return int(torch.multinomial(chances, 1, generator=self._chance))

    def add(self, token: int) -> str:
        """Take the next token; return the text that is certain now, all of it at the end."""
        self.count += 1
        self.last = token
        if token in self._ends:
            self.finish_reason = "stop"
            return self._text.end()
        piece = self._text.add(token)
        if not self._text.is_stopped and self.count >= self.limit:
            self.finish_reason = "length"
            piece += self._text.end()
        if self._text.is_stopped:
            self.finish_reason = "stop"
        return piece


def usage(generations: Sequence[Generation]) -> dict[str, int]:
    """Count tokens as OpenAI does: those of a prompt once, however many texts go on with it."""
    prompts = {id(generation.prompt): len(generation.prompt) for generation in generations}
    counts = {
        "prompt_tokens": sum(prompts.values()),
        "completion_tokens": sum(generation.count for generation in generations),
    }
    return counts | {"total_tokens": sum(counts.values())}


def is_whole(value: object, least: int, most: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, least: float, most: float) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and least <= value <= most


def require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise InvalidInput(f"{name} must be {rule}.")
