"""Helpers for tests of worker threads."""

import threading
from collections.abc import Callable
from typing import Any

import anyio


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a thread does and the event loop cannot see."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - no event of the loop's is set by a thread
            await anyio.sleep(0.001)


class Blocking:
    """A function that runs until it is released."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.release = threading.Event()
        self.calls: list[Any] = []
        self.ended = threading.Event()

    def __call__(self, value: Any = None) -> Any:
        self.calls.append(value)
        self.started.set()
        assert self.release.wait(10)
        self.ended.set()
        return value
