"""The request that user code runs for: known to the log, and to a model that calls another."""

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Final, Protocol

from modelserve.metrics.series import ModelSeries

__all__ = ["Caller", "forget_running", "note_running", "running_caller", "running_request_id"]


class Caller(Protocol):
    """A request whose hook may call a model.

    Attributes:
        id: Its id, which the call gets as well.
        series: The series of its model.
        phase: What it waits for, one of `Phase`.
    """

    @property
    def id(self) -> bytes: ...
    @property
    def series(self) -> ModelSeries | None: ...
    @property
    def phase(self) -> int: ...


_RUNNING: Final[ContextVar[Caller]] = ContextVar("modelserve_request")

# Note the request that runs in this context, and in the tasks and threads that begin in it. Every
# request does: whether its hook will call a model is not to be known before.
note_running: Final[Callable[[Caller], Token[Caller]]] = _RUNNING.set
# Take a note back, by what `note_running` has returned: what a host keeps of a task must not keep
# the request. Raises ValueError in another context.
forget_running: Final[Callable[[Token[Caller]], None]] = _RUNNING.reset


def running_caller() -> Caller | None:
    """Return the request that runs in this context."""
    return _RUNNING.get(None)


def running_request_id() -> str | None:
    """Return the id of the request that runs in this context; None outside of any."""
    request = _RUNNING.get(None)
    return None if request is None else request.id.decode("latin-1")
