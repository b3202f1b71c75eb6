"""An event loop whose clock goes on only when it is told to, on either backend."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
from trio.testing import MockClock

Jump = Callable[[float], None]

_TURNS = 50  # more than any task needs to come to where it waits


class _Loop(asyncio.SelectorEventLoop):
    now = 0.0

    def time(self) -> float:
        return self.now

    def jump(self, seconds: float) -> None:
        self.now += seconds


def run(backend: str, main: Callable[[Jump], Awaitable[Any]]) -> Any:
    """Call `main` with what lets seconds pass."""
    if backend == "trio":
        clock = MockClock()
        return anyio.run(main, clock.jump, backend=backend, backend_options={"clock": clock})
    loop = _Loop()
    options = {"loop_factory": lambda: loop}
    return anyio.run(main, loop.jump, backend=backend, backend_options=options)


async def turns() -> None:
    """Let the other tasks run until they wait for time, for the network or for each other."""
    for _ in range(_TURNS):
        await anyio.lowlevel.checkpoint()


async def wait_long(jump: Jump, begun: threading.Event) -> None:
    """Let one minute after the other pass once something has begun; until then, hardly any time.

    Who waits a moment before it begins must not wait for ever.
    """
    while True:
        await turns()
        jump(61 if begun.is_set() else 0.001)
