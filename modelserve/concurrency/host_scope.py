"""Find out whether a host runs the application inside a cancel scope of anyio's, on asyncio.

This has to be known before a request takes its first step: a shield that is entered later would be
nested wrongly. anyio's public functions tell it too, but take as long as a whole small request.
"""

import asyncio
import math
import weakref
from collections.abc import Mapping
from typing import Any, Final

import anyio

__all__ = ["KNOWN_TASKS", "in_host_scope", "may_be_in_scope"]


def _known_tasks() -> Mapping[Any, Any] | None:
    """Return anyio's states of tasks by weak references: the inside of its dictionary."""
    try:
        from anyio._backends._asyncio import _task_states

        states: Mapping[Any, Any] = vars(_task_states)["data"]
    except (ImportError, KeyError, TypeError):
        return None
    return states


_STATES: Final = _known_tasks()
# The tasks that may be inside a scope. While it is empty, as in most servers, no task is.
KNOWN_TASKS: Final[Any] = ("any task",) if _STATES is None else _STATES


def in_host_scope() -> bool:
    """Return whether the current asyncio task is inside a cancel scope of anyio's."""
    if _STATES is None:
        return may_be_in_scope()
    state = _STATES.get(weakref.ref(asyncio.current_task()))
    return state is not None and state.cancel_scope is not None


def may_be_in_scope() -> bool:
    """Answer by public functions; a scope without a deadline around a root task is not seen."""
    return (
        anyio.get_current_task().parent_id is not None
        or anyio.current_effective_deadline() != math.inf
    )
