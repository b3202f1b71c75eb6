"""`ModelServer` with KServe's arguments, command line and `start`.

The command line and the environment are read when `start` is called: nothing happens at import.
Options without a meaning here are accepted, with a warning.
"""

import asyncio
import math
import os
import signal
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from logging import WARNING, getLogger
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from modelserve.app import ModelServer as _ModelServer
from modelserve.kserve.constants.constants import (
    DEFAULT_HTTP_PORT,
    DEFAULT_HTTPS_PORT,
    KSERVE_TLS_CERT_FILE_ENV,
    KSERVE_TLS_KEY_FILE_ENV,
)
from modelserve.kserve.logging import configure_logging, logger
from modelserve.kserve.protocol.dataplane import DataPlane
from modelserve.kserve.protocol.model_repository_extension import ModelRepositoryExtension
from modelserve.kserve.utils.utils import strtobool
from modelserve.limits import Limits
from modelserve.models.model import Model
from modelserve.models.predictor import PROTOCOLS, PredictorConfig
from modelserve.models.repository import ModelRepository
from modelserve.server.run import serve
from modelserve.server.settings import Settings, has_grpc

__all__ = ["ModelServer", "app", "parser"]

ExceptionHandler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]

_IGNORED: Final = (
    "access_log_format",
    "enable_docs_url",
    "max_threads",
)


# --- the command line ---------------------------------------------------------------------------


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        add_help=False, allow_abbrev=False, formatter_class=ArgumentDefaultsHelpFormatter
    )
    _add_server(parser)
    _add_grpc(parser)
    _add_logging(parser)
    _add_model(parser)
    _add_predictor(parser)
    _add_ignored(parser)
    return parser


