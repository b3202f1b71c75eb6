import json
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from servercommand import Serve

from modelserve.errors import ResponseCut
from modelserve.server import logs


def test_what_python_only_prints_is_logged(start: Serve, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(
        "import threading\n"
        "class Ill:\n"
        "    def __del__(self):\n"
        "        1 / 0\n"
        "Ill()\n"
        "thread = threading.Thread(target=int, args=('x',), name='ill')\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    running = start("served.py", "--log-format", "json")
    assert running.exit_code(within=10) == 2
    deleted, ended, printed = running.log.splitlines()
    assert "Ill.__del__" in json.loads(deleted)["message"]
    assert "ZeroDivisionError" in json.loads(deleted)["exception"]
    assert json.loads(ended)["message"] == "Exception in thread ill"
    assert "ValueError" in json.loads(ended)["exception"]
    assert printed.startswith("modelserve: ")


def record(message: str = "Served %s", *args: object, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "modelserve", "levelno": 20, "levelname": "INFO"})
    made.msg, made.args = message, args
    vars(made).update(extra)
    return made


def failed(exc: BaseException) -> logging.LogRecord:
    try:
        raise exc
    except BaseException:
        return record("Failed", exc_info=sys.exc_info())


def test_json_line() -> None:
    made = record("Served %s", "echo", request_id="r1", status=200, seconds=0.25, created=0.5)
    assert logs.JsonFormatter().format(made) == (
        '{"time":"1970-01-01T00:00:00.500Z","level":"info","logger":"modelserve",'
        '"message":"Served echo","request_id":"r1","status":200,"seconds":0.25}'
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1 << 70, 1 << 70),
        ("\ud800", "\ud800"),
        ("line\nline", "line\nline"),
        (Path("/x"), "/x"),
        ({1: "a"}, {"1": "a"}),
        (math.nan, None),
    ],
)
def test_json_line_takes_any_value(value: object, shown: object) -> None:
    line = logs.JsonFormatter().format(record("x", extra_key=value))
    assert "\n" not in line
    assert json.loads(line)["extra_key"] == shown


def test_json_line_keeps_the_exception_in_one_field() -> None:
    line = logs.JsonFormatter().format(failed(ValueError("bad\nvalue")))
    shown = json.loads(line)
    assert "\n" not in line
    assert shown["exception"].startswith("Traceback (most recent call last):\n")
    assert shown["exception"].endswith("ValueError: bad\nvalue")


def test_extra_cannot_replace_what_every_line_has() -> None:
    shown = json.loads(logs.JsonFormatter().format(record("x", level="mine", time="never")))
    assert shown["level"] == "info"
    assert shown["time"] != "never"


def test_human_line() -> None:
    line = logs.HumanFormatter().format(record("Served %s", "echo", status=200))
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    modelserve: Served echo", line)


def test_human_line_names_the_request() -> None:
    line = logs.HumanFormatter().format(record("Served %s", "echo", request_id="a1-7"))
    assert line.endswith(": Served echo [a1-7]")
    line = logs.HumanFormatter().format(record("Request %s failed", "a1-7", request_id="a1-7"))
    assert line.endswith(": Request a1-7 failed")


def test_human_line_with_an_exception() -> None:
    lines = logs.HumanFormatter().format(failed(ValueError("bad"))).splitlines()
    assert lines[0].endswith("modelserve: Failed")
    assert lines[-1] == "ValueError: bad"


@pytest.mark.parametrize(
    ("exc", "logged"),
    [
        (ResponseCut("on purpose"), False),
        (ExceptionGroup("", [ResponseCut("on purpose")]), False),
        (ValueError("x"), True),
    ],
)
def test_a_response_cut_on_purpose_is_not_logged_again(exc: Exception, logged: bool) -> None:
    assert logs.no_response_cut(failed(exc)) is logged


def test_a_record_without_an_exception_is_logged() -> None:
    assert logs.no_response_cut(record("x"))
    assert logs.no_response_cut(record("x", exc_info=(None, None, None)))
