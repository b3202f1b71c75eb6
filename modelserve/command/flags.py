"""What can be set of a server and of the model server in it: the flags of the command line.

`ModelServer.run` and `serve` take the same under the same names. What is left out is taken from
the environment, see `environment`.
"""

import logging
import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from modelserve.command import hosting
from modelserve.command.environment import (
    WrongVariable,
    fill_in,
    show_variables,
    spelled,
    wrong_option,
)
from modelserve.command.hosting import Hosted
from modelserve.command.table import DEFAULT_PORT, FLAGS, LIMITS, Sets, add_flags
from modelserve.errors import LoadError
from modelserve.lifespan import Serving
from modelserve.limits import Limits
from modelserve.models.model import ModelSettings
from modelserve.models.repository import ModelRepository
from modelserve.server import logs
from modelserve.server.application import find_drainables
from modelserve.server.settings import Settings
from modelserve.server.token_file import follow_token, read_token
from modelserve.version import __version__

__all__ = [
    "Flags",
    "configure",
    "logging_of",
    "options_of",
    "parse",
    "settings_of",
    "with_cors",
]

logger = logging.getLogger("modelserve")

# After saving a file, nobody wants to wait for an open stream.
RELOAD_DRAIN_SECONDS: Final = 1.0
_FOR_UVICORN: Final = tuple(flag.name for flag in FLAGS if flag.sets is Sets.UVICORN)


class Flags(TypedDict, total=False):
    """The flags as keyword arguments; None leaves a default."""

    host: str
    port: int | None
    uds: str | None
    fd: int | None
    grpc_port: int | None
    workers: int
    shutdown_delay: float
    head_timeout: float
    concurrency: float | None
    queue: float | None
    max_queued_bytes: float | None
    max_body_bytes: float | None
    max_line_bytes: float | None
    max_collected_bytes: float | None
    max_json_values: float | None
    first_item_timeout: float | None
    idle_timeout: float | None
    timeout: float | None
    input_timeout: float | None
    send_timeout: float | None
    drain_timeout: float | None
    cleanup_timeout: float | None
    threads: int | None
    debug: bool
    model_dir: str | os.PathLike[str] | None
    model_name: str | None
    predictor_host: str | None
    predictor_protocol: str | None
    predictor_use_ssl: bool | None
    predictor_timeout: float | None
    predictor_retries: int | None
    predictor_health_check: bool | None
    token_file: str | os.PathLike[str] | None
    control: bool | None
    playground: bool | None
    cors_origin: Sequence[str] | None
    alias: Sequence[str] | None
    predict_path: str | None
    sagemaker: bool
    reload: bool
    exit_on_load_failure: bool
    root_path: str
    log_format: str | None
    log_level: str
    timeout_keep_alive: int
    ws_per_message_deflate: bool
    ssl_certfile: str | os.PathLike[str] | None
    ssl_keyfile: str | os.PathLike[str] | None
    ssl_keyfile_password: str | None
    http: str
    loop: str


# --- applying them -----------------------------------------------------------------------


def configure(app: Hosted, options: Namespace) -> None:
    """Apply the options to a model server, which has them from now on. Raises LoadError."""
    serving = app.serving
    limits = options.limits
    if options.reload:
        limits = limits.with_defaults(Limits(drain_timeout=RELOAD_DRAIN_SECONDS))
    if options.model_name is not None:
        try:
            serving.registry.rename_only(options.model_name)
        except ValueError as exc:
            raise LoadError(f"{spelled(options, 'model_name')}: {exc}.") from None
    if options.predictor_host is not None:
        serving.loading.source.forward_to(_predictor_of(options))
    serving.reconfigure(limits, threads=options.threads, debug=options.debug)
    if options.token is not None:
        serving.token = options.token
        follow_token(options.token_file, serving)
    if options.control is not None:
        serving.control = options.control
    if options.playground is not None:
        app.playground = options.playground
    if app.playground is None:
        app.show_playground(_is_loopback(options))
    if options.model_dir is not None:
        try:
            serving.use(ModelRepository(options.model_dir, options.model_name))
        except OSError as exc:
            problem = exc.strerror or exc
            text = f"Cannot read the models in {options.model_dir}: {problem}."
            raise LoadError(f"{wrong_option(options, 'model_dir', text)}") from None
    if options.model_name is not None and options.model_name not in serving.registry:
        _tell_unused_name(serving, options)
    try:
        _add_paths(app, options)
    except ValueError as exc:
        raise LoadError(f"{exc}.") from None


