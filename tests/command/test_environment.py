"""Flags by environment variables."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelserve import Limits, ModelServer, cli
from modelserve.command.environment import WrongVariable
from modelserve.command.flags import Flags, options_of, parse
from modelserve.command.table import LIMITS
from modelserve.errors import LoadError
from modelserve.kserve import model_server as kserve

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("MODELSERVE_", "UVICORN_")) or name in ("PORT", "AIP_HTTP_PORT"):
            monkeypatch.delenv(name)


def parsed(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], arguments: str = "") -> Any:
    for name, text in variables.items():
        monkeypatch.setenv(f"MODELSERVE_{name}", text)
    return parse(["app.py", *arguments.split()])


# --- which there are ------------------------------------------------------------------------------


def test_the_help_shows_the_variable_of_each_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    words = capsys.readouterr().out.split()
    shown = [word for word in words if word.startswith("[MODELSERVE_")]
    assert sorted(shown) == sorted(f"[MODELSERVE_{name.upper()}]" for name in Flags.__annotations__)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),
        ("PORT", "9000", 9000),
        ("WORKERS", "3", 3),
        ("SHUTDOWN_DELAY", "0.5", 0.5),
        ("CONCURRENCY", "inf", float("inf")),
        ("MAX_BODY_BYTES", "100", 100),
        ("LOG_LEVEL", "DEBUG", "debug"),
        ("HTTP", "h11", "h11"),
        ("ROOT_PATH", "/ml", "/ml"),
        ("SSL_KEYFILE_PASSWORD", "--host=x y", "--host=x y"),
        ("MODEL_NAME", "a b", "a b"),
        ("DEBUG", "1", True),
        ("DEBUG", "True", True),
        ("DEBUG", "yes", True),
        ("DEBUG", " on\n", True),
        ("DEBUG", "0", False),
        ("DEBUG", "FALSE", False),
        ("SAGEMAKER", "no", False),
        ("WS_PER_MESSAGE_DEFLATE", "off", False),
        ("CONTROL", "true", True),
        ("CONTROL", "false", False),
        ("CONTROL", "", None),
        ("CORS_ORIGIN", "*", ["*"]),
        ("CORS_ORIGIN", " https://a.org\n https://b.org ", ["https://a.org", "https://b.org"]),
        ("ALIAS", "/a=/v2 /b,c=/", [("/a", "/v2"), ("/b,c", "/")]),
        ("ALIAS", " ", []),
    ],
)
def test_what_a_variable_means(
    variable: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = parsed(monkeypatch, {variable: text})
    assert getattr(options, variable.lower()) == value
    if variable.lower() in LIMITS:
        assert options.limits == Limits(**{variable.lower(): value})


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    without = vars(parse(["app.py"]))
    names = dict.fromkeys(map(str.upper, Flags.__annotations__), "")
    assert vars(parsed(monkeypatch, names)) == without


# --- what counts ----------------------------------------------------------------------------------

SET = {
    "PORT": "9000",
    "TIMEOUT": "1",
    "DEBUG": "1",
    "CONTROL": "1",
    "CORS_ORIGIN": "https://a.org https://b.org",
    "ALIAS": "/a=/v2",
}


def test_a_flag_counts_before_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9001")
    options = parsed(monkeypatch, SET)
    assert (options.port, options.limits.timeout, options.debug) == (9000, 1, True)
    options = parsed(
        monkeypatch,
        SET,
        "--port 9002 --timeout inf --no-debug --no-control --cors-origin * --alias /b=/ --alias /c=/",
    )
    assert (options.port, options.limits.timeout) == (9002, float("inf"))
    assert (options.debug, options.control) == (False, False)
    assert (options.cors_origin, options.alias) == (["*"], [("/b", "/"), ("/c", "/")])
    assert options.variables == {}


def test_an_argument_counts_before_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed(monkeypatch, SET)
    options = options_of({"debug": False, "alias": ["/b=/"], "port": None, "timeout": 2.0})
    assert (options.debug, options.alias, options.port) == (False, [("/b", "/")], 9000)
    assert options.limits.timeout == 2
    assert options.cors_origin == ["https://a.org", "https://b.org"]


def test_a_port_that_is_a_flag_counts_before_a_socket_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parsed(monkeypatch, {"UDS": "socket", "PORT": "9000"}).uds == "socket"
    options = parsed(monkeypatch, {"UDS": "socket"}, "--port 9000")
    assert (options.uds, options.port) == (None, 9000)
    assert parsed(monkeypatch, {}, "--port 9000 --uds other").uds == "other"


@pytest.mark.parametrize("text", ["tcp://10.0.0.1:80", "udp://10.0.0.1:53"])
def test_what_kubernetes_sets_for_a_service_called_modelserve(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parsed(monkeypatch, {"PORT": text}).port == 8080
    monkeypatch.setenv("PORT", "9000")
    assert parsed(monkeypatch, {"SERVICE_PORT": "80", "PORT_80_TCP": text}).port == 9000


def test_a_target_may_be_left_out_where_a_folder_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELSERVE_MODEL_DIR", str(tmp_path))
    assert parse([]).model_dir == str(tmp_path)


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("PORT", "http", "'http' is not a whole number"),
        ("WORKERS", "0", "0 is less than 1"),
        ("TIMEOUT", "soon", "'soon' is not a number"),
        ("CONCURRENCY", "0", "The limit concurrency cannot be 0"),
        ("DRAIN_TIMEOUT", "-1", "The limit drain_timeout cannot be -1.0"),
        ("DEBUG", "maybe", "'maybe' is neither true nor false"),
        ("CONTROL", "2", "'2' is neither true nor false"),
        ("CORS_ORIGIN", "* a.org", "'a.org' is not an origin, like https://example.org"),
        ("CORS_ORIGIN", "https://a.org,https://b.org", "'https://a.org,https://b.org' is not an"),
        ("ALIAS", "/a", "'/a' is not two paths"),
        ("LOG_LEVEL", "loud", "invalid choice: 'loud'"),
        ("HTTP", "h3", "invalid choice: 'h3'"),
        ("TOKEN_FILE", "gone", "cannot read the token file gone: No such file or directory"),
        ("TOKEN_FILE", "/dev/null", "the token file /dev/null is empty"),
    ],
)
def test_a_wrong_value_says_the_name_of_the_variable(
    variable: str,
    text: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(monkeypatch, {variable: text})
    assert caught.value.code == 2
    _, error = capsys.readouterr().err.splitlines()
    sentence = f"the environment variable MODELSERVE_{variable}: {problem}"
    assert error.startswith(f"modelserve: error: {sentence}")
    with pytest.raises(WrongVariable) as raised:
        options_of({})
    assert str(raised.value).startswith(sentence)


def test_a_program_with_a_wrong_value_says_so_and_exits(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from modelserve import ModelServer\nModelServer().run()\n")
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MODELSERVE_PORT": "http"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "modelserve: the environment variable MODELSERVE_PORT: 'http' is not a whole number\n"
    )


def test_a_wrong_value_does_not_matter_where_nobody_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELSERVE_KSERVE_CRDS", "/nowhere")
    monkeypatch.setenv("MODELSERVE_HTTP_PORT", "a spelling of KServe's")
    assert parse(["app.py"]).port == 8080


@pytest.mark.parametrize(
    ("variables", "arguments", "sentence"),
    [
        ({"WORKERS": "2"}, "--reload", "--reload serves with one worker: leave out MODELSERVE_WORKERS"),
        ({"RELOAD": "1"}, "--workers 2", "MODELSERVE_RELOAD serves with one worker: leave out --workers"),
        ({"SSL_KEYFILE": "key.pem"}, "", "MODELSERVE_SSL_KEYFILE needs --ssl-certfile"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_called_as_it_was_set(
    variables: dict[str, str],
    arguments: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parsed(monkeypatch, variables, arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "target", "sentence"),
    [
        ({"QUEUE": "1", "DEBUG": "1"}, "host", "MODELSERVE_QUEUE, MODELSERVE_DEBUG cannot be set from here"),
        ({"MODEL_NAME": "a:b"}, "one", "MODELSERVE_MODEL_NAME: "),
        ({"PREDICT_PATH": "/p"}, "app", "MODELSERVE_PREDICT_PATH is for an application with one"),
        ({"ALIAS": "/a=/nothing"}, "app", "the environment variable MODELSERVE_ALIAS: "),
        ({"MODEL_DIR": "gone"}, "app", "MODELSERVE_MODEL_DIR: Cannot read the models in gone"),
    ],
)  # fmt: skip
def test_what_an_application_cannot_have_is_called_as_it_was_set(
    variables: dict[str, str],
    target: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name = f"of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from modelserve import ModelServer\napp = ModelServer()\n"
        "app.model('a')(lambda p: p)\napp.model('b')(lambda p: p)\n"
        "one = ModelServer()\none.model('a')(lambda p: p)\n"
        "async def host(scope, receive, send): pass\n"
    )
    for variable, text in variables.items():
        monkeypatch.setenv(f"MODELSERVE_{variable}", text)
    with pytest.raises(LoadError) as caught:
        cli.build(parse([f"{tmp_path}/{name}.py:{target}"]))
    assert sentence in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_serve_in_a_notebook_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSERVE_WORKERS", "2")
    with pytest.raises(ValueError, match="MODELSERVE_WORKERS and reload are for run"):
        await ModelServer().serve()


# --- what is around it ----------------------------------------------------------------------------


def test_kserves_own_command_line_takes_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["model.py", "--http_port", "9001"])
    for name in ("PORT", "WORKERS", "HTTP_PORT", "MODEL_NAME", "PREDICTOR_PROTOCOL"):
        monkeypatch.setenv(f"MODELSERVE_{name}", "wrong")
    options = kserve._options({})
    assert (options.http_port, options.workers, options.model_name) == (9001, 1, "model")


APP = """
import os
from modelserve import ModelServer

