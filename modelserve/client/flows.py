"""The course of one call, without I/O: a generator of steps that a client runs.

The sync and the async client differ only in how they run a step. A call is tried again if the
server says when (`Retry-After` with 503 or 429) and, if the caller says that it is idempotent,
after an error of the connection.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import orjson

from modelserve.client.answers import media_type_of, reader_of, retry_after, value_of
from modelserve.client.connections import is_garbled
from modelserve.client.failures import (
    AnswerError,
    ClientError,
    CutShort,
    TimedOut,
    Unreachable,
    Unreadable,
    sentence_in,
)
from modelserve.client.items import Decoder, Single, as_yielded
from modelserve.client.requests import Request, Server
from modelserve.errors import ServingError
from modelserve.tensors import InferRequest, InferResponse
from modelserve.wire.decoders import (
    ChunkReader,
    EventReader,
    Failure,
    LineReader,
    Reader,
    TextReader,
)
from modelserve.wire.encoders import ServerSentEvent

__all__ = [
    "ONCE",
    "Answer",
    "Complaints",
    "Flow",
    "Form",
    "Pause",
    "Retries",
    "Send",
    "Steps",
    "call",
    "decoder_of",
    "document",
    "is_plain",
    "is_ready",
    "names",
    "predictions",
    "refusal",
    "tensors",
]

_LONGEST_WAIT: Final = 60.0
_ASKED_AGAIN: Final = (429, 503)
_REDIRECTS: Final = (301, 302, 303, 307, 308)


class Answer(NamedTuple):
    """A response. `body` is None if it is read from `response` as a stream."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None
    response: Any = None

    @property
    def media_type(self) -> str:
        """The media type; the same for all names of NDJSON."""
        return media_type_of(self.headers.get("content-type", ""))


class Send(NamedTuple):
    """Send a request. The body of a successful response is not read if it `streams`."""

    request: Request
    streams: bool


class Pause(NamedTuple):
    """Wait before the next attempt."""

    seconds: float


Form: TypeAlias = Literal["items", "raw", "text"]
Flow: TypeAlias = Generator[Send | Pause, Answer | None, Answer]


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried again, and whether after errors of the connection as well."""

    most: int
    idempotent: bool = False

    def pause(self, error: ClientError, attempt: int) -> float | None:
        """Return the seconds before the next attempt, None if there must not be one."""
        if attempt >= self.most:
            return None
        if isinstance(error, AnswerError):
            asked = error.retry_after if error.status in _ASKED_AGAIN else None
            return asked if asked is not None and asked <= _LONGEST_WAIT else None
        return 0.1 * 2.0**attempt if self.idempotent and is_broken(error) else None


ONCE: Final = Retries(0)


def is_broken(error: ClientError) -> bool:
    """Return whether the connection is to blame."""
    return isinstance(error, Unreachable | CutShort)


def call(request: Request, retries: Retries, *, streams: bool = False) -> Flow:
    """Yield the steps of one call; return the successful answer. Raises ClientError."""
    attempt = 0
    while True:
        try:
            answer = yield Send(request, streams)
            assert answer is not None
            if not 200 <= answer.status < 300:
                raise refusal(answer)
            return answer
        except ClientError as exc:
            seconds = retries.pause(exc, attempt)
            if seconds is None:
                raise
        attempt += 1
        yield Pause(seconds)


class Outcome:
    """The outcome of a step."""

    answer: Answer | None = None


class Steps:
    """The steps of a call, one after the other; `result` is set once `next` is None."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.result: Answer
        self.next: Send | Pause | None = next(flow)

    @contextmanager
    def taken(self) -> Iterator[Outcome]:
        """Run a step in this context: its outcome, or its ClientError, leads to the next."""
        outcome = Outcome()
        try:
            try:
                yield outcome
            except ClientError as exc:
                self.next = self._flow.throw(exc)
            else:
                self.next = self._flow.send(outcome.answer)
        except StopIteration as done:
            self.next, self.result = None, done.value


def refusal(answer: Answer) -> AnswerError:
    """Turn an unsuccessful response into an error, with the server's sentence if it has one."""
    found = None
    with suppress(ValueError):
        found = sentence_in(orjson.loads(answer.body or b""))
    sentence = found or f"The server answered with status {answer.status}."
    if found is None and answer.status in _REDIRECTS and "location" in answer.headers:
        sentence = f"{sentence[:-1]}; it redirects to {answer.headers['location']}"
    return AnswerError(sentence, answer.status, retry_after=retry_after(answer.headers))


