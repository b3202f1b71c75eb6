"""Run the hooks of one request in order: preprocess, predict or explain, postprocess.

Whatever a hook returns becomes a value or an async iterator here, so that later code deals with
these two only.
"""

import inspect
import logging
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from time import monotonic
from typing import Any, Final, Protocol, Self, TypeAlias

from starlette.datastructures import MutableHeaders

from modelserve.concurrency.bridge import ThreadStream
from modelserve.concurrency.cleanup import clean_up
from modelserve.concurrency.closing import aclose
from modelserve.concurrency.endings import Ending, endings_of
from modelserve.concurrency.flight import Watched
from modelserve.concurrency.threads import Workers
from modelserve.exchange.coalescing import Coalesced
from modelserve.models.hooks import Hook, Plan
from modelserve.models.iterating import as_iterator
from modelserve.models.validation_errors import as_mistake
from modelserve.tensors import InferResponse

__all__ = ["PLAIN", "Call", "NewCall", "call_hook", "infer"]

logger = logging.getLogger("modelserve")

# Types whose values are neither streams nor awaitable, and need no further checks.
PLAIN: Final = frozenset(
    (dict, list, str, bytes, tuple, int, float, bool, type(None), InferResponse)
)


class Request(Watched, Protocol):
    """The request that hooks run for."""

    @property
    def id(self) -> bytes: ...


