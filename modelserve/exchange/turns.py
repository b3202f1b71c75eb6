"""How long a stream may run without giving way to other requests, and how it gives way."""

from typing import Final

import anyio.lowlevel

__all__ = ["TURN_SECONDS", "give_way"]

# It has to be more than the interpreter's switch interval, 5 ms: a pause releases the interpreter's
# lock too briefly for a thread that waits for it, and starts that thread's 5 ms again.
TURN_SECONDS: Final = 0.006
# A new request needs several rounds of the event loop: one to accept its connection, two to listen
# to it, one to read it, one to answer. It should not wait for a turn between any two of them.
_ROUNDS: Final = 8


async def give_way() -> None:
    """Let others run, for as many rounds of the event loop as a small request takes."""
    for _ in range(_ROUNDS):
        await anyio.lowlevel.checkpoint()
