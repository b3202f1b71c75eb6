import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.cors import CORSMiddleware

from modelserve import Limits, ModelServer, __version__, cli
from modelserve.errors import LoadError, ResponseCut
from modelserve.server import logs

ROOT = Path(__file__).parent.parent

SERVED = """
from modelserve import Limits, ModelServer
from starlette.applications import Starlette
from starlette.routing import Mount

app = ModelServer(limits=Limits(queue=7, timeout=5), threads=3)
app.model("echo")(lambda payload: payload)
host = Starlette(routes=[Mount("/ml", app=app)])
"""


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelserve", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A target, freshly imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "served.py").write_text(SERVED)
    yield str(tmp_path / "served.py")
    sys.modules.pop("served", None)


def built(*arguments: str) -> Any:
    return cli.build(cli._parse(arguments))


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "the following arguments are required: TARGET"),
        ("a.py b.py", "unrecognized arguments: b.py"),
        ("a.py --port 65536", "argument --port: 65536 is not a port"),
        ("a.py --port http", "argument --port: 'http' is not a whole number"),
        ("a.py --workers 0", "argument --workers: 0 is less than 1"),
        ("a.py --threads -1", "argument --threads: '-1' is not a whole number"),
        ("a.py --concurrency 0", "The limit concurrency cannot be 0"),
        ("a.py --concurrency 1.5", "argument --concurrency: '1.5' is not a whole number"),
        ("a.py --timeout soon", "argument --timeout: 'soon' is not a number"),
        ("a.py --timeout nan", "The limit timeout cannot be nan"),
        ("a.py --drain-timeout=-1", "The limit drain_timeout cannot be -1.0"),
        ("a.py --cors-origin example.org", "'example.org' is not an origin, like"),
        ("a.py --cors-origin https://a.org/", "'https://a.org/' is not an origin, like"),
        ("a.py --http h3", "argument --http: invalid choice: 'h3'"),
        ("a.py --token-file gone", "cannot read the token file gone: No such file or directory"),
        ("a.py --token-file /dev/null", "the token file /dev/null is empty"),
        ("a.py --ssl-keyfile key.pem", "--ssl-keyfile needs --ssl-certfile"),
    ],
)
def test_unusable_arguments(
    capsys: pytest.CaptureFixture[str], arguments: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    usage, told = capsys.readouterr().err.splitlines()
    assert usage == "usage: modelserve TARGET [options]"
    assert told.startswith("modelserve: error: ")
    assert sentence in told


@pytest.mark.parametrize(
    ("arguments", "variable", "port"),
    [
        ([], None, 8080),
        ([], "", 8080),
        ([], "9000", 9000),
        (["--port", "9001"], "9000", 9001),
        (["--port", "9001"], "http", 9001),
    ],
)
def test_port(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None, port: int
) -> None:
    monkeypatch.delenv("PORT", raising=False)
    if variable is not None:
        monkeypatch.setenv("PORT", variable)
    assert cli._parse(["app.py", *arguments]).port == port


def test_unusable_port_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(SystemExit):
        cli._parse(["app.py"])
    assert "the environment variable PORT: 'http' is not a whole number" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"modelserve {__version__}\n"


def test_help_names_every_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in cli.LIMITS)


# --- into the application -----------------------------------------------------------------------


def test_flags_take_precedence_over_the_applications_limits(served: str) -> None:
    app = built(served, "--concurrency", "2", "--timeout", "inf", "--threads", "9", "--debug")
    serving = app.serving
    assert serving.limits == Limits(concurrency=2, queue=7, timeout=math.inf).with_defaults(
        ModelServer().serving.limits
    )
    assert serving.workers.limit == 9
    assert serving.debug is True
    entry = serving.registry.get("echo")
    assert entry.deadlines.timeout is None
    assert serving.registry.pending == [entry]


def test_no_flags_change_nothing(served: str) -> None:
    serving = built(served).serving
    assert (serving.limits.queue, serving.limits.timeout) == (7, 5)
    assert serving.workers.limit == 3
    assert serving.debug is False


def test_flags_for_an_application_that_is_no_model_server(served: str) -> None:
    with pytest.raises(LoadError) as caught:
        built(f"{served}:host", "--queue", "0", "--idle-timeout", "1", "--threads", "2")
    assert str(caught.value) == (
        f"--queue, --idle-timeout, --threads cannot be set from here: {served}:host is not a"
        " ModelServer, so give them to the ModelServer inside it."
    )
    assert type(built(f"{served}:host")).__name__ == "Starlette"


def test_token(served: str, tmp_path: Path) -> None:
    assert built(served).serving.token is None
    (tmp_path / "token").write_text("secret\n")
    assert built(served, "--token-file", str(tmp_path / "token")).serving.token == "secret"


def test_cors_is_off_unless_asked_for(served: str) -> None:
    assert isinstance(built(served), ModelServer)
    app = built(served, "--cors-origin", "https://a.org", "--cors-origin", "http://b.org:8000")
    assert isinstance(app, CORSMiddleware)
    assert app.allow_origins == ["https://a.org", "http://b.org:8000"]
    assert isinstance(app.app, ModelServer)


# --- the whole command, where it fails ----------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_target_that_is_not_there(tmp_path: Path, workers: str) -> None:
    done = command("gone.py", "--port", "0", "--workers", workers, cwd=tmp_path)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert told == [f"modelserve: There is no file {tmp_path}/gone.py."]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_module_that_fails_to_import(tmp_path: Path, workers: str) -> None:
    (tmp_path / "broken.py").write_text("import math\n\nimport not_there_at_all\n")
    done = command("broken.py", "--port", "0", "--workers", workers, cwd=tmp_path)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert told == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/broken.py", line 3, in <module>',
        "    import not_there_at_all",
        "ModuleNotFoundError: No module named 'not_there_at_all'",
        "modelserve: The application raised ModuleNotFoundError on import.",
    ]


def test_address_in_use(tmp_path: Path, served: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(served, cwd=tmp_path, PORT=str(port))
    assert done.returncode == 3
    assert (
        done.stderr == f"modelserve: Cannot listen on 127.0.0.1:{port}: Address already in use.\n"
    )


def test_unusable_certificate(tmp_path: Path, served: str) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    done = command(served, "--port", "0", "--ssl-certfile", "cert.pem", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("modelserve: The TLS certificate or key cannot be used: ")


# --- logs ---------------------------------------------------------------------------------------


def test_what_python_only_prints_is_logged(tmp_path: Path) -> None:
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
    done = command("served.py", "--port", "0", "--log-format", "json", cwd=tmp_path)
    deleted, ended, told = done.stderr.splitlines()
    assert "Ill.__del__" in json.loads(deleted)["message"]
    assert "ZeroDivisionError" in json.loads(deleted)["exception"]
    assert json.loads(ended)["message"] == "Exception in thread ill"
    assert "ValueError" in json.loads(ended)["exception"]
    assert told.startswith("modelserve: ")


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
    ("exc", "news"),
    [
        (ResponseCut("on purpose"), False),
        (ExceptionGroup("", [ResponseCut("on purpose")]), False),
        (ValueError("x"), True),
    ],
)
def test_a_response_cut_on_purpose_is_no_news(exc: Exception, news: bool) -> None:
    assert logs.is_news(failed(exc)) is news


def test_record_without_an_exception_is_news() -> None:
    assert logs.is_news(record("x"))
    assert logs.is_news(record("x", exc_info=(None, None, None)))
