"""What can be set of a server and of the model server in it: the flags of the command line.

`ModelServer.run` and `serve` take the same under the same names. What is left out is taken from
the environment, see `environment`.
"""

import math
import os
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from modelserve import hosting
from modelserve.environment import (
    FALSE,
    TRUE,
    Repeated,
    Switch,
    WrongVariable,
    fill_in,
    show_variables,
    spelled,
    wrong_option,
)
from modelserve.errors import LoadError
from modelserve.hosting import Hosted
from modelserve.lifespan import Serving
from modelserve.limits import DEFAULTS, Limits
from modelserve.models.model import ModelSettings
from modelserve.models.predictor import PROTOCOLS
from modelserve.models.repository import ModelRepository
from modelserve.server import logs
from modelserve.server.application import find_drainables
from modelserve.server.settings import HEAD_TIMEOUT, Settings
from modelserve.server.token_file import follow_token, read_token
from modelserve.version import __version__
from modelserve.wire.handshake import is_origin

__all__ = [
    "LIMITS",
    "Flags",
    "configure",
    "logging_of",
    "options_of",
    "parse",
    "settings_of",
    "with_cors",
]

DEFAULT_PORT: Final = 8080
# After saving a file, nobody wants to wait for an open stream.
RELOAD_DRAIN_SECONDS: Final = 1.0
LIMITS: Final = tuple(limit.name for limit in fields(Limits))
_LIMIT_TEXTS: Final = {
    "concurrency": "requests that run at the same time",
    "queue": "requests that may wait",
    "max_queued_bytes": "bytes of the bodies of all requests that wait or are being uploaded",
    "max_body_bytes": "bytes of a request's body",
    "max_line_bytes": "bytes of one line of a streamed body",
    "max_json_values": "values in a body of JSON",
    "max_collected_bytes": "bytes of a stream that is sent as one document",
    "first_item_timeout": "until the first item or the response",
    "idle_timeout": "between two items",
    "timeout": "for a whole request",
    "input_timeout": "for which no line of a streamed body may arrive",
    "send_timeout": "for which a client may read nothing",
    "drain_timeout": "for running requests to finish when the server stops",
    "cleanup_timeout": "for a cancelled hook to clean up",
}
_FOR_UVICORN: Final = (
    "http",
    "loop",
    "root_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_keyfile_password",
    "timeout_keep_alive",
    "ws_per_message_deflate",
)


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
    try:
        _add_paths(app, options)
    except ValueError as exc:
        raise LoadError(f"{exc}.") from None


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
_SWITCHES: Final = (
    "debug",
    "reload",
    "exit_on_load_failure",
    "control",
    "playground",
    "predictor_use_ssl",
    "predictor_health_check",
    "sagemaker",
    "ws_per_message_deflate",
)


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
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="path/to/file.py[:attribute] or package.module[:attribute]",
    )
    parser.add_argument("--version", action="version", version=f"modelserve {__version__}")
    _add_address(parser)
    _add_limits(parser)
    _add_application(parser)
    _add_predictor(parser)
    _add_own_paths(parser)
    _add_logging(parser)
    _add_connections(parser)
    _add_tls(parser)
    show_variables(parser)
    return parser


def _add_address(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("where to listen")
    group.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    group.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        help=f"default: environment variable {' or '.join(hosting.PORT_VARIABLES)}, else"
        f" {DEFAULT_PORT}",
    )
    _also(group, "--http_port", type=_port)
    group.add_argument("--uds", metavar="PATH", help="listen on a Unix domain socket instead")
    group.add_argument("--fd", type=_whole, help="listen on a bound socket, by its file descriptor")
    group.add_argument(
        "--grpc-port",
        type=_port,
        metavar="PORT",
        help="serve the Open Inference Protocol over gRPC as well, on this port",
    )
    _also(group, "--grpc_port", type=_port)
    group.add_argument(
        "--workers", type=_positive, default=1, help="number of processes; default: %(default)s"
    )
    group.add_argument(
        "--shutdown-delay",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="for which requests are still served after SIGTERM, while readiness is 503;"
        " --drain-timeout counts after it; default: 0",
    )


def _also(group: Any, spelling: str, dest: str | None = None, **options: Any) -> None:
    """Take KServe's spelling of a flag, which is not in the help."""
    dest = dest or spelling.removeprefix("--").removeprefix("http_")
    group.add_argument(spelling, dest=dest, default=SUPPRESS, help=SUPPRESS, **options)


def _add_limits(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits", "They override those of the application; `inf` is no limit."
    )
    for name in LIMITS:
        is_time = name.endswith("timeout")
        default = getattr(DEFAULTS, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=_number if is_time else _whole_or_inf,
            metavar="SECONDS" if is_time else "N",
            help=f"{_LIMIT_TEXTS[name]}; default: {default:.10g}",
        )


