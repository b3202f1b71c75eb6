"""What the test of Ray changes in Ray's processes: the example's model loads slowly and notes what
becomes of its streams, some of which go on until the test has seen what it waits for. `set_up` runs
in each of them when it starts."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from modelserve import Limits

IDLE_TIMEOUT = 8.0
STREAM_SECONDS = 200.0  # at most
UNTIL_TOLD = 1  # of words: more come until the test has noted that the stream may end
LOAD_SECONDS = 1.5
CLEANUP_SECONDS = 0.2


def note(what: str) -> None:
    """Append a line to the file that the test reads."""
    with Path(os.environ["TEST_RAY_NOTES"]).open("a") as notes:
        notes.write(f"{what}\n")


def is_noted(what: str) -> bool:
    return what in Path(os.environ["TEST_RAY_NOTES"]).read_text().splitlines()


def set_up() -> None:
    import app
    from app import Writer
    from serve_app import FarWriter

    app.TIMEOUT = STREAM_SECONDS
    FarWriter.limits = Limits(idle_timeout=IDLE_TIMEOUT)
    load, write = Writer.load, Writer.write

    def load_slowly(self: Any) -> bool:
        time.sleep(LOAD_SECONDS)
        return load(self)

    async def write_and_note(self: Any, wishes: Any) -> AsyncIterator[str]:
        seed = wishes[0].seed
        try:
            async for word in write(self, wishes):
                yield word
            while wishes[0].words == UNTIL_TOLD and not is_noted(f"{seed} may end"):
                await anyio.sleep(0.2)
                yield "word "
        finally:
            await anyio.sleep(CLEANUP_SECONDS)
            note(f"{seed} cleaned up")

    Writer.load, Writer.write = load_slowly, write_and_note  # type: ignore[method-assign]
    Writer.stop = lambda self: note("stopped")  # type: ignore[method-assign]
