import pytest
from recording import ending

from modelserve.errors import (
    BodyTimeout,
    ClientGone,
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServerShuttingDown,
)
from modelserve.metrics.ending import outcome_of, result_of


@pytest.mark.parametrize(
    ("status", "error", "admitted", "outcome"),
    [
        (200, None, True, "done"),
        (204, None, True, "done"),
        (404, None, False, "error"),
        (404, InvalidInput("no"), False, "error"),
        (400, InvalidInput("no"), True, "error"),
        (500, ValueError("no"), True, "error"),
        (200, ValueError("in mid-stream"), True, "error"),
        (503, InferenceError("upstream is down", status=503), True, "error"),
        (503, ModelNotReady("m"), True, "error"),
        (503, ModelNotReady("m"), False, "refused"),
        (503, Overloaded("full", retry_after=1), False, "refused"),
        (503, ServerShuttingDown(), False, "refused"),
        (503, ServerShuttingDown(), True, "shutdown"),
        (200, ServerShuttingDown(), True, "shutdown"),
        (504, DeadlineExceeded("timeout"), True, "timeout"),
        (504, DeadlineExceeded("timeout"), False, "timeout"),
        (200, DeadlineExceeded("idle_timeout"), True, "timeout"),
        (408, BodyTimeout("slow"), False, "timeout"),
        (0, ClientGone(), False, "disconnected"),
        (0, ClientGone(), True, "disconnected"),
        (200, ClientGone(), True, "disconnected"),
    ],
)
def test_outcome(status: int, error: BaseException | None, admitted: bool, outcome: str) -> None:
    assert outcome_of(status, error, admitted=admitted) == outcome


def test_a_client_that_left_before_the_start_is_499() -> None:
    assert result_of(ending(status=0, error=ClientGone())) == (499, "disconnected")
    assert result_of(ending(error=ClientGone())) == (200, "disconnected")
