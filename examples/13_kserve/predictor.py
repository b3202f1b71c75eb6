"""A custom predictor for KServe: it streams text from a model whose file KServe has fetched.

Shows: `load` reads what `STORAGE_URI` has put into /mnt/models; a model that is not ready until
then; one that streams. Leaves out: a model of any size. This one knows, for each word of text.txt,
the words that follow it there.

Beside its text, in the same folder and under the name model.py, this file is also what the
ServingRuntime of runtime.yaml serves.

    MODEL_DIR=examples/13_kserve modelserve examples/13_kserve/predictor.py
    curl -N localhost:8080/v1/models/writer:predict -d '{"instances": ["The request"]}'
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from modelserve import InvalidInput, Model, ModelServer, instances

FOLDER = Path(os.environ.get("MODEL_DIR", "/mnt/models"))
MOST_WORDS = 1_000_000


class Writer(Model):
    def load(self) -> None:
        words = (FOLDER / "text.txt").read_text().split()
        self.followers = defaultdict(list)
        for word, follower in zip(words, [*words[1:], words[0]], strict=True):
            self.followers[word].append(follower)

    def predict(self, payload: dict) -> Iterator[str]:
        found = instances(payload, str)
        if len(found) != 1:
            raise InvalidInput(f"the writer takes one instance a request, not {len(found)}.")
        return self.write(found[0].split(), read_count(payload))

    def write(self, words: list[str], count: int) -> Iterator[str]:
        word = words[-1] if words else "The"
        for _ in range(count):
            word = random.choice(self.followers.get(word) or list(self.followers))
            yield f" {word}"


def read_count(payload: dict) -> int:
    count = payload.get("max_words", 20)
    if not isinstance(count, int) or not 1 <= count <= MOST_WORDS:
        raise InvalidInput(f"max_words must be 1 to {MOST_WORDS}, not {count!r:.40}.")
    return count


app = ModelServer([Writer("writer")])
