"""Context variables that code in a thread has set, brought back to the event loop.

A call in a thread runs in a copy of the context of its task, since a context can be entered by one
thread at a time. What the call sets there is set in the task afterwards, so that one hook finds what
another has set, wherever the two run.
"""

from contextvars import Context, ContextVar
from typing import Any, Final, TypeAlias

__all__ = ["Changes", "apply_changes", "changes_between", "may_differ"]

Changes: TypeAlias = tuple[tuple[ContextVar[Any], Any], ...]

_UNSET: Final = object()


def changes_between(before: Context, after: Context) -> Changes:
    """Return the variables that `after` has other values of than `before`, with these values."""
    pairs = after.items()
    return tuple((var, value) for var, value in pairs if before.get(var, _UNSET) is not value)


def may_differ(before: Context, after: Context) -> bool:
    """Return False where nothing has been set in between, or only what is equal to what there was.

    Contexts without changes share their contents, which makes the comparison fast.
    """
    try:
        return before != after
    except Exception:  # a value that cannot be compared (an array of numpy)
        return True


def apply_changes(changes: Changes) -> None:
    """Set variables in the current context."""
    for var, value in changes:
        var.set(value)
