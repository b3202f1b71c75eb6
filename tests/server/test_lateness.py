import math

import pytest

from modelserve.server.lateness import Lateness


def test_a_late_tick_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    lateness = Lateness(1.0)
    for now in (10.0, 10.1, 11.0, 14.5, 14.6):
        lateness.note(now)
    assert [line.getMessage()[:42] for line in caplog.records] == [
        "The event loop stood still for 3.5 s: an a"
    ]


def test_nothing_is_too_late_for_a_host_of_other_code(caplog: pytest.LogCaptureFixture) -> None:
    lateness = Lateness(math.inf)
    for now in (0.0, 1000.0):
        lateness.note(now)
    assert caplog.records == []
