"""Make up words: an application that uvicorn serves on one machine, and Ray Serve on many.

Shows: nothing of Ray in the models; limits that fit both. Leaves out: a model of any size. This one
learns which letters follow one another from Python's own documentation, and `pause` stands in for
the time that a larger one takes for each word.

    pip install 'modelserve[inputs]'
    cd examples/12_ray_serve && uvicorn app:app --port 8000

    curl -N localhost:8000/v1/models/writer:predict -d '{"instances": [{"words": 10}]}'

serve_app.py serves the same on Ray; README.md says what to set there, and what it costs.
"""

import os
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import anyio

from modelserve import Limits, Model, ModelServer
from modelserve.errors import InvalidInput

TIMEOUT = 60.0  # seconds that a request, a stream too, may take


@dataclass
class Wish:
    """What a client may ask for; the same wish gives the same words."""

    words: int = 10
    pause: float = 0.1  # seconds before each word
    seed: int = 0


class Writer(Model):
    """Make up words, one at a time."""

    def load(self) -> bool:
        self.followers = learned()
        return True

    async def predict(self, instances: list[Wish], response_headers: Any) -> AsyncIterator[str]:
        response_headers["x-process"] = str(os.getpid())
        async for word in self.write(instances):
            yield word

    async def write(self, wishes: list[Wish]) -> AsyncIterator[str]:
        for wish in wishes:
            if not 0 <= wish.words <= 10_000:
                raise InvalidInput(f"words must be 0 to 10000, not {wish.words}")
            chance = random.Random(wish.seed)
            for _ in range(wish.words):
                await anyio.sleep(wish.pause)
                yield "".join(letters(self.followers, chance)) + " "


def learned() -> dict[str, str]:
    """Return which letters follow each two, as often as they do; a space is a word's end."""
    followers: defaultdict[str, str] = defaultdict(str)
    for word in sorted(set(re.findall(r"[a-z]{3,}", " ".join(topics.values())))):
        text = f"  {word} "
        for start in range(len(text) - 2):
            followers[text[start : start + 2]] += text[start + 2]
    return dict(followers)


def letters(followers: dict[str, str], chance: random.Random) -> Iterator[str]:
    """Yield the letters of one word."""
    before = "  "
    while (letter := chance.choice(followers[before])) != " ":
        yield letter
        before = before[1] + letter


async def lengths(instances: list[str], response_headers: Any) -> list[int]:
    response_headers["x-process"] = str(os.getpid())
    return [len(text) for text in instances]


def build() -> ModelServer:
    """Return the application; each process of Ray's calls this."""
    app = ModelServer([Writer("writer")], limits=Limits(timeout=TIMEOUT))
    app.add_model(lengths, "lengths")
    return app


app = build()
