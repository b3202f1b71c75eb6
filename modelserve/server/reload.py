"""For development: one worker process, replaced whenever a Python file changes."""

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from watchfiles import PythonFilter, watch

from modelserve.server.logs import print_error
from modelserve.server.signals import Impatience, stop_signals
from modelserve.server.supervisor import Worker

__all__ = ["Reloader"]

logger = logging.getLogger("modelserve")

_CHECK_MILLISECONDS: Final = 250


class Reloader:
    """Serve with one worker until a signal comes; replace it at each change in some folders."""

    def __init__(self, launch: Callable[[], Worker], folders: Sequence[Path]) -> None:
        self._launch = launch
        self._folders = folders
        self._stopping = threading.Event()
        self._impatience = Impatience()
        self._worker: Worker
        self._has_reported = False

    def run(self) -> int:
        """Return the exit code once the worker has ended after a signal."""
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs counts of changes
        for sig in stop_signals():
            signal.signal(sig, self._handle)
        logger.info("Watching the Python files in %s", ", ".join(map(str, self._folders)))
        self._worker = self._launch()
        for changes in watch(
            *self._folders,
            watch_filter=PythonFilter(),
            stop_event=self._stopping,
            rust_timeout=_CHECK_MILLISECONDS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            self._report_end()
            if changes:
                logger.warning("Restarting; changed: %s", _names(path for _, path in changes))
                self._stop_worker()
                if self._stopping.is_set():
                    return 0
                self._worker, self._has_reported = self._launch(), False
        self._stop_worker()
        return 0

    def _handle(self, sig: int, frame: FrameType | None) -> None:
        """Stop the worker; at a second signal, kill it and exit at once."""
        if self._impatience.grows(sig):
            self._worker.process.kill()
            raise SystemExit(128 + sig)
        self._stopping.set()

    def _report_end(self) -> None:
        """Log, once, that the worker has ended by itself, and why."""
        alive = self._worker.process.is_alive()
        self._worker.read_pipe()
        if alive or self._has_reported:
            return
        self._has_reported = True
        if self._worker.failure is not None:
            print_error(self._worker.failure)
        logger.error("The worker has ended (%s); waiting for a change", self._worker.end)

    def _stop_worker(self) -> None:
        self._worker.read_pipe()
        self._worker.process.terminate()
        self._worker.process.join(self._worker.longest_end)
        if self._worker.process.is_alive():
            self._worker.kill()


def _names(paths: Iterable[str]) -> str:
    here = Path.cwd()
    found = sorted({Path(path) for path in paths})
    return ", ".join(str(p.relative_to(here) if p.is_relative_to(here) else p) for p in found)
