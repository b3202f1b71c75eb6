"""KServe's names: what they are, that importing them does nothing, and programs that use them."""

import argparse
import contextlib
import importlib
import json
import logging
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import modelserve
from modelserve import Limits, Model, ModelServer, errors, kserve, tensors
from modelserve.kserve import model_server
from modelserve.kserve.logging import configure_logging
from modelserve.kserve.model_server import _App, _options, parser
from modelserve.kserve.predictor_config import PredictorConfig
from modelserve.kserve.utils import numpy_codec, utils
from modelserve.models import repository as repositories
from modelserve.server.application import find_drainables
from modelserve.testing import lifespan, request

ROOT = Path(__file__).parent.parent
EXAMPLE = next((ROOT / "examples").glob("*_migration"))


# --- names --------------------------------------------------------------------------------------

NAMES = {
    "modelserve.kserve": (
        "Model ModelServer ModelRepository InferRequest InferInput InferOutput InferResponse "
        "InferenceVerb InferenceGRPCClient RequestedOutput PredictorConfig model_server logging errors constants utils"
    ),
    "modelserve.kserve.errors": (
        "InferenceError InvalidInput ModelNotFound ModelNotReady ModelMissingError "
        "UnsupportedProtocol ServerNotReady ServerNotLive NoModelReady "
        "WorkersShouldBeLessThanMaxWorkersError"
    ),
    "modelserve.kserve.model": (
        "Model InferenceVerb BaseKServeModel InferenceModel PredictorProtocol PredictorConfig "
        "InferRequest InferResponse InvalidInput"
    ),
    "modelserve.kserve.model_repository": "ModelRepository MODEL_MOUNT_DIRS",
    "modelserve.kserve.model_server": "ModelServer parser app",
    "modelserve.kserve.predictor_config": "PredictorConfig PredictorProtocol",
    "modelserve.kserve.logging": (
        "logger trace_logger configure_logging KSERVE_LOGGER_NAME KSERVE_TRACE_LOGGER_NAME"
    ),
    "modelserve.kserve.protocol.infer_type": (
        "InferRequest InferInput InferOutput InferResponse RequestedOutput serialize_byte_tensor "
        "deserialize_bytes_tensor to_http_parameters"
    ),
    "modelserve.kserve.inference_client": "InferenceGRPCClient USE_CLIENT_DEFAULT",
    "modelserve.kserve.protocol.dataplane": "DataPlane",
    "modelserve.kserve.protocol.model_repository_extension": "ModelRepositoryExtension",
    "modelserve.kserve.protocol.rest.v2_datamodels": (
        "InferenceRequest InferenceResponse RequestInput RequestOutput ResponseOutput"
    ),
    "modelserve.kserve.protocol.grpc.servicer": "InferenceServicer to_headers",
    "modelserve.kserve.constants.constants": (
        "PredictorProtocol ModelType KSERVE_GROUP KSERVE_V1BETA1 DEFAULT_HTTP_PORT "
        "INFERENCE_CONTENT_LENGTH_HEADER"
    ),
    "modelserve.kserve.utils.utils": (
        "generate_uuid get_predict_input get_predict_response strtobool cpu_count is_v1 is_v2 "
        "to_headers"
    ),
    "modelserve.kserve.utils.numpy_codec": "from_np_dtype to_np_dtype",
}


@pytest.mark.parametrize("path", NAMES)
def test_the_names_of_a_module(path: str) -> None:
    module = importlib.import_module(path)
    missing = [name for name in NAMES[path].split() if not hasattr(module, name)]
    assert missing == []
    assert set(NAMES[path].split()) <= set(module.__all__)
    assert module.__all__ == sorted(
        module.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)
    )


def test_the_names_are_ours() -> None:
    assert kserve.Model is kserve.model.Model is modelserve.Model
    assert kserve.ModelRepository is repositories.ModelRepository
    assert kserve.model_repository.MODEL_MOUNT_DIRS == "/mnt/models"
    assert kserve.InferRequest is kserve.protocol.infer_type.InferRequest is tensors.InferRequest
    assert kserve.errors.InvalidInput is errors.InvalidInput
    assert issubclass(kserve.ModelServer, ModelServer)
    assert kserve.model_server.ModelServer is kserve.ModelServer
    assert kserve.constants.KSERVE_V1BETA1 == "serving.kserve.io/v1beta1"
    assert kserve.utils.generate_uuid is tensors.generate_uuid
    assert kserve.logging.KSERVE_LOGGER_NAME == kserve.logging.logger.name == "kserve"
    assert [verb.name for verb in kserve.InferenceVerb] == ["EXPLAIN", "PREDICT"]


