"""How long a stream may run before it lets other requests run, and how it does so."""

from time import monotonic
from typing import Final

import anyio.lowlevel

__all__ = ["TURN_SECONDS", "Turn", "give_way"]

# It has to be more than the interpreter's switch interval, 5 ms: a pause releases the interpreter's
# lock too briefly for a waiting thread, and restarts its 5 ms.
TURN_SECONDS: Final = 0.006
# A new request needs several rounds of the event loop: one to accept its connection, two to listen
# to it, one to read it, one to answer. It should not have to wait for a turn in between.
_ROUNDS: Final = 8


_PAUSED_TURNS: Final = 4


class Turn:
    """How long a pipeline has run that also suspends briefly by itself now and then.

    Such a pause lets other tasks run, for one round: so a turn with a pause lasts longer.
    """

    __slots__ = ("_began", "_has_paused", "ends")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a turn, after giving way."""
        self._began = monotonic()
        self._has_paused = False
        self.ends = self._began + TURN_SECONDS

    def note_pause(self) -> None:
        """Note that the pipeline suspends."""
        self._has_paused = True

    def is_over(self) -> bool:
        """Return whether to give way; call it from `ends` on, which it may postpone."""
        now = monotonic()
        if now < self.ends:
            return False
        if not self._has_paused or now >= self._began + _PAUSED_TURNS * TURN_SECONDS:
            return True
        self._has_paused = False
        self.ends = now + TURN_SECONDS
        return False


async def give_way() -> None:
    """Let other tasks run, for as many rounds of the event loop as a small request takes."""
    for _ in range(_ROUNDS):
        await anyio.lowlevel.checkpoint()
