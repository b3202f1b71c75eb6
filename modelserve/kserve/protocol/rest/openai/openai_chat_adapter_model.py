"""KServe's base class of models that answer chats by completing a text."""

from collections.abc import AsyncIterator
from typing import Any

from modelserve.errors import InvalidInput
from modelserve.kserve.protocol.rest.openai.openai_model import (
    ChatPrompt,
    OpenAIGenerativeModel,
    documents,
)
from modelserve.kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatCompletionLogProb,
    ChatCompletionLogProbs,
    ChatCompletionLogProbsContent,
    ChatMessage,
    ChoiceDelta,
    ChunkChoice,
    CompletionChunk,
    CompletionRequest,
)

__all__ = ["OpenAIChatAdapterModel"]

_SAME = (
    "model",
    "frequency_penalty",
    "logit_bias",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "temperature",
    "top_p",
    "user",
    "request_id",
)


class OpenAIChatAdapterModel(OpenAIGenerativeModel):
    """Answers chats by `create_completion`: override that and `apply_chat_template`."""

    def apply_chat_template(self, request: Any) -> ChatPrompt:
        """Convert the messages of a chat to a text."""
        raise InvalidInput(f"Model {self.name} does not support chat completions.")

    @classmethod
    def chat_completion_params_to_completion_params(cls, request: Any, prompt: str) -> Any:
        """Convert a request for a chat completion to one for a completion."""
        same = {name: getattr(request, name, None) for name in _SAME}
        told = {name: value for name, value in same.items() if value is not None}
        return CompletionRequest(
            prompt=prompt, logprobs=getattr(request, "top_logprobs", None) or None, **told
        )

    @classmethod
    def to_choice_logprobs(cls, logprobs: Any) -> Any:
        """Convert the log probabilities of a completion to those of a chat."""
        places = zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
        content = [
            ChatCompletionLogProbsContent(
                token=token,
                bytes=list(token.encode()),
                logprob=logprob,
                top_logprobs=[
                    ChatCompletionLogProb(
                        token=other, bytes=list(other.encode()), logprob=probability
                    )
                    for other, probability in (top or {}).items()
                ],
            )
            for token, logprob, top in places
        ]
        return ChatCompletionLogProbs(content=content)

    @classmethod
    def to_chat_completion_choice(cls, completion_choice: Any, role: str) -> Any:
        """Return a choice of a whole answer."""
        message = ChatMessage(role=role, content=completion_choice.text)
        return ChatCompletionChoice(message=message, **cls._of_choice(completion_choice))

    @classmethod
    def to_chat_completion_chunk_choice(cls, completion_choice: Any, role: str) -> Any:
        """Return a choice of a part of a stream."""
        delta = ChoiceDelta(role=role, content=completion_choice.text)
        return ChunkChoice(delta=delta, **cls._of_choice(completion_choice))

    @classmethod
    def completion_to_chat_completion(cls, completion: Any, role: str) -> Any:
        """Convert a completion to the whole answer of a chat."""
        choices = [cls.to_chat_completion_choice(c, role) for c in completion.choices[:1]]
        frame = cls._frame(completion)
        return ChatCompletion(choices=choices, usage=completion.usage, **frame)

    @classmethod
    def completion_to_chat_completion_chunk(cls, completion: Any, role: str) -> Any:
        """Convert a part of a completion to a part of a chat's answer."""
        choices = [cls.to_chat_completion_chunk_choice(c, role) for c in completion.choices[:1]]
        frame = cls._frame(completion)
        return ChatCompletionChunk(
            choices=choices, usage=getattr(completion, "usage", None), **frame
        )

    async def create_chat_completion(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Return the next message of a chat, by completing the chat's text."""
        if request.n not in (None, 1):
            raise InvalidInput("n != 1 is not supported")
        prompt = self.apply_chat_template(request)
        params = self.chat_completion_params_to_completion_params(request, prompt.prompt)
        result = await self.create_completion(params, raw_request)
        if hasattr(type(result), "__aiter__"):
            return self._chunks(result, prompt.response_role)
        if getattr(result, "error", None) is not None:
            return result
        return self.completion_to_chat_completion(result, prompt.response_role)

    async def _chunks(self, stream: Any, role: str) -> AsyncIterator[Any]:
        parts = documents(stream)
        try:
            async for part in parts:
                chunk = CompletionChunk.model_validate(part) if type(part) is dict else part
                yield self.completion_to_chat_completion_chunk(chunk, role)
        finally:
            await parts.aclose()  # type: ignore[attr-defined]

    @classmethod
    def _of_choice(cls, choice: Any) -> dict[str, Any]:
        logprobs = None if choice.logprobs is None else cls.to_choice_logprobs(choice.logprobs)
        return {"index": 0, "finish_reason": choice.finish_reason, "logprobs": logprobs}

    @staticmethod
    def _frame(completion: Any) -> dict[str, Any]:
        names = ("id", "created", "model", "system_fingerprint")
        told = {name: getattr(completion, name, None) for name in names}
        return {name: value for name, value in told.items() if value is not None}
