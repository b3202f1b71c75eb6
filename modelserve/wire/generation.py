"""What an answer of a language model says of itself, its text apart. Pure."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Generated", "Generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an answer in OpenAI's protocol says of itself, its text apart.

    Attributes:
        model: The model that the answer names.
        streams: The client has asked for a stream.
        id: The answer's id; None where it has none.
        input_tokens, output_tokens: As the hook has counted them; None where it has not.
        finish_reasons: Why each choice has ended.
    """

    model: str
    streams: bool = False
    id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()


class Generated(Protocol):
    """An answer that can say so."""

    def generation(self) -> Generation:
        """Return what is known so far."""
