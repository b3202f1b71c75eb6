"""Whether a host runs us inside a cancel scope of anyio's, on asyncio.

This has to be known before a request takes its first step: a shield that is entered later would be
nested wrongly. anyio's public functions know it too, but take as long as all of a small request.
"""

import asyncio
import math
import weakref
from typing import Any

import anyio

__all__ = ["runs_plainly"]

try:
    # The state that anyio keeps of each task: a WeakKeyDictionary, read without its locks.
    from anyio._backends._asyncio import _task_states

    _states: Any = vars(_task_states)["data"]
except (ImportError, KeyError):  # pragma: no cover
    _states = None


def runs_plainly() -> bool:
    """Return whether we are on asyncio, and in no cancel scope of anyio's that the host has made."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    if _states is None:
        return not _may_be_in_scope()
    if not _states:
        return True
    state = _states.get(weakref.ref(asyncio.current_task()))
    return state is None or state.cancel_scope is None


def _may_be_in_scope() -> bool:
    """Answer by public functions; a scope without a deadline around a root task is not seen."""
    return (
        anyio.get_current_task().parent_id is not None
        or anyio.current_effective_deadline() != math.inf
    )
