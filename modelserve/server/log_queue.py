"""A queue of log lines for a pipe or a terminal, which a thread of its own writes.

A reader that has stopped (a full pipe, Ctrl-S) blocks the writer. So lines wait in a bounded queue;
once it is full, lines are dropped until all waiting ones are written, and one line says how many
were lost. Each write consists of whole lines, no more than a pipe takes at once, since several
processes may share it.
"""

import logging
import os
import select
import stat
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, Final

__all__ = ["LineWriter", "QueuedHandler", "blocking_descriptor"]

_MOST_BYTES: Final = 1 << 20  # about 2,500 lines of the access log
_PIPE_BYTES: Final = getattr(select, "PIPE_BUF", 512)
# The seconds that waiting lines may take at the end of the process.
_LAST_SECONDS: Final = 0.5


def blocking_descriptor(stream: Any) -> int | None:
    """Return the descriptor of a pipe, socket or terminal; None for a file or another stream.

    A stream of another class, like a notebook's, may have a descriptor that it does not write to.
    """
    if os.name != "posix" or not isinstance(stream, TextIOWrapper):
        return None
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):
        return None
    may_block = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
    return descriptor if may_block else None


class LineWriter:
    """A bounded queue of lines, and the thread that writes them.

    Args:
        descriptor: Where to write; it is not closed.
        tell_lost: Makes the line that says how many lines were lost.

    A forked child has no such thread: it writes its lines itself.
    Raises RuntimeError if no thread can be started.
    """

    def __init__(self, descriptor: int, tell_lost: Callable[[int], bytes]) -> None:
        self._descriptor = descriptor
        self._tell_lost = tell_lost
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._queued = self._done = 0  # bytes
        self._lost = 0  # lines
        self._drops = self._ended = self._forked = False
        threading.Thread(target=self._run, name="modelserve-log", daemon=True).start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=partial(_become_child, weakref.ref(self)))

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it; never waits."""
        if self._forked:
            self._write(line)
            return
        with self._lock:
            self._drops = self._drops or self._queued - self._done >= _MOST_BYTES
            if self._drops or self._ended:
                self._lost += 1
                return
            self._queued += len(line)
            self._lines.put(line)

    def offer(self, text: bytes) -> bool:
        """Queue text that is soon stale, if the queue is empty; return whether it was queued."""
        with self._lock:
            if self._forked or self._ended or self._drops or self._done < self._queued:
                return False
            self._queued += len(text)
            self._lines.put(text)
            return True

    def flush(self, within: float = _LAST_SECONDS) -> None:
        """Wait until the queue has been written, for so many seconds at most."""
        ends, queued = monotonic() + within, self._queued
        while (self._done < queued or self._drops) and not self._forked and monotonic() < ends:
            sleep(0.001)

    def close(self) -> None:
        """Let the thread end once it has written the queue; later lines are lost."""
        with self._lock:
            self._ended = True
            self._lines.put(None)

    def become_child(self) -> None:
        """Leave the queued lines to the parent process."""
        self._lock = threading.Lock()
        self._forked = True

    def _run(self) -> None:
        for lines in self._batches():
            batch = b"".join(lines)
            written = self._write(batch)
            with self._lock:
                self._done += len(batch)
                self._lost += 0 if written else len(lines)
            self._take_again(tell=written)

    def _take_again(self, *, tell: bool) -> None:
        """Once all is written, log how many lines were lost, and drop no more."""
        while True:
            with self._lock:
                if self._done < self._queued:
                    return
                lost = self._lost
                if not (lost and tell):
                    self._drops = False
                    return
            tell = self._write(self._tell_lost(lost))
            with self._lock:
                self._lost -= lost if tell else 0

    def _batches(self) -> Iterator[list[bytes]]:
        """Yield the lines of one write, until there are no more."""
        line = self._lines.get()
        while line is not None:
            batch, size = [line], len(line)
            line = b""
            with suppress(Empty):
                while (line := self._lines.get_nowait()) and size + len(line) <= _PIPE_BYTES:
                    batch.append(line)
                    size += len(line)
                    line = b""
            yield batch
            if line == b"":
                line = self._lines.get()

    def _write(self, data: bytes) -> bool:
        """Write all data; return whether that was possible. Waits for the reader without limit."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # the parent process has made the descriptor non-blocking
                self._wait()
            except OSError:  # the reader has gone, the terminal is closed
                return False
        return True

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll()


class QueuedHandler(logging.Handler):
    """Send formatted records to a pipe or a terminal, without ever waiting for its reader.

    Raises RuntimeError if no thread can be started.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._encoding = encoding
        self._writer = LineWriter(descriptor, self._tell_lost)
        super().__init__()  # last: it registers the handler to be flushed at exit

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a record that cannot be formatted, as logging does, but without waiting."""
        if logging.raiseExceptions:
            self.write(f"--- Logging error ---\n{traceback.format_exc()}Message: {record.msg!r}")

    def write(self, text: str) -> None:
        """Queue a text as it is."""
        self._writer.put(f"{text}\n".encode(self._encoding, "backslashreplace"))

    def offer(self, text: str) -> bool:
        """Queue a part of a line, if the queue is empty; return whether it was queued."""
        return self._writer.offer(text.encode(self._encoding, "backslashreplace"))

    def flush(self) -> None:
        """Wait until the queue has been written, for half a second at most."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _tell_lost(self, count: int) -> bytes:
        text, extra = "%d log lines were lost: nobody read them", {"lost_lines": count}
        record = logging.getLogger("modelserve").makeRecord(
            "modelserve", logging.WARNING, "", 0, text, (count,), None, extra=extra
        )
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")


def _become_child(reference: "weakref.ref[LineWriter]") -> None:
    writer = reference()
    if writer is not None:
        writer.become_child()
