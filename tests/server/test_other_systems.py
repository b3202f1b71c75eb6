"""Systems without what only Unix has, Windows above all, played by taking it away."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servercommand import INT, ROOT, SERVED, TERM, Serve, until

pytestmark = pytest.mark.slow

# Runs before anything else in a process. uvloop does not exist for Windows either.
WINDOWS = """
import sys

import _socket

for name in ("AF_UNIX", "socketpair", "TCP_NOTSENT_LOWAT"):
    delattr(_socket, name)
for name in ("fcntl", "termios", "resource", "uvloop"):
    sys.modules[name] = None

import os, signal, socket

for name in ("fork", "register_at_fork"):
    delattr(os, name)
for name in ("SIGCHLD", "SIGHUP", "SIGKILL", "SIG_BLOCK", "pthread_sigmask", "set_wakeup_fd"):
    delattr(signal, name)
assert not hasattr(socket, "AF_UNIX")
"""
PROGRAM = """
import sys
from modelserve.kserve import Model, ModelServer

class Echo(Model):
    def predict(self, payload, headers=None):
        return payload

if __name__ == "__main__":
    ModelServer().start([Echo("echo")])
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The PYTHONPATH of a process without them."""
    folder = tmp_path / "windows"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WINDOWS)
    return f"{folder}{os.pathsep}{ROOT}"


def python(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "modules",
    [
        "modelserve, modelserve.testing",
        "modelserve.kserve",
        "modelserve.cli, modelserve.server.run",
    ],
)
def test_modules_can_be_imported(modules: str, path: str) -> None:
    done = python(
        "-c", f"import sys; assert sys.modules['fcntl'] is None; import {modules}", path=path
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("sig", [TERM, INT])
@pytest.mark.parametrize("protocol", ["httptools", "h11"])
def test_one_process_serves_and_drains(serve: Serve, sig: Any, protocol: str, path: str) -> None:
    running = serve("served.py", "--http", protocol, PYTHONPATH=path)
    assert running.predict("pid") == (200, {"pid": running.process.pid})
    with running.stream() as stream:
        running.signal(sig)
        running.touch("go")
        assert stream.read() == b'{"word":1}\n{"word":2}\n'
    assert running.exit_code(within=2) == 0
    assert "Traceback" not in running.log


def test_a_changed_file_is_served(serve: Serve, path: str) -> None:
    running = serve("served.py", "--reload", PYTHONPATH=path)
    (running.folder / "served.py").write_text(SERVED.replace("os.getpid()", "'edited'"))
    until(lambda: running.predict("pid") == (200, {"pid": "edited"}))
    running.signal(INT)
    assert running.exit_code(within=3) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            "--workers 2",
            "More than one worker needs Unix signals, which this system does not have.",
        ),
        ("--uds x", "--uds needs Unix domain sockets, which this system does not have."),
    ],
)
def test_what_a_system_cannot_do_is_said_in_one_sentence(
    start: Serve, flags: str, sentence: str, path: str
) -> None:
    running = start("served.py", *flags.split(), PYTHONPATH=path)
    assert running.exit_code(within=10) == 2
    assert running.log == f"modelserve: {sentence}\n"


def test_a_program_with_kserves_names(serve: Serve, tmp_path: Path, path: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    running = serve(program=program, address=("--http_port", "0"), PYTHONPATH=path)
    assert running.predict("echo") == (200, {"instances": []})
    done = python(str(program), "--http_port", "0", "--workers", "2", path=path)
    assert done.returncode == 2
    assert done.stderr.startswith("modelserve: More than one worker needs Unix signals")
