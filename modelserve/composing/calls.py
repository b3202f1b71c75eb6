"""Call a model of the application from a hook of another, and read its results.

The caller reads on the event loop, or in a worker thread.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, Self

import anyio

from modelserve.composing.reading import items_in_thread
from modelserve.composing.requests import CallRequest
from modelserve.concurrency.bridge import call_of_this_thread
from modelserve.concurrency.loops import event_loop
from modelserve.concurrency.uninterrupted import wait_until
from modelserve.exchange.running import running_caller
from modelserve.lifespan import Serving
from modelserve.models.hooks import VERBS

__all__ = ["ModelCall"]


class ModelCall:
    """One call of a model, which begins when it is first waited for.

    In an async hook, `await` it for the result, a list of the items where the model streams, or
    read the items with `async for`; in a sync hook, call `result()`, or use `for`. To stop before
    the last item, use it as a context manager (`async with call as items`): the model is cancelled
    and has cleaned up when the block is left.

    The call ends with its caller: if that is cancelled, so is the model, which cleans up first.
    Raises what the model raises; ModelNotFound, ModelNotReady; InvalidInput or HookMissing if the
    model lacks the hook; Overloaded if its queue is full, or if the call would deadlock;
    DeadlineExceeded for the model's own limits on time.
    """

    def __init__(
        self,
        serving: Serving,
        name: str,
        payload: Any,
        verb: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        if verb not in VERBS:
            raise ValueError(f"There is no verb {verb!r}: there are {', '.join(VERBS)}")
        self._thread = call_of_this_thread()
        request = CallRequest(serving, name, payload, verb, headers, running_caller())
        self._reader = _Reader(request)

    # -- on the event loop

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._result().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._reader

    async def __aenter__(self) -> AsyncIterator[Any]:
        return self._reader

    async def __aexit__(self, *error: object) -> None:
        await self._reader.aclose()

    async def _result(self) -> Any:
        return self._one_or_all([item async for item in self._reader])

    def _one_or_all(self, items: list[Any]) -> Any:
        request = self._reader.request
        if not (items or request.streams):
            raise RuntimeError("This call has been waited for already: call the model again")
        return request.whole(items)

    # -- in a worker thread

    def result(self) -> Any:
        """Return the result, or a list of the items; for sync hooks."""
        return self._one_or_all([*self])

    def __iter__(self) -> Iterator[Any]:
        if self._thread is None or self._thread is not call_of_this_thread():
            raise RuntimeError(
                "A model can be called without await only by a sync hook, in its thread: use await"
            )
        request, call_soon = self._reader.request, self._thread.call_soon
        request.thread = self._thread
        begin = partial(call_soon, request.begin)
        return items_in_thread(request, call_soon, begin, request.leave)


class _Bell:
    """An event, set when a call has something to read; the call must not keep its reader alive."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()

    async def rung(self) -> None:
        """Wait until it has been set since the last wait."""
        await self._event.wait()
        self._event = anyio.Event()


class _Reader:
    """Reads a call on the event loop."""

    def __init__(self, request: CallRequest) -> None:
        self.request = request
        self._bell = _Bell()
        self._hang_up: Callable[[], object] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        request = self.request
        self._begin()
        while not request.ended:
            if request.items and request.streams:
                break
            try:
                await self._bell.rung()
            except anyio.get_cancelled_exc_class():
                await self.aclose()
                raise
        if request.items and not (request.error and not request.streams):
            item = request.items.popleft()
            request.make_room()
            return item
        error, request.error = request.error, None
        raise StopAsyncIteration if error is None else error

    async def aclose(self) -> None:
        """Cancel the model and wait until it has cleaned up, whatever cancels the wait."""
        request = self.request
        if not request.begun or request.ended:
            request.begun = request.ended = True
            return
        request.leave()
        request.items.clear()
        await wait_until(lambda: request.ended, self._bell.rung)
        request.error = None

    def _begin(self) -> None:
        if not self.request.begun:
            self.request.notify = self._bell.ring
            self._hang_up = partial(event_loop().call_from_thread, self.request.leave)
            self.request.begin()

    def __del__(self) -> None:
        if self._hang_up is not None and not self.request.ended:  # dropped before its last item
            self._hang_up()