app = ModelServer()

@app.model("pid")
async def pid(payload):
    return {"pid": os.getpid()}

if __name__ == "__main__":
    app.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-m", "modelserve", "app.py"], ["app.py"]])
def test_workers_have_what_the_environment_says(command: list[str], tmp_path: Path) -> None:
    """The variables of uvicorn's own command line, and of its workers, say nothing here."""
    (tmp_path / "app.py").write_text(APP)
    variables = {
        "MODELSERVE_PORT": "0",
        "MODELSERVE_WORKERS": "2",
        "MODELSERVE_MAX_BODY_BYTES": "20",
        "MODELSERVE_ALIAS": "/pid=/v1/models/pid:predict",
        "MODELSERVE_LOG_FORMAT": "json",
        "UVICORN_PORT": "1",
        "UVICORN_WORKERS": "5",
        "UVICORN_HOST": "192.0.2.1",
        "WEB_CONCURRENCY": "7",
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, env=os.environ | variables, stderr=file
        )
    try:
        url, pids = _url_in(log, process), set()
        ends = time.monotonic() + 20
        while len(pids) < 2 and time.monotonic() < ends:
            pids.add(httpx.post(f"{url}/pid", json={}).json()["pid"])
            refused = httpx.post(f"{url}/pid", json={"instances": [1, 2, 3, 4, 5]})
            assert refused.status_code == 413
        assert len(pids) == 2 and process.pid not in pids
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def _url_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        for line in log.read_text().splitlines():
            words = json.loads(line)["message"].split()
            for word in words:
                if word.startswith("http://"):
                    return word
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(log.read_text())
