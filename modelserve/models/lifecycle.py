"""The hooks that start, load and stop a model, and the models that were replaced or removed.

Whatever a hook raises is a failure of its model alone, even SystemExit (argparse in a model's code)
or the panic of a library in Rust. Only a cancellation of the calling task is raised further.
"""

import logging
from functools import partial
from typing import Any

import anyio

from modelserve.concurrency.background import Background
from modelserve.concurrency.cancelling import ends_task
from modelserve.errors import ModelNotFound
from modelserve.limits import DEFAULTS
from modelserve.models.model import check_answers, defines
from modelserve.models.registry import Entry, Registry, infinite_if_none

__all__ = ["Retirement", "keep_failure", "load", "start", "start_and_load", "stop"]

logger = logging.getLogger("modelserve")


async def start_and_load(entry: Entry) -> None:
    """Start a model, and load it if it is not ready. Raises what its hooks raise."""
    await start(entry)
    if entry.model.ready:
        _warn_of_no_answers(entry.model)
    else:
        await load(entry)


async def start(entry: Entry) -> None:
    """Start a model, unless it is started. Raises what its hooks raise.

    A sync hook that has begun runs to its end even if the load is cancelled: the model then counts
    as started.
    """
    if entry.started:
        return
    hooks = ["start"] if defines(entry.model, "start") else []
    if entry.model.engine:
        hooks.append("start_engine")
    for hook in hooks:
        await entry.call(hook, then=partial(_note_started, entry) if hook is hooks[-1] else None)
    entry.started = True


def _note_started(entry: Entry) -> None:
    entry.started = True


async def load(entry: Entry) -> None:
    """Call `load`. `None` counts as success, unless `load` has set `ready` to False."""
    model = entry.model
    if not model.ready:
        model.ready = None
    loaded = await entry.call("load")
    if loaded is None:
        model.ready = model.ready is None or bool(model.ready)
    else:
        model.ready = bool(loaded)
    _warn_of_no_answers(model)


def _warn_of_no_answers(model: Any) -> None:
    try:
        check_answers(model)
    except TypeError as exc:
        logger.warning("%s", exc)


async def stop(entry: Entry) -> None:
    """Stop a model if it was started, whatever its hooks raise, and close its connections."""
    from modelserve.models.remote import disconnect  # imported once there is a model

    started, entry.started = entry.started, False  # at once: nothing else stops it meanwhile
    if started:
        for hook in ("stop_engine", "stop") if entry.model.engine else ("stop",):
            if defines(entry.model, hook):
                await _call_to_stop(entry, hook)
    entry.release_thread()
    await disconnect(entry.model)


async def _call_to_stop(entry: Entry, hook: str) -> None:
    try:
        await entry.call(hook)
    except BaseException as exc:
        if ends_task(exc):
            raise
        logger.error("Stopping model %s failed (%s)", entry.name, hook, exc_info=exc)


def keep_failure(entry: Entry, exc: BaseException) -> None:
    """Log an exception of a model's code, and keep its text. Raises what cancels the load."""
    if ends_task(exc):
        raise exc
    logger.error("Loading model %s failed", entry.name, exc_info=exc)
    entry.model.ready = False
    entry.failure = f"Error type: {type(exc)} error msg: {exc}"


class Retirement:
    """Stops models that were replaced or removed, each once, after its last request."""

    def __init__(self, registry: Registry, background: Background) -> None:
        self._registry = registry
        self._background = background
        self._under_way: set[Entry] = set()
        self._stops: set[anyio.CancelScope] = set()

    def begin(self) -> None:
        """Stop the models that are leaving, in the background."""
        for entry in self._registry.leaving - self._under_way:
            self._under_way.add(entry)  # the task may begin later
            self._background.start_soon(partial(self._run_after_load, entry))

    async def _run_after_load(self, entry: Entry) -> None:
        try:
            if entry.loading and entry.attempted is not None:
                await entry.attempted.wait()
            await self.run(entry)
        finally:
            self._under_way.discard(entry)

    async def run(self, entry: Entry) -> None:
        """Stop a model after its last request, or after `drain_timeout`.

        A cancellation before that leaves the model to `Loading.close`; a later one has no effect.
        """
        self._under_way.add(entry)
        try:
            await self._await_last_request(entry)
            if entry.is_retired:
                await self._stop(entry)
            self._registry.leaving.discard(entry)
        finally:
            self._under_way.discard(entry)

    async def _stop(self, entry: Entry) -> None:
        with anyio.CancelScope(shield=True) as scope:
            self._stops.add(scope)
            try:
                await stop(entry)
            finally:
                self._stops.discard(scope)

    @property
    def is_stopping(self) -> bool:
        """Whether the hooks that stop a model are running."""
        return bool(self._stops)

    def give_up(self) -> None:
        """Cancel the stops that are under way."""
        for scope in self._stops:
            scope.cancel()

    async def _await_last_request(self, entry: Entry) -> None:
        shared = self._registry.shared
        drain_timeout = shared.limits.with_defaults(DEFAULTS).drain_timeout
        with anyio.move_on_after(infinite_if_none(drain_timeout)) as bound:
            await entry.gate.emptied()
        if bound.cancelled_caught:
            logger.warning("Model %s is stopped while it still has requests", entry.name)
            shared.admission.refuse_waiting_for(entry.gate, partial(ModelNotFound, entry.name))
