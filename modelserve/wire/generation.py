"""Metadata of a language model's answer. Pure."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Generated", "Generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Metadata of an answer in OpenAI's protocol.

    Attributes:
        model: The model that the answer names.
        streams: The client has asked for a stream.
        id: The answer's id; None if it has none.
        input_tokens, output_tokens: The hook's counts; None if it gives none.
        finish_reasons: Why each choice has ended.
    """

    model: str
    streams: bool = False
    id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()


class Generated(Protocol):
    """An answer with such metadata."""

    def generation(self) -> Generation:
        """Return the metadata so far."""
