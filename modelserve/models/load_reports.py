"""Report loads to the log, and to clients that come too early."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from modelserve.errors import ModelNotReady
from modelserve.models.registry import Entry, Registry, State

__all__ = ["log_load", "not_ready", "states_of"]

logger = logging.getLogger("modelserve")


@contextmanager
def log_load(loaded: Callable[[], Entry]) -> Iterator[None]:
    """Log that a model is loading, and that it is loaded; `keep_failure` logs a failure.

    Nothing is logged for a model that has nothing to load.

    Args:
        loaded: Returns the entry that is being loaded, which may be another one at the end.
    """
    entry = loaded()
    if not (entry.is_awaited or entry.needs_loading):
        yield
        return
    name, began = entry.name, monotonic()
    logger.info("Model %s is loading", name, extra={"model": name})
    yield
    seconds = monotonic() - began
    extra = {"model": name, "seconds": round(seconds, 3)}
    if loaded().model.ready:
        logger.info("Model %s is loaded (%.1f s)", name, seconds, extra=extra)
    else:
        text = "Model %s is not ready: its load() returned False, or set ready to False (%.1f s)"
        logger.warning(text, name, seconds, extra=extra)


def not_ready(registry: Registry, entry: Entry, *, debug: bool) -> ModelNotReady:
    """Return the error for a request to a model; with `debug` it contains why loading failed."""
    if entry.loading or entry.name in registry.locks:
        return ModelNotReady(entry.name, "It is loading.")
    if entry.failure is not None:
        return ModelNotReady(entry.name, entry.failure if debug else "It failed to load.")
    return ModelNotReady(entry.name)


def states_of(registry: Registry) -> dict[str, State]:
    """Return the state of each model by name: READY, LOADING or, after a failure, UNAVAILABLE.

    A model that is still to be loaded is LOADING.
    """
    return {
        name: State.LOADING if _is_to_come(entry) else entry.state
        for name, entry in registry.entries.items()
    }


def _is_to_come(entry: Entry) -> bool:
    """Return whether the load of a model has not ended yet."""
    ended = entry.attempted is not None and entry.attempted.is_set()
    return not (ended or entry.model.ready)
