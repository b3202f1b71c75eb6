"""The hooks of a model whose application has observers that follow the steps of requests.

Each hook is a step. A step that streams lasts until its items have been read. Context variables
that an observer sets hold while the hook's own code runs, and at no other time: a generator that
another hook reads keeps its own.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

from modelserve.concurrency.closing import aclose
from modelserve.models.hooks import Hook, Plans
from modelserve.models.inference import Call, NewCall
from modelserve.observers import Observers, Scope

__all__ = ["new_calls"]


class _FollowedCall(Call):
    """One run of a model's hooks that reports each step to observers."""

    __slots__ = ("_observers", "_streams")

    def __init__(self, *args: Any, observers: Observers) -> None:
        super().__init__(*args)
        self._observers = observers
        self._streams: list[_FollowedStream] = []

    async def run(self, hook: Hook, value: Any) -> Any:
        scope = self._observers.start_step(self.label, hook.name)
        scope.enter()
        try:
            result = await super().run(hook, value)
        except BaseException as exc:
            scope.leave()
            scope.end(exc)
            raise
        scope.leave()
        if not self._is_open(result):
            scope.end(None)
            return result
        stream = _FollowedStream(result, scope)
        self._streams.append(stream)
        return stream

    def is_stream(self, result: Any) -> bool:
        return bool(self._streams) and result is self._streams[-1]

    async def _close(self, stream: Any) -> None:
        followed = next((each for each in self._streams if each.items is stream), None)
        if followed is None:
            await super()._close(stream)
            return
        with followed.running():
            await super()._close(stream)
        followed.scope.end(None)


class _FollowedStream:
    """The items of a hook that streams. Its scope is entered for each of them."""

    __slots__ = ("items", "scope")

    def __init__(self, items: AsyncIterator[Any], scope: Scope) -> None:
        self.items = items
        self.scope = scope

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self.scope.enter()
        try:
            item = await anext(self.items)
        except BaseException as exc:
            self.scope.leave()
            self.scope.end(None if isinstance(exc, StopAsyncIteration) else exc)
            raise
        self.scope.leave()
        return item

    async def aclose(self) -> None:
        """Close the source of the items; a hook that is given them may call this."""
        with self.running():
            await aclose(self.items)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Report that the hook's code runs."""
        self.scope.enter()
        try:
            yield
        finally:
            self.scope.leave()


def new_calls(plans: Plans, observers: Observers | None) -> NewCall:
    """Return what makes the calls of a model's plans, which observers can follow by hooks."""
    if observers is None:
        return Call
    for verb, plan in plans.items():
        plans[verb] = replace(plan, is_direct=False)
    return partial(_FollowedCall, observers=observers)
