"""The flags of the command line, as one table.

Each flag is one row: its name, its options for argparse, what it sets, and KServe's spelling of it.
"""

import math
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from modelserve.command import hosting
from modelserve.command.environment import FALSE, TRUE, Repeated, Switch
from modelserve.limits import DEFAULTS, Limits
from modelserve.models.predictor import PROTOCOLS
from modelserve.server.settings import HEAD_TIMEOUT
from modelserve.wire.handshake import is_origin

__all__ = ["DEFAULT_PORT", "FLAGS", "LIMITS", "Flag", "Sets", "add_flags"]

DEFAULT_PORT: Final = 8080
LIMITS: Final = tuple(limit.name for limit in fields(Limits))


class Sets(Enum):
    """What a flag sets."""

    SERVER = auto()
    UVICORN = auto()  # an argument of uvicorn's
    LIMIT = auto()  # a limit of the ModelServer
    APPLICATION = auto()  # something else of the ModelServer
    DETAIL = auto()  # a part of what another flag sets for the ModelServer


class Flag(NamedTuple):
    """One flag.

    Attributes:
        name: Its name in options and as a keyword argument.
        sets: What it sets.
        options: Those of `ArgumentParser.add_argument`.
        also: KServe's spelling, which is not in the help; empty if it has none.
        also_options: The options of that spelling.
    """

    name: str
    sets: Sets
    options: Mapping[str, Any]
    also: str = ""
    also_options: Mapping[str, Any] = {}

    @property
    def is_switch(self) -> bool:
        """Whether it has no value, but a `--no-` form."""
        return self.options.get("action") is Switch

    @property
    def default(self) -> Any:
        """The value of an option that is not given."""
        return self.options.get("default")

    def add_to(self, group: Any) -> None:
        """Add the flag to a group of a parser, under both of its spellings."""
        group.add_argument(f"--{self.name.replace('_', '-')}", **self.options)
        if self.also:
            options = {"dest": self.name, "default": SUPPRESS, "help": SUPPRESS}
            group.add_argument(self.also, **options, **self.also_options)


def add_flags(parser: ArgumentParser) -> None:
    """Add all flags to a parser, in their groups."""
    for title, (description, flags) in _GROUPS.items():
        group = parser.add_argument_group(title, description)
        for flag in flags:
            flag.add_to(group)


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


# --- the table ----------------------------------------------------------------------------------


