import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from servercommand import KILL, ROOT, SERVED, Running, Serve, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Serve]:
    """Start `modelserve TARGET`, by default on a free port; killed after the test.

    With `program`, start that Python file instead.
    """
    (tmp_path / "served.py").write_text(SERVED)
    started: list[Running] = []

    def run(
        target: str = "served.py",
        *flags: str,
        address: tuple[str, ...] = ("--port", "0"),
        program: Path | None = None,
        stderr: int | None = None,
        **environment: str,
    ) -> Running:
        log_path = tmp_path / f"log{len(started)}"
        command = [sys.executable, "-m", "modelserve", target]
        if program is not None:
            command = [sys.executable, str(program)]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, *address, *flags],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
            )
        started.append(Running(process, tmp_path, log_path))
        return started[-1]

    yield run
    for running in started:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, KILL)
        running.process.wait()
        for connection in running.connections:
            connection.close()


@pytest.fixture
def serve(start: Serve) -> Serve:
    """Start it, and wait until it is ready."""

    def run(target: str = "served.py", *flags: str, **options: Any) -> Running:
        running = start(target, *flags, **options)
        path = "/ml" if target.endswith(":host") else ""
        until(running.has_begun)
        if not target.endswith(":plain"):
            until(lambda: running.get(f"{path}/v2/health/ready")[0] == 200)
        return running

    return run


@pytest.fixture
def tls(tmp_path: Path) -> list[str]:
    """The flags for TLS, with a certificate that `Running` trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    made = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    return ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"]
