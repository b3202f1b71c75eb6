"""Ask a model whether it is healthy: one question at a time, for a bounded time.

Probes come from outside, as often as they like. So a `healthy` that blocks may hold one thread at
most, and none of the threads of hooks.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from modelserve.concurrency.bridge import ThreadCall
from modelserve.concurrency.cancelling import ends_task
from modelserve.concurrency.loops import Event
from modelserve.concurrency.threads import start_thread

__all__ = ["Health"]

logger = logging.getLogger("modelserve")

_SECONDS: Final = 5.0


class Health:
    """The `healthy` of one model, and its last answer."""

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self._name = name
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        self._answered: Event | None = None  # of the question under way
        self._call: ThreadCall | None = None  # it may outlast the question
        self._last: bool | None = None

    async def ask(self) -> bool:
        """Ask the model; while another question is under way, return the last answer.

        False if `healthy` fails or takes longer than 5 s. Without a last answer, this waits for the
        question under way. Cancellation does not wait for a thread.
        """
        while (answered := self._answered) is not None:
            if self._last is None:
                await answered.wait()
            if self._last is not None:
                return self._last
        if self._is_thread_busy and self._last is not None:
            return self._last
        answered = self._answered = Event()
        try:
            self._last = await self._ask_in_time()
        finally:
            self._answered = None
            answered.set()
        return self._last

    async def _ask_in_time(self) -> bool:
        with anyio.move_on_after(_SECONDS):
            try:
                return bool(await (self._function() if self._is_async else self._ask_in_thread()))
            except BaseException as exc:
                if ends_task(exc):
                    raise
                logger.warning("healthy() of model %s failed", self._name, exc_info=exc)
        return False

    async def _ask_in_thread(self) -> Any:
        if self._call is None or not self._is_thread_busy:
            label = f"healthy of {self._name}"
            call = ThreadCall(label, self._call_function, (), on_end=lambda call: None)
            start_thread(label, call.run)
            self._call = call
        answer = await self._call.peek()
        return await answer if isinstance(answer, Awaitable) else answer

    def _call_function(self) -> Any:
        answer = self._function()
        return answer if isinstance(answer, Awaitable) else bool(answer)

    @property
    def _is_thread_busy(self) -> bool:
        return self._call is not None and not self._call.finished
