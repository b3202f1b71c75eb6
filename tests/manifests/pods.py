"""Containers of manifests as real processes, as Kubernetes would start them.

A process of this machine's own Python, with the Dockerfile's entry point; or the image that
`.ci/kserve-image` has built, in runc, or in bubblewrap where runc does not work. Each has the
manifest's own arguments and environment, what KServe and Knative add to them, and its probes. They
share the machine's network: the port is given in PORT, as on Knative.
"""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
FOLDER = ROOT / "examples" / "13_kserve"

# The raw client and the free ports of the socket tests.
sys.path.append(str(TESTS / "sockets"))

import rawclient
from realserver import until

__all__ = ["FOLDER", "Pod", "container_of", "engine", "missing", "running"]

# What .ci/kserve-image has built: the folder `root`, and the image's configuration.
IMAGE = Path(os.environ.get("MODELSERVE_KSERVE_IMAGE", "/nonexistent"))
MOUNT = "/mnt/models"


def container_of(spec: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = spec["containers"][0]
    return container


@dataclass
class Pod:
    """A running container; `pid` is that of its first process, seen from outside."""

    container: dict[str, Any]
    port: int
    process: subprocess.Popen[bytes]
    pid: int
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def probe(self, name: str) -> int:
        """Ask what a probe of the manifest asks; return the status, 0 where nobody answers."""
        asked = self.container[name]["httpGet"]
        assert asked["port"] in [port["containerPort"] for port in self.container["ports"]]
        try:
            return rawclient.get(self.port, asked["path"]).status
        except (OSError, rawclient.Cut):
            return 0

    def becomes(self, probe: str, status: int, *, seconds: float = 30) -> bool:
        def answers() -> bool:
            assert self.process.poll() is None, f"it has ended:\n{self.log}"
            return self.probe(probe) == status

        return until(answers, seconds=seconds, every=0.02)

    def terminate(self) -> float:
        """Send SIGTERM to the container's first process, as Kubernetes does; return when."""
        os.kill(self.pid, signal.SIGTERM)
        return time.monotonic()

    def status(self) -> dict[str, str]:
        lines = Path("/proc", str(self.pid), "status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def missing(kind: str) -> str | None:
    """Return why containers cannot be run in this way, or None."""
    if kind == "process":
        return None
    if not (IMAGE / "config.json").exists():
        return "MODELSERVE_KSERVE_IMAGE does not name what .ci/kserve-image has built"
    if engine() is None:
        return "neither runc nor bubblewrap runs a container here"
    return None


@functools.cache
def engine() -> str | None:
    """Return the first program that runs the image, if any does."""
    context = {
        "runAsUser": 1000,
        "capabilities": {"drop": ["ALL"]},
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
    }
    trial = {"command": ["python3", "-c", ""], "args": [], "securityContext": context}
    for name, start in ENGINES.items():
        if shutil.which(name) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            process, _ = start(trial, Path(folder), Path(folder), {}, subprocess.DEVNULL)
            if process.wait(60) == 0:
                return name
    return None


@contextmanager
def running(
    kind: str, container: dict[str, Any], models: Path, folder: Path, *, port: int, **env: str
) -> Iterator[Pod]:
    """Run a container until the block ends, if it has not ended before."""
    folder.mkdir()
    given = {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
    environment = {"INFERENCE_SERVICE_NAME": "writer", "PORT": str(port)} | given | env
    start = ENGINES[engine() or ""] if kind == "image" else _process
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process, find_pid = start(container, models, folder, environment, log)
        try:
            pid = until(find_pid, seconds=20)
            assert pid, log_path.read_text()
            yield Pod(container, port, process, pid, log_path)
        finally:
            if process.poll() is None and (pid := find_pid()):
                os.kill(pid, signal.SIGKILL)
            process.wait(20)


# -- a process


def _process(
    container: dict[str, Any], models: Path, folder: Path, env: dict[str, str], log: Any
) -> Any:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", dockerfile, re.MULTILINE)[-1])
    python, *words = container.get("command", entry)
    assert python == "python3"
    args = [each.replace(MOUNT, str(models)) for each in container["args"]]
    process = subprocess.Popen(
        [sys.executable, *words, *args],
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MODEL_DIR": str(models), **env},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    return process, lambda: process.pid


# -- the image


def _image(container: dict[str, Any], env: dict[str, str]) -> tuple[list[str], dict[str, str], str]:
    """Return the command, the environment and the working directory of a container."""
    config = json.loads((IMAGE / "config.json").read_text())
    command = container.get("command", config["Entrypoint"]) + container["args"]
    given = dict(each.split("=", 1) for each in config["Env"])
    context = container["securityContext"]
    assert config["User"].split(":")[0] == str(context["runAsUser"])
    return command, given | env, config["WorkingDir"]


def _runc(
    container: dict[str, Any], models: Path, folder: Path, env: dict[str, str], log: Any
) -> Any:
    """Run the image in an OCI runtime, with what the manifest's security context asks for."""
    command, environment, cwd = _image(container, env)
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    path, name = folder / "config.json", f"modelserve-{uuid.uuid4().hex[:12]}"
    spec = json.loads(path.read_text())
    context = container["securityContext"]
    user = context["runAsUser"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": user, "gid": user},
        "args": command,
        "env": [f"{key}={value}" for key, value in environment.items()],
        "cwd": cwd,
        "capabilities": {each: [] for each in spec["process"]["capabilities"]},
        "noNewPrivileges": not context["allowPrivilegeEscalation"],
    }
    spec["root"] = {
        "path": str(IMAGE / "root"),
        "readonly": context["readOnlyRootFilesystem"],
    }
    spec["mounts"].append(
        {
            "destination": MOUNT,
            "source": str(models),
            "type": "none",
            "options": ["rbind", "ro"],
        }
    )
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [each for each in spaces if each["type"] != "network"]
    path.write_text(json.dumps(spec))
    pid_file = folder / "pid"
    process = subprocess.Popen(
        ["runc", "--root", folder / "runc", "run", "--pid-file", pid_file, name],
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    return process, lambda: int(pid_file.read_text() or 0) if pid_file.exists() else 0


def _bubblewrap(
    container: dict[str, Any], models: Path, folder: Path, env: dict[str, str], log: Any
) -> Any:
    """Run the image in namespaces of its own, where no OCI runtime is to be had."""
    command, environment, cwd = _image(container, env)
    user = str(container["securityContext"]["runAsUser"])
    given = [word for item in environment.items() for word in ("--setenv", *item)]
    read, write = os.pipe()
    process = subprocess.Popen(
        [
            *("bwrap", "--ro-bind", IMAGE / "root", "/", "--proc", "/proc", "--dev", "/dev"),
            *("--ro-bind", models, MOUNT, "--unshare-all", "--share-net", "--as-pid-1"),
            *("--uid", user, "--gid", user, "--cap-drop", "ALL", "--die-with-parent"),
            *("--info-fd", str(write), "--clearenv", *given, "--chdir", cwd, *command),
        ],
        pass_fds=[write],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    os.close(write)
    with os.fdopen(read) as file:
        info = file.read()
    pid = json.loads(info)["child-pid"] if info else 0
    return process, lambda: pid


ENGINES = {"runc": _runc, "bwrap": _bubblewrap}
