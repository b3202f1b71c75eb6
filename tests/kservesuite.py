"""KServe's own tests of gRPC and of V2's types, unmodified, with `modelserve.kserve` for `kserve`.

    python tests/kservesuite.py        # needs grpcio-testing and pytest-asyncio

They are taken from the source distribution on the package index. As a plugin of pytest, this module
puts ours in the place of KServe's.
"""

import importlib
import os
import pkgutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = "kserve==0.21.0"
FILES: Final = (
    "test_grpc_server.py",
    "test_infer_type.py",
    "test_model_repository.py",
    "test_numpy_codec.py",
)
OURS: Final = "modelserve.kserve"


def pytest_configure() -> None:
    package = importlib.import_module(OURS)
    inside = pkgutil.walk_packages(package.__path__, f"{OURS}.")
    for name in [OURS, *(module.name for module in inside)]:
        sys.modules[name.removeprefix("modelserve.")] = importlib.import_module(name)


def download(folder: Path) -> None:
    """Put the files of KServe's tests in a folder."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, SOURCE, "-d", folder], check=True)
    (archive,) = folder.glob("kserve-*.tar.gz")
    with tarfile.open(archive) as opened:
        for member in opened:
            path = Path(member.name)
            if path.parent.name == "test" and path.name in FILES:
                opened.extract(member, folder, filter="data")
                (folder / path).rename(folder / path.name)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        download(folder)
        (folder / "pytest.ini").write_text(
            "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
        )
        here = str(Path(__file__).parent)
        command = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem, *FILES]
        environment = {**os.environ, "PYTHONPATH": here}
        return subprocess.run(
            [*command, *sys.argv[1:]], check=False, cwd=folder, env=environment
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
