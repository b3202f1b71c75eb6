"""Facts about scopes and nurseries that trio has under private names only.

Each docstring says what is returned if a release of trio or anyio does not have these names.
"""

from typing import Any

import anyio

__all__ = ["is_ending", "is_visible_to"]


def is_visible_to(task: Any, scope: anyio.CancelScope) -> bool:
    """Return whether a task sees a scope's cancellation: no shield inside of the scope hides it.

    A time limit inside the task ends by a cancellation too. Nothing public tells the two apart when
    they coincide; without the names each counts as the scope's: True.
    """
    original = getattr(scope, "_CancelScope__original", None)
    status = getattr(task, "_cancel_status", None)
    while status is not None and (inner := getattr(status, "_scope", None)) is not None:
        if inner is original:
            return True
        if inner.shield:
            return False
        status = getattr(status, "_parent", None)
    return True


def is_ending(nursery: Any) -> bool:
    """Return whether a nursery's own task waits at its end for the other tasks.

    Without the names, False: a handler whose nursery swallows the cancellation is cancelled again
    after `cleanup_timeout`.
    """
    return bool(
        getattr(nursery, "_parent_waiting_in_aexit", False) or getattr(nursery, "_closed", False)
    )