class Complaints(NamedTuple):
    """The errors of an answer."""

    server: Server
    seconds: float

    def broken(self, exc: Exception, *, started: bool) -> ClientError:
        """Translate an error of httpx."""
        import httpx

        if isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return self.unreachable(exc)
        if isinstance(exc, httpx.TimeoutException):
            return self.stalled()
        if isinstance(exc, httpx.LocalProtocolError):
            return ClientError(f"The request cannot be sent: {exc}")
        if is_garbled(exc):
            return self.unreadable()
        return self.cut() if started else self.no_answer()

    def unreachable(self, exc: Exception) -> Unreachable:
        """Return the error for a connection that could not be made."""
        why = f": {exc}" if str(exc) else ""
        return Unreachable(f"{self.server.url} cannot be reached{why}")

    def stalled(self) -> TimedOut:
        """Return the error of a server that is too slow."""
        return TimedOut(f"Nothing came from the server for {self.seconds:g} s.")

    def no_answer(self) -> CutShort:
        """Return the error for a connection that ends before the response begins."""
        return CutShort("The server closed the connection without an answer.")

    def cut(self) -> CutShort:
        """Return the error for a response that ends too early."""
        return CutShort("The answer was cut short.")

    def unreadable(self) -> Unreadable:
        """Return the error for a broken answer."""
        return Unreadable("The answer of the server cannot be read.")

    def failed(self, document: Any) -> AnswerError:
        """Return the error for an error record in a stream."""
        sentence = "The server failed in the middle of its answer."
        return AnswerError(sentence_in(document) or sentence)


# --- the content of an answer -------------------------------------------------------------------


def decoder_of(answer: Answer, complaints: Complaints, form: Form = "items") -> Decoder:
    """Return the decoder of a successful answer's body: of its items, or its one value.

    In the form "raw" it yields the bytes as they come, in "text" the text of a chat.
    """
    if form == "raw":
        return Decoder(ChunkReader(), complaints)
    media_type, headers = answer.media_type, answer.headers

    def value(body: bytes) -> Any:
        try:
            return value_of(media_type, body, headers, v2=False)
        except (ValueError, ServingError):
            raise complaints.unreadable() from None

    reader = reader_of(media_type, headers)
    reader = Single(value) if reader is None else reader
    if form == "text":
        return Decoder(ChatReader(reader, complaints), complaints)
    is_items = isinstance(reader, LineReader | EventReader)
    return Decoder(reader, complaints, as_yielded if is_items else None)


def is_plain(headers: Mapping[str, str]) -> bool:
    """Return whether a body is uncompressed, as each request asks."""
    return headers.get("content-encoding", "").strip().lower() in ("", "identity")


def document(answer: Answer, complaints: Complaints) -> Any:
    """Return the value in an answer; if the server streamed, a list of its items."""
    decoder = decoder_of(answer, complaints)
    decoder.feed(answer.body or b"")
    items = [item[0] for item in iter(decoder.next_ready, None)]
    decoder.feed(None)
    items += [item[0] for item in iter(decoder.next_ready, None)]
    reader = reader_of(answer.media_type, answer.headers)
    if reader is None:
        return items[0]
    if isinstance(reader, LineReader | EventReader):
        return items
    return "".join(items) if isinstance(reader, TextReader) else b"".join(items)


def predictions(answer: Answer, complaints: Complaints, *, count: int) -> list[Any]:
    """Return the predictions in a document, one for each of `count` instances."""
    found = document(answer, complaints)
    results = None
    if isinstance(found, dict):
        results = found.get("predictions", found.get("explanations"))
    if not isinstance(results, list) or len(results) != count:
        raise Unreadable(f"The server did not answer with one prediction for each of {count} rows.")
    return results


def tensors(answer: Answer, complaints: Complaints, inputs: Any) -> dict[str, Any] | InferResponse:
    """Return the V2 response in an answer; arrays by name unless an InferRequest was sent."""
    try:
        found = value_of(answer.media_type, answer.body or b"", answer.headers, v2=True)
        if isinstance(found, InferResponse):
            if isinstance(inputs, InferRequest):
                return found
            return {tensor.name: tensor.as_numpy() for tensor in found.outputs}
    except (ValueError, ServingError):
        pass
    raise complaints.unreadable()


def names(answer: Answer, complaints: Complaints) -> list[str]:
    """Return the names in the list of models."""
    found = document(answer, complaints)
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        raise complaints.unreadable()
    return models


def is_ready(error: AnswerError) -> bool:
    """Return False for the error of a server or model that is not ready; raise any other."""
    if error.status == 503:
        return False
    raise error


class ChatReader:
    """Reads the text in the chunks of a chat's stream, which must end with `[DONE]`."""

    def __init__(self, reader: Reader, complaints: Complaints) -> None:
        self._reader = reader
        self._complaints = complaints
        self._finished = False

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """Yield the pieces of text, and an error record."""
        return self._texts(self._reader.feed(chunk))

    def finish(self) -> Iterator[Any]:
        """Yield the rest. Raises CutShort for a stream that is not complete."""
        yield from self._texts(self._reader.finish())
        if not self._finished:
            raise self._complaints.cut()

    def _texts(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            chunk = item.data if isinstance(item, ServerSentEvent) else item
            if chunk == "[DONE]":
                self._finished = True
            elif chunk is None and isinstance(item, ServerSentEvent):
                pass  # an event without data, which browsers skip too
            elif isinstance(chunk, Failure):
                yield chunk
            elif isinstance(chunk, dict) and "error" in chunk:
                yield Failure(chunk)
            elif text := self._text(chunk):
                yield text

    def _text(self, chunk: Any) -> str:
        try:
            choice: Any = next(iter(chunk.get("choices") or ()), {})
            self._finished = self._finished or choice.get("finish_reason") is not None
            message = choice.get("delta") or choice.get("message") or {}
            text = message.get("content") or ""
        except (AttributeError, TypeError):
            raise self._complaints.unreadable() from None
        if not isinstance(text, str):
            raise self._complaints.unreadable()
        return text
