"""The time that a client asks for."""

import pytest

from modelserve.errors import InvalidInput
from modelserve.limits import Deadlines, shortened


@pytest.mark.parametrize(
    ("asked", "limit", "timeout"),
    [
        (b"3", None, 3.0),
        (b"3", 5.0, 3.0),
        (b"9", 5.0, 5.0),
        (b"0.25", 5.0, 0.25),
        (b" 3 ", 5.0, 3.0),
        (b"1e3", None, 1000.0),
    ],
)
def test_a_client_may_ask_for_less_time(asked: bytes, limit: float | None, timeout: float) -> None:
    deadlines = Deadlines(timeout=limit, idle_timeout=7)
    assert shortened(deadlines, asked) == Deadlines(timeout=timeout, idle_timeout=7)


@pytest.mark.parametrize(
    "asked", [b"", b"0", b"-1", b"soon", b"nan", b"inf", b"1e400", b"1 s", b"\xff", b","]
)
def test_a_client_may_not_ask_for_nonsense(asked: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        shortened(Deadlines(), asked)
    assert caught.value.reason == "x-request-timeout-seconds must be a positive number."
