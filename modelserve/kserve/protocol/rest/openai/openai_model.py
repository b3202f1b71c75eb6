"""KServe's base classes for models of OpenAI's protocol."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from modelserve.errors import InvalidInput
from modelserve.kserve.model import Model
from modelserve.kserve.protocol.rest.openai.errors import OpenAIError
from modelserve.kserve.protocol.rest.openai.types import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingCompletionRequest,
)
from modelserve.protocols.completions import told_error
from modelserve.wire.decoders import EventReader, Failure
from modelserve.wire.json import to_json

__all__ = [
    "AsyncMappingIterator",
    "ChatCompletionRequest",
    "ChatPrompt",
    "CompletionRequest",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "documents",
]

_OF_THE_BODY: Final = frozenset({"content-length", "content-type"})


@dataclass(kw_only=True)
class ChatPrompt:
    """The text of a chat, and the role of its answer."""

    response_role: str = "assistant"
    prompt: str


class OpenAIModel(Model):
    """A model of OpenAI's protocol; it is ready from the start."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True


class OpenAIGenerativeModel(OpenAIModel):
    """Completes texts and chats: override `create_completion` and `create_chat_completion`.

    Each is given the request, with members as attributes; starlette's request; and a context with
    the `headers` and a `response` whose headers are sent. It returns a document, an `ErrorResponse`
    or an async generator of server-sent events as text, which need not end with `[DONE]`.
    """

    async def create_completion(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Complete a text."""
        raise InvalidInput(f"Model {self.name} does not support completions.")

    async def create_chat_completion(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Return the next message of a chat."""
        raise InvalidInput(f"Model {self.name} does not support chat completions.")

    async def complete(
        self, payload: Any, headers: Any = None, response_headers: Any = None
    ) -> Any:
        """Answer a request for a completion."""
        request = _request(CompletionRequest, payload)
        return await _answer(self.create_completion, request, payload, headers, response_headers)

    async def chat(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer a request for a chat completion."""
        request = _request(ChatCompletionRequest, payload)
        create = self.create_chat_completion
        return await _answer(create, request, payload, headers, response_headers)


class OpenAIEncoderModel(OpenAIModel):
    """Embeds texts: override `create_embedding`. There is no endpoint for `create_rerank` here."""

    async def create_embedding(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Return the embeddings of some texts."""
        raise InvalidInput(f"Model {self.name} does not support embeddings.")

    async def create_rerank(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Order documents by their relevance."""
        raise InvalidInput(f"Model {self.name} does not support reranking.")

    async def embed(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer a request for embeddings."""
        request = _request(EmbeddingCompletionRequest, payload)
        return await _answer(self.create_embedding, request, payload, headers, response_headers)


class AsyncMappingIterator:
    """An async iterator that applies a function to another one's items.

    Args:
        iterator: The other iterator.
        mapper: The function.
        skip_none: Leave out what becomes None.
        close: Called, and awaited if it is async, once it ends or fails, or is closed.
    """

    def __init__(
        self,
        iterator: AsyncIterator[Any],
        mapper: Callable[[Any], Any] = lambda item: item,
        skip_none: bool = True,
        close: Callable[[], Any] | None = None,
    ) -> None:
        self.iterator = iterator
        self.mapper = mapper
        self.skip_none = skip_none
        self.close = close

    def __aiter__(self) -> "AsyncMappingIterator":
        return self

    async def __anext__(self) -> Any:
        try:
            while True:
                item = self.mapper(await anext(self.iterator))
                if item is not None or not self.skip_none:
                    return item
        except Exception:
            await self._call_close()
            raise

    async def aclose(self) -> None:
        """Close both."""
        await self._call_close()
        await _close(self.iterator)

    async def _call_close(self) -> None:
        close, self.close = self.close, None
        if close is not None:
            result = close()
            if iscoroutinefunction(close) or isawaitable(result):
                await result


async def documents(stream: Any) -> AsyncIterator[Any]:
    """Yield the documents of a stream of server-sent events, without `[DONE]`.

    Items that are not text are yielded as they are. An error in the stream is raised as an
    exception. The stream is closed at the end.
    """
    reader = EventReader()
    try:
        async for part in stream:
            if isinstance(part, str | bytes):
                data = part.encode() if isinstance(part, str) else part
                for event in reader.feed(data):
                    if (document := _document(event)) is not None:
                        yield document
            else:
                yield _checked(part)
        for event in reader.finish():
            if (document := _document(event)) is not None:
                yield document
    finally:
        await _close(stream)


def _document(event: Any) -> Any:
    """Return the document of an event; None where it has none."""
    if isinstance(event, Failure):
        raise told_error(event.document.get("error"))
    return _checked(event.data) if isinstance(event.data, dict) else None


def _checked(result: Any) -> Any:
    """Return a hook's result; raise it if it is an error."""
    error = result.get("error") if isinstance(result, dict) else getattr(result, "error", None)
    if isinstance(result, dict) and isinstance(error, dict) and not hasattr(result, "error"):
        raise told_error(error)
    if getattr(error, "message", None) is not None:
        raise OpenAIError(result)
    return result


async def _answer(
    create: Callable[..., Any], request: Any, payload: Any, headers: Any, response_headers: Any
) -> Any:
    """Call a hook as KServe's SDK does; return its document, or an async iterator of documents."""
    response = Response()
    context = {"headers": dict(headers or {}), "response": response}
    result = create(request=request, raw_request=_raw(payload, headers), context=context)
    if isawaitable(result):
        result = await result
    if response_headers is not None:
        for name, value in response.headers.items():
            if name not in _OF_THE_BODY:
                response_headers.append(name, value)
    return documents(result) if hasattr(type(result), "__aiter__") else _checked(result)


def _request(kind: Any, payload: Any) -> Any:
    """Return a request's document with members as attributes. Raises InvalidInput, as vllm's do."""
    try:
        return kind.model_validate(payload)
    except ValueError as exc:
        errors = exc.errors() if hasattr(exc, "errors") else []
        where = ".".join(str(part) for part in errors[0].get("loc", ())) if errors else ""
        message = errors[0].get("msg", "") if errors else "it is invalid"
        raise InvalidInput(f'Expected "{where}" to be valid: {message}') from None


def _raw(payload: Any, headers: Any) -> Request:
    """Return starlette's request; its body is the document's, and its client never leaves.

    Whoever waits for the client to leave need not: the hook is cancelled then.
    """
    scope: MutableMapping[str, Any] | None = getattr(headers, "scope", None)
    bodies = [payload]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": to_json(bodies.pop())}
        await anyio.sleep_forever()
        raise AssertionError

    return Request(dict(scope or {"type": "http", "headers": []}), receive)


async def _close(stream: Any) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(stream, "aclose", None)
    if close is not None:
        await close()
