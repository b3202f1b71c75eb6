"""What both models have in common: the checkpoint, and how requests are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from generation import MOST_TOKENS, Generation, Options, is_whole, require
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from modelserve import InvalidInput, Model


class LanguageModel(Model):
    """A causal language model of Hugging Face's.

    Args:
        name: What clients call it.
        checkpoint: A folder, or a name on the hub.
        device: "cpu", "cuda", "cuda:1", "mps".
    """

    def __init__(self, name: str, checkpoint: str, device: str = "cpu") -> None:
        super().__init__(name)
        self.checkpoint = checkpoint
        self.device = device

    def load(self) -> bool:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.checkpoint)
        # A tokenizer forgets at its first use how its texts were cut and filled up in training, and
        # must not be used by another thread meanwhile.
        self.tokenizer.encode("")
        # Few processors are fast at the half precision that most checkpoints are kept in.
        dtype = torch.float32 if self.device == "cpu" else "auto"
        model: Any = AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=dtype)
        self.model = model.to(self.device).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or [])
        config = self.model.config.get_text_config()
        known = getattr(config, "max_position_embeddings", None)
        self.context = int(known or self.tokenizer.model_max_length)
        # None of the checkpoint's own settings are left to `generate`: a request says how tokens are
        # drawn, and `Generation` knows where a text ends.
        self.model.generation_config = GenerationConfig()
        return True

    # -- what is asked for

    def preprocess(self, payload: Any) -> Generation:
        """Read what V1's predict, or generate, is given."""
        if isinstance(payload, dict) and "text_input" in payload:
            prompt, options = payload["text_input"], payload.get("parameters", {})
        else:
            prompt, options = prompt_and_options(payload)
        return self.generation(self.tokens(prompt), Options.of(options))

    def of_chat(self, request: dict[str, Any]) -> list[Generation]:
        """Return the texts that a chat asks for."""
        if not self.tokenizer.chat_template:
            raise InvalidInput("This model has no chat template; ask it for /v1/completions.")
        require(len(request["messages"]) > 0, "messages", "a list with at least one")
        messages = [{**message, "content": content_of(message)} for message in request["messages"]]
        for message in messages:
            require(isinstance(message.get("role"), str), "role of a message", "text")
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as exc:  # such as roles that do not alternate
            raise InvalidInput(f"The chat template refuses the messages: {exc}") from None
        tokens = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return self.generations([tokens], request)

    def of_completion(self, request: dict[str, Any]) -> list[Generation]:
        """Return the texts that a completion asks for, in the order of their choices."""
        prompt = request["prompt"]
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return self.generations([self.tokens(text) for text in prompts], request)

    def generations(
        self, prompts: Sequence[list[int]], request: Mapping[str, Any]
    ) -> list[Generation]:
        count = 1 if request.get("n") is None else request["n"]
        require(is_whole(count, 1, 8), "n", "1 to 8")
        for name in ("tools", "logprobs"):
            require(not request.get(name), name, "left out: this server has no such thing")
        options = Options.of(request)
        of_choice = [options if n == 0 else options.for_choice(n) for n in range(count)]
        return [self.generation(prompt, options) for prompt in prompts for options in of_choice]

    def generation(self, prompt: list[int], options: Options) -> Generation:
        room = self.context - len(prompt)
        wanted = options.max_tokens or min(MOST_TOKENS, max(room, 1))
        if wanted > room:
            raise InvalidInput(
                f"This model's context is {self.context} tokens: there is no room for"
                f" {len(prompt)} of the prompt and {wanted} more."
            )
        return Generation(self.tokenizer, self.ends, prompt, wanted, options)

    def tokens(self, prompt: str) -> list[int]:
        require(isinstance(prompt, str), "a prompt", "text")
        tokens: list[int] = self.tokenizer.encode(prompt, verbose=False)
        if not tokens:
            require(bool(self.ends), "a prompt", "text that is not empty")
            tokens = [min(self.ends)]  # what stands before a text that begins
        return tokens


def prompt_and_options(payload: Any) -> tuple[str, dict[str, Any]]:
    """Read the one instance of a V1 payload: a prompt, or an object with one and options."""
    instances = payload.get("instances") if isinstance(payload, dict) else None
    require(isinstance(instances, list) and len(instances) == 1, "instances", "a list of one")
    instance = instances[0]
    if isinstance(instance, dict):
        return instance.get("prompt"), instance
    return instance, {}


def content_of(message: dict[str, Any]) -> str:
    """Return the text of a message, which may be in parts."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    require(isinstance(content, str), "content of a message", "text, or a list of parts of text")
    return content


def name_of(checkpoint: str) -> str:
    """Return what a checkpoint is called without its folder or owner."""
    return Path(checkpoint).resolve().name
