"""Observers: functions of the user that are called with a record of each ended request.

An observer may also follow the steps of a request, to trace it.

They are called on the event loop, in the context of the request, once its answer has been sent and
its slot is free. So an observer that raises or is slow cannot change that answer; but no other
request runs meanwhile. The first exception of an observer is logged, and so is its first slow call.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from modelserve.wire.generation import Generation

__all__ = ["Follower", "Observer", "Observers", "RequestRecord", "Scope"]

logger = logging.getLogger("modelserve")

_LONG: Final = 0.1  # seconds; clients see streams stall


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """The record of one request to a model that has ended, for observers.

    Attributes:
        protocol: `v1`, `ws`, `v2`, `openai`, `grpc`, or `call` for a call by another model; as in
            the metrics.
        model: The model's name; empty if there is no such model, and if the request was refused
            before the model was known, by a wrong token for example.
        verb: The requested verb: `predict`, `explain`, `infer`, `chat` and so on, as in the
            metrics.
        status: The HTTP status that was sent; 499 if the client left before.
        outcome: `done`, `error`, `refused`, `timeout`, `disconnected` or `shutdown`. A stream that
            failed has status 200, and an outcome that is not `done`.
        request_id: The client's `x-request-id`, or a new one.
        started: When the request arrived, in seconds since 1970.
        seconds: From then to the end of the request, including its clean-up.
        hooks: The seconds of each hook, by its name; of a hook that streams, to the stream's end.
        queued: When it began to wait for a slot, in seconds since 1970; None if it did not wait.
        queue_seconds: How long it waited.
        items: The number of streamed items.
        first_item_seconds: From arrival to the first item; None if there was none.
        error: The exception that ended the request, if it failed. Do not keep it: it keeps the
            request in memory.
        generation: The metadata of an answer in OpenAI's protocol.
    """

    protocol: str
    model: str
    verb: str
    status: int
    outcome: str
    request_id: str
    started: float
    seconds: float
    hooks: Mapping[str, float]
    queued: float | None = None
    queue_seconds: float = 0.0
    items: int = 0
    first_item_seconds: float | None = None
    error: BaseException | None = None
    generation: Generation | None = None


Observer: TypeAlias = Callable[[RequestRecord], object]


class Scope(Protocol):
    """The methods of an observer that are called around one step of a request."""

    def enter(self) -> None:
        """Called when the step's code begins to run, in the current context.

        A step that streams runs for each item. The step's code sees context variables that are set
        here, in a worker thread too.
        """

    def leave(self) -> None:
        """Called when it pauses or ends, in the context of `enter`; undo what `enter` did."""

    def end(self, error: BaseException | None) -> None:
        """Called once, when the step has ended, with the exception that it raised."""


@runtime_checkable
class Follower(Protocol):
    """An observer that also follows the steps of requests."""

    def __call__(self, record: RequestRecord, /) -> object:
        """Called with the record of a request that has ended."""

    def answer(self, record: RequestRecord, /) -> object:
        """Called before the last event of an answer is sent, if there is one.

        The record does not contain the clean-up, which follows.
        """

    def start_step(self, model: str, step: str, joined: Sequence[Context], /) -> Scope:
        """Return the scope of a step that begins now.

        Args:
            model: The model's name.
            step: The name of a hook; `call`, around the hooks of a model that another model calls;
                or `batch`, around one call of a hook for several requests.
            joined: For a batch, the context of each of its requests.
        """


class Observers:
    """The observers of one application, combined.

    Raises TypeError for an observer that is not callable, or is async.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.given: Final = tuple(observers)
        for observer in self.given:
            _check(observer)
        self._followers = [each for each in self.given if isinstance(each, Follower)]
        self._failed: set[int] = set()
        self._slow: set[int] = set()

    @classmethod
    def of(cls, observers: Iterable[Observer]) -> "Observers | None":
        """Combine observers; None if there are none. Raises as the class does."""
        if not isinstance(observers, Iterable):
            raise TypeError(f"The observers must be a list of functions, not {observers!r}")
        given = tuple(observers)
        return cls(given) if given else None

    @property
    def follow_steps(self) -> bool:
        """Whether one of them follows the steps of requests."""
        return bool(self._followers)

    def notify(self, make_record: Callable[[], RequestRecord]) -> None:
        """Call each observer with a request that has ended."""
        record = self._call(None, make_record)
        for observer in () if record is None else self.given:
            since = monotonic()
            self._call(observer, observer, record)
            if (seconds := monotonic() - since) > _LONG:
                self._log_once(self._slow, observer, _SLOW_TEXT, observer, seconds)

    def answer(self, make_record: Callable[[], RequestRecord]) -> None:
        """Call each follower with a request, before the last event of its answer."""
        record = self._call(None, make_record)
        for follower in () if record is None else self._followers:
            self._call(follower, follower.answer, record)

    def start_step(self, model: str, step: str, joined: Sequence[Context] = ()) -> Scope:
        """Begin a step; return the scope that calls each follower's."""
        return _Scopes(self, model, step, joined)

    async def run_step(self, model: str, step: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a whole step; its errors are in a record of its own."""
        scope = self.start_step(model, step)
        scope.enter()
        try:
            await run()
        finally:
            scope.leave()
            scope.end(None)

    def _call(self, observer: Observer | None, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of an observer; return None if it raises."""
        try:
            return function(*args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            self._log_once(self._failed, observer, _FAILED_TEXT, observer, error=exc)
            return None

    def _log_once(
        self,
        logged: set[int],
        observer: Observer | None,
        text: str,
        *args: object,
        error: BaseException | None = None,
    ) -> None:
        if id(observer) not in logged:
            logged.add(id(observer))
            logger.log(logging.ERROR if error else logging.WARNING, text, *args, exc_info=error)


_FAILED_TEXT: Final = "The observer %r has failed; what it raises later is not logged"
_SLOW_TEXT: Final = (
    "The observer %r took %.1f s, in which no request went on: what takes long belongs in a thread"
)


class _Scopes:
    """The scopes of all followers for one step."""

    __slots__ = ("_observers", "_scopes")

    def __init__(
        self, observers: Observers, model: str, step: str, joined: Sequence[Context]
    ) -> None:
        self._observers = observers
        started = (
            (follower, observers._call(follower, follower.start_step, model, step, joined))
            for follower in observers._followers
        )
        self._scopes = [(follower, scope) for follower, scope in started if scope is not None]

    def enter(self) -> None:
        for follower, scope in self._scopes:
            self._observers._call(follower, scope.enter)

    def leave(self) -> None:
        for follower, scope in reversed(self._scopes):
            self._observers._call(follower, scope.leave)

    def end(self, error: BaseException | None) -> None:
        scopes, self._scopes = self._scopes, []
        for follower, scope in reversed(scopes):
            self._observers._call(follower, scope.end, error)


def _check(observer: Any) -> None:
    if not callable(observer):
        raise TypeError(f"An observer must be a function of one record, not {observer!r}")
    called = observer if inspect.isroutine(observer) else observer.__call__
    if inspect.iscoroutinefunction(observer) or inspect.iscoroutinefunction(called):
        raise TypeError(f"The observer {observer!r} is async: it is called, and not awaited")
