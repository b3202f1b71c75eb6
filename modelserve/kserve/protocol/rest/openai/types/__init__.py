"""The documents of OpenAI's protocol under KServe's names: vllm's classes if it is installed.

Else they are JSON objects with members as attributes, `Document`.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Final, TypeAlias

from modelserve.kserve.protocol.rest.openai.types.document import Document

__all__ = [
    "ChatCompletion",
    "ChatCompletionAssistantMessageParam",
    "ChatCompletionChoice",
    "ChatCompletionChunk",
    "ChatCompletionContentPartParam",
    "ChatCompletionContentPartTextParam",
    "ChatCompletionLogProb",
    "ChatCompletionLogProbs",
    "ChatCompletionLogProbsContent",
    "ChatCompletionMessageParam",
    "ChatCompletionRequest",
    "ChatCompletionToolMessageParam",
    "ChatMessage",
    "ChoiceDelta",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionLogProbs",
    "CompletionRequest",
    "ConversationMessage",
    "CustomChatCompletionMessageParam",
    "Embedding",
    "EmbeddingCompletionRequest",
    "EmbeddingRequest",
    "EmbeddingResponseData",
    "Error",
    "ErrorResponse",
    "Model",
    "ModelList",
    "Rerank",
    "RerankRequest",
    "UsageInfo",
]


class ChatCompletion(Document):
    """A whole answer to a chat."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "chat.completion"}


class ChatCompletionChoice(Document):
    """One of the answers to a chat."""


class ChatCompletionChunk(Document):
    """A part of a streamed answer to a chat."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "chat.completion.chunk"}


class ChatCompletionLogProb(Document):
    """The log probability of a token."""


class ChatCompletionLogProbs(Document):
    """The log probabilities of an answer."""


class ChatCompletionLogProbsContent(Document):
    """The log probabilities at the place of one token."""


class ChatCompletionRequest(Document):
    """A request for the next message of a chat."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "n": 1,
        "stream": False,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "top_logprobs": 0,
    }


class ChatMessage(Document):
    """A message of a whole answer."""


class ChoiceDelta(Document):
    """What a part of a streamed answer adds to a message."""


class ChunkChoice(Document):
    """One of the answers, in a part of a stream."""


class Completion(Document):
    """A whole completion of a text."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "text_completion"}


class CompletionChoice(Document):
    """One of the completions."""


class CompletionChunk(Document):
    """A part of a streamed completion."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "text_completion"}


class CompletionChunkChoice(Document):
    """One of the completions, in a part of a stream."""


class CompletionLogProbs(Document):
    """The log probabilities of a completion."""


class CompletionRequest(Document):
    """A request to complete a text."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "n": 1,
        "stream": False,
        "echo": False,
        "max_tokens": 16,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }


class Embedding(Document):
    """The embeddings of some texts."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "list"}


class EmbeddingCompletionRequest(Document):
    """A request for the embeddings of some texts."""

    defaults: ClassVar[Mapping[str, Any]] = {"encoding_format": "float"}


class EmbeddingResponseData(Document):
    """One embedding."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "embedding"}


class Error(Document):
    """What has gone wrong: message, type, param and code, which is the status as text."""


class ErrorResponse(Document):
    """An error, as the answer to a request."""


class Model(Document):
    """A model, as lists of models have it."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "model"}


class ModelList(Document):
    """A list of models."""

    defaults: ClassVar[Mapping[str, Any]] = {"object": "list"}


class Rerank(Document):
    """Documents by their relevance."""


class RerankRequest(Document):
    """A request for the relevance of documents; no endpoint takes it here."""


class UsageInfo(Document):
    """How many tokens were read and written."""


EmbeddingRequest: TypeAlias = EmbeddingCompletionRequest
# Messages, and their parts, are plain JSON.
ChatCompletionAssistantMessageParam: TypeAlias = dict[str, Any]
ChatCompletionContentPartParam: TypeAlias = dict[str, Any]
ChatCompletionContentPartTextParam: TypeAlias = dict[str, Any]
ChatCompletionMessageParam: TypeAlias = dict[str, Any]
ChatCompletionToolMessageParam: TypeAlias = dict[str, Any]
ConversationMessage: TypeAlias = dict[str, Any]
CustomChatCompletionMessageParam: TypeAlias = dict[str, Any]


# vllm's module and name for each of ours.
_VLLMS: Final = {
    "openai.chat_completion.protocol": {
        "ChatCompletion": "ChatCompletionResponse",
        "ChatCompletionChoice": "ChatCompletionResponseChoice",
        "ChatCompletionChunk": "ChatCompletionStreamResponse",
        "ChatCompletionLogProb": "ChatCompletionLogProb",
        "ChatCompletionLogProbs": "ChatCompletionLogProbs",
        "ChatCompletionLogProbsContent": "ChatCompletionLogProbsContent",
        "ChatCompletionRequest": "ChatCompletionRequest",
        "ChatMessage": "ChatMessage",
        "ChunkChoice": "ChatCompletionResponseStreamChoice",
    },
    "openai.completion.protocol": {
        "Completion": "CompletionResponse",
        "CompletionChoice": "CompletionResponseChoice",
        "CompletionChunk": "CompletionStreamResponse",
        "CompletionChunkChoice": "CompletionResponseStreamChoice",
        "CompletionLogProbs": "CompletionLogProbs",
        "CompletionRequest": "CompletionRequest",
    },
    "openai.engine.protocol": {
        "ChoiceDelta": "DeltaMessage",
        "Model": "ModelCard",
        "ModelList": "ModelList",
        "UsageInfo": "UsageInfo",
    },
    "pooling.embed.protocol": {
        "Embedding": "EmbeddingResponse",
        "EmbeddingCompletionRequest": "EmbeddingCompletionRequest",
        "EmbeddingRequest": "EmbeddingRequest",
        "EmbeddingResponseData": "EmbeddingResponseData",
    },
    "pooling.scoring.protocol": {"Rerank": "RerankResponse", "RerankRequest": "RerankRequest"},
    "chat_utils": {
        "ChatCompletionAssistantMessageParam": "ChatCompletionAssistantMessageParam",
        "ChatCompletionContentPartParam": "ChatCompletionContentPartParam",
        "ChatCompletionContentPartTextParam": "ChatCompletionContentPartTextParam",
        "ChatCompletionMessageParam": "ChatCompletionMessageParam",
        "ChatCompletionToolMessageParam": "ChatCompletionToolMessageParam",
        "ConversationMessage": "ConversationMessage",
        "CustomChatCompletionMessageParam": "CustomChatCompletionMessageParam",
    },
}


def _vllms() -> dict[str, Any]:
    """Return vllm's classes by our names; none where one is missing, as in other versions."""
    found: dict[str, Any] = {}
    try:
        for path, names in _VLLMS.items():
            module = import_module(f"vllm.entrypoints.{path}")
            found |= {ours: getattr(module, theirs) for ours, theirs in names.items()}
    except (ImportError, AttributeError):
        return {}
    return found


if find_spec("vllm") is not None:
    globals().update(_vllms())
