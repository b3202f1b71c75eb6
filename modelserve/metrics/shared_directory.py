"""The directory in which a server's workers share their metrics: who makes it, and who removes it.

A supervisor makes it, keeps a file in it locked (flock) for as long as it lives, and removes it at
the end. Where a supervisor was killed, its last worker removes it, or else the next supervisor.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Final

from modelserve.metrics.shared import is_locked, lock_file, worker_files

__all__ = ["remove_abandoned", "shared_directory"]

_PREFIX: Final = "modelserve-"
# A directory without it is not ours, and never removed.
_OWNER: Final = ".supervisor"
_MEMORY: Final = Path("/dev/shm")


@contextmanager
def shared_directory(*, memory: Path = _MEMORY) -> Iterator[str]:
    """Make a directory for the metrics of a server's workers, and remove it at the end.

    It is in memory where that is possible. Put its path into MODELSERVE_METRICS_DIR before the
    workers start. Raises OSError if no place is writable.
    """
    path, lock = _make(memory)
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def remove_abandoned(directory: Path) -> None:
    """Remove a directory that a supervisor has made, unless it or one of its workers is alive."""
    owner = directory / _OWNER
    with suppress(OSError):
        if not (directory.name.startswith(_PREFIX) and owner.is_file()):
            return
        found = directory.lstat()  # anyone may put a link into /dev/shm
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        if not any(map(is_locked, [owner, *worker_files(directory)])):
            shutil.rmtree(directory, ignore_errors=True)


def _make(memory: Path) -> tuple[Path, int]:
    with suppress(OSError):  # /dev/shm is missing, full or read-only
        return _make_in(memory)
    return _make_in(Path(gettempdir()))


def _make_in(base: Path) -> tuple[Path, int]:
    """Return a new directory and the descriptor of its lock. It is locked before it is visible."""
    for path in base.glob(f"{_PREFIX}*"):
        remove_abandoned(path)
    hidden = Path(mkdtemp(prefix=f".{_PREFIX}", dir=base))
    try:
        lock = lock_file(hidden / _OWNER)
        assert lock is not None
        return hidden.rename(base / hidden.name.removeprefix(".")), lock
    except OSError:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
