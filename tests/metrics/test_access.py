import logging

import pytest
from recording import record

from modelserve.errors import ClientGone
from modelserve.metrics.telemetry import Telemetry


def test_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="modelserve.access"):
        record(
            Telemetry().model("m"),
            stages={"predict": 0.20000004},
            items=3,
            first_item=0.1,
            request_id=b"abc-1",
        )
    (line,) = caplog.records
    assert line.levelname == "INFO"
    assert line.getMessage() == "v1 predict 'm': 200 done in 0.2500 s"
    expected = {
        "request_id": "abc-1",
        "model": "m",
        "protocol": "v1",
        "verb": "predict",
        "status": 200,
        "outcome": "done",
        "seconds": 0.25,
        "stages": {"predict": 0.2},
        "items": 3,
        "first_item_seconds": 0.1,
    }
    assert {name: getattr(line, name) for name in expected} == expected


@pytest.mark.parametrize(("first_item", "logged"), [(None, None), (0.0, 0.0)])
def test_log_line_of_a_client_that_left(
    first_item: float | None, logged: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="modelserve.access"):
        record(Telemetry().model("m"), status=0, error=ClientGone(), first_item=first_item)
    (line,) = caplog.records
    assert line.getMessage() == "v1 predict 'm': 499 disconnected in 0.2500 s"
    assert vars(line)["first_item_seconds"] == logged


def test_no_log_line_unless_enabled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="modelserve.access"):
        record(Telemetry().model("m"))
    assert not caplog.records
