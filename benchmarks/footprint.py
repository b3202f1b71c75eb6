"""What a competitor takes before any request: on disk, at import, in memory."""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environments
from benchmarks.competitors import ROOT, Competitor

IMPORTS = 5
"""How often an import is timed; the median counts."""

_WEIGH = """
import importlib.metadata, json, os, sysconfig
TOOLS = {"pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack"}
site, size = sysconfig.get_path("purelib"), 0
for folder, folders, files in os.walk(site):
    if folder == site:
        folders[:] = [name for name in folders if name.split("-")[0] not in TOOLS]
    size += sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
names = {d.metadata["Name"].lower() for d in importlib.metadata.distributions(path=[site])}
print(json.dumps({"distributions": len(names - TOOLS), "bytes": size}))
"""

_IMPORT = """
import importlib, sys, time
start = time.perf_counter()
for name in sys.argv[1:]:
    importlib.import_module(name)
took = time.perf_counter() - start
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(took, sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
"""


def weigh(competitor: Competitor, python: Path) -> dict[str, float]:
    """Return distributions, installed MiB, import seconds and MiB after import."""
    found = json.loads(environments.run(python, _WEIGH))
    modules = imported(competitor.COMMAND)
    warm = [_import(python, modules) for _ in range(1 + IMPORTS)][1:]
    with tempfile.TemporaryDirectory() as empty:
        cold = _import(python, modules, PYTHONPYCACHEPREFIX=empty)
    return {
        "distributions": found["distributions"],
        "installed_mib": (found["bytes"] + _checkout_bytes(competitor)) / 2**20,
        "import_s": statistics.median(seconds for seconds, _ in warm),
        "first_import_s": cold[0],
        "import_mib": statistics.median(memory for _, memory in warm),
    }


def imported(command: Sequence[str]) -> list[str]:
    """Return the modules that a command runs: the host's, and the application's."""
    host = command[command.index("-m") + 1]
    apps = [word.partition(":")[0] for word in command if word.startswith("benchmarks.apps.")]
    return list(dict.fromkeys([host, *apps]))


def _import(python: Path, modules: Sequence[str], **variables: str) -> tuple[float, float]:
    """Import in a new process; return the seconds it took and the MiB it then has."""
    done = subprocess.run(
        [str(python), "-c", _IMPORT, *modules],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seconds, kib = done.stdout.splitlines()[-1].split()
    return float(seconds), int(kib) / 1024


def _checkout_bytes(competitor: Competitor) -> int:
    """Return the size of modelserve itself where it is installed in place."""
    if f"-e {ROOT}" not in competitor.REQUIREMENTS:
        return 0
    return sum(file.stat().st_size for file in (ROOT / "modelserve").rglob("*") if file.is_file())
