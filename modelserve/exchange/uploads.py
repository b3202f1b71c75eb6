"""Files of a form, in memory or, above 1 MiB, on disk."""

from collections.abc import Iterable
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import Final

from starlette.datastructures import Headers, UploadFile

from modelserve.wire.headers import Header

__all__ = ["Spool", "Upload", "write_all"]

_MEMORY_BYTES: Final = 1 << 20


class Upload(UploadFile):
    """A file of a form: starlette's `UploadFile`, whose `read` and `seek` are sync.

    `file` is an open binary file, to hand to a library; it is closed when the request ends. A file
    of more than 1 MiB is on disk: in an async hook, read it with `aread`.
    """

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        """Read up to `size` bytes, or the rest; blocks if the file is on disk."""
        return self.file.read(size)

    def seek(self, offset: int) -> None:  # type: ignore[override]
        """Go to a position, in bytes from the start."""
        self.file.seek(offset)

    async def aread(self, size: int = -1) -> bytes:
        """Read as `read` does, in a thread if the file is on disk.

        Cancellation waits for the thread.
        """
        return await super().read(size)

    async def aseek(self, offset: int) -> None:
        """Go to a position as `seek` does."""
        await super().seek(offset)


class Spool:
    """A file that is being received.

    Attributes:
        size: The bytes that it was given, including those not written yet.
        on_disk: It is too large for memory: writing it blocks.
    """

    __slots__ = ("_file", "on_disk", "size")

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115 - closed by `close`
        self.size = 0
        self.on_disk = False

    def announce(self, size: int) -> bool:
        """Count bytes that are to be written next; return whether that blocks."""
        self.size += size
        self.on_disk = self.on_disk or self.size > _MEMORY_BYTES
        return self.on_disk

    def write(self, data: bytes | memoryview) -> None:
        """Write the bytes that were counted."""
        self._file.write(data)

    def upload(self, filename: str, headers: list[Header]) -> Upload:
        """Return the file as hooks see it, to be read from its start."""
        self._file.seek(0)
        return Upload(
            self._file,  # type: ignore[arg-type]
            size=self.size,
            filename=filename,
            headers=Headers(raw=headers),
        )

    def close(self) -> None:
        """Close the file, which deletes it; a second call has no effect."""
        with suppress(OSError):  # buffered bytes do not fit on the disk
            self._file.close()


def write_all(pending: Iterable[tuple[Spool, bytes]]) -> None:
    """Write the bytes that were counted, in order; runs in a thread."""
    for spool, data in pending:
        spool.write(data)
