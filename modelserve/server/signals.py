"""The signals that stop a server, and those that worker processes leave to their supervisor.

A closed terminal's SIGHUP stops it like SIGTERM, unless it was ignored at the start, as by nohup,
or the application handles it.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Final

__all__ = ["Impatience", "ignore_signal", "leave_to_supervisor", "left_blocked", "stop_signals"]

_HANGUP: Final = getattr(signal, "SIGHUP", None)  # Windows has none


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop this process. SIGBREAK is Windows' Ctrl-Break."""
    names = ("SIGTERM", "SIGINT", "SIGBREAK")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [*signals, *_hangup()]


class Impatience:
    """Detects the second signal, which ends the process at once.

    SIGHUP does not count: a shell sends one when its terminal closes and the kernel another, and
    systemd may send one with SIGTERM; Python handles whichever has the lower number first.
    """

    def __init__(self) -> None:
        self._asked = False

    def grows(self, sig: int) -> bool:
        """Note a signal; return whether it is the second."""
        again = self._asked and sig != _HANGUP
        self._asked = self._asked or sig != _HANGUP
        return again


def ignore_signal(sig: int, frame: FrameType | None) -> None:
    """Do nothing. Child processes would inherit SIG_IGN, but do not inherit a handler."""


@contextmanager
def left_blocked() -> Iterator[None]:
    """Block, here and in a child process, the signals that a terminal sends to a whole group.

    They stay blocked in the child until it calls `leave_to_supervisor`.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked = _of_terminals()
    try:
        # multiprocessing's resource tracker would start with the first process and unblock SIGINT;
        # SIGHUP would end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def leave_to_supervisor() -> None:
    """Ignore, in a worker process, the signals that its supervisor passes on as SIGTERM."""
    for sig in _of_terminals():
        signal.signal(sig, ignore_signal)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _of_terminals())


def _of_terminals() -> list[signal.Signals]:
    return [signal.SIGINT, *_hangup()]


def _hangup() -> list[signal.Signals]:
    """Return SIGHUP, unless it is ignored or the application handles it."""
    if _HANGUP is None:
        return []
    handler = signal.getsignal(_HANGUP)
    is_ours = str(getattr(handler, "__module__", None)).startswith("modelserve.")
    return [_HANGUP] if is_ours or handler is signal.SIG_DFL else []
