import logging
from types import SimpleNamespace
from typing import Any

import pytest
from recording import record

from modelserve.errors import ClientGone
from modelserve.metrics.telemetry import Telemetry


def test_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="modelserve.access"):
        record(
            Telemetry().model("m"),
            stages={"predict": 0.20000004},
            stream=SimpleNamespace(items=3, first_item=0.1),
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


@pytest.mark.parametrize(
    ("stream", "items", "first_item"),
    [
        (None, 0, None),
        (SimpleNamespace(items=0, first_item=None), 0, None),
        (SimpleNamespace(items=1, first_item=0.0), 1, 0.0),
    ],
)
def test_log_line_of_a_client_that_left(
    stream: Any, items: int, first_item: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="modelserve.access"):
        record(Telemetry().model("m"), status=0, error=ClientGone(), stream=stream)
    (line,) = caplog.records
    assert line.getMessage() == "v1 predict 'm': 499 disconnected in 0.2500 s"
    assert (vars(line)["items"], vars(line)["first_item_seconds"]) == (items, first_item)


def test_no_log_line_unless_enabled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="modelserve.access"):
        record(Telemetry().model("m"))
    assert not caplog.records
