"""The files in which the workers of one server share their metrics.

Each worker writes to a file of its own and reads those of the others. It keeps its file locked
(flock) for as long as it lives, so that a reader knows which workers are alive. A new worker takes
over the file of a dead one and continues its counters, so there are never more files than workers
at one time.

A file is a sequence of chunks, each mapped separately, so that the file can grow while its cells
are in use. All words are doubles of eight bytes, except those of the key:

    chunk    size of the chunk, words in use (written last: a reader sees complete records only)
    record   words of the key, number of cells, the key (JSON, padded with blanks), the cells
"""

import errno
import json
import mmap
import os
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

from modelserve.metrics.cells import Cells, Key

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "DIRECTORY_VARIABLE",
    "WorkerFile",
    "claim_file",
    "is_locked",
    "lock_file",
    "read_file",
    "worker_files",
]

DIRECTORY_VARIABLE: Final = "MODELSERVE_METRICS_DIR"

_Words: TypeAlias = "memoryview[float]"

_SUFFIX: Final = ".metrics1"  # changes with the layout of files or of cells
_CHUNK_BYTES: Final = 1 << 16  # a multiple of every page size
_CHUNK_HEADER: Final = 2
_RECORD_HEADER: Final = 2


class WorkerFile:
    """The file of this worker, which holds its lock: keys and their cells."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._unlock = weakref.finalize(self, os.close, lock)
        self._chunks = list(_chunks(_map(path, os.fstat(lock).st_size)))

    def close(self) -> None:
        """Release the lock. Cells in use stay valid."""
        self._unlock()

    def others(self) -> list[Path]:
        """Return the paths of the other workers' files."""
        return [path for path in worker_files(self.path.parent) if path != self.path]

    def records(self) -> Iterator[tuple[Key, _Words]]:
        """Yield the records of the file."""
        for chunk in self._chunks:
            yield from _records(chunk)

    def append(self, key: Key, size: int) -> Cells:
        """Add a record and return its cells. Raises OSError if the disk is full."""
        text = json.dumps(key).encode()
        words = memoryview(text + b" " * (-len(text) % 8)).cast("d")
        chunk = self._chunk_for(_RECORD_HEADER + len(words) + size)
        start = int(chunk[1])
        cells = start + _RECORD_HEADER + len(words)
        chunk[start], chunk[start + 1] = len(words), size
        chunk[start + _RECORD_HEADER : cells] = words
        chunk[cells : cells + size] = _zeros(size)  # a writer may have been killed at this point
        chunk[1] = cells + size
        return chunk[cells : cells + size]

    def _chunk_for(self, length: int) -> _Words:
        """Return the last chunk if it has room for `words`, else a new one."""
        last = self._chunks[-1] if self._chunks else None
        if last is None or int(last[1]) + length > len(last):
            self._chunks.append(self._grow(8 * (_CHUNK_HEADER + length)))
        return self._chunks[-1]

    def _grow(self, least: int) -> _Words:
        """Return a new chunk of at least so many bytes.

        Its bytes are written: a full disk is an OSError then, not a SIGBUS later.
        """
        end = 8 * sum(map(len, self._chunks))
        size = -(-least // _CHUNK_BYTES) * _CHUNK_BYTES
        if os.pwrite(self._lock, bytes(size), end) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        chunk = _map(self.path, size, end)
        chunk[1] = _CHUNK_HEADER
        chunk[0] = len(chunk)
        return chunk


def claim_file(directory: Path) -> WorkerFile:
    """Lock the first file of a directory that no process holds, or a new one.

    Raises OSError if the directory cannot be used, or if the system has no file locks.
    """
    numbers = count()
    while True:
        path = directory / f"{next(numbers)}{_SUFFIX}"
        lock = lock_file(path)
        if lock is not None:
            return WorkerFile(path, lock)


def read_file(path: Path) -> tuple[bool, list[tuple[Key, list[float]]]]:
    """Return whether the worker that writes to a file is alive, and what the file holds."""
    alive = is_locked(path)
    words = _map(path, path.stat().st_size)
    records = (record for chunk in _chunks(words) for record in _records(chunk))
    return alive, [(key, list(cells)) for key, cells in records]


def worker_files(directory: Path) -> list[Path]:
    """Return the paths of the files of all past and present workers."""
    return list(directory.glob(f"*{_SUFFIX}"))


def lock_file(path: Path) -> int | None:
    """Open and lock a file; None if another process holds it.

    Raises OSError if it cannot be made, or if the system has no file locks.
    """
    if fcntl is None:
        raise OSError("workers share them by file locks (fcntl), which this system lacks")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(file)
        if isinstance(exc, BlockingIOError):
            return None
        raise
    return file


def is_locked(path: Path) -> bool:
    """Return whether a process that is alive holds a file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _zeros(size: int) -> _Words:
    return memoryview(bytearray(8 * size)).cast("d")


def _map(path: Path, size: int, offset: int = 0) -> _Words:
    """Map a part of a file.

    The file is opened again for that: a map keeps a duplicate of its descriptor, and a duplicate of
    the locked one would keep the lock.
    """
    if not size:
        return _zeros(0)
    with path.open("r+b") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), size, offset=offset))
    return mapped[: size - size % 8].cast("d")


def _chunks(words: _Words) -> Iterator[_Words]:
    start = 0
    while start < len(words) and (size := int(words[start])) > 0:
        yield words[start : start + size]
        start += size


def _records(chunk: _Words) -> Iterator[tuple[Key, _Words]]:
    start, end = _CHUNK_HEADER, int(chunk[1])
    while start < end:
        text = start + _RECORD_HEADER
        cells = text + int(chunk[start])
        size = int(chunk[start + 1])
        yield tuple(json.loads(chunk[text:cells].tobytes())), chunk[cells : cells + size]
        start = cells + size
