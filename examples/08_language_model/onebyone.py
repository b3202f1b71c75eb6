"""A model that writes each text by itself, with transformers' own `generate`."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from threading import Event, Thread
from typing import Any

import torch
from generation import Generation, usage
from language import LanguageModel
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from modelserve import Limits


class OneByOne(LanguageModel):
    """Write each text by a `generate` of its own, in a thread."""

    limits = Limits(concurrency=4)  # more at once only make each other slow

    def predict(self, generation: Generation) -> Generator[str, None, None]:
        pieces = Pieces(self.tokenizer)
        has_left = Event()
        thread = Thread(target=self.generate, args=(generation, pieces, has_left))
        thread.start()
        try:
            yield from filter(None, pieces)
        finally:  # the client may have left
            has_left.set()
            thread.join()
        if pieces.error is not None:
            raise pieces.error

    def chat(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.choices(self.of_chat(request))

    def complete(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.choices(self.of_completion(request))

    def choices(self, generations: Sequence[Generation]) -> Iterator[dict[str, Any]]:
        """Write one text after the other, each as a choice."""
        for index, generation in enumerate(generations):
            with closing(self.predict(generation)) as pieces:
                for piece in pieces:
                    yield {"index": index, "content": piece}
            yield {"index": index, "finish_reason": generation.finish_reason}
        yield {"usage": usage(generations)}

    def generate(self, generation: Generation, pieces: "Pieces", has_left: Event) -> None:
        prompt = torch.tensor([generation.prompt], device=self.device)
        try:
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=generation.limit,
                do_sample=False,  # `Drawn` draws
                logits_processor=LogitsProcessorList([Drawn(generation)]),
                stopping_criteria=StoppingCriteriaList([Written(generation, pieces, has_left)]),
                streamer=pieces,
            )
        except Exception as exc:
            pieces.fail(exc)


class Pieces(TextIteratorStreamer):
    """Hand pieces of text to another thread.

    They are those of `Written`. By itself this would keep back what has no space after it, and
    would know nothing of stop strings.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.error: Exception | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take no tokens: they come before or after `Written` has had them, by version."""

    def end(self) -> None:
        self.on_finalized_text("", stream_end=True)

    def fail(self, error: Exception) -> None:
        """Let the reader raise what `generate` has raised; it would wait for ever."""
        self.error = error
        self.end()


class Written(StoppingCriteria):
    """Take each token; end the text at a stop string, and when nobody reads it any more."""

    def __init__(self, generation: Generation, pieces: Pieces, has_left: Event) -> None:
        self.generation = generation
        self.pieces = pieces
        self.has_left = has_left

    def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
        if self.generation.finish_reason is None:
            self.pieces.on_finalized_text(self.generation.add(int(input_ids[0, -1])))
        ends = self.has_left.is_set() or self.generation.finish_reason is not None
        return torch.full((1,), ends, dtype=torch.bool, device=input_ids.device)


class Drawn(LogitsProcessor):
    """Leave only the token that has been drawn.

    `generate` draws from the one generator of random numbers that all requests share, so that a
    seed would count for nothing.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        token = self.generation.pick(scores[0])
        return torch.full_like(scores, float("-inf")).index_fill_(
            1, torch.tensor([token], device=scores.device), 0.0
        )
