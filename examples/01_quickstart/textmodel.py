"""A small language model that learns, in under a second, from text that comes with Python.

The text is the language reference as `help()` shows it, cut down to plain sentences. The model
counts which words followed each run of up to four words, and mixes the counts of long and short
runs into one distribution over the next word. With so little text it often recites. Another
version of Python has another text. Nothing in this file is about serving.
"""

import functools
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pydoc_data.topics import topics

CONTEXT = 4  # how many words the model looks back
DOUBT = 0.3  # the weight of shorter runs: with more it invents more, with less it recites more
STRANGER = "<stranger>"  # any word that the text does not have, or has only once

MARKUP = [  # what to replace in a paragraph, in this order
    (r"^( *)(?![ \d])[^\n]*\n\1   (?=\S)", ""),  # a term above its indented explanation
    (r"(?<=\w-)\n\s*", ""),  # a word broken at its hyphen
    (r"\s+", " "),
    (r"^ ?(?:[*•-] |\d+\. )?", ""),  # a list's bullet
    (r"\*\*?([^*]+)\*\*?", r"\1"),  # emphasis
    (r"^[^:]{4,40}: (?=[A-Z])", ""),  # "Note:", "Changed in version 3.9:"
    (r"[\"“]+'?([\w.]+)(?:\(\))?'?[\"”]+", r"\1"),  # a name in quotes
    (r" ?\([^()]*\)| ?\[\d+\]", ""),  # an aside, a footnote's number
    ("’", "'"),  # noqa: RUF001
]
SENTENCE_END = re.compile(r"(?<=[.?!]) (?=[A-Z])")
PROSE = re.compile(r"[A-Z][\w,;:'. -]{24,}[.?!]", re.ASCII)
NOT_PROSE = re.compile(
    r"\d| \.|(?<!')\b(?:[b-z]|pep|auditing|see|sections?|chapters?|e\.g|i\.e|etc)\b", re.IGNORECASE
)
TOKEN = re.compile(r"\w+(?:[.'-]\w+)*|[.,;:?!]")


def paragraphs() -> Iterator[str]:
    """Yield the paragraphs of the language reference without markup and line breaks."""
    for text in re.split(r"\n\s*\n", "\n\n".join(topics.values())):
        for pattern, replacement in MARKUP:
            text = re.sub(pattern, replacement, text)
        yield text


def sentences() -> list[str]:
    """List the sentences that are plain prose, each once, in the order of the text."""
    parts = chain.from_iterable(SENTENCE_END.split(text) for text in paragraphs())
    prose = (part for part in parts if PROSE.fullmatch(part) and not NOT_PROSE.search(part))
    return list(dict.fromkeys(prose))


class TextModel:
    """Learn from sentences what is likely to follow a text, and write it."""

    def __init__(self, text: list[str]) -> None:
        lines = [TOKEN.findall(sentence) for sentence in text]
        self.spelling = usual_spelling(lines)
        self.followers: dict[tuple[str, ...], Counter[str]] = {}
        self._learn([".", *(self.spelling[word.lower()] for word in chain.from_iterable(lines))])

    def _learn(self, words: list[str]) -> None:
        counts = Counter(words)
        masked = [word if counts[word] > 1 else STRANGER for word in words]
        for end, word in enumerate(words):
            for start in range(max(0, end - CONTEXT), end):
                for run in dict.fromkeys((tuple(words[start:end]), tuple(masked[start:end]))):
                    self.followers.setdefault(run, Counter())[word] += 1

    def read(self, prompt: str) -> list[str]:
        """Turn the end of a prompt into words of the model, after a full stop."""
        words = TOKEN.findall(prompt[-500:])
        return [".", *(self.spelling.get(word.lower(), STRANGER) for word in words)]

    def following(self, words: list[str]) -> dict[str, float]:
        """Return each word that may follow `words`, with its probability; they add up to 1."""
        chances: dict[str, float] = {}
        left = 1.0
        for size in range(min(CONTEXT, len(words)), 0, -1):
            seen = self.followers.get(tuple(words[-size:]))
            if not seen:
                continue
            doubt = DOUBT * len(seen) if size > 1 else 0
            share = left / (seen.total() + doubt)
            for word, count in seen.items():
                chances[word] = chances.get(word, 0) + share * count
            left = share * doubt
        return chances

    def write(
        self, prompt: str, max_tokens: int, *, temperature: float, seed: int
    ) -> Iterator[str]:
        """Continue a prompt, one word or punctuation mark at a time."""
        chance = random.Random(seed)
        words = self.read(prompt)
        space = " " if prompt and not prompt[-1].isspace() else ""
        for _ in range(max_tokens):
            words.append(pick(self.following(words), temperature, chance))
            yield piece(words[-1], after=words[-2], space=space)
            space = " "


def usual_spelling(lines: list[list[str]]) -> dict[str, str]:
    """Map each word in lower case to its usual spelling inside a sentence."""
    inside = Counter(chain.from_iterable(line[1:] for line in lines))
    spelling = {line[0].lower(): line[0] for line in lines}
    return spelling | {word.lower(): word for word, _ in reversed(inside.most_common())}


def pick(chances: dict[str, float], temperature: float, chance: random.Random) -> str:
    """Choose a word: the likeliest at temperature 0, by its probability at 1."""
    likeliest = max(chances, key=chances.__getitem__)
    if temperature == 0:
        return likeliest
    weights = [(p / chances[likeliest]) ** (1 / temperature) for p in chances.values()]
    return chance.choices(list(chances), weights)[0]


def piece(word: str, *, after: str, space: str) -> str:
    """Write a word as in a text: with its space, and with a capital after a full stop."""
    if word in ".,;:?!":
        return word
    return space + (word[0].upper() + word[1:] if after in ".?!" else word)


_training = threading.Lock()


def trained() -> TextModel:
    """Return the one model of this process, trained by the first call."""
    with _training:
        return _train()


@functools.cache
def _train() -> TextModel:
    return TextModel(sentences())