class Call:
    """One run of a model's hooks: what they share, and the streams that they have opened.

    The streams are closed at the end of an `async with` block, or by `closing` without one.
    `request` is None outside of requests. `coalesces` is true once a hook has returned `Coalesced`.
    `seconds` holds the duration of each hook, all its runs added up; a hook that streams or fails
    counts until `finish`.
    """

    __slots__ = (
        "_open",
        "_running",
        "coalesces",
        "headers",
        "label",
        "request",
        "response_headers",
        "seconds",
        "workers",
    )

    def __init__(
        self,
        label: str,
        workers: Workers,
        headers: MutableHeaders | None = None,
        response_headers: MutableHeaders | None = None,
        request: Request | None = None,
    ) -> None:
        self.label = label
        self.request = request
        self.workers = workers
        self.headers = headers
        self.response_headers = response_headers
        self._running: tuple[tuple[str, float], ...] = ()  # hooks by name, with their start
        self.seconds: dict[str, float] = {}
        self.coalesces = False
        self._open: list[Any] = []  # iterators, each after the object that it came from

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self.is_finished:
            await self.closing()

    def is_stream(self, result: Any) -> bool:
        """Return whether what `run` or `resolve` returned last is a stream."""
        return bool(self._open) and result is self._open[-1]

    _is_open = is_stream  # the former may be overridden

    async def run(self, hook: Hook, value: Any) -> Any:
        """Call one hook; return its value, or an async iterator if it may stream and does.

        Cancellation reaches an async hook; a sync one is waited for.
        """
        self.note_started(hook, monotonic())
        if hook.takes_payload_alone:
            call: Callable[..., Any] = hook.function
            arguments: tuple[Any, ...] = (value,)
        else:
            call, arguments = hook.call, (value, self.headers, self.response_headers)
        if hook.is_async_generator:
            stream = call(*arguments)
            self._open.append(stream)
            return stream
        if hook.on_loop:
            result = await call(*arguments)
        else:
            result = await self._call_in_thread(hook, call, arguments)
        if type(result) in PLAIN:
            return self._stop_clock(result)
        if hook.may_stream:
            return await self.resolve(result)
        return self._stop_clock(await self._value_of(result))

    async def _call_in_thread(
        self, hook: Hook, call: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Any:
        if hook.may_stream:
            return await self.workers.call_hook(self.label, call, *arguments)
        # in a tuple, since the thread would iterate over an iterator
        [result] = await self.workers.call_hook(self.label, _in_a_tuple, call, *arguments)
        return result

    async def take_over(self, hook: Hook, started: float, result: Any) -> Any:
        """Continue a hook that was called without this object; otherwise as `run`."""
        self.note_started(hook, started)
        return await self.resolve(result)

    def note_started(self, hook: Hook, now: float) -> None:
        """Start the clock of a hook."""
        self._running = (*self._running, (hook.name, now))

    async def resolve(self, result: Any) -> Any:
        """Turn the latest hook's result into a value or an async iterator; stop its clock."""
        if type(result) not in PLAIN:
            result = await self._open_stream(result)
            if self._is_open(result):
                return result
        return self._stop_clock(result)

    async def _value_of(self, result: Any) -> Any:
        """Return the result of a hook that may not stream, as it is; await it if it is awaitable.

        An async generator is closed with the request, since only an event loop can do that.
        """
        while inspect.isawaitable(result):
            result = await result
        if inspect.isasyncgen(result):
            self.close_later(result)
        return result

    def _stop_clock(self, result: Any) -> Any:
        """Note how long the latest hook has run, and return its result."""
        name, started = self._running[-1]
        self._running = self._running[:-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + monotonic() - started
        return result

    def close_later(self, stream: AsyncIterator[Any] | None) -> None:
        """Close in `finish` a stream that this object has not opened."""
        if stream is not None:
            self._open.append(stream)

    @property
    def is_finished(self) -> bool:
        """Whether no stream is open and no clock is running."""
        return not self._open and not self._running

    def endings(self) -> list[Ending] | None:
        """Return the clean-ups of the open streams that are generators with one."""
        return endings_of(self._open)

    def closing(self) -> Coroutine[Any, Any, None]:
        """Return `finish`, such that nothing that ends the request meanwhile interrupts it."""
        finishing = self.finish()
        if self.request is None or _are_exhausted(self._open):
            return finishing
        return clean_up(self.request, finishing)

    async def finish(self) -> None:
        """Close the open streams, the last first, and stop the clocks; log what closing raises."""
        if self._open:
            stream = self._open.pop()
            try:
                await self._close(stream)
            finally:
                await self.finish()
        now = monotonic()
        for name, started in self._running:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - started
        self._running = ()

    async def _close(self, stream: Any) -> None:
        try:
            await aclose(stream)
        except Exception as exc:
            extra = {} if self.request is None else {"request_id": self.request.id.decode()}
            logger.error("Closing a stream of %s failed", self.label, exc_info=exc, extra=extra)

    async def _open_stream(self, result: Any) -> Any:
        """Await an awaitable result; open an iterable one as an async iterator."""
        while inspect.isawaitable(result):
            result = await result
        if isinstance(result, Coalesced):
            self.coalesces = True
            result = result.items
        if isinstance(result, AsyncIterable):
            self._open.append(result)  # it may hold resources that its iterator does not
            stream = aiter(result)
            if stream is result:
                return stream
        elif isinstance(result, Iterator):
            stream = await self.workers.iterate(self.label, result)
        else:
            return result
        self._open.append(stream)
        return stream


NewCall: TypeAlias = Callable[..., Call]  # makes a call; takes the last arguments of `Call`


def _are_exhausted(streams: Sequence[Any]) -> bool:
    """Return whether all are generators that have ended: closing them awaits nothing."""
    for stream in streams:
        if not inspect.isasyncgen(stream) or stream.ag_frame is not None:
            return False
    return True


def _in_a_tuple(call: Callable[..., Any], *arguments: Any) -> tuple[Any]:
    return (call(*arguments),)


async def infer(plan: Plan, payload: Any, call: Call, check: Callable[[Any], None]) -> Any:
    """Run a model's hooks; return a value, or an async iterator of items.

    Args:
        check: Raises InvalidInput for a payload that the protocol does not allow; called after
            preprocess.
    """
    declared = plan.declared
    if declared is not None:
        payload = declared.convert(payload)
    if plan.iterates is not None:
        payload = as_iterator(payload, plan.iterates, declared)
    if plan.preprocess is not None:
        try:
            payload = await call.run(plan.preprocess, payload)
        except Exception as exc:
            mistake = as_mistake(exc, payload)
            if mistake is None:
                raise
            raise mistake from mistake.__cause__
    check(payload)
    result = await call.run(plan.main, payload)
    if plan.postprocess is not None:
        result = await call.run(plan.postprocess, result)
    return result if declared is None else declared.answer(result)


async def call_hook(label: str, workers: Workers, function: Callable[..., Any], *args: Any) -> Any:
    """Call a hook outside requests, such as `load`: on the event loop or in a thread.

    Raises TypeError for a generator.
    """
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    result = await workers.call(label, function, *args)
    if isinstance(result, Awaitable):
        return await result
    if isinstance(result, AsyncIterable):
        if isinstance(result, ThreadStream):
            await result.aclose()
        raise TypeError(f"{label} must not be a generator")
    return result
