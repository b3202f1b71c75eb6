"""The items of an answer, from its pieces: the decoding is pure, two thin iterators read.

The caller decides which exceptions are raised: its `Complaints` makes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, Self

import anyio

from modelserve.wire.decoders import EventReader, Failure, Reader
from modelserve.wire.encoders import ServerSentEvent

__all__ = [
    "AsyncItems",
    "Complaints",
    "Decoder",
    "ItemError",
    "Items",
    "Single",
    "as_yielded",
    "closed",
]

_NO_ITEM: Final = object()


class ItemError(NamedTuple):
    """The item in place of the result of a line that the server could not use.

    Attributes:
        line: The number of the line in the request, from 1.
        error: The server's sentence.
    """

    line: int
    error: str


class Complaints(Protocol):
    """Makes the exceptions for the errors of an answer."""

    def broken(self, exc: Exception, *, started: bool) -> Exception:
        """Return the exception for an error of the connection."""

    def unreadable(self) -> Exception:
        """Return the exception for bytes that are no items."""

    def failed(self, document: Any) -> Exception:
        """Return the exception for an error record."""

    def cut(self) -> Exception:
        """Return the exception for an incomplete last record."""


class Decoder:
    """The items in the pieces of one stream. An error comes after the items before it.

    `convert` is applied to each item.
    """

    def __init__(
        self, reader: Reader, complaints: Complaints, convert: Callable[[Any], Any] | None = None
    ) -> None:
        self._reader = reader
        self._complaints = complaints
        self._convert = convert
        self._ready: Iterator[Any] = iter(())
        self.ended = False

    def feed(self, piece: bytes | None) -> None:
        """Take the next piece, None for the end, once `next_ready` has returned all items."""
        self.ended = piece is None
        self._ready = self._reader.finish() if piece is None else self._reader.feed(piece)

    def stop(self) -> None:
        """Return no more items."""
        self.ended, self._ready = True, iter(())

    def next_ready(self) -> tuple[Any] | None:
        """Return the next complete item, in a tuple, since an item may be None."""
        try:
            item = next(self._ready, _NO_ITEM)
        except ValueError:
            raise (
                self._complaints.cut() if self.ended else self._complaints.unreadable()
            ) from None
        if item is _NO_ITEM:
            return None
        if isinstance(item, Failure):
            raise self._complaints.failed(item.document)
        if self.ended and isinstance(self._reader, EventReader):
            raise self._complaints.cut()  # an event ends with a blank line
        return (item if self._convert is None else self._convert(item),)

    def lot(self) -> list[Any]:
        """Return all complete items; an error after them is raised by the next call."""
        items: list[Any] = []
        try:
            while (item := self.next_ready()) is not None:
                items.append(item[0])
        except Exception as exc:
            if not items:
                raise
            self._ready = _raising(exc)
        return items


class Single:
    """Read a whole body as one item."""

    def __init__(self, value_of: Callable[[bytes], Any]) -> None:
        self._value_of = value_of
        self._pieces: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """Keep a piece."""
        self._pieces.append(chunk)
        return iter(())

    def finish(self) -> Iterator[Any]:
        """Yield the one value that all pieces make."""
        yield self._value_of(b"".join(self._pieces))


def as_yielded(item: Any) -> Any:
    """Return an item as the model yielded it: of an event with data only, the data.

    The record of a bad line becomes an `ItemError`.
    """
    if isinstance(item, ServerSentEvent) and item.event is None is item.id and item.retry is None:
        item = item.data
    if isinstance(item, dict) and item.keys() == {"error", "line"}:
        error, line = item["error"], item["line"]
        if isinstance(error, str) and isinstance(line, int):
            return ItemError(line, error)
    return item


class Items:
    """The items of a stream, each read when it is requested; `close` frees the connection.

    A context manager that closes it.
    """

    def __init__(self, response: Any, decoder: Decoder, complaints: Complaints) -> None:
        self._response = response
        self._chunks: Iterator[bytes] = response.iter_bytes()
        self._decoder = decoder
        self._complaints = complaints

    @property
    def content_type(self) -> str:
        """The content type of the answer."""
        return str(self._response.headers.get("content-type", ""))

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        try:
            while (item := self._decoder.next_ready()) is None:
                if self._decoder.ended:
                    raise StopIteration
                self._decoder.feed(self._read())
        except BaseException:
            self.close()
            raise
        return item[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless all has been read. It may be called again."""
        self._decoder.stop()
        self._response.close()

    def _read(self) -> bytes | None:
        import httpx

        try:
            return next(self._chunks, None)
        except httpx.HTTPError as exc:
            raise self._complaints.broken(exc, started=True) from None


class AsyncItems:
    """The items of a stream, each read when it is requested; `aclose` frees the connection.

    An async context manager that closes it. Cancellation closes it as well.
    """

    def __init__(self, response: Any, decoder: Decoder, complaints: Complaints) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()
        self._decoder = decoder
        self._complaints = complaints

    @property
    def content_type(self) -> str:
        """The content type of the answer."""
        return str(self._response.headers.get("content-type", ""))

    def __aiter__(self) -> AsyncItems:
        return self

    async def __anext__(self) -> Any:
        try:
            while (item := self._decoder.next_ready()) is None:
                if self._decoder.ended:
                    raise StopAsyncIteration
                self._decoder.feed(await self._read())
        except StopAsyncIteration:
            raise
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        return item[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, unless all has been read."""
        self._decoder.stop()
        await closed(self._response, self._chunks)

    async def _read(self) -> bytes | None:
        import httpx

        try:
            return await anext(self._chunks, None)
        except httpx.HTTPError as exc:
            raise self._complaints.broken(exc, started=True) from None


async def closed(response: Any, pieces: AsyncIterator[bytes]) -> None:
    """Close a response and its iterator.

    httpx's nested generators are run to their end, which is near after the closing: trio warns of
    generators that are left to the garbage collector.
    """
    await response.aclose()
    with suppress(Exception):
        async for _ in pieces:
            pass


def _raising(exc: Exception) -> Iterator[Any]:
    raise exc
    yield
