"""The `modelserve` command."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from modelserve.app import ModelServer
from modelserve.command.environment import spelled
from modelserve.command.flags import configure, logging_of, settings_of, with_cors
from modelserve.command.flags import parse as _parse
from modelserve.command.table import FLAGS, Sets
from modelserve.errors import LoadError
from modelserve.loader import load_target, source_folder
from modelserve.server import logs
from modelserve.server.run import serve
from modelserve.server.settings import CANNOT_LOAD

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 0 once the server has stopped after a signal.

    `modelserve call` calls a server; write `./call.py` for a file of that name. For invalid
    arguments, or a target that cannot be loaded, it prints one sentence to stderr and returns 2.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "call":
        from modelserve.client import command  # not needed by a server

        return command.main(given[1:])
    try:
        options = _parse(given)
        set_up_logging = logging_of(options)
        set_up_logging()
        watched = _watched(options) if options.reload else ()
        settings = settings_of(options, watched=watched, set_up_logging=set_up_logging)
        return serve(partial(build, options), settings)
    except LoadError as exc:
        logs.print_error(f"modelserve: {exc}")
        return CANNOT_LOAD
    except KeyboardInterrupt:
        return 130


def build(options: Namespace) -> ASGIApp:
    """Load the target and apply the options to it; called in each worker process.

    Raises LoadError, and whatever the target's module raises.
    """
    app = ModelServer() if options.target is None else load_target(options.target)
    if isinstance(app, ModelServer):
        configure(app, options)
    else:
        _refuse_flags(options)
    return with_cors(app, options)


def _watched(options: Namespace) -> list[Path]:
    """Return the folders whose changes `--reload` watches for. Raises LoadError."""
    folders = [] if options.target is None else [source_folder(options.target)]
    if options.model_dir is not None and Path(options.model_dir).is_dir():
        folders.append(Path(options.model_dir).absolute())
    return folders


def _refuse_flags(options: Namespace) -> None:
    """Refuse flags for a `ModelServer` if the target is another application."""
    of_model_server = (Sets.LIMIT, Sets.APPLICATION, Sets.DETAIL)
    given = [
        flag.name
        for flag in FLAGS
        if flag.sets in of_model_server and getattr(options, flag.name) != flag.default
    ]
    if given:
        flags = ", ".join(spelled(options, name) for name in given)
        raise LoadError(
            f"{flags} cannot be set from here: {options.target} is not a ModelServer, so give them"
            " to the ModelServer inside it."
        )
