"""KServe's base class of models that pass requests on to another server of OpenAI's protocol."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from modelserve.errors import ExtraMissing
from modelserve.kserve.protocol.rest.openai.errors import OpenAIError, create_error_response
from modelserve.kserve.protocol.rest.openai.openai_model import OpenAIGenerativeModel, documents
from modelserve.kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ErrorResponse,
)
from modelserve.wire import media

if TYPE_CHECKING:
    import httpx

__all__ = ["CHAT_COMPLETIONS_ENDPOINT", "COMPLETIONS_ENDPOINT", "OpenAIProxyModel"]

logger = logging.getLogger("modelserve")

CHAT_COMPLETIONS_ENDPOINT = "/v1/chat/completions"
COMPLETIONS_ENDPOINT = "/v1/completions"


class OpenAIProxyModel(OpenAIGenerativeModel):
    """Passes requests on, and lets a subclass change them and the answers.

    Override `preprocess_completion_request`, `postprocess_completion`,
    `postprocess_completion_chunk` and the same three for chats; each changes what it is given.

    Args:
        name: The model's name.
        predictor_url: The other server's scheme, host and port.
        http_client: Makes the requests; without it a client is made, and closed with the model.
        skip_upstream_validation: Has no effect: answers are not validated.
        health_endpoint: The path that tells whether the other server is healthy; None for none.
    """

    def __init__(
        self,
        name: str,
        predictor_url: str,
        http_client: "httpx.AsyncClient | None" = None,
        skip_upstream_validation: bool = False,
        health_endpoint: str | None = "/health",
    ) -> None:
        super().__init__(name)
        self.predictor_url = predictor_url
        self.skip_upstream_validation = skip_upstream_validation
        self._health_endpoint = health_endpoint
        self._http_client = http_client
        self._own_client: httpx.AsyncClient | None = None

    def preprocess_completion_request(self, request: Any, raw_request: Any = None) -> None:
        """Change a request for a completion before it is passed on."""

    def postprocess_completion(
        self, completion: Any, request: Any, raw_request: Any = None
    ) -> None:
        """Change a whole completion."""

    def postprocess_completion_chunk(
        self, completion: Any, request: Any, raw_request: Any = None
    ) -> None:
        """Change a part of a streamed completion."""

    def preprocess_chat_completion_request(self, request: Any, raw_request: Any = None) -> None:
        """Change a request for a chat completion before it is passed on."""

    def postprocess_chat_completion(
        self, chat_completion: Any, request: Any, raw_request: Any = None
    ) -> None:
        """Change a whole answer to a chat."""

    def postprocess_chat_completion_chunk(
        self, chat_completion_chunk: Any, request: Any, raw_request: Any = None
    ) -> None:
        """Change a part of a streamed answer to a chat."""

    async def create_completion(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Pass a request for a completion on."""
        self.preprocess_completion_request(request, raw_request)
        if request.stream:
            post = self.postprocess_completion_chunk
            return self._chunks(COMPLETIONS_ENDPOINT, CompletionChunk, post, request, raw_request)
        completion = await self.generate_completion(request, raw_request)
        self.postprocess_completion(completion, request, raw_request)
        return completion

    async def create_chat_completion(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Pass a request for a chat completion on."""
        self.preprocess_chat_completion_request(request, raw_request)
        if request.stream:
            post, path = self.postprocess_chat_completion_chunk, CHAT_COMPLETIONS_ENDPOINT
            return self._chunks(path, ChatCompletionChunk, post, request, raw_request)
        completion = await self.generate_chat_completion(request, raw_request)
        self.postprocess_chat_completion(completion, request, raw_request)
        return completion

    async def generate_completion(self, request: Any, raw_request: Any = None) -> Any:
        """Return the other server's whole completion."""
        return await self._whole(COMPLETIONS_ENDPOINT, Completion, request, raw_request)

    async def generate_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        """Return the other server's whole answer to a chat."""
        return await self._whole(CHAT_COMPLETIONS_ENDPOINT, ChatCompletion, request, raw_request)

    async def healthy(self) -> bool:
        """Ask the other server."""
        if not self._health_endpoint:
            return bool(self.ready)
        with _upstream_errors():
            return (await self._client().get(self._url(self._health_endpoint))).status_code == 200

    async def stop(self) -> None:
        """Close the client that was made."""
        client, self._own_client = self._own_client, None
        if client is not None:
            await client.aclose()

    async def _whole(self, path: str, kind: Any, request: Any, raw_request: Any) -> Any:
        with _upstream_errors():
            response = await self._client().send(self._request(path, request, raw_request))
        _check_status(response)
        return _parsed(kind, response.content)

    async def _chunks(
        self, path: str, kind: Any, post: Callable[..., None], request: Any, raw_request: Any
    ) -> AsyncIterator[Any]:
        with _upstream_errors():
            sent = self._request(path, request, raw_request)
            response = await self._client().send(sent, stream=True)
            parts = None
            try:
                if response.status_code >= 400 or media.is_json(
                    media.media_type(response.headers.get("content-type", ""))
                ):
                    await response.aread()
                    _check_status(response)
                    yield _parsed(kind, response.content)  # it does not stream
                    return
                parts = documents(response.aiter_bytes())
                async for part in parts:
                    chunk = kind.model_validate(part)
                    post(chunk, request, raw_request)
                    yield chunk
            finally:
                if parts is not None:
                    await parts.aclose()  # type: ignore[attr-defined]
                await response.aclose()

    def _request(self, path: str, request: Any, raw_request: Any) -> "httpx.Request":
        headers = dict(raw_request.get("upstream_headers", ())) if raw_request else {}
        headers["content-type"] = "application/json"
        content = request.model_dump_json(exclude_unset=True, exclude_none=True)
        return self._client().build_request(
            "POST", self._url(path), content=content, headers=headers
        )

    def _url(self, path: str) -> str:
        return self.predictor_url.rstrip("/") + path

    def _client(self) -> "httpx.AsyncClient":
        if self._http_client is not None:
            return self._http_client
        if self._own_client is None:
            try:
                import httpx
            except ImportError:
                raise ExtraMissing("OpenAIProxyModel", "httpx", "predictor") from None
            self._own_client = httpx.AsyncClient(timeout=httpx.Timeout(5.0, read=30.0))
        return self._own_client


@contextmanager
def _upstream_errors() -> Iterator[None]:
    """Translate errors of the connection into errors that do not name the other server."""
    try:
        yield
    except Exception as exc:
        failure = _failure(exc)
        if failure is None:
            raise
        logger.warning("An upstream request failed: %r", exc)
        raise failure from exc


def _failure(exc: Exception) -> OpenAIError | None:
    import httpx

    if not isinstance(exc, httpx.HTTPError):
        return None
    sentence, kind, status = (
        "Upstream request failed", "InternalServerError", HTTPStatus.INTERNAL_SERVER_ERROR,
    )  # fmt: skip
    if isinstance(exc, httpx.TimeoutException):
        sentence, kind = "Timed out when communicating with upstream", "GatewayTimeout"
        status = HTTPStatus.GATEWAY_TIMEOUT
    elif isinstance(exc, httpx.NetworkError):
        sentence, kind = "Failed to communicate with upstream", "ServiceUnavailableError"
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return OpenAIError(create_error_response(sentence, kind, status_code=status))


def _check_status(response: "httpx.Response") -> None:
    """Raise the other server's error, with its status."""
    if response.status_code < 400:
        return
    try:
        error = orjson.loads(response.content)["error"]
        told = ErrorResponse(error=error)
        if not isinstance(error["message"], str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise _invalid() from None
    failure = OpenAIError(told, response.status_code)
    if "retry-after" in response.headers:
        failure.headers = {"retry-after": response.headers["retry-after"]}
    raise failure


def _parsed(kind: Any, content: bytes) -> Any:
    try:
        return kind.model_validate_json(content)
    except (ValueError, TypeError):
        raise _invalid() from None


def _invalid() -> OpenAIError:
    sentence = "Received invalid response from upstream"
    return OpenAIError(
        create_error_response(sentence, "BadGateway", status_code=HTTPStatus.BAD_GATEWAY)
    )
