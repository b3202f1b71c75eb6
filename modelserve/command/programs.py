"""Serve an application from its own program: `app.run()`, and `await app.serve()` in a notebook.

A module that is being imported is not the program: the command line, uvicorn or a worker process
imports an application in order to serve it, so a `run()` at its top level does nothing then.
"""

import asyncio
import logging
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from modelserve.command.environment import WrongVariable
from modelserve.command.flags import (
    Flags,
    configure,
    logging_of,
    options_of,
    settings_of,
    with_cors,
)
from modelserve.command.hosting import Hosted
from modelserve.server import logs
from modelserve.server.embedded import serve_embedded
from modelserve.server.run import serve as serve_process
from modelserve.server.settings import CANNOT_LOAD
from modelserve.server.signals import stop_signals

__all__ = ["run", "serve"]

logger = logging.getLogger("modelserve")

_MAIN: Final = "__main__"
_OF_WORKERS: Final = "__mp_main__"  # the name of the program's module in a worker process


class Served(Hosted, Protocol):
    """The parts of a model server that this module uses."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def run(app: Served, flags: Flags) -> None:
    """Serve an application until a signal comes, as `ModelServer.run` says."""
    module = _module_being_run()
    if module != _MAIN:
        if module != _OF_WORKERS:
            text = "run() does nothing while %s is imported: the importer serves its application"
            logger.warning(text, module)
        return
    if _is_in_event_loop():
        raise RuntimeError("run() cannot be called in a running event loop: await serve() there")
    try:
        options = options_of(flags)
    except WrongVariable as exc:
        logs.print_error(f"modelserve: {exc}")
        sys.exit(CANNOT_LOAD)
    set_up_logging = logging_of(options) if _wants_logging(flags) else None
    if set_up_logging is not None:
        set_up_logging()
    settings = settings_of(options, watched=_watched(options), set_up_logging=set_up_logging)
    load: Callable[[], ASGIApp] = partial(_configured, app, options)
    if settings.workers > 1 or settings.watched:
        load = partial(_load, _place_of(app), options)
    with _handlers_kept():
        code = serve_process(load, replace(settings, ends_process=False))
    if code:
        sys.exit(code)


async def serve(app: Served, flags: Flags) -> None:
    """Serve an application in the running event loop, as `ModelServer.serve` says."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("serve() needs asyncio: under trio, use an ASGI server for it") from None
    options = options_of(flags)
    if options.workers > 1 or options.reload:
        names = " and ".join(options.variables.get(n, n) for n in ("workers", "reload"))
        raise ValueError(f"serve() has one process, this one: {names} are for run()")
    if "log_format" in flags or "log_level" in flags:
        logging_of(options)()
    settings = settings_of(options, watched=(), set_up_logging=None)
    await serve_embedded(partial(_configured, app, options), settings)


def _configured(app: Served, options: Namespace) -> ASGIApp:
    configure(app, options)
    return with_cors(app, options)


def _wants_logging(flags: Flags) -> bool:
    """Return whether to set up logging: if requested, or if the program has not."""
    return "log_format" in flags or "log_level" in flags or not logging.root.handlers


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules.get("trio")
        return trio is not None and trio.lowlevel.in_trio_run()
    return True


def _module_being_run() -> str:
    """Return the name of the module whose top level this thread is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            return str(frame.f_globals.get("__name__", _MAIN))
        frame = frame.f_back
    return _MAIN


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the signal handlers, if this thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {sig: signal.getsignal(sig) for sig in stop_signals()}
    try:
        yield
    finally:
        for sig, handler in handlers.items():
            signal.signal(sig, handler)


# --- in worker processes ------------------------------------------------------------------------


def _watched(options: Namespace) -> list[Path]:
    """Return the folder of the program, if its changes are watched for."""
    if not options.reload:
        return []
    file = getattr(sys.modules[_MAIN], "__file__", None)
    return [Path.cwd() if file is None else Path(file).absolute().parent]


def _place_of(app: Served) -> Callable[[], Served]:
    """Return a picklable function that finds the application in a worker process.

    Raises RuntimeError if it cannot be found there.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Several workers, and reload, need the main thread, for their signals")
    main = sys.modules[_MAIN]
    has_file = hasattr(main, "__file__") or getattr(main, "__spec__", None) is not None
    for name in [_MAIN, *sys.modules] if has_file else []:
        values = getattr(sys.modules.get(name), "__dict__", None) or {}
        variable = next((key for key, value in [*values.items()] if value is app), None)
        if variable is not None and name != _OF_WORKERS:
            return partial(_variable, name, variable)
    raise RuntimeError(
        "Several workers, and reload, need the application in a variable at the top level of a"
        " file, so that each process can find it"
    )


def _load(find: Callable[[], Served], options: Namespace) -> ASGIApp:
    return _configured(find(), options)


def _variable(module: str, name: str) -> Any:
    return getattr(import_module(module), name)
