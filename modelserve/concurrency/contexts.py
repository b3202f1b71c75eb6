"""Copy context variables that code in a thread has set back to the event loop.

A call in a thread runs in a copy of the context of its task, since only one thread at a time can
enter a context. Variables that the call sets there are set in the task afterwards. So a hook finds
what another hook has set, on whatever thread the two run.
"""

from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeAlias

__all__ = ["Changes", "Recorder", "apply_changes"]

Changes: TypeAlias = tuple[tuple[ContextVar[Any], Any], ...]

_UNSET: Final = object()


def apply_changes(changes: Changes) -> None:
    """Set variables in the current context."""
    for var, value in changes:
        var.set(value)


class Recorder:
    """The variables that are set in a context between two checks.

    Args:
        context: The context before anything is set.
    """

    def __init__(self, context: Context) -> None:
        self._last = context.copy()

    def changes_in(self, context: Context) -> Changes:
        """Return what has been set in a context since the last check."""
        before, self._last = self._last, context.copy()
        pairs = self._last.items()
        return tuple((var, value) for var, value in pairs if before.get(var, _UNSET) is not value)

    def recent_changes(self) -> Changes:
        """Return what has been set in the current context, except values equal to those before.

        Contexts without changes share their contents, so that comparing them takes no time.
        """
        context = copy_context()
        try:
            is_equal = context == self._last
        except Exception:  # some values cannot be compared (an array of numpy)
            is_equal = False
        return () if is_equal else self.changes_in(context)