def _add_application(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("application")
    group.add_argument(
        "--threads", type=_positive, metavar="N", help="threads for sync hooks; default: 40"
    )
    group.add_argument(
        "--debug",
        action=Switch,
        default=False,
        help="show clients the text of unexpected exceptions",
    )
    _add_models(group)
    group.add_argument(
        "--token-file",
        metavar="PATH",
        help="require the bearer token in this file, which is read again when it changes",
    )
    group.add_argument(
        "--control",
        action=Switch,
        help="let clients load and unload models; default: where there is a --model-dir",
    )
    group.add_argument(
        "--playground",
        action=Switch,
        help="serve a page to try the models in at /playground; default: on a loopback address",
    )
    group.add_argument(
        "--cors-origin",
        action=Repeated,
        type=_origin,
        metavar="ORIGIN",
        help="allow web pages of this origin, to open WebSockets as well; repeatable; * is any",
    )
    group.add_argument(
        "--reload",
        action=Switch,
        default=False,
        help="for development: restart when a Python file in TARGET's directory changes",
    )
    group.add_argument(
        "--exit-on-load-failure",
        action=Switch,
        default=False,
        help="exit with 4 once a model cannot be loaded, for containers that should restart",
    )
    group.add_argument("--root-path", default="", help="the path prefix that a proxy strips")


def _add_models(group: Any) -> None:
    group.add_argument(
        "--model-dir",
        metavar="DIR",
        help="serve the model in DIR/model.py, else those in DIR/NAME/model.py, with or without a"
        " TARGET",
    )
    group.add_argument(
        "--model-name",
        metavar="NAME",
        help="the name of the model in DIR/model.py, or of TARGET's where it has one model; default"
        " for DIR: environment variable INFERENCE_SERVICE_NAME, else the name of DIR",
    )
    for spelling in ("--model_dir", "--model_name"):
        _also(group, spelling)


def _add_predictor(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "predictor", "Where models without a predict of their own send their payloads."
    )
    group.add_argument("--predictor-host", metavar="HOST[:PORT]")
    group.add_argument(
        "--predictor-protocol",
        choices=PROTOCOLS,
        help="default: the model's own, else v1; grpc-v2 is V2 over gRPC",
    )
    group.add_argument("--predictor-use-ssl", action=Switch, help="call it over TLS")
    group.add_argument(
        "--predictor-timeout",
        type=_time_limit,
        metavar="SECONDS",
        help="for its answer, or a part of it; default: the model's own, else 600",
    )
    group.add_argument(
        "--predictor-retries",
        type=_whole,
        metavar="N",
        help="times to try a connection to it again; default: the model's own, else 0",
    )
    group.add_argument(
        "--predictor-health-check",
        action=Switch,
        help="let probes find models ready only while it is",
    )
    _also(group, "--predictor_host")
    _also(group, "--predictor_protocol", choices=PROTOCOLS)
    _also(group, "--predictor_use_ssl", type=_truth)
    _also(group, "--predictor_request_timeout_seconds", "predictor_timeout", type=_time_limit)
    _also(group, "--predictor_request_retries", "predictor_retries", type=_whole)
    _also(group, "--enable_predictor_health_check", "predictor_health_check", action="store_true")


def _add_own_paths(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "paths of your own",
        "Vertex AI's AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE are added where they are set.",
    )
    group.add_argument(
        "--alias",
        action=Repeated,
        default=[],
        type=_alias,
        metavar="PATH=PATH",
        help="let a path mean a built-in one, like /predict=/v1/models/NAME:predict; repeatable",
    )
    group.add_argument(
        "--predict-path", metavar="PATH", help="a path for the predict of the application's model"
    )
    group.add_argument(
        "--sagemaker",
        action=Switch,
        default=False,
        help="the paths of SageMaker: /ping for readiness, /invocations for the model's predict",
    )


def _add_logging(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("logging, to stderr")
    group.add_argument(
        "--log-format",
        type=str.lower,
        choices=("human", "json"),
        help="default: human on a terminal, else one JSON object a line",
    )
    group.add_argument(
        "--log-level",
        type=str.lower,
        choices=("debug", "info", "warning", "error", "critical"),
        default="info",
        help="default: %(default)s",
    )


def _add_connections(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("connections")
    group.add_argument(
        "--timeout-keep-alive",
        type=_whole,
        default=65,
        metavar="SECONDS",
        help="for which an idle connection stays open; default: %(default)s",
    )
    group.add_argument(
        "--head-timeout",
        type=_time_limit,
        default=HEAD_TIMEOUT,
        metavar="SECONDS",
        help="for a client to send the head of a request, and from one part of its body to the"
        f" next; default: {HEAD_TIMEOUT:g}",
    )
    group.add_argument(
        "--ws-per-message-deflate",
        action=Switch,
        default=False,
        help="compress the messages of WebSockets; for audio and video it only takes time",
    )
    group.add_argument(
        "--http",
        choices=("auto", "h11", "httptools"),
        default="auto",
        help="the parser of HTTP; default: auto, which is httptools where it is installed",
    )
    group.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="the event loop; default: auto, which is uvloop where it is installed",
    )


def _add_tls(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument(
        "--ssl-certfile", metavar="PATH", help="serve over TLS, with this chain of certificates"
    )
    group.add_argument(
        "--ssl-keyfile", metavar="PATH", help="its private key; default: in the same file"
    )
    group.add_argument("--ssl-keyfile-password", metavar="PASSWORD", help="of an encrypted key")


# --- values -------------------------------------------------------------------------------------


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _truth(text: str) -> bool:
    word = text.lower()
    if word not in TRUE + FALSE:
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return word in TRUE


def _positive(text: str) -> int:
    if _whole(text) < 1:
        raise ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def _port(text: str) -> int:
    try:
        return hosting.port_number(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{exc}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _time_limit(text: str) -> float:
    seconds = _number(text)
    if not seconds > 0:
        raise ArgumentTypeError(f"{text!r} is not a time limit")
    return seconds


def _whole_or_inf(text: str) -> float:
    return math.inf if text == "inf" else _whole(text)


def _origin(text: str) -> str:
    if not is_origin(text):
        raise ArgumentTypeError(f"{text!r} is not an origin, like https://example.org")
    return text


def _alias(text: str) -> tuple[str, str]:
    path, equals, means = text.partition("=/")
    if not equals:
        raise ArgumentTypeError(f"{text!r} is not two paths, like /predict=/v1/models/m:predict")
    return path, f"/{means}"
