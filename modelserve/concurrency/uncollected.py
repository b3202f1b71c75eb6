"""Calls during which the garbage collector does not run.

The collector runs after a number of new objects, and looks through all of them again each time. For
a parser that makes a million objects, that takes twice as long as the parsing.
"""

import gc
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["call_uncollected"]

T = TypeVar("T")


class _Pause:
    """Whether the collector is off because of us, and for how many calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._was_enabled = False

    def begin(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._was_enabled = gc.isenabled()
                gc.disable()

    def end(self) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0 and self._was_enabled:
                gc.enable()


_pause = _Pause()


def call_uncollected(function: Callable[[], T]) -> T:
    """Call a function that makes many objects and takes a second at most, in any thread."""
    _pause.begin()
    try:
        return function()
    finally:
        _pause.end()
