import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelserve.metrics.shared import claim_file
from modelserve.metrics.shared_directory import remove_abandoned, shared_directory

MAKE = """
import os, sys
from pathlib import Path
from modelserve.metrics.shared_directory import shared_directory
from modelserve.metrics.shared import claim_file
with shared_directory(memory=Path(sys.argv[1])) as directory:
    file = claim_file(Path(directory))
    print(directory, flush=True)
    os._exit(0)
"""


def abandoned(base: Path) -> Path:
    """Return the directory of a process that has made one and was killed."""
    command = [sys.executable, "-c", MAKE, str(base)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def names(base: Path) -> list[str]:
    return [path.name for path in base.iterdir()]


def test_the_directory_is_removed_at_the_end(tmp_path: Path) -> None:
    with shared_directory(memory=tmp_path) as directory:
        assert names(tmp_path) == [Path(directory).name]
        assert Path(directory).name.startswith("modelserve-")
        file = claim_file(Path(directory))
    assert names(tmp_path) == []
    file.close()


def test_that_of_a_dead_server_goes_with_the_next_start(tmp_path: Path) -> None:
    assert abandoned(tmp_path).is_dir()
    with shared_directory(memory=tmp_path) as directory:
        assert names(tmp_path) == [Path(directory).name]
        with shared_directory(memory=tmp_path):  # that of a living one stays
            assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []


def test_one_whose_last_workers_still_run_stays(tmp_path: Path) -> None:
    directory = abandoned(tmp_path)
    worker = claim_file(directory)
    remove_abandoned(directory)
    assert directory.exists()
    worker.close()
    remove_abandoned(directory)
    assert not directory.exists()


def test_what_no_supervisor_has_made_stays(tmp_path: Path) -> None:
    mine = tmp_path / "modelserve-mine"
    mine.mkdir()
    claim_file(mine).close()
    (tmp_path / "modelserve-file").touch()
    (tmp_path / "modelserve-dead-link").symlink_to("gone")
    other = abandoned(tmp_path).rename(tmp_path / "other")
    (tmp_path / "modelserve-link").symlink_to(other)
    with shared_directory(memory=tmp_path):
        pass
    assert len(names(tmp_path)) == 5
    assert len(names(other)) == 2
    for path in (Path(), tmp_path / "gone", other):
        remove_abandoned(path)
    assert len(names(other)) == 2


@pytest.mark.parametrize("memory", ["/gone", "/proc", "/dev/null"])
def test_without_memory_it_is_on_the_disk(memory: str) -> None:
    with shared_directory(memory=Path(memory)) as directory:
        assert not directory.startswith(memory)
        assert os.access(directory, os.W_OK)
    assert not Path(directory).exists()
