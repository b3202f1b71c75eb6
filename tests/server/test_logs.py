import json
import logging
import math
import re
import subprocess
import sys
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from servercommand import Serve, until

from modelserve import ModelServer
from modelserve.composing.requests import CallRequest
from modelserve.errors import ResponseCut
from modelserve.exchange.running import note_running, running_request_id
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


@pytest.mark.parametrize(
    ("before", "level", "logged"),
    [
        ("", "info", ["mine info", "httpx warning"]),
        ("", "error", []),
        ("", "debug", ["mine info", "httpx info", "httpx warning"]),
        ("getLogger('httpx').setLevel('INFO')", "info", ["mine info", "httpx info", "httpx warning"]),
    ],
)  # fmt: skip
def test_the_calls_that_httpx_makes_are_logged_where_they_are_asked_for(
    before: str, level: str, logged: list[str]
) -> None:
    program = (
        f"from logging import getLogger\n{before}\n"
        "from modelserve.server import logs\n"
        f"logs.configure(form='json', level='{level}')\n"
        "getLogger('mine').info('mine info')\n"
        "getLogger('httpx').info('httpx info')\n"
        "getLogger('httpx').warning('httpx warning')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert [json.loads(line)["message"] for line in ran.stderr.splitlines()] == logged


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


class ExecuteBatchError(Exception):
    """Named like grpcio's, which is not public."""


@pytest.mark.parametrize(
    ("exc", "logged"),
    [
        (ExecuteBatchError('Failed "execute_batch": (<SendStatusFromServerOperation>,)'), False),
        (ExecuteBatchError("Failed grpc_call_start_batch: 8"), True),
        (ValueError('Failed "execute_batch"'), True),
    ],
)
def test_a_status_that_came_too_late_is_not_logged(exc: Exception, logged: bool) -> None:
    assert logs.no_lost_call(failed(exc)) is logged
    assert logs.no_lost_call(record("x"))


# --- the id of the request that runs ------------------------------------------------------------

LOGS = """
import asyncio, logging
from modelserve import Model, ModelServer

log = logging.getLogger("scoring")

class Preprocessing(Model):
    def load(self):
        log.info("loading")

    def preprocess(self, payload):
        log.info("line of preprocessing")
        return payload

    async def predict(self, payload):
        return {}

def threaded(payload):
    log.info("line of threaded")
    return {}

async def on_loop(payload):
    log.info("line of on_loop")
    return {}

def streamed(payload):
    yield {"n": 1}
    log.info("line of streamed")

async def streamed_on_loop(payload):
    yield {"n": 1}
    await asyncio.sleep(0.05)
    log.info("line of streamed_on_loop")

async def in_a_task(payload):
    await asyncio.gather(asyncio.to_thread(log.info, "line of in_a_task"))
    return {}

async def with_its_own(payload):
    log.info("line of with_its_own", extra={"request_id": "mine"})
    return {}

app = ModelServer([Preprocessing("preprocessing")])
for function in (threaded, on_loop, streamed, streamed_on_loop, in_a_task, with_its_own):
    app.add_model(function, function.__name__)
"""


MOUNTED = """
from starlette.applications import Starlette
from starlette.routing import Mount

host = Starlette(routes=[Mount("/ml", app=app)], lifespan=app.lifespan)
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["served.py", "served.py:host"])
def test_a_line_of_a_hook_has_the_id_of_its_request(
    serve: Serve, tmp_path: Path, target: str
) -> None:
    (tmp_path / "served.py").write_text(LOGS + MOUNTED)
    running = serve(target)
    prefix = "/ml" if target.endswith(":host") else ""
    ids = {}
    names = ("threaded", "on_loop", "streamed", "streamed_on_loop", "in_a_task", "preprocessing")
    for name in (*names, "with_its_own"):
        connection = running.connect()
        connection.request("POST", f"{prefix}/v1/models/{name}:predict", "{}")
        answer = connection.getresponse()
        answer.read()
        ids[name] = answer.headers["x-request-id"]
        connection.close()
    ids["with_its_own"] = "mine"
    until(lambda: "line of with_its_own" in running.log)
    lines = [json.loads(line) for line in running.log.splitlines()]
    seen = {line["message"]: line.get("request_id") for line in lines}
    assert {name: seen[f"line of {name}"] for name in ids} == ids
    assert seen["loading"] is None


def test_a_record_outside_of_requests_has_no_id() -> None:
    made = record("x")
    assert Context().run(logs.add_request_id, made)
    assert not hasattr(made, "request_id")


def test_a_record_has_the_id_of_the_request_that_runs() -> None:
    made, own = record("x"), record("x", request_id="mine")
    headers = {"x-request-id": "abc"}

    def run() -> None:
        note_running(CallRequest(ModelServer().serving, "m", None, "predict", headers, None))
        assert running_request_id() == "abc"
        assert logs.add_request_id(made) and logs.add_request_id(own)

    Context().run(run)
    assert (vars(made)["request_id"], vars(own)["request_id"]) == ("abc", "mine")
    assert running_request_id() is None


def test_a_refused_websocket_is_no_error_of_the_applications() -> None:
    assert not logs.no_refusal(record("ASGI callable returned without completing handshake."))
    assert logs.no_refusal(record("ASGI callable should return None"))