WAYS_TO_IMPORT = """
from modelserve.kserve.constants import constants; constants.PredictorProtocol.REST_V2
from modelserve.kserve.constants.constants import PredictorProtocol
from modelserve.kserve.utils import utils; utils.generate_uuid
from modelserve.kserve.model import PredictorProtocol
from modelserve.kserve.model_repository import ModelRepository, MODEL_MOUNT_DIRS
import modelserve.kserve as kserve; kserve.model_server.parser, kserve.ModelServer
import modelserve.kserve; modelserve.kserve.model_server.parser
"""


@pytest.mark.slow
def test_ways_to_import() -> None:
    subprocess.run([sys.executable, "-c", WAYS_TO_IMPORT], check=True, timeout=30, cwd=ROOT)


@pytest.mark.slow
def test_importing_does_nothing() -> None:
    code = (
        "import sys, threading, logging, os, signal\n"
        "sys.argv = ['x', '--http_port', 'nonsense', '--no-such-flag']\n"
        "os.environ.update(PORT='nonsense', KSERVE_LOGLEVEL='nonsense')\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "import modelserve.kserve\n"
        "import modelserve.kserve.utils.numpy_codec\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
        "assert threading.active_count() == 1\n"
        "assert not any(logging.getLogger(n).handlers for n in ('', 'kserve', 'modelserve'))\n"
        "assert logging.getLogger('kserve').level == logging.NOTSET\n"
        "late = ('numpy', 'pandas', 'prometheus_client', 'trio', 'httpx', 'yaml', 'grpc', 'google')\n"
        "assert [m for m in late if m in sys.modules] == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=ROOT)


def test_nothing_else_imports_it() -> None:
    others = [p for p in (ROOT / "modelserve").rglob("*.py") if "kserve" not in p.parts]
    assert [path.name for path in others if "modelserve.kserve" in path.read_text()] == []


# --- the command line ---------------------------------------------------------------------------

FLAGS = """
    --http_port 1 --grpc_port 2 --workers 3 --max_threads 4 --max_asyncio_workers 5
    --enable_grpc false --enable_docs_url true --enable_latency_logging no
    --configure_logging off --log_config_file f.yaml --access_log_format %(h)s
    --event-loop asyncio --timeout-keep-alive 6 --model_name m --predictor_host h
    --protocol v2 --predictor_protocol grpc-v2 --predictor_use_ssl true
    --predictor_request_timeout_seconds 7 --grpc_max_send_message_length 8
    --grpc_max_receive_message_length 9 --predictor_request_retries 10
    --enable_predictor_health_check --ssl_certfile c --ssl_keyfile k
"""


def test_every_flag_of_kserve_is_taken() -> None:
    child = argparse.ArgumentParser(parents=[parser])
    child.add_argument("--model_dir", required=True)
    found = vars(child.parse_args([*FLAGS.split(), "--model_dir", "d"]))
    assert {key: found[key] for key in ("http_port", "enable_grpc", "model_name")} == {
        "http_port": 1,
        "enable_grpc": False,
        "model_name": "m",
    }
    assert None not in found.values()


def test_the_defaults_are_kserves() -> None:
    found, unknown = argparse.ArgumentParser(parents=[parser]).parse_known_args(["--other", "1"])
    assert unknown == ["--other", "1"]
    wanted = {
        "http_port": 8080,
        "workers": 1,
        "model_name": "model",
        "configure_logging": True,
        "log_config_file": None,
        "predictor_host": None,
        "predictor_protocol": "v1",
        "timeout_keep_alive": 65,
        "event_loop": "auto",
        "max_asyncio_workers": None,
        "enable_latency_logging": True,
        "ssl_certfile": None,
    }
    assert {key: getattr(found, key) for key in wanted} == wanted


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the command line and the environment, and return the resulting options."""
    for name in ("PORT", "KSERVE_TLS_CERT_FILE", "KSERVE_TLS_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)

    def options(line: str = "", environment: str = "", **given: Any) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["program.py", *line.split()])
        for pair in environment.split():
            monkeypatch.setenv(*pair.split("="))
        return _options(given)

    return options


@pytest.mark.parametrize(
    ("line", "environment", "given", "port"),
    [
        ("", "", {}, 8080),
        ("", "PORT=9000", {}, 9000),
        ("", "PORT=", {}, 8080),
        ("--http_port 9001", "PORT=9000", {}, 9001),
        ("--http_port 9001", "PORT=9000", {"http_port": 9002}, 9002),
        ("--http_port 0", "", {"http_port": None}, 0),
        ("--http 9001", "", {}, 8080),  # an abbreviation may be the program's own flag
        ("--ssl_certfile c --ssl_keyfile k", "", {}, 8443),
        ("--ssl_certfile c", "", {}, 8080),
        ("--ssl_certfile c --ssl_keyfile k --http_port 9001", "", {}, 9001),
        ("", "KSERVE_TLS_CERT_FILE=c KSERVE_TLS_KEY_FILE=k", {}, 8443),
        ("positional --mine x", "", {"ssl_certfile": "c", "ssl_keyfile": "k"}, 8443),
    ],
)
def test_the_port(
    parsed: Any, line: str, environment: str, given: dict[str, Any], port: int
) -> None:
    assert parsed(line, environment, **given).http_port == port


def test_what_is_given_comes_before_the_command_line(parsed: Any) -> None:
    options = parsed("--workers 2 --event-loop asyncio --timeout-keep-alive 7", workers=3)
    assert (options.workers, options.event_loop, options.timeout_keep_alive) == (3, "asyncio", 7)


def test_what_means_nothing_is_said(parsed: Any, caplog: pytest.LogCaptureFixture) -> None:
    parsed("--enable_grpc false --grpc_port 9000 --model_name m", enable_docs_url=False)
    assert caplog.messages == []
    parsed("--max_threads 2", enable_docs_url=True)
    assert caplog.messages == [
        f"{name} means nothing to modelserve and is ignored"
        for name in ("enable_docs_url", "max_threads")
    ]


@pytest.mark.parametrize(
    ("line", "given", "enabled", "optional"),
    [
        ("", {}, True, True),
        ("--grpc_port 9000", {}, True, False),
        ("--enable_grpc true", {}, True, False),
        ("--enable_grpc false --grpc_port 9000", {}, False, False),
        ("", {"enable_grpc": False}, False, True),
        ("--enable_grpc false", {"enable_grpc": True, "grpc_port": 9000}, True, False),
    ],
)
def test_grpc(parsed: Any, line: str, given: dict[str, Any], enabled: bool, optional: bool) -> None:
    pytest.importorskip("grpc")
    options = parsed(line, **given)
    assert (options.enable_grpc, options.grpc_is_optional) == (enabled, optional)
    assert options.grpc_port == (9000 if "9000" in line or "grpc_port" in given else 8081)
    assert options.grpc_max_receive_message_length == 8 << 20


def test_grpc_that_nobody_asks_for_is_left_out_without_its_packages(
    parsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert not parsed().enable_grpc
    assert parsed("--grpc_port 9000").enable_grpc  # and `serve` says what it needs


def test_an_unusable_command_line(parsed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--http_port http")
    assert "--http_port: invalid int value: 'http'" in capsys.readouterr().err


PREDICTOR = (
    "--predictor_host h --predictor_protocol v2 --protocol v1 --predictor_use_ssl true "
    "--predictor_request_timeout_seconds 5 --predictor_request_retries 2 "
    "--enable_predictor_health_check"
)


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("", None),
        ("--predictor_protocol v2", None),
        ("--predictor_host h", PredictorConfig("h")),
        ("--predictor_host h --protocol v2", PredictorConfig("h", "v2")),
        (
            PREDICTOR,
            PredictorConfig("h", "v2", True, 5, 2, True),
        ),
    ],
)
def test_the_predictor(parsed: Any, line: str, config: PredictorConfig | None) -> None:
    assert model_server._predictor(parsed(line)) == config


# --- the server as an application ---------------------------------------------------------------


class Double(Model):
    def load(self) -> bool:
        self.ready = True
        return self.ready

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": [2 * x for x in payload["instances"]]}


async def ask(app: Any, name: str) -> Any:
    response = await request(app, "POST", f"/v1/models/{name}:predict", json={"instances": [1]})
    return response.json()


async def until_loaded(app: ModelServer) -> None:
    registry = app.serving.registry
    with anyio.fail_after(5):
        while registry.pending or any(entry.loading for entry in registry):  # noqa: ASYNC110
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_a_model_server_is_an_asgi_application() -> None:
    repository = kserve.ModelRepository()
    repository.update(Double("one"))
    server = kserve.ModelServer(registered_models=repository)
    server.register_model(Double("two"))
    server.register_model(repository.get_model("two"), "alias")
    async with lifespan(server):
        await until_loaded(server)
        models = (await request(server, "GET", "/v1/models")).json()
        assert models == {"models": ["one", "two", "alias"]}
        for name in ("one", "two", "alias"):
            assert await ask(server, name) == {"predictions": [2]}
        assert list(server.registered_models.get_models()) == ["one", "two", "alias"]
        assert (await request(server, "POST", "/v2/repository/models/two/unload")).status == 200
        assert await ask(server, "alias") == {"predictions": [2]}
        assert list(server.registered_models.get_models()) == ["one", "alias"]


def test_a_model_server_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(kserve.ModelServer(grace_period=7)))
    copy.register_model(Model("late"))
    assert copy.serving.limits.drain_timeout == 7
    assert list(copy.serving.statistics().models) == ["late"]


@pytest.mark.anyio
async def test_a_repository_of_kserves_is_asked_only_where_one_is_given(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.py").write_text("def load(path, name): return lambda payload: 1")
    server = kserve.ModelServer()
    server.registered_models.set_models_dir(str(tmp_path))
    assert (await request(server, "POST", "/v2/repository/models/m/load")).status == 404
    given = kserve.ModelServer(registered_models=kserve.ModelRepository(str(tmp_path)))
    assert (await request(given, "GET", "/v1/models")).json() == {"models": []}
    assert (await request(given, "POST", "/v2/repository/models/m/load")).status == 200
    assert await ask(given, "m") == 1


class Shelf(kserve.ModelRepository):
    """As KServe's own servers have it."""

    def __init__(self, models_dir: str) -> None:
        super().__init__(models_dir)
        self.load_models()

    async def load(self, name: str) -> bool:
        return self.load_model(name)

    def load_model(self, name: str) -> bool:
        model = Double(name)
        if not (Path(str(self.models_dir)) / name).is_dir():
            raise kserve.errors.ModelMissingError(name)
        if model.load():
            self.update(model)
        return model.ready


@pytest.mark.anyio
async def test_a_repository_as_kserves_servers_have_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    server = kserve.ModelServer(registered_models=Shelf(str(tmp_path)))
    assert await ask(server, "a") == {"predictions": [2]}
    assert (await request(server, "POST", "/v2/repository/models/b/load")).status == 503
    (tmp_path / "b").mkdir()
    assert (await request(server, "POST", "/v2/repository/models/b/load")).status == 200
    assert await ask(server, "b") == {"predictions": [2]}
    assert (await request(server, "POST", "/v2/repository/models/..%2fb/load")).status == 404


def test_the_arguments_are_kserves() -> None:
    server = kserve.ModelServer(8080, 8081, 1, 4, 7, None, True, False, True, None, "auto", 65, 12)
    assert server.serving.limits.drain_timeout == 12
    assert server.serving.workers.limit == 7
    assert kserve.ModelServer().serving.limits.drain_timeout == 30
    assert kserve.ModelServer().serving.limits.max_body_bytes == math.inf
    given = Limits(queue=3, drain_timeout=5, max_body_bytes=6)
    ours = kserve.ModelServer(limits=given, debug=True).serving
    assert (ours.limits.queue, ours.limits.drain_timeout, ours.limits.max_body_bytes) == (3, 5, 6)
    assert ours.debug
    with pytest.raises(TypeError, match="no_such"):
        kserve.ModelServer(no_such=1)


def test_a_predictor_is_for_models_that_name_none_of_their_own() -> None:
    own, other = Model("own"), Model("other")
    own.predictor_host = "mine"
    server = kserve.ModelServer(predictor_config=PredictorConfig("theirs", "v2"))
    server.register_model(own)
    server.register_model(other)
    assert own.predictor_host == "mine"
    assert (other.predictor_host, other.protocol) == ("theirs", "v2")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_handler_of_what_no_task_has_caught() -> None:
    seen: list[dict[str, Any]] = []
    server = kserve.ModelServer()
    server.register_exception_handler(lambda loop, context: seen.append(context))
    async with lifespan(server):
        import asyncio

        asyncio.get_running_loop().call_exception_handler({"message": "lost"})
    assert seen == [{"message": "lost"}]


# --- the global application ---------------------------------------------------------------------


class Mark:
    """ASGI middleware that adds a header; Starlette's have an `app` as well."""

    def __init__(self, app: Any, mark: str = "default") -> None:
        self.app = app
        self.mark = mark

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marking(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-mark", self.mark.encode())]
            await send(message)

        await self.app(scope, receive, marking)


@pytest.mark.anyio
async def test_middleware_is_put_around_the_server_that_is_started() -> None:
    app = _App()
    app.add_middleware(Mark, "inner")
    app.add_middleware(Mark, mark="outer")
    with pytest.raises(RuntimeError, match="no ModelServer has been started"):
        await app({"type": "http"}, anyio.sleep_forever, anyio.sleep)  # type: ignore[arg-type]
    app.app = kserve.ModelServer()
    assert find_drainables(app) == [app.app.serving]
    async with lifespan(app):
        response = await request(app, "GET", "/")
    assert response.headers.getlist("x-mark") == ["inner", "outer"]


# --- logging ------------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody_logging() -> Iterator[None]:
    """Take away the handlers that others have put in, pytest's own among them; put them back."""
    loggers = [logging.getLogger(name) for name in ("", "kserve", "kserve.trace")]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers[:] = []
    try:
        yield
    finally:
        for one, handlers, level, propagate in before:
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)
        logging.captureWarnings(False)


CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"null": {"class": "logging.NullHandler"}},
    "loggers": {"kserve": {"handlers": ["null"], "level": "DEBUG", "propagate": False}},
}
INI = """
[loggers]
keys=root,kserve
[handlers]
keys=null
[formatters]
keys=
[handler_null]
class=NullHandler
[logger_root]
handlers=
[logger_kserve]
handlers=null
qualname=kserve
level=DEBUG
"""


