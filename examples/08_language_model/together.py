"""A model that writes many texts at once: each step is one forward pass for all of them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from inspect import signature
from typing import Any

import torch
from generation import Generation, usage
from language import LanguageModel
from transformers import DynamicCache

from modelserve import Slot, Stepping

Past = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer: 1, heads, length, _


class Together(LanguageModel):
    """Write the next token of all texts in one forward pass; they begin and end at any step.

    The first step of a text, over its prompt, is its own. After that the keys and values of all
    stand in one tensor a layer, filled up on the left; it is taken apart when a text comes or goes.
    """

    stepping = Stepping(max_active=8)

    def load(self) -> bool:
        self.batch: Batch | None = None
        super().load()
        parameters = signature(self.model.forward).parameters
        self.takes_cache = "cache" if "cache" in parameters else "past_key_values"  # its older name
        return True

    # `def` hooks and steps run in the model's own thread, so that none needs a lock.

    def chat(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        return self.choices(self.of_chat(request))

    def complete(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        return self.choices(self.of_completion(request))

    async def choices(self, generations: Sequence[Generation]) -> AsyncIterator[dict[str, Any]]:
        """Write one text after the other, each as a choice."""
        for index, generation in enumerate(generations):
            async with aclosing(await self.predict(generation)) as pieces:
                async for piece in pieces:
                    yield {"index": index, "content": piece}
            yield {"index": index, "finish_reason": generation.finish_reason}
        yield {"usage": usage(generations)}

    @torch.inference_mode()
    def join(self, slot: Slot) -> None:
        prompt = torch.tensor([slot.payload.prompt], device=self.device)
        cache = DynamicCache()
        logits = self.forward(prompt, cache, logits_to_keep=1)
        slot.state = [(layer.keys, layer.values) for layer in cache.layers]
        write(slot, logits[0])

    @torch.inference_mode()
    def step(self, active: list[Slot]) -> None:
        if self.batch is None or self.batch.slots != active:
            self.take_apart()
            self.batch = Batch(list(active))
        batch, self.batch = self.batch, None  # if it fails, its tensors are good for nothing
        logits = self.forward(batch.next_tokens(), batch.cache, **batch.places())
        self.batch = batch
        for slot, row in zip(active, logits, strict=True):
            write(slot, row)

    @torch.inference_mode()
    def leave(self, slot: Slot) -> None:
        if self.batch is not None and slot in self.batch.slots:
            self.take_apart()
        slot.state = None

    def forward(self, tokens: torch.Tensor, cache: DynamicCache, **others: Any) -> torch.Tensor:
        """Return the logits after the last of the tokens, which the cache takes in."""
        arguments = {self.takes_cache: cache, "use_cache": True, **others}
        logits: torch.Tensor = self.model(tokens, **arguments).logits[:, -1]
        return logits.cpu()

    def take_apart(self) -> None:
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.take_apart()


def write(slot: Slot, logits: torch.Tensor) -> None:
    """Write the next token of a slot."""
    generation: Generation = slot.payload
    piece = generation.add(generation.pick(logits))
    if piece:
        slot.put(piece)
    if generation.finish_reason is not None:
        slot.end()


class Batch:
    """The keys and values of several slots, in one cache."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        pasts: list[Past] = [slot.state for slot in slots]
        lengths = [past[0][0].shape[-2] for past in pasts]
        device = pasts[0][0][0].device
        self.cache = DynamicCache()
        for number, layer in enumerate(zip(*pasts, strict=True)):
            keys, values = zip(*layer, strict=True)
            self.cache.update(joined(keys, max(lengths)), joined(values, max(lengths)), number)
        places = torch.arange(max(lengths), device=device)
        starts = max(lengths) - torch.tensor(lengths, device=device)
        self.mask = (places >= starts[:, None]).long()

    def next_tokens(self) -> torch.Tensor:
        return torch.tensor([[slot.payload.last] for slot in self.slots], device=self.mask.device)

    def places(self) -> dict[str, torch.Tensor]:
        """Make room for a token of each slot; return where it stands and what it may look at."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return {"attention_mask": self.mask, "position_ids": self.mask.sum(1, keepdim=True) - 1}

    def take_apart(self) -> None:
        """Give each slot its own keys and values."""
        for row, (slot, length) in enumerate(
            zip(self.slots, self.mask.sum(1).tolist(), strict=True)
        ):
            slot.state = [
                (part(layer.keys, row, length), part(layer.values, row, length))
                for layer in self.cache.layers
            ]


def joined(tensors: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Return tensors as one, each filled up on the left."""
    pad = torch.nn.functional.pad
    return torch.cat([pad(tensor, (0, 0, length - tensor.shape[-2], 0)) for tensor in tensors])


def part(tensor: torch.Tensor, row: int, length: int) -> torch.Tensor:
    return tensor[row : row + 1, :, -length:].clone()
