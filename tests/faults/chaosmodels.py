"""A repository for the chaos run: models that load, that fail, and that fail badly.

They are `faultapp`'s, whose account also counts each model from its load to its stop.
"""

from pathlib import Path
from typing import Final

__all__ = ["BAD", "GOOD", "write_repository"]

GOOD: Final = {
    "streams": ("Streaming", "async", "await anyio.sleep(0)"),
    "sync-streams": ("SyncStreaming", "", "time.sleep(0.01)"),
    "values": ("Value", "", "time.sleep(0.05)"),
    "slow": ("Streaming", "async", "await anyio.sleep(0.3)"),
}
BAD: Final = (
    *("ValueError", "MemoryError", "StopIteration", "BaseException"),
    *("GeneratorExit", "CancelledError", "BaseExceptionGroup"),
)

_GOOD = """
import anyio, time
import faultapp

class Chaos(faultapp.{base}):
    {how} def load(self):
        {wait}
        faultapp.account.begin("loaded")
        return True

    def stop(self):
        faultapp.account.end("loaded")
"""

_BAD = """
import faultapp

class Bad(faultapp.Value):
    {how} def load(self):
        raise faultapp.ERRORS[{error!r}]()
"""


def write_repository(folder: Path) -> None:
    texts = {
        name: _GOOD.format(base=base, how=how, wait=wait)
        for name, (base, how, wait) in GOOD.items()
    }
    for error in BAD:
        for how in ("", "async"):
            texts[f"bad-{error}{how}"] = _BAD.format(how=how, error=error)
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "model.py").write_text(text)