@pytest.mark.parametrize("kind", ["dict", "json", "yaml", "yml", "ini"])
def test_logging_is_configured_by_a_dictionary_or_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"logging.{kind}"
    path.write_text(INI if kind == "ini" else json.dumps(CONFIG))  # JSON is YAML
    with nobody_logging():
        configure_logging(CONFIG if kind == "dict" else str(path))
        assert kserve.logging.logger.level == logging.DEBUG
        assert [type(one) for one in kserve.logging.logger.handlers] == [logging.NullHandler]


def test_logging_is_configured_once_and_only_where_nobody_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KSERVE_LOGLEVEL", "WARNING")
    with nobody_logging():
        configure_logging()
        (handler,) = logging.getLogger().handlers
        assert logging.getLogger().level == logging.WARNING
        configure_logging(None)
        assert logging.getLogger().handlers == [handler]


# --- helpers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "value"), [("y Yes t TRUE on 1", True), ("n No f False OFF 0", False)]
)
def test_words_for_true_and_false(words: str, value: bool) -> None:
    assert [utils.strtobool(word) for word in words.split()] == [value] * 6
    with pytest.raises(ValueError, match="'maybe' is neither true nor false"):
        utils.strtobool("maybe")


def test_protocols() -> None:
    protocol = kserve.constants.PredictorProtocol
    assert [utils.is_v1(p) for p in ("v1", "V1", "v2", protocol.REST_V1, None)] == [
        True, True, False, True, False,
    ]  # fmt: skip
    assert [utils.is_v2(p) for p in ("v2", protocol.REST_V2, protocol.GRPC_V2)] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 0),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_a_containers_quota(files: dict[str, str], count: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert utils._quota(tmp_path) == count
    assert 1 <= utils.cpu_count() <= (os.cpu_count() or 1)


def test_datatypes_and_dtypes() -> None:
    names = ["BOOL", "INT8", "INT64", "UINT16", "FP16", "FP32", "FP64", "BYTES"]
    assert [numpy_codec.from_np_dtype(numpy_codec.to_np_dtype(name)) for name in names] == names
    assert numpy_codec.from_np_dtype(np.float32) == "FP32"
    assert numpy_codec.from_np_dtype(np.array(["a"]).dtype) == "BYTES"
    assert numpy_codec.to_np_dtype("FP65") is numpy_codec.from_np_dtype(np.complex128) is None


# --- programs -----------------------------------------------------------------------------------

PROGRAM = """
import argparse
import os
from modelserve.kserve import Model, ModelServer, logging, model_server
from modelserve.kserve.errors import InvalidInput
from modelserve.kserve.logging import logger
from modelserve.kserve.model_server import app

class Mark:
    def __init__(self, app, mark):
        self.app, self.mark = app, mark

    async def __call__(self, scope, receive, send):
        async def marking(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-mark", self.mark)]
            await send(message)
        await self.app(scope, receive, marking)

class Words(Model):
    def load(self):
        logger.info("loading in %d", os.getpid())
        self.ready = True
        return self.ready

    def preprocess(self, payload, headers=None):
        if not payload["instances"]:
            raise InvalidInput("no instances")
        headers["from"] = "preprocess"
        return payload

    async def predict(self, payload, headers=None, response_headers=None):
        for word in payload["instances"][0].split():
            yield {"word": word, "from": headers["from"], "pid": os.getpid()}

parser = argparse.ArgumentParser(parents=[model_server.parser])
parser.add_argument("--loaded", action="store_true")
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    app.add_middleware(Mark, b"here")
    model = Words(args.model_name)
    if args.loaded:
        model.load()
    ModelServer(workers=None).start([model])
    print("stopped")
"""


@dataclass
class Program:
    """A program that serves, in a process of its own."""

    process: subprocess.Popen[str]
    log: Path
    base: str = ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def post(self, path: str, document: Any) -> tuple[int, dict[str, str], bytes]:
        body = json.dumps(document).encode()
        wanted = urllib.request.Request(
            self.base + path, body, {"content-type": "application/json"}
        )
        return self.open(wanted)

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return self.open(urllib.request.Request(self.base + path))

    def open(self, wanted: urllib.request.Request) -> tuple[int, dict[str, str], bytes]:
        try:
            with urllib.request.urlopen(wanted, timeout=10) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, dict(exc.headers), exc.read()

    def wait_until_serving(self, servers: int) -> None:
        while len(served := self.serving()) < servers:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        self.base = "http://127.0.0.1:" + served[0].rpartition(":")[2]
        while self.get("/v2/health/ready")[0] != 200:
            time.sleep(0.01)

    def serving(self) -> list[str]:
        messages = [str(line["message"]).split() for line in self.lines]
        return [words[2] for words in messages if words[:2] == ["Serving", "on"]]


@contextlib.contextmanager
def running(path: Path, *arguments: str, servers: int = 1) -> Iterator[Program]:
    log = path.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(path), "--http_port", "0", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    program = Program(process, log)
    try:
        program.wait_until_serving(servers)
        yield program
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize("loaded", [True, False])
def test_a_program_serves_until_it_is_stopped(program: Path, loaded: bool) -> None:
    flags = ["--loaded"] if loaded else ["--model_name", "words", "--grpc_port", "0"]
    name = "model" if loaded else "words"
    with running(program, *flags) as served:
        status, headers, body = served.post(f"/v1/models/{name}:predict", {"instances": ["a b"]})
        words = [json.loads(line) for line in body.splitlines()]
        assert (status, headers["content-type"]) == (200, "application/x-ndjson")
        assert [(w["word"], w["from"]) for w in words] == [("a", "preprocess"), ("b", "preprocess")]
        assert headers["x-mark"] == "here"
        status, _, body = served.post(f"/v1/models/{name}:predict", {"instances": []})
        assert (status, json.loads(body)) == (400, {"error": "no instances"})
        served.process.send_signal(signal.SIGTERM)
        assert served.process.communicate(timeout=10) == ("stopped\n", None)
        assert served.process.returncode == 0
    messages = [line["message"] for line in served.lines]
    assert sum("loading in" in message for message in messages) == 1
    if not loaded:
        assert any("gRPC is served on 0.0.0.0:" in message for message in messages)


@pytest.mark.slow
def test_models_go_to_worker_processes(program: Path) -> None:
    with running(program, "--loaded", "--workers", "2", servers=2) as served:
        pids = {
            line["message"].split()[-1] for line in served.lines if "Serving" in line["message"]
        }
        status, headers, body = served.post("/v1/models/model:predict", {"instances": ["a"]})
        assert status == 200
        assert headers["x-mark"] == "here"
        assert f"{json.loads(body)['pid']})" in pids
        served.process.send_signal(signal.SIGTERM)
        assert served.process.communicate(timeout=10) == ("stopped\n", None)
    assert sum("loading in" in line["message"] for line in served.lines) == 1


TRANSFORMER = """
from modelserve.kserve import Model, ModelServer

class Transformer(Model):
    def preprocess(self, payload, headers=None):
        return {"instances": [[float(x) for x in row.split()] for row in payload["instances"]]}

if __name__ == "__main__":
    ModelServer().start([Transformer("flowers")])
"""


@pytest.mark.slow
def test_a_transformer_sends_on_to_the_predictor_of_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    for name, text in (("predictor.py", (EXAMPLE / "after.py").read_text()), ("t.py", TRANSFORMER)):
        (tmp_path / name).write_text(text)
    with running(tmp_path / "predictor.py", "--model_name", "flowers") as predictor:
        host = predictor.base.removeprefix("http://")
        with running(tmp_path / "t.py", "--predictor_host", host) as transformer:
            rows = {"instances": ["5 3 1 0.2"]}
            status, _, body = transformer.post("/v1/models/flowers:predict", rows)
            assert (status, json.loads(body)) == (200, {"predictions": ["setosa"]})


def test_a_port_that_is_taken_ends_the_program(program: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        result = subprocess.run(
            [sys.executable, str(program), "--http_port", str(taken.getsockname()[1])],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (result.returncode, result.stdout) == (3, "")
    assert "Address already in use" in result.stderr


# --- the example --------------------------------------------------------------------------------


def test_the_example_differs_in_its_imports_alone() -> None:
    before = (EXAMPLE / "before.py").read_text()
    after = (EXAMPLE / "after.py").read_text()
    assert re.sub(r"\bkserve\b", "modelserve.kserve", before) == after


def test_the_readme_of_the_example_shows_the_difference() -> None:
    before = (EXAMPLE / "before.py").read_text().splitlines()
    after = (EXAMPLE / "after.py").read_text().splitlines()
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    changed = [f"-{a}" for a, _ in pairs] + [f"+{b}" for _, b in pairs]
    block = re.search(r"```diff\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert block[1].splitlines() == changed


def test_the_example_runs(tmp_path: Path) -> None:
    path = tmp_path / "after.py"
    path.write_text((EXAMPLE / "after.py").read_text())
    with running(path, "--model_name", "flowers") as served:
        rows = {"instances": [[5, 3, 1, 0.2], [6, 3, 5, 2]]}
        status, headers, body = served.post("/v1/models/flowers:predict", rows)
        assert json.loads(body) == {"predictions": ["setosa", "virginica"]}
        assert (status, headers["x-farthest"]) == (200, "0.85")
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5, 3, 1, 0.2]}
        _, _, body = served.post("/v2/models/flowers/infer", {"id": "7", "inputs": [tensor]})
        assert json.loads(body) == {
            "model_name": "flowers",
            "model_version": None,
            "id": "7",
            "parameters": None,
            "outputs": [
                {
                    "name": "output-0",
                    "shape": [1],
                    "datatype": "BYTES",
                    "parameters": None,
                    "data": ["setosa"],
                }
            ],
        }
        status, _, body = served.post("/v1/models/flowers:explain", rows)
        distances = {"setosa": 0.64, "versicolor": 3.6, "virginica": 5.19}
        assert json.loads(body)["explanations"][0] == distances
        status, _, body = served.post("/v1/models/flowers:predict", {"instances": [[1, 2]]})
        assert json.loads(body)["error"].startswith("a flower has 4 measures")
        assert status == 400
