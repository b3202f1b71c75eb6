"""Make a small Llama from text that comes with Python, where there is no checkpoint to download.

It learns, in half a minute, 200 sentences of the language reference as `help()` shows it: to go on with
one, and, as a chat, to answer its beginning with its end. Mostly it recites. Nothing in this file is
about serving.

    python examples/08_language_model/tiny.py tiny-llama

`--width`, `--layers` and `--steps 0` make a model of any size that has learned nothing, to measure
how fast one of that size is.
"""

import argparse
import random
import re
from collections.abc import Iterable
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROSE = re.compile(r"[A-Z][a-z]*(?:,? [A-Za-z'-]+){5,30}\.")
CONTEXT = 256
# An answer whose characters are several tokens each.
GREETING = ("Hello!", "Grüße, 世界! 🙂")


def sentences() -> list[str]:
    """List the sentences of the language reference that are plain prose, each once."""
    text = re.sub(r"\s+", " ", re.sub(r"[*`\"]", "", " ".join(topics.values())))
    return list(dict.fromkeys(PROSE.findall(text)))


def tokenizer_for(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of bytes: any text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def model_for(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    """Make a model that has learned nothing."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def examples(texts: list[str], chance: random.Random) -> list[str]:
    """Return each text as it is, and as a chat in which the answer is its end."""
    chats = [chat(*GREETING) for _ in range(len(texts) // 20)]
    for text in texts:
        words = text.split(" ")
        asked = chance.randint(2, len(words) - 2)
        chats.append(chat(" ".join(words[:asked]), " ".join(words[asked:])))
    return [*(f"{text}<|end|>" for text in texts), *chats]


def chat(question: str, answer: str) -> str:
    return f"<|user|>{question}<|end|><|assistant|>{answer}<|end|>"


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], steps: int
) -> float:
    """Let a model learn texts; return the loss at the end."""
    chance = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 1))
    model.train()
    loss = torch.tensor(float("inf"))
    for _ in range(steps):
        batch = tokenizer(
            chance.sample(examples(texts, chance), 16), padding=True, return_tensors="pt"
        )
        batch = batch.to(model.device)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


def make(
    folder: str, *, width: int = 128, layers: int = 2, steps: int = 400, count: int = 200
) -> float:
    """Write a checkpoint that has learned `count` sentences; return its loss at the end."""
    torch.manual_seed(1)
    texts = sentences()[:count]
    tokenizer = tokenizer_for(texts)
    tokenizer.pad_token = tokenizer.eos_token
    model = model_for(tokenizer, width, layers)
    loss = train(model, tokenizer, texts, steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--width", type=int, default=128, help="a multiple of 64 (default 128)")
    parser.add_argument("--layers", type=int, default=2, help="default 2")
    parser.add_argument("--steps", type=int, default=400, help="of training (default 400)")
    options = parser.parse_args()
    loss = make(options.folder, width=options.width, layers=options.layers, steps=options.steps)
    print(f"{options.folder}: loss {loss:.2f}" if options.steps else options.folder)