def _tell_unused_name(serving: Serving, options: Namespace) -> None:
    """Raise LoadError for a name that no model has taken, or warn where KServe may have given it.

    KServe appends `--model_name` to the arguments of any transformer and runtime, beside one of two
    others.
    """
    names = serving.registry.names
    text = (
        f"{spelled(options, 'model_name')} is for an application with one model; the models here:"
        f" {', '.join(names) or 'none'}."
    )
    if names and options.model_dir is None and options.predictor_host is None:
        raise LoadError(text)
    logger.warning("The name %r is ignored: %s", options.model_name, text)


def _predictor_of(options: Namespace) -> ModelSettings:
    """Return what the options say of a predictor; the rest is left to each model."""
    settings = {
        "predictor_host": options.predictor_host,
        "protocol": options.predictor_protocol,
        "use_ssl": options.predictor_use_ssl,
        "timeout": options.predictor_timeout,
        "retries": options.predictor_retries,
        "predictor_health_check": options.predictor_health_check,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return cast(ModelSettings, given)


def _is_loopback(options: Namespace) -> bool:
    """Return whether only this machine can connect, by an address that browsers take."""
    if options.uds is not None or options.fd is not None:
        return False
    try:
        return options.host == "localhost" or ip_address(options.host).is_loopback
    except ValueError:  # a name
        return False


def _add_paths(app: Hosted, options: Namespace) -> None:
    """Add the paths that the flags and the environment ask for. Raises ValueError."""
    for path, means in options.alias:
        try:
            app.add_alias(path, means)
        except ValueError as exc:
            raise wrong_option(options, "alias", exc) from None
    if options.predict_path is not None:
        hosting.predict_at(app, options.predict_path, asked_by=spelled(options, "predict_path"))
    if options.sagemaker:
        hosting.follow_sagemaker(app)
    hosting.follow_environment(app, os.environ)


def with_cors(app: ASGIApp, options: Namespace) -> ASGIApp:
    """Return an application as the options want it to be reached from web pages."""
    if not options.cors_origin:
        return app
    for serving in find_drainables(app):
        if isinstance(serving, Serving):
            serving.origins = frozenset(options.cors_origin)
    return CORSMiddleware(
        app,
        allow_origins=options.cors_origin,
        allow_methods=("GET", "POST", "PUT"),
        allow_headers=("*",),
        expose_headers=("*",),
    )


def settings_of(
    options: Namespace, *, watched: Sequence[Path], set_up_logging: Callable[[], None] | None
) -> Settings:
    """Return where and how to serve."""
    return Settings(
        host=options.host,
        port=options.port,
        uds=options.uds,
        fd=options.fd,
        grpc_port=options.grpc_port,
        workers=options.workers,
        shutdown_delay=options.shutdown_delay,
        head_timeout=options.head_timeout,
        exit_on_load_failure=options.exit_on_load_failure,
        watched=watched,
        uvicorn={name: getattr(options, name) for name in _FOR_UVICORN},
        set_up_logging=set_up_logging,
    )


def logging_of(options: Namespace) -> Callable[[], None]:
    """Return the function that sets up logging in a process."""
    return partial(logs.configure, form=options.log_format, level=options.log_level)


# --- as keyword arguments -----------------------------------------------------------------------


class _Raising(ArgumentParser):
    """A parser for arguments that a program gives."""

    def error(self, message: str) -> Any:
        raise ValueError(message.removeprefix("argument --"))


def options_of(flags: Flags) -> Namespace:
    """Return the options for flags that are keyword arguments.

    Raises TypeError for an unknown name, ValueError for a value that the flag does not take,
    WrongVariable for one in the environment.
    """
    words: list[str] = []
    for name, value in flags.items():
        if name not in Flags.__annotations__:
            known = ", ".join(Flags.__annotations__)
            raise TypeError(f"There is no option {name!r}; there are {known}")
        words += _words_of(name, value)
    try:
        return parse([_PROGRAM, *words], kind=_Raising)
    except ValueError as exc:
        raise exc from None  # not with the three of argparse that it comes from


_PROGRAM: Final = "app"  # stands where the command line names a target
_SWITCHES: Final = tuple(flag.name for flag in FLAGS if flag.is_switch)


def _words_of(name: str, value: Any) -> list[str]:
    """Write one option as it is written on the command line."""
    flag = name.replace("_", "-")
    if value is None:
        return []
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise ValueError(f"{flag}: {value!r} is neither True nor False")
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [word for each in value for word in _words_of(name, each)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return [f"--{flag}={value}"]


# --- arguments ----------------------------------------------------------------------------------


def parse(
    arguments: Sequence[str] | None, *, kind: type[ArgumentParser] = ArgumentParser
) -> Namespace:
    """Read the arguments of the command line.

    For unusable ones the parser, of whatever kind, prints a sentence and exits, or does what it
    does instead.
    """
    parser = _parser(kind)
    try:
        options = fill_in(parser, arguments, os.environ, _read)
        options.limits = _limits_of(options)
        options.token = _token_of(options)
        _settle_address(options)
        if options.port is None:
            port = hosting.port_in(os.environ)
            options.port = DEFAULT_PORT if port is None else port
    except WrongVariable as exc:
        if kind is _Raising:  # no fault of the program's
            raise
        parser.error(f"{exc}")
    except ValueError as exc:
        parser.error(f"{exc}")
    if options.target is None and options.model_dir is None:
        parser.error("the following arguments are required: TARGET or --model-dir")
    if options.reload and options.workers > 1:
        reload, workers = (spelled(options, name) for name in ("reload", "workers"))
        parser.error(f"{reload} serves with one worker: leave out {workers}")
    if options.ssl_keyfile is not None and options.ssl_certfile is None:
        parser.error(f"{spelled(options, 'ssl_keyfile')} needs --ssl-certfile")
    if options.log_format is None:
        options.log_format = logs.default_form()
    return options


def _read(arguments: Sequence[str]) -> Namespace:
    """Read some arguments alone. Raises ValueError for unusable ones."""
    options = _parser(_Raising).parse_args(arguments)
    _limits_of(options)
    return options


def _limits_of(options: Namespace) -> Limits:
    return Limits(**{name: getattr(options, name) for name in LIMITS})


def _settle_address(options: Namespace) -> None:
    """Let a port that is given as a flag come before a socket of the environment's."""
    if options.port is not None and "port" not in options.variables:
        for name in {"uds", "fd"} & {*options.variables}:
            setattr(options, name, None)


def _token_of(options: Namespace) -> str | None:
    if options.token_file is None:
        return None
    try:
        return read_token(options.token_file)
    except ValueError as exc:
        raise wrong_option(options, "token_file", exc) from None


def _parser(kind: type[ArgumentParser]) -> ArgumentParser:
    parser = kind(
        prog="modelserve",
        usage="modelserve TARGET [options]",
        description="Serve machine-learning models over HTTP.",
        epilog=(
            "Each flag has an environment variable, here in brackets: the flag counts, else the"
            " variable\nunless it is empty, else the default. A switch is 1 or 0 there, or true or"
            " false; the values of a\nrepeatable flag have spaces between them.\n"
            "\nAt SIGTERM, SIGHUP or Ctrl-C running requests have --drain-timeout seconds to finish"
            " after\n--shutdown-delay seconds; a second signal exits at once.\n"
            "\n`modelserve call URL MODEL` calls a model: see modelserve call --help."
        ),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the next flag may begin alike
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="path/to/file.py[:attribute] or package.module[:attribute]",
    )
    parser.add_argument("--version", action="version", version=f"modelserve {__version__}")
    add_flags(parser)
    show_variables(parser)
    return parser
