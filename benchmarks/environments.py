"""A virtual environment for each competitor, made when it is first asked for and kept."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parent / ".venvs"
INSTALL_SECONDS = 900


class Unavailable(Exception):
    """A competitor cannot be installed or does not start here; the message says why."""


def ensure(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of the environment `name`, made anew if its requirements have changed.

    Raises `Unavailable` where pip cannot install them.
    """
    folder = CACHE / name
    python = folder / "bin" / "python"
    installed = folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if python.exists() and installed.exists() and installed.read_text() == wanted:
        return python
    _make(folder)
    _install(name, python, requirements)
    installed.write_text(wanted)
    return python


def _make(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)


def _install(name: str, python: Path, requirements: Sequence[str]) -> None:
    words = [word for requirement in requirements for word in shlex.split(requirement)]
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print(f"{name}: installing {' '.join(words)}", file=sys.stderr)
    try:
        done = subprocess.run(
            [*command, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip took longer than {INSTALL_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(_why(done.stderr))


def _why(output: str) -> str:
    """Return the line of pip's output that most likely says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "WARNING" not in line]
    return next(reversed(errors or lines), "pip failed without a word")


_ASK_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those of `names` that the environment has."""
    return dict(json.loads(run(python, _ASK_VERSIONS, *names)))


def run(python: Path, code: str, *arguments: str, seconds: float = 120) -> str:
    """Run a piece of Python in the environment, from the checkout, and return what it prints."""
    done = subprocess.run(
        [str(python), "-c", code, *arguments],
        cwd=CACHE.parent.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds,
    )
    return done.stdout
