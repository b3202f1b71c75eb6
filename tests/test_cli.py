import math
import os
import socket
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.cors import CORSMiddleware

from modelserve import Limits, ModelServer, __version__, cli
from modelserve.client import command as calling
from modelserve.command import flags
from modelserve.command.hosting import PORT_VARIABLES
from modelserve.command.table import LIMITS
from modelserve.errors import LoadError
from modelserve.models.predictor import PredictorConfig

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
        ("a.py --token secret", "unrecognized arguments: --token secret"),
        ("a.py --port 65536", "argument --port: 65536 is not a port"),
        ("a.py --port http", "argument --port: 'http' is not a whole number"),
        ("a.py --workers 0", "argument --workers: 0 is less than 1"),
        ("a.py --threads -1", "argument --threads: '-1' is not a whole number"),
        ("a.py --concurrency 0", "The limit concurrency cannot be 0"),
        ("a.py --concurrency 1.5", "argument --concurrency: '1.5' is not a whole number"),
        ("a.py --timeout soon", "argument --timeout: 'soon' is not a number"),
        ("a.py --timeout nan", "The limit timeout cannot be nan"),
        ("a.py --shutdown-delay inf", "'inf' is not a number of seconds"),
        ("a.py --shutdown-delay=-1", "'-1' is not a number of seconds"),
        ("a.py --head-timeout 0", "'0' is not a time limit"),
        ("a.py --head-timeout nan", "'nan' is not a time limit"),
        ("a.py --drain-timeout=-1", "The limit drain_timeout cannot be -1.0"),
        ("a.py --cors-origin example.org", "'example.org' is not an origin, like"),
        ("a.py --cors-origin https://a.org/", "'https://a.org/' is not an origin, like"),
        ("a.py --http h3", "argument --http: invalid choice: 'h3'"),
        ("a.py --token-file gone", "cannot read the token file gone: No such file or directory"),
        ("a.py --token-file /dev/null", "the token file /dev/null is empty"),
        ("a.py --reload --workers 2", "--reload serves with one worker: leave out --workers"),
        ("a.py --ssl-keyfile key.pem", "--ssl-keyfile needs --ssl-certfile"),
        (
            "a.py --alias /predict",
            "'/predict' is not two paths, like /predict=/v1/models/m:predict",
        ),
    ],
)
def test_unusable_arguments(
    capsys: pytest.CaptureFixture[str], arguments: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: modelserve TARGET [options]"
    assert error.startswith("modelserve: error: ")
    assert sentence in error


@pytest.mark.parametrize(
    ("arguments", "environ", "port"),
    [
        ([], {}, 8080),
        ([], {"PORT": ""}, 8080),
        ([], {"PORT": "0"}, 0),
        ([], {"PORT": "9000", "AIP_HTTP_PORT": "9001"}, 9000),
        ([], {"MODELSERVE_PORT": "9002", "PORT": "9000"}, 9002),
        (["--port", "9001"], {"MODELSERVE_PORT": "9000"}, 9001),
        (["--port", "9001"], {"PORT": "http"}, 9001),
    ],
)
def test_port(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environ: dict[str, str], port: int
) -> None:
    for variable in ("MODELSERVE_PORT", *PORT_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    for variable, text in environ.items():
        monkeypatch.setenv(variable, text)
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
    assert all(f"--{name.replace('_', '-')}" in text for name in LIMITS)


def test_help_says_what_each_argument_is() -> None:
    for parser in (flags._parser(ArgumentParser), calling._parser()):
        assert [action.dest for action in parser._actions if action.help is None] == []


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
    with pytest.raises(LoadError, match=r"^--model-name, --predictor-timeout cannot be set from"):
        built(f"{served}:host", "--model-name", "x", "--predictor-timeout", "1")
    assert type(built(f"{served}:host")).__name__ == "Starlette"


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [((), 25), (("--reload",), 1), (("--reload", "--drain-timeout", "7"), 7)],
)
def test_requests_have_little_time_when_a_file_has_changed(
    served: str, flags: tuple[str, ...], seconds: float
) -> None:
    assert built(served, *flags).serving.limits.drain_timeout == seconds


KSERVES = "--model_name x --predictor_host there:80 --http_port 8081 --predictor_protocol v2"


@pytest.mark.parametrize("flags", [KSERVES, KSERVES.replace("_", "-").replace("http-", "")])
def test_the_flags_that_kserve_gives_a_transformer(flags: str, tmp_path: Path) -> None:
    file = tmp_path / f"{tmp_path.name}.py"  # one module each
    file.write_text(
        "from modelserve import Model, ModelServer\n"
        "model = Model('own')\nmodel.timeout = 3\napp = ModelServer([model])\n"
        "two = ModelServer([Model('a'), Model('b')])\ntwo.serving.registry.get('b')"
        ".model.predictor_host = 'other'"
    )
    options = cli._parse([str(file), *flags.split()])
    assert options.port == 8081
    app: Any = cli.build(options)
    assert app.serving.registry.names == ["x", "own"]
    config = app.serving.registry.get("x").model.predictor_config
    assert (config.predictor_host, config.protocol, config.timeout) == ("there:80", "v2", 3)
    two = built(f"{file}:two", *flags.split()).serving.registry
    assert two.names == ["a", "b"]
    assert [two.get(name).model.predictor_host for name in "ab"] == ["there:80", "other"]


@pytest.fixture
def several(tmp_path: Path) -> Path:
    file = tmp_path / f"{tmp_path.name}.py"  # one module each
    file.write_text(
        "from modelserve import Model, ModelServer\n"
        "class Own(Model):\n"
        "    def predict(self, payload): return payload\n"
        "app, none = ModelServer([Own('a'), Own('b')]), ModelServer()\n"
    )
    return file


@pytest.mark.parametrize("flag", ["--model-name=x", "--model_name=x", "MODELSERVE_MODEL_NAME"])
def test_one_name_for_several_models_is_refused(
    flag: str, several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flag.startswith("MODELSERVE"):
        monkeypatch.setenv(flag, "x")
    with pytest.raises(LoadError) as caught:
        built(str(several), *([flag] if flag.startswith("--") else []))
    spelling = flag if flag.startswith("MODELSERVE") else "--model-name"
    assert str(caught.value) == (
        f"{spelling} is for an application with one model; the models here: a, b."
    )


def test_the_name_of_one_of_several_models_changes_nothing(several: Path) -> None:
    assert built(str(several), "--model-name", "b").serving.registry.names == ["a", "b"]


def test_a_name_that_kserve_has_appended_for_several_models_is_a_warning(
    several: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "The name 'x' is ignored: --model-name is for an application with one model; "
    app = built(str(several), "--model_name=x", "--predictor_host=there")
    assert app.serving.registry.names == ["a", "b"]
    assert f"{text}the models here: a, b." in caplog.messages
    for name in "cd":
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.py").write_text("def load(path, name): return print")
    built("--model_dir", str(tmp_path / "models"), "--model_name=x")
    assert f"{text}the models here: c, d." in caplog.messages
    built(f"{several}:none", "--model_name=x")
    assert f"{text}the models here: none." in caplog.messages


MORE = (
    "--predictor-host=there --predictor-protocol=grpc-v2 --predictor-use-ssl"
    " --predictor-timeout=2.5 --predictor-retries=3 --predictor-health-check"
)
MORE_OF_KSERVES = (
    "--predictor_host there --predictor_protocol grpc-v2 --predictor_use_ssl True"
    " --predictor_request_timeout_seconds 2.5 --predictor_request_retries 3"
    " --enable_predictor_health_check"
)


@pytest.mark.parametrize("flags", [MORE, MORE_OF_KSERVES])
def test_all_that_the_flags_say_of_a_predictor(flags: str, tmp_path: Path) -> None:
    file = tmp_path / f"{tmp_path.name}.py"
    file.write_text("from modelserve import Model, ModelServer\napp = ModelServer([Model('m')])\n")
    model = built(str(file), *flags.split()).serving.registry.get("m").model
    wanted = PredictorConfig("there", "grpc-v2", True, 2.5, 3, True)
    assert model.predictor_config == wanted


def test_what_the_flags_leave_out_is_the_models_own(tmp_path: Path) -> None:
    file = tmp_path / f"{tmp_path.name}.py"
    file.write_text(
        "from modelserve import Model, ModelServer\n"
        "class Own(Model):\n"
        "    protocol, use_ssl, timeout, retries = 'v2', True, 5, 1\n"
        "    predictor_health_check = True\n"
        "    def preprocess(self, payload): return payload\n"
        "app, other = ModelServer([Own('m')]), ModelServer([Own('m')])\n"
    )
    model = built(str(file), "--predictor_host", "there").serving.registry.get("m").model
    assert model.predictor_config == PredictorConfig("there", "v2", True, 5, 1, True)
    flags = ("--predictor_use_ssl", "false", "--no-predictor-health-check")
    other = built(f"{file}:other", "--predictor_host", "there", *flags)
    model = other.serving.registry.get("m").model
    assert model.predictor_config == PredictorConfig("there", "v2", False, 5, 1, False)


TRANSFORMER = """
from modelserve import Model, ModelServer
class Clean(Model):
    def preprocess(self, payload):
        return payload
"""


def test_what_only_prepares_is_told_of_its_predictor_by_the_flags(tmp_path: Path) -> None:
    file = tmp_path / f"{tmp_path.name}.py"
    file.write_text(f"{TRANSFORMER}app = ModelServer([Clean('own')])\n")
    app = built(str(file), *KSERVES.split())
    assert app.serving.registry.get("x").model.predictor_host == "there:80"


@pytest.mark.anyio
async def test_so_is_what_only_prepares_in_a_directory_of_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.py").write_text(TRANSFORMER)
    app = built("--model_dir", str(tmp_path), *KSERVES.split())
    await app.ready()
    assert app.serving.registry.get("x").model.predictor_host == "there:80"
    assert "no predict" not in caplog.text


@pytest.mark.parametrize("flag", ["--model-dir", "--model_dir"])
def test_the_flags_that_kserve_gives_a_runtime(flag: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def load(path, name): return lambda payload: name")
    app: Any = cli.build(cli._parse([flag, str(tmp_path), "--model_name=flowers"]))
    assert app.serving.registry.names == ["flowers"]
    assert app.serving.is_controllable
    closed: Any = cli.build(cli._parse([flag, str(tmp_path), "--no-control"]))
    assert not closed.serving.is_controllable


def test_control(served: str) -> None:
    assert not built(served).serving.is_controllable
    assert built(served, "--control").serving.is_controllable
    with pytest.raises(LoadError, match="--control cannot be set from here"):
        built(f"{served}:host", "--control")


def test_paths_of_ones_own(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/health")
    flags = ["--alias", "/up=/v2/health/live", "--predict-path", "/predict", "--sagemaker"]
    app = built(served, *flags, "--alias", "/a=b=/v2/models/echo/infer")
    assert app.aliases == {
        "/up": "/v2/health/live",
        "/a=b": "/v2/models/echo/infer",
        "/predict": "/v1/models/echo:predict",
        "/ping": "/v2/health/ready",
        "/invocations": "/v1/models/echo:predict",
        "/health": "/v2/health/ready",
    }
    assert type(built(f"{served}:host")).__name__ == "Starlette"  # it has paths of its own
    with pytest.raises(LoadError, match="--alias, --predict-path, --sagemaker cannot be set"):
        built(f"{served}:host", *flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--alias", "/metrics=/"], "The path '/metrics' is built in and cannot be given"),
        (["--alias", "/p=/nowhere"], "The path '/p' cannot mean '/nowhere', which is no built-in"),
        (["--predict-path", "p"], "The path 'p' must be text that begins with '/'."),
        (["--sagemaker", "--alias", "/invocations=/"], None),
    ],
)
def test_paths_that_cannot_be(served: str, flags: list[str], sentence: str | None) -> None:
    if sentence is None:
        assert built(served, *flags).aliases["/invocations"] == "/"
        return
    with pytest.raises(LoadError) as caught:
        built(served, *flags)
    assert sentence in str(caught.value)


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
@pytest.mark.slow
def test_target_that_is_not_there(tmp_path: Path, workers: str) -> None:
    done = command("gone.py", "--port", "0", "--workers", workers, cwd=tmp_path)
    assert done.returncode == 2
    printed = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert printed == [f"modelserve: There is no file {tmp_path}/gone.py."]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_module_that_fails_to_import(tmp_path: Path, workers: str) -> None:
    (tmp_path / "broken.py").write_text("import math\n\nimport not_there_at_all\n")
    done = command("broken.py", "--port", "0", "--workers", workers, cwd=tmp_path)
    assert done.returncode == 2
    printed = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert printed == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/broken.py", line 3, in <module>',
        "    import not_there_at_all",
        "ModuleNotFoundError: No module named 'not_there_at_all'",
        "modelserve: The application raised ModuleNotFoundError on import.",
    ]


@pytest.mark.slow
def test_address_in_use(tmp_path: Path, served: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(served, cwd=tmp_path, PORT=str(port))
    assert done.returncode == 3
    assert (
        done.stderr == f"modelserve: Cannot listen on 127.0.0.1:{port}: Address already in use.\n"
    )


@pytest.mark.slow
def test_unusable_certificate(tmp_path: Path, served: str) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    done = command(served, "--port", "0", "--ssl-certfile", "cert.pem", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("modelserve: The TLS certificate or key cannot be used: ")
