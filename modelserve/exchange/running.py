"""The id of the request that user code runs for, where somebody wants to know it.

It would cost every request something, so that it is noted only where logging is ours.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import ClassVar, Final

__all__ = ["Running", "running_request_id"]

_ID: Final[ContextVar[bytes | None]] = ContextVar("modelserve_request_id", default=None)


class Running:
    """What is noted of the request that runs; of a whole process, as its logging is.

    Attributes:
        note_id: To be called with the id of each request, in its context; None for no note.
    """

    note_id: ClassVar[Callable[[bytes], object] | None] = None

    @classmethod
    def note_ids(cls) -> None:
        """Note the id of each request from now on."""
        cls.note_id = _ID.set


def running_request_id() -> str | None:
    """Return the id of the request that runs in this context; None outside of any."""
    number = _ID.get()
    return None if number is None else number.decode("latin-1")
