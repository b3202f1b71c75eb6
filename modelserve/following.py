"""Requests of an application whose observers follow them.

Tracing middleware may end its span with the last event of an answer, before the application
returns. So followers are called with the record of a request right before that event.
"""

from collections.abc import Callable, Coroutine, MutableMapping
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any

from starlette.types import Scope, Send

from modelserve.concurrency.flight import Pipeline, Watched
from modelserve.concurrency.flights import Flights
from modelserve.endpoints import Target
from modelserve.exchange.exchange import Exchange
from modelserve.metrics.observed import record_of
from modelserve.observers import Observers, RequestRecord

__all__ = ["FollowedFlights"]


class FollowedFlights(Flights):
    """The requests in flight of one application, whose followers are called before each answer
    ends.

    Args:
        observers: The followers among them are called.
        find: Returns the target of a path.
    """

    def __init__(self, observers: Observers, find: Callable[[Scope], Target]) -> None:
        super().__init__()
        self._observers = observers
        self._find = find

    def start(self, request: Watched, pipeline: Pipeline) -> Coroutine[Any, Any, None] | None:
        if isinstance(request, Exchange) and request.scope["type"] == "http":
            target = self._find(request.scope)
            if target.verb:
                request.send = _Telling(self._observers, target, request).send
        return super().start(request, pipeline)


class _Telling:
    """Sends the events of one answer; calls the followers before the last one."""

    def __init__(self, observers: Observers, target: Target, exchange: Exchange) -> None:
        self._target = target
        self._send: Send = exchange.send
        tell = partial(observers.answer, partial(self._record, exchange))
        # in this context: another task may send an answer that comes early
        self._tell: Callable[[], None] | None = partial(copy_context().run, tell)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            tell, self._tell = self._tell, None  # a reference cycle
            if tell is not None:
                tell()
        await self._send(message)

    def _record(self, exchange: Exchange) -> RequestRecord:
        target = self._target
        exchange.error = exchange.reason or exchange.error  # as at the end
        model = "" if exchange.series is None else exchange.series.name
        seconds = monotonic() - exchange.arrived
        return record_of(model, target.codec.protocol, target.verb, exchange, seconds, exchange.id)
