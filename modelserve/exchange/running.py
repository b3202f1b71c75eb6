"""The request that user code runs for, and its id.

To note them costs every request something. So the id is noted only if this package has set up
logging, and the request only after a model has called another.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import ClassVar, Final, Protocol

from modelserve.metrics.series import ModelSeries

__all__ = [
    "Caller",
    "Running",
    "note_all_running",
    "note_running",
    "running_caller",
    "running_request_id",
]

_ID: Final[ContextVar[bytes | None]] = ContextVar("modelserve_request_id", default=None)


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


_CALLER: Final[ContextVar[Caller | None]] = ContextVar("modelserve_caller", default=None)


class Running:
    """What is noted of each running request; for a whole process, like logging.

    Attributes:
        note_id: Called with the id of each request, in its context; None for no note.
        note: The same with the request itself.
    """

    note_id: ClassVar[Callable[[bytes], object] | None] = None
    note: ClassVar[Callable[[Caller], object] | None] = None

    @classmethod
    def note_ids(cls) -> None:
        """Note the id of each request from now on."""
        cls.note_id = _ID.set


def note_running(request: Caller) -> None:
    """Note the request that runs in this context."""
    _CALLER.set(request)


def note_all_running() -> None:
    """Note each request from now on."""
    Running.note = _CALLER.set


def running_caller() -> Caller | None:
    """Return the request that runs in this context, if it was noted."""
    return _CALLER.get()


def running_request_id() -> str | None:
    """Return the id of the request that runs in this context; None outside of any."""
    number = _ID.get()
    return None if number is None else number.decode("latin-1")
