"""How a request ended: the recorded facts, and the name of its outcome."""

from collections.abc import Mapping
from typing import Protocol

from modelserve.errors import BodyTimeout, ClientGone, Stopped

__all__ = ["Ending", "Streamed", "outcome_of", "result_of"]


class Ending(Protocol):
    """The facts that are recorded of a request when it ends.

    Attributes:
        status, error, admitted: As for `outcome_of`.
        seconds: The duration of each hook; of a hook that streams, until the end of the stream.
        stream: The stream, for the access log; None if nothing was streamed.
    """

    status: int
    error: BaseException | None
    admitted: bool
    seconds: Mapping[str, float]

    @property
    def stream(self) -> "Streamed | None": ...


class Streamed(Protocol):
    """The facts about a stream in the access log.

    Attributes:
        items: How many items were sent.
        first_item: Seconds from the request's arrival to the first; None if there was none.
    """

    items: int
    first_item: float | None


def result_of(ending: Ending) -> tuple[int, str]:
    """Return the status and the outcome to record; the status is 499 if none was sent."""
    outcome = outcome_of(ending.status, ending.error, admitted=ending.admitted)
    return ending.status or ClientGone.status, outcome


def outcome_of(status: int, error: BaseException | None, *, admitted: bool) -> str:
    """Name the outcome of a model request.

    Args:
        status: The status that was sent; 0 if none was.
        error: What ended the request; None if the response is complete.
        admitted: Whether the request was admitted. A 503 before that is `refused`, whatever its
            reason: the queue, the drain, a model that is not ready. A hook's own 503 is an `error`.
    """
    if error is None:
        return "done" if status < 400 else "error"
    if status == 503 and not admitted:
        return "refused"
    if isinstance(error, Stopped):
        return error.outcome
    return "timeout" if isinstance(error, BodyTimeout) else "error"
