"""Worker processes and their supervisor.

The supervisor checks only that its workers are alive: a worker whose imports hold the interpreter's
lock for minutes is not killed. A worker that ends is replaced. Workers ignore SIGINT and SIGHUP,
which a terminal sends to all of them, and act on the supervisor's SIGTERM.
"""

import logging
import math
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from time import monotonic
from types import FrameType
from typing import Any, Final

from starlette.types import ASGIApp

from modelserve.metrics.shared import DIRECTORY_VARIABLE
from modelserve.metrics.shared_directory import shared_directory
from modelserve.server.logs import print_error
from modelserve.server.process import run_worker
from modelserve.server.server import LONGEST_EXIT
from modelserve.server.settings import CANNOT_LOAD, CANNOT_LOAD_MODELS, CANNOT_START, Settings
from modelserve.server.signals import Impatience, ignore_signal, left_blocked, stop_signals

__all__ = ["Supervisor", "Worker", "launch", "pause_after", "shared_metrics"]

logger = logging.getLogger("modelserve")

# A worker that has served for longer than this is always replaced at once.
_STEADY_SECONDS: Final = 10.0
_LONGEST_PAUSE: Final = 30.0


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process, as its supervisor sees it."""

    process: SpawnProcess
    pipe: "connection.Connection[Any, Any] | None"
    ready_at: float = math.inf
    stop_seconds: float = 0.0
    failure: str | None = None

    @property
    def longest_end(self) -> float:
        """Seconds after SIGTERM within which it exits, unless something is wrong with it."""
        return self.stop_seconds + LONGEST_EXIT + 0.1

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def read_pipe(self) -> None:
        """Receive why it failed to load, or, once it serves, the seconds that its stop may take."""
        try:
            while self.pipe is not None and self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, str):
                    self.failure = message
                else:
                    self.ready_at, self.stop_seconds = monotonic(), message
        except (EOFError, OSError):
            self.pipe = None

    def kill(self) -> None:
        """Kill it, as it has overrun its time."""
        logger.warning("Worker %s did not end in time and is killed", self.process.pid)
        self.process.kill()
        self.process.join()


def launch(load: Callable[[], ASGIApp], settings: Settings, listener: socket.socket) -> Worker:
    """Start a worker process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=run_worker, args=(load, settings, listener, sender)
    )
    with left_blocked():
        process.start()
    sender.close()
    return Worker(process, receiver)


class Supervisor:
    """Keep a number of worker processes alive until a signal comes or none can start."""

    def __init__(self, launch: Callable[[], Worker], count: int, listener: socket.socket) -> None:
        self._launch = launch
        self._count = count
        self._listener = listener
        self._workers: list[Worker] = []
        self._code: int | None = None
        self._impatience = Impatience()
        self._served = False
        self._early_ends = 0
        self._launch_at = -math.inf

    def run(self) -> int:
        """Return the exit code once all workers have ended."""
        with self._signal_socket() as wakeup:
            while self._code is None:
                self._launch_missing()
                self._wait(wakeup)
                self._check_workers()
            self._stop(wakeup)
        return self._code

    @contextmanager
    def _signal_socket(self) -> Iterator[socket.socket]:
        """Yield a socket that becomes readable at every signal, and when a child ends."""
        readable, writable = socket.socketpair()
        with readable, writable:
            readable.setblocking(False)
            writable.setblocking(False)
            signal.signal(signal.SIGCHLD, ignore_signal)
            for sig in stop_signals():
                signal.signal(sig, self._handle)
            signal.set_wakeup_fd(writable.fileno(), warn_on_full_buffer=False)
            try:
                yield readable
            finally:
                signal.set_wakeup_fd(-1)

    def _handle(self, sig: int, frame: FrameType | None) -> None:
        """Stop the workers; at a second signal kill them, clean up and exit at once."""
        if self._impatience.grows(sig):
            for worker in self._workers:
                worker.process.kill()
            raise SystemExit(128 + sig)
        self._code = 0 if self._code is None else self._code

    def _launch_missing(self) -> None:
        while len(self._workers) < self._count and monotonic() >= self._launch_at:
            self._workers.append(self._launch())

    def _wait(self, wakeup: socket.socket) -> None:
        """Wait for a signal or a worker's message, for a second at most."""
        pipes = [worker.pipe for worker in self._workers if worker.pipe is not None]
        connection.wait([wakeup, *pipes], timeout=1.0)
        with suppress(BlockingIOError):
            wakeup.recv(4096)

    def _check_workers(self) -> None:
        """Read the workers' messages, and remove those that have ended."""
        for worker in list(self._workers):
            alive = worker.process.is_alive()
            worker.read_pipe()
            self._served = self._served or worker.ready_at < math.inf
            if not alive:
                self._workers.remove(worker)
                if self._code is None:
                    self._plan_replacement(worker)

    def _plan_replacement(self, worker: Worker) -> None:
        """Replace a worker, with growing pauses if workers end early; give up if none served."""
        if worker.process.exitcode == CANNOT_LOAD_MODELS:
            self._code = CANNOT_LOAD_MODELS
            return
        if worker.failure is not None:
            print_error(worker.failure)
        elif not self._served:
            logger.error("Worker %s ended before it served: %s", worker.process.pid, worker.end)
        if not self._served:
            self._code = CANNOT_LOAD if worker.failure is not None else CANNOT_START
            return
        steady = monotonic() - worker.ready_at > _STEADY_SECONDS
        self._early_ends = 0 if steady else self._early_ends + 1
        self._launch_at = monotonic() + pause_after(self._early_ends)
        logger.warning("Worker %s ended, and is replaced: %s", worker.process.pid, worker.end)

    def _stop(self, wakeup: socket.socket) -> None:
        """Drain the workers, and kill those that overrun.

        The listener is closed here first, so that it closes with the last worker that answers.
        """
        self._listener.close()
        for worker in self._workers:
            worker.process.terminate()
        since = monotonic()
        while self._workers and monotonic() < since + max(w.longest_end for w in self._workers):
            self._wait(wakeup)
            self._check_workers()
        for worker in self._workers:
            worker.kill()


def pause_after(early_ends: int) -> float:
    """Return the seconds to wait after so many early ends in a row: 0, 2, 6, 14, then 30."""
    return min(2.0 ** min(max(early_ends, 1), 10) - 2, _LONGEST_PAUSE)


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Give the workers a directory for their metrics, unless the environment names one."""
    with ExitStack() as stack:
        if not os.environ.get(DIRECTORY_VARIABLE):
            try:
                os.environ[DIRECTORY_VARIABLE] = stack.enter_context(shared_directory())
            except OSError as exc:
                logger.warning("Each worker will show its own metrics only: %s", exc)
        yield