def _flag(
    name: str,
    help: str | None = None,
    sets: Sets = Sets.SERVER,
    *,
    also: str = "",
    also_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Flag:
    if also_options is None:  # KServe's takes the same values
        also_options = {key: options[key] for key in ("type", "choices") if key in options}
    return Flag(name, sets, {"help": help, **options}, also, also_options)


def _switch(
    name: str, help: str, sets: Sets = Sets.SERVER, *, default: bool | None = False, **kserve: Any
) -> Flag:
    return _flag(name, help, sets, action=Switch, default=default, **kserve)


def _limit(name: str, help: str) -> Flag:
    is_time = name.endswith("timeout")
    return _flag(
        name,
        f"{help}; default: {getattr(DEFAULTS, name):.10g}",
        Sets.LIMIT,
        type=_number if is_time else _whole_or_inf,
        metavar="SECONDS" if is_time else "N",
    )


_ADDRESS: Final = (
    _flag("host", "default: %(default)s", default="127.0.0.1"),
    _flag(
        "port",
        f"default: environment variable {' or '.join(hosting.PORT_VARIABLES)}, else {DEFAULT_PORT}",
        type=_port,
        metavar="PORT",
        also="--http_port",
    ),
    _flag("uds", "listen on a Unix domain socket instead", metavar="PATH"),
    _flag("fd", "listen on a bound socket, by its file descriptor", type=_whole),
    _flag(
        "grpc_port",
        "serve the Open Inference Protocol over gRPC as well, on this port",
        type=_port,
        metavar="PORT",
        also="--grpc_port",
    ),
    _flag("workers", "number of processes; default: %(default)s", type=_positive, default=1),
    _flag(
        "shutdown_delay",
        "for which requests are still served after SIGTERM, while readiness is 503; --drain-timeout"
        " counts after it; default: 0",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
    ),
)
_LIMITS: Final = (
    _limit("concurrency", "requests that run at the same time"),
    _limit("queue", "requests that may wait"),
    _limit(
        "max_queued_bytes", "bytes of the bodies of all requests that wait or are being uploaded"
    ),
    _limit("max_body_bytes", "bytes of a request's body"),
    _limit("max_json_values", "values in a body of JSON"),
    _limit("max_line_bytes", "bytes of one line of a streamed body"),
    _limit("max_collected_bytes", "bytes of a stream that is sent as one document"),
    _limit("first_item_timeout", "until the first item or the response"),
    _limit("idle_timeout", "between two items"),
    _limit("timeout", "for a whole request"),
    _limit("input_timeout", "for which no line of a streamed body may arrive"),
    _limit("send_timeout", "for which a client may read nothing"),
    _limit("drain_timeout", "for running requests to finish when the server stops"),
    _limit("cleanup_timeout", "for a cancelled hook to clean up"),
)
_APPLICATION: Final = (
    _flag(
        "threads",
        "threads for sync hooks; default: 40",
        Sets.APPLICATION,
        type=_positive,
        metavar="N",
    ),
    _switch("debug", "show clients the text of unexpected exceptions", Sets.APPLICATION),
    _flag(
        "model_dir",
        "serve the model in DIR/model.py, else those in DIR/NAME/model.py, with or without a"
        " TARGET",
        Sets.APPLICATION,
        metavar="DIR",
        also="--model_dir",
    ),
    _flag(
        "model_name",
        "the name of the model in DIR/model.py, or of TARGET's where it has one model; default for"
        " DIR: environment variable INFERENCE_SERVICE_NAME, else the name of DIR",
        Sets.DETAIL,
        metavar="NAME",
        also="--model_name",
    ),
    _flag(
        "token_file",
        "require the bearer token in this file, which is read again when it changes",
        Sets.APPLICATION,
        metavar="PATH",
    ),
    _switch(
        "control",
        "let clients load and unload models; default: where there is a --model-dir",
        Sets.APPLICATION,
        default=None,
    ),
    _switch(
        "playground",
        "serve a page to try the models in at /playground; default: on a loopback address",
        Sets.APPLICATION,
        default=None,
    ),
    _flag(
        "cors_origin",
        "allow web pages of this origin, to open WebSockets as well; repeatable; * is any",
        action=Repeated,
        type=_origin,
        metavar="ORIGIN",
    ),
    _switch("reload", "for development: restart when a Python file in TARGET's directory changes"),
    _switch(
        "exit_on_load_failure",
        "exit with 4 once a model cannot be loaded, for containers that should restart",
    ),
    _flag("root_path", "the path prefix that a proxy strips", Sets.UVICORN, default=""),
)
_PREDICTOR: Final = (
    _flag(
        "predictor_host",
        None,
        Sets.APPLICATION,
        metavar="HOST[:PORT]",
        also="--predictor_host",
    ),
    _flag(
        "predictor_protocol",
        "default: the model's own, else v1; grpc-v2 is V2 over gRPC",
        Sets.DETAIL,
        choices=PROTOCOLS,
        also="--predictor_protocol",
    ),
    _switch(
        "predictor_use_ssl",
        "call it over TLS",
        Sets.DETAIL,
        default=None,
        also="--predictor_use_ssl",
        also_options={"type": _truth},
    ),
    _flag(
        "predictor_timeout",
        "for its answer, or a part of it; default: the model's own, else 600",
        Sets.DETAIL,
        type=_time_limit,
        metavar="SECONDS",
        also="--predictor_request_timeout_seconds",
    ),
    _flag(
        "predictor_retries",
        "times to try a connection to it again; default: the model's own, else 0",
        Sets.DETAIL,
        type=_whole,
        metavar="N",
        also="--predictor_request_retries",
    ),
    _switch(
        "predictor_health_check",
        "let probes find models ready only while it is",
        Sets.DETAIL,
        default=None,
        also="--enable_predictor_health_check",
        also_options={"action": "store_true"},
    ),
)
_OWN_PATHS: Final = (
    _flag(
        "alias",
        "let a path mean a built-in one, like /predict=/v1/models/NAME:predict; repeatable",
        Sets.APPLICATION,
        action=Repeated,
        default=[],
        type=_alias,
        metavar="PATH=PATH",
    ),
    _flag(
        "predict_path",
        "a path for the predict of the application's model",
        Sets.APPLICATION,
        metavar="PATH",
    ),
    _switch(
        "sagemaker",
        "the paths of SageMaker: /ping for readiness, /invocations for the model's predict",
        Sets.APPLICATION,
    ),
)
_LOGGING: Final = (
    _flag(
        "log_format",
        "default: human on a terminal, else one JSON object a line",
        type=str.lower,
        choices=("human", "json"),
    ),
    _flag(
        "log_level",
        "default: %(default)s",
        type=str.lower,
        choices=("debug", "info", "warning", "error", "critical"),
        default="info",
    ),
)
_CONNECTIONS: Final = (
    _flag(
        "timeout_keep_alive",
        "for which an idle connection stays open; default: %(default)s",
        Sets.UVICORN,
        type=_whole,
        default=65,
        metavar="SECONDS",
    ),
    _flag(
        "head_timeout",
        "for a client to send the head of a request, and from one part of its body to the next;"
        f" default: {HEAD_TIMEOUT:g}",
        type=_time_limit,
        default=HEAD_TIMEOUT,
        metavar="SECONDS",
    ),
    _switch(
        "ws_per_message_deflate",
        "compress the messages of WebSockets; for audio and video it only takes time",
        Sets.UVICORN,
    ),
    _flag(
        "http",
        "the parser of HTTP; default: auto, which is httptools where it is installed",
        Sets.UVICORN,
        choices=("auto", "h11", "httptools"),
        default="auto",
    ),
    _flag(
        "loop",
        "the event loop; default: auto, which is uvloop where it is installed",
        Sets.UVICORN,
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
    ),
)
_TLS: Final = (
    _flag(
        "ssl_certfile",
        "serve over TLS, with this chain of certificates",
        Sets.UVICORN,
        metavar="PATH",
    ),
    _flag(
        "ssl_keyfile", "its private key; default: in the same file", Sets.UVICORN, metavar="PATH"
    ),
    _flag("ssl_keyfile_password", "of an encrypted key", Sets.UVICORN, metavar="PASSWORD"),
)
# By the titles of the groups in the help, each with a sentence below its title.
_GROUPS: Final[Mapping[str, tuple[str | None, tuple[Flag, ...]]]] = {
    "where to listen": (None, _ADDRESS),
    "limits": ("They override those of the application; `inf` is no limit.", _LIMITS),
    "application": (None, _APPLICATION),
    "predictor": (
        "Where models without a predict of their own send their payloads.",
        _PREDICTOR,
    ),
    "paths of your own": (
        "Vertex AI's AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE are added where they are set.",
        _OWN_PATHS,
    ),
    "logging, to stderr": (None, _LOGGING),
    "connections": (None, _CONNECTIONS),
    "TLS": (None, _TLS),
}
FLAGS: Final = tuple(flag for _, flags in _GROUPS.values() for flag in flags)
