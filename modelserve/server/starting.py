"""Start-up loads: progress on a terminal, giving up, exit on failure."""

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from itertools import cycle
from time import monotonic
from typing import Final

import uvicorn

from modelserve.server.application import Drainable
from modelserve.server.logs import TerminalHandler

__all__ = ["Start"]

logger = logging.getLogger("modelserve")

_LOADING: Final = "LOADING"
_FAILED: Final = "UNAVAILABLE"
_AGAIN_SECONDS: Final = 0.05
# The time within which an event loop notices a signal, unless something blocks it.
_NOTICE_SECONDS: Final = 0.5
_FRAME_SECONDS: Final = 0.1
# Faster loads need no progress.
_SILENT_SECONDS: Final = 0.5


class Start:
    """The loads that the start of some model servers has begun.

    Args:
        must_succeed: Whether a failed load ends the process.

    Attributes:
        noticed: Set once the event loop has noticed a signal to stop.
    """

    def __init__(self, servings: Iterable[Drainable], *, must_succeed: bool) -> None:
        self._servings = list(servings)
        self._must_succeed = must_succeed
        self.noticed = threading.Event()

    def has_failed(self) -> bool:
        """Return whether a failed load ends the process, and log which models failed.

        Once all loads have succeeded, later ones do not count.
        """
        if not self._must_succeed:
            return False
        states = _loads_of(self._servings)
        failed = [name for name, state in states.items() if state == _FAILED]
        self._must_succeed = not failed and _LOADING in states.values()
        if failed:
            logger.error("Exiting, since models could not be loaded: %s", ", ".join(failed))
        return bool(failed)

    def give_up(self, server: uvicorn.Server) -> None:
        """Let a start that waits for its loads go on, so that the server can end."""
        self.noticed.set()
        for serving in self._servings:
            serving.announce_stop()
        if not server.started:  # the application may not have begun to wait yet
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self.give_up, server)

    def blocks(self) -> bool:
        """Return whether a load blocks the event loop; called by a thread after a signal."""
        if self.noticed.wait(_NOTICE_SECONDS) or any(len(s.flights) for s in self._servings):
            return False
        return bool(self.loading)

    @property
    def loading(self) -> list[str]:
        """The models that are still being loaded."""
        states = _loads_of(self._servings)
        return [name for name, state in states.items() if state == _LOADING]

    def show(self) -> None:
        """Show a count of the loads in a terminal's last line while several are under way."""
        handler = next((h for h in logging.root.handlers if isinstance(h, TerminalHandler)), None)
        if handler is not None and self._servings:
            arguments = (self._servings, handler)
            threading.Thread(target=_show_loads, args=arguments, daemon=True).start()


def _loads_of(servings: Iterable[Drainable]) -> dict[str, str]:
    """Return the state of each model by name, for several model servers together."""
    return {name: state for serving in servings for name, state in serving.loads().items()}


def _show_loads(servings: Iterable[Drainable], handler: TerminalHandler) -> None:
    began, seen = monotonic(), set[str]()
    for frame in cycle("|/-\\"):
        threading.Event().wait(_FRAME_SECONDS)
        try:
            states = _loads_of(servings)
        except RuntimeError:  # models are just being registered
            continue
        seconds = monotonic() - began
        loading = [name for name, state in states.items() if state == _LOADING]
        seen.update(loading)
        if not loading and seconds > _SILENT_SECONDS:
            break
        if len(seen) > 1 and seconds > _SILENT_SECONDS:
            handler.show(f"{frame} {_progress(states, seen)} ({seconds:.0f} s)")
    handler.hide()


def _progress(states: Mapping[str, str], seen: set[str]) -> str:
    loading = [name for name in seen if states.get(name) == _LOADING]
    failed = sum(states.get(name) == _FAILED for name in seen)
    loaded = len(seen) - len(loading) - failed
    names = ", ".join(sorted(loading))
    text = f"{loaded} of {len(seen)} models loaded"
    return f"{text}, {failed} failed; loading {names}" if failed else f"{text}; loading {names}"