def _add_server(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--http_port", type=int, default=DEFAULT_HTTP_PORT, help="the port to listen on")
    add("--workers", type=int, default=1, help="how many processes")
    add("--max_asyncio_workers", type=int, help="how many sync hooks run at the same time")
    add("--event-loop", dest="event_loop", choices=("auto", "asyncio", "uvloop"), default="auto")
    add(
        "--timeout-keep-alive",
        dest="timeout_keep_alive",
        type=int,
        default=65,
        help="seconds that an idle connection stays open; more than the proxy's",
    )
    add("--ssl_certfile", help=f"else the environment variable {KSERVE_TLS_CERT_FILE_ENV}")
    add("--ssl_keyfile", help=f"else the environment variable {KSERVE_TLS_KEY_FILE_ENV}")


def _add_grpc(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--enable_grpc", type=strtobool, default=True, help="whether to serve gRPC as well")
    add("--grpc_port", type=int, default=8081, help="the port for gRPC")
    for way in ("send", "receive"):
        text = f"bytes of a message that gRPC may {way}"
        add(f"--grpc_max_{way}_message_length", type=int, default=8 << 20, help=text)


def _add_logging(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--configure_logging", type=strtobool, default=True, help="whether to set up logging")
    add("--log_config_file", help="a file of logging's configuration: YAML, JSON or INI")
    add("--enable_latency_logging", type=strtobool, default=True, help="log a line per request")


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model_name", default="model", help="a model's name, for the program to use"
    )


def _add_predictor(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--predictor_host", help="where models without a predict forward their payloads")
    add("--predictor_protocol", choices=PROTOCOLS, default="v1", help="the predictor's protocol")
    add("--protocol", choices=PROTOCOLS, default="v1", help="old name of --predictor_protocol")
    add("--predictor_use_ssl", type=strtobool, default=False, help="call it over TLS")
    add(
        "--predictor_request_timeout_seconds",
        type=int,
        default=600,
        help="seconds to wait for its answer",
    )
    add(
        "--predictor_request_retries", type=int, default=0, help="times to retry a connection to it"
    )
    add(
        "--enable_predictor_health_check",
        action="store_true",
        help="be ready only while the predictor is",
    )


def _add_ignored(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("options of KServe without a meaning here").add_argument
    add("--access_log_format")
    add("--enable_docs_url", type=strtobool, default=False)
    add("--max_threads", type=int, default=4)


parser = _parser()


def _options(given: Mapping[str, Any]) -> Namespace:
    """Return all options: from the constructor, else the command line, else the defaults."""
    options, _ = parser.parse_known_args()
    unset = Namespace(**dict.fromkeys(vars(options)))  # argparse leaves out defaults of what is set
    on_command_line, _ = parser.parse_known_args(namespace=unset)
    chosen = _without_none(vars(on_command_line)) | _without_none(given)
    for name in _IGNORED:
        if chosen.get(name):
            logger.warning("%s means nothing to modelserve and is ignored", name)
    vars(options).update(chosen)
    options.ssl_certfile = options.ssl_certfile or os.environ.get(KSERVE_TLS_CERT_FILE_ENV)
    options.ssl_keyfile = options.ssl_keyfile or os.environ.get(KSERVE_TLS_KEY_FILE_ENV)
    if "http_port" not in chosen:
        options.http_port = int(os.environ.get("PORT") or DEFAULT_HTTP_PORT)
    if options.ssl_certfile and options.ssl_keyfile and options.http_port == DEFAULT_HTTP_PORT:
        options.http_port = DEFAULT_HTTPS_PORT  # as KServe does
    is_asked_for = "grpc_port" in chosen or bool(chosen.get("enable_grpc"))
    options.grpc_is_optional = not is_asked_for
    if options.grpc_is_optional and not has_grpc():
        options.enable_grpc = False
    if "predictor_protocol" not in chosen:
        options.predictor_protocol = options.protocol
    return options


def _predictor(options: Namespace) -> PredictorConfig | None:
    if not options.predictor_host:
        return None
    return PredictorConfig(
        options.predictor_host,
        options.predictor_protocol,
        options.predictor_use_ssl,
        options.predictor_request_timeout_seconds,
        options.predictor_request_retries,
        options.enable_predictor_health_check,
    )


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# --- the application ----------------------------------------------------------------------------


class ModelServer(_ModelServer):
    """Serve models over KServe's protocols: an ASGI application with KServe's arguments.

    Args:
        http_port: The port to listen on; else the environment variable PORT, else 8080.
        grpc_port: The port for gRPC, else 8081.
        enable_grpc: Serve gRPC as well. If neither is given here or on the command line, gRPC is
            served where its packages are installed and the port is free.
        workers: How many processes; several receive the models by pickle.
        max_asyncio_workers: How many sync hooks run at the same time; else 40.
        registered_models: A repository, whose models are served, and which loads others by name
            over HTTP.
        enable_latency_logging: Log a line per request.
        event_loop: "auto", "asyncio" or "uvloop".
        timeout_keep_alive: Seconds that an idle connection stays open; else 65.
        predictor_config: Where models without a `predict` forward their payloads, unless they
            have their own `predictor_host`.
        grace_period: Seconds that requests have to finish in when the server stops.
        ssl_certfile: A certificate's file, with `ssl_keyfile`; the port is then 8443, not 8080.
        options: Arguments of `modelserve.ModelServer`: `limits`, `debug`, `token` and so on. The
            size of bodies is not limited, as in KServe, unless `limits` does, and models can be
            loaded and unloaded over HTTP unless `control` is False.

    What is left out is taken from the command line when `start` is called. The other arguments are
    KServe's, without a meaning here.
    """

    def __init__(
        self,
        http_port: int | None = None,
        grpc_port: int | None = None,
        workers: int | None = None,
        max_threads: int | None = None,
        max_asyncio_workers: int | None = None,
        registered_models: ModelRepository | None = None,
        enable_grpc: bool | None = None,
        enable_docs_url: bool | None = None,
        enable_latency_logging: bool | None = None,
        access_log_format: str | None = None,
        event_loop: str | None = None,
        timeout_keep_alive: int | None = None,
        grace_period: float = 30,
        predictor_config: PredictorConfig | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        **options: Any,
    ) -> None:
        self._given = {
            "http_port": http_port,
            "grpc_port": grpc_port,
            "workers": workers,
            "max_threads": max_threads,
            "max_asyncio_workers": max_asyncio_workers,
            "enable_grpc": enable_grpc,
            "enable_docs_url": enable_docs_url,
            "enable_latency_logging": enable_latency_logging,
            "access_log_format": access_log_format,
            "event_loop": event_loop,
            "timeout_keep_alive": timeout_keep_alive,
            "ssl_certfile": ssl_certfile,
            "ssl_keyfile": ssl_keyfile,
        }
        limits = options.pop("limits", None) or Limits()
        limits = limits.with_defaults(Limits(max_body_bytes=math.inf, drain_timeout=grace_period))
        options.setdefault("control", True)  # as in KServe
        if max_asyncio_workers is not None:
            options["threads"] = max_asyncio_workers
        self._arguments = {"registered_models": registered_models, "limits": limits, **options}
        self._predictor_config = predictor_config
        self._exception_handler: ExceptionHandler | None = None
        super().__init__(limits=limits, **options)
        self.registered_models = (
            ModelRepository() if registered_models is None else registered_models
        )
        self._follow_repository()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._follow_repository()

    def register_model(self, model: Any, name: str | None = None) -> None:
        """Serve a model under its name, or another; it is loaded in the background if not ready."""
        config = self._predictor_config
        if config is not None and isinstance(model, Model) and not model.predictor_host:
            model.predictor_config = config
        self.registered_models.update(model, name)

    @property
    def dataplane(self) -> DataPlane:
        """The models, for a program that has a way in of its own."""
        return DataPlane(self, self.registered_models)

    @property
    def model_repository_extension(self) -> ModelRepositoryExtension:
        """The loading and unloading of models, for the same."""
        return ModelRepositoryExtension(self)

    def register_exception_handler(self, handler: ExceptionHandler) -> None:
        """Set the event loop's handler of uncaught exceptions, with asyncio's interface."""
        self._exception_handler = handler

    def default_exception_handler(
        self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
    ) -> None:
        """Log an uncaught exception, as asyncio does by default."""
        loop.default_exception_handler(context)

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        if self._exception_handler is not None:
            asyncio.get_running_loop().set_exception_handler(self._exception_handler)
        async with super().lifespan(app):
            yield

    def start(self, models: Iterable[Any]) -> None:
        """Serve these models, and those of the repository, until SIGTERM or SIGINT.

        Models that are not ready are loaded in the background. After the signal, requests have
        `grace_period` seconds to finish in. Raises SystemExit if the server cannot start.
        """
        options = _options(self._given)
        set_up_logging = partial(
            _set_up_logging,
            options.log_config_file,
            configure=options.configure_logging,
            requests=options.enable_latency_logging,
        )
        set_up_logging()
        self._predictor_config = self._predictor_config or _predictor(options)
        for model in models:
            self.register_model(model)
        if options.max_asyncio_workers is not None:
            self._arguments["threads"] = options.max_asyncio_workers
            self.serving.reconfigure(Limits(), threads=options.max_asyncio_workers, debug=False)
        settings = Settings(
            host="0.0.0.0",
            port=options.http_port,
            grpc_port=options.grpc_port if options.enable_grpc else None,
            grpc_is_optional=options.grpc_is_optional,
            grpc_options={
                f"grpc.max_{way}_message_length": getattr(options, f"grpc_max_{way}_message_length")
                for way in ("send", "receive")
            },
            workers=options.workers,
            uvicorn={
                "loop": options.event_loop,
                "timeout_keep_alive": options.timeout_keep_alive,
                "ssl_certfile": options.ssl_certfile,
                "ssl_keyfile": options.ssl_keyfile,
            },
            set_up_logging=set_up_logging,
        )
        code = serve(self._loader(options.workers), settings)
        if code:
            sys.exit(code)

    def _follow_repository(self) -> None:
        # KServe's own repository finds nothing: only one that the program gives is asked.
        given = self._arguments["registered_models"] is not None
        self.serving.follow(self.registered_models, loads_by_name=given)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Stop the server of this process as a signal would."""
        signal.raise_signal(sig)

    def _loader(self, workers: int) -> Callable[[], ASGIApp]:
        """Return a function that makes the application, picklable if there are worker processes."""
        if workers == 1:
            return partial(_around, self)
        models = dict(self.registered_models.get_models())
        return partial(
            _application, self._arguments, models, app.middleware, self._exception_handler
        )


def _set_up_logging(path: str | None, *, configure: bool, requests: bool) -> None:
    if configure:
        configure_logging(path)
    if not requests:
        getLogger("modelserve.access").setLevel(WARNING)


class _App:
    """KServe's global application: it puts middleware around the server that is started."""

    def __init__(self) -> None:
        self.app: ModelServer | None = None  # `find_drainables` looks here
        self.middleware: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self._outermost: ASGIApp | None = None

    def add_middleware(self, middleware_class: Any, *args: Any, **kwargs: Any) -> None:
        """Add ASGI middleware, outside of what was added before."""
        self.middleware.append((middleware_class, args, kwargs))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the server. Raises RuntimeError before one has been started."""
        if self._outermost is None:
            self._outermost = self._build()
        await self._outermost(scope, receive, send)

    def _build(self) -> ASGIApp:
        if self.app is None:
            raise RuntimeError("modelserve.kserve: no ModelServer has been started")
        outermost: ASGIApp = self.app
        for middleware_class, args, kwargs in self.middleware:
            outermost = middleware_class(outermost, *args, **kwargs)
        return outermost


# Programs import it to add middleware before they start a server.
app = _App()


def _around(model_server: ModelServer) -> ASGIApp:
    app.app = model_server
    return app


def _application(
    arguments: dict[str, Any],
    models: dict[str, Any],
    middleware: list[Any],
    exception_handler: ExceptionHandler | None,
) -> ASGIApp:
    """Build in a worker process the application that the program has built in its own."""
    model_server = ModelServer(**arguments)
    for name, model in models.items():
        model_server.register_model(model, name)
    if exception_handler is not None:
        model_server.register_exception_handler(exception_handler)
    app.middleware[:] = middleware
    return _around(model_server)
