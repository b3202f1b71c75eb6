"""Observers: functions of the user's that are told of each request once it has ended.

One may also follow what is called for a request, step by step, to trace it.

They are called on the event loop, in the context of the request, once its answer has been sent and
its slot is free. So what one raises or how long it takes cannot change that answer; but while one
runs no other request does. Whatever it raises is logged once, and so is that it has taken long.
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
    """What is known of one request to a model that has ended, for observers.

    Attributes:
        protocol: `v1`, `ws`, `v2`, `openai`, `grpc`, or `call` where another model has called; as
            in the metrics.
        model: The model's name; empty where there is no such model, and for what was refused before
            that was known, by a wrong token for example.
        verb: What was asked for: `predict`, `explain`, `infer`, `chat` and so on, as in the
            metrics.
        status: The HTTP status that was sent; 499 if the client left before.
        outcome: `done`, `error`, `refused`, `timeout`, `disconnected` or `shutdown`. A stream that
            has failed has status 200, and an outcome that is not `done`.
        request_id: The client's `x-request-id`, or the one that was made.
        started: When the request arrived, in seconds since 1970.
        seconds: From then to the end of the request, its clean-up included.
        hooks: Seconds that each hook took, by its name; a stream's hook, to the stream's end.
        queued: When it began to wait for a slot, in seconds since 1970; None if it had not to.
        queue_seconds: For how long it has waited.
        items: How many items were streamed.
        first_item_seconds: From arrival to the first of them; None if there was none.
        error: What ended the request, if it has failed. Do not keep it: it holds on to the request.
        generation: What an answer in OpenAI's protocol says of itself, its text apart.
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
    """What an observer keeps around one step of a request."""

    def enter(self) -> None:
        """Be told that the step's code runs from now on, in the current context.

        A step that streams runs for each item. What is set of context variables here the step's
        code finds, in a worker thread too.
        """

    def leave(self) -> None:
        """Be told that it pauses or has ended; in the context of `enter`, which is to be undone."""

    def end(self, error: BaseException | None) -> None:
        """Be told, once, that the step has ended, and what it has raised."""


@runtime_checkable
class Follower(Protocol):
    """An observer that also follows the steps of requests."""

    def __call__(self, record: RequestRecord, /) -> object:
        """Be told of a request that has ended."""

    def answer(self, record: RequestRecord, /) -> object:
        """Be told of a request before the last event of its answer is sent, if one is.

        Clean-up is still to come, and what that takes.
        """

    def start_step(self, model: str, step: str, joined: Sequence[Context], /) -> Scope:
        """Return what is told of one step, which begins now.

        Args:
            model: The model's name.
            step: The name of a hook; `call`, around the hooks of a model that another model calls;
                or `batch`, around one call of a hook for several requests.
            joined: Of a batch, a context of each request, as it is where the request waits.
        """


class Observers:
    """The observers of one application, as one.

    Raises TypeError for what cannot be called, or is async.
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
        """Return them as one; None where there are none. Raises as the class does."""
        if not isinstance(observers, Iterable):
            raise TypeError(f"The observers must be a list of functions, not {observers!r}")
        given = tuple(observers)
        return cls(given) if given else None

    @property
    def follow_steps(self) -> bool:
        """Whether one of them follows the steps of requests."""
        return bool(self._followers)

    def notify(self, make_record: Callable[[], RequestRecord]) -> None:
        """Tell each of a request that has ended."""
        record = self._call(None, make_record)
        for observer in () if record is None else self.given:
            since = monotonic()
            self._call(observer, observer, record)
            if (seconds := monotonic() - since) > _LONG:
                self._log_once(self._slow, observer, _SLOW_TEXT, observer, seconds)

    def answer(self, make_record: Callable[[], RequestRecord]) -> None:
        """Tell each follower of a request before the last event of its answer."""
        record = self._call(None, make_record)
        for follower in () if record is None else self._followers:
            self._call(follower, follower.answer, record)

    def start_step(self, model: str, step: str, joined: Sequence[Context] = ()) -> Scope:
        """Begin a step; return what tells each follower of it."""
        return _Scopes(self, model, step, joined)

    async def run_step(self, model: str, step: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run the whole of a step, whose errors its record tells of."""
        scope = self.start_step(model, step)
        scope.enter()
        try:
            await run()
        finally:
            scope.leave()
            scope.end(None)

    def _call(self, observer: Observer | None, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of an observer; return None where it raises."""
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
