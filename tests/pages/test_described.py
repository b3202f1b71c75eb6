"""The document of the API against the server: what it says holds, for people's tools, too.

pip install schemathesis openapi-python-client; and npm install openapi-typescript, in the
environment's folder. What is missing is skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

HERE = Path(__file__).parent
PROGRAMS = Path(sys.executable).parent
TOKEN = {"app": (), "guarded": ("--header", "Authorization: Bearer secret")}

CALLS = """
import sys
from modelserve_client import AuthenticatedClient
from modelserve_client.api.structs import predict_structs
from modelserve_client.api.tensors import infer_tensors
from modelserve_client.models import House, InferInput, InferInputDatatype, InferRequest
from modelserve_client.models import PredictStructsBody

client = AuthenticatedClient(sys.argv[1], token="secret", raise_on_unexpected_status=True)
houses = PredictStructsBody([House(rooms=1, area=2.5)])
print(predict_structs.sync(client=client, body=houses).predictions)
tensor = InferInput("x", shape=[2], datatype=InferInputDatatype.FP32, data=[1, 2])
print(infer_tensors.sync(client=client, body=InferRequest([tensor])).outputs[0].data)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def serving(name: str, folder: Path) -> Iterator[str]:
    """Serve one of the applications; yield its address, which a line of its log tells."""
    log = folder / "server.log"
    command = ["-m", "modelserve", f"{HERE / 'described.py'}:{name}", "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, *command], stderr=stderr)
    try:
        while not (found := re.search(r"Serving on (http://127\S+:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)


def saved(name: str, base: str, folder: Path) -> Path:
    """Return the file of an application's document."""
    request = urllib.request.Request(f"{base}/openapi.json")
    request.add_header("authorization", "Bearer secret")
    path = folder / f"{name}.json"
    with urllib.request.urlopen(request, timeout=30) as response:
        path.write_bytes(response.read())
    return path


def program(name: str) -> str:
    found = shutil.which(name, path=f"{PROGRAMS}:{Path(sys.prefix) / 'node_modules' / '.bin'}")
    return found or pytest.skip(f"{name} is not installed")


def run(*command: str, cwd: Path) -> str:
    environment = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("name", "examples"), [("app", 8), ("guarded", 8)])
def test_schemathesis_finds_nothing(name: str, examples: int, tmp_path: Path) -> None:
    checker = program("schemathesis")
    config = ("--config-file", str(HERE / "schemathesis.toml"), "run")
    limits = ("--seed", "1", "--max-examples", str(examples), "--continue-on-failure")
    with serving(name, tmp_path) as base:
        target = (f"{base}/openapi.json", *TOKEN[name])
        said = run(checker, *config, *target, *limits, cwd=tmp_path)
    assert re.search(r"Selected: (\d+)/\1\n +Tested: \1\n", said), said


@pytest.mark.parametrize("name", TOKEN)
def test_the_document_is_valid(name: str, tmp_path: Path) -> None:
    with serving(name, tmp_path) as base:
        path = saved(name, base, tmp_path)
    OpenAPIV31SpecValidator(json.loads(path.read_text())).validate()


@pytest.mark.parametrize("name", TOKEN)
def test_openapi_python_client_makes_a_client(name: str, tmp_path: Path) -> None:
    maker = program("openapi-python-client")
    with serving(name, tmp_path) as base:
        path = saved(name, base, tmp_path)
        said = run(maker, "generate", "--path", str(path), "--output-path", "made", cwd=tmp_path)
        warnings = re.findall(r"^WARNING .*\n\n.*", said, re.MULTILINE)
        # It knows no bodies of lines, and leaves them out.
        assert not [each for each in warnings if not each.endswith("application/x-ndjson")], said
        run(sys.executable, "-m", "compileall", "-q", "made", cwd=tmp_path)
        printed = run(sys.executable, "-c", CALLS, base, cwd=tmp_path / "made")
    assert printed.split("\n")[:2] == ["[2.5]", "[1.0, 2.0]"]


@pytest.mark.parametrize("name", TOKEN)
def test_openapi_typescript_makes_types(name: str, tmp_path: Path) -> None:
    maker = program("openapi-typescript")
    with serving(name, tmp_path) as base:
        path = saved(name, base, tmp_path)
    run(maker, str(path), "--output", "types.ts", cwd=tmp_path)
    made = (tmp_path / "types.ts").read_text()
    assert all(json.dumps(each) in made for each in json.loads(path.read_text())["paths"])
