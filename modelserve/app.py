"""`ModelServer`, the ASGI application.

Each instance has its own models, limits and worker threads.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

from starlette.types import Receive, Scope, Send

from modelserve.dispatch import dispatch
from modelserve.endpoints import Request
from modelserve.errors import Stopped
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.failures import conclude
from modelserve.exchange.running import forget_running, note_running
from modelserve.exchange.websocket import cut
from modelserve.following import FollowedFlights
from modelserve.lifespan import Serving
from modelserve.limits import Limits
from modelserve.models.functions import with_function
from modelserve.models.model import ModelSettings
from modelserve.models.repository import ModelRepository
from modelserve.observers import Observer, Observers
from modelserve.pages.playground import pages
from modelserve.routes import Routes, path_of
from modelserve.websockets import open_socket

if TYPE_CHECKING:
    from modelserve.command.flags import Flags
    from modelserve.command.programs import Served
    from modelserve.composing.calls import ModelCall

__all__ = ["ModelServer"]

F = TypeVar("F", bound=Callable[..., Any])

# Attributes that unpickling creates anew.
_REBUILT: Final = frozenset(("serving", "_routes", "_prefix", "_repository", "_playground"))


class _Runnable:
    """The methods that serve an application without the command line or another host."""

    def run(self: "Served", **flags: "Unpack[Flags]") -> None:
        """Serve until SIGTERM, SIGHUP or Ctrl-C, as the command line does, and return once drained.

        It takes the command line's flags as keyword arguments, and logs like the command line
        unless the program has set up logging. With `workers` or `reload`, the other processes
        import the program and find the application in its variable. It does nothing while the
        module that calls it is being imported.

        Raises RuntimeError in a running event loop, TypeError or ValueError for an unknown flag or
        a bad value, SystemExit if it cannot serve.
        """
        from modelserve.command.programs import run

        run(self, flags)

    async def serve(self: "Served", **flags: "Unpack[Flags]") -> None:
        """Serve in the running event loop (of a notebook, for example) until cancelled.

        It takes the arguments of `run`, except `workers` and `reload`, and touches neither signals
        nor logging. A cancellation drains, and is raised once the models have stopped; a second one
        ends the requests that are left. asyncio only.

        Raises OSError if it cannot listen, RuntimeError if it cannot start.
        """
        from modelserve.command.programs import serve

        await serve(self, flags)

    async def ready(self: "Served") -> None:
        """Wait until every load has ended; start the loading if no lifespan does.

        Cancellation leaves the loads running. Raises ModelNotReady, naming the models that have
        failed to load, or else those whose `healthy` is false: a health check for hosts that ask.
        """
        await self.serving.loading.ready()


class _Addressed:
    """The paths of an application, beside the built-in ones."""

    serving: Serving
    _routes: Routes
    _playground: bool | None

    @property
    def aliases(self) -> dict[str, str]:
        """The application's own paths, each with its built-in path."""
        return self._routes.aliases

    def add_alias(self, path: str, means: str) -> None:
        """Let a path of your own mean a built-in one, `/v1/models/NAME:predict` for example.

        Both are written as in a URL. If the built-in path takes POST, this one takes PUT as well.
        The model may be registered later. Raises ValueError for a path that is built in or has
        another meaning already, and for a meaning that is not built in.
        """
        self._routes.add_alias(path, means)

    @property
    def playground(self) -> bool | None:
        """Whether `/playground` is a page to try models in; None leaves that to the host."""
        return self._playground

    @playground.setter
    def playground(self, wanted: bool | None) -> None:
        self._playground = wanted
        self.show_playground(bool(wanted))

    def show_playground(self, shown: bool) -> None:
        """Show or hide the page without changing `playground`."""
        self.serving.has_playground = shown
        self._routes.show(pages() if shown else {})


class _Described:
    """The methods that describe an application to other programs."""

    serving: Serving

    def openapi(self, *, prefix: str = "", into: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the OpenAPI 3.1 document of the application, as `/openapi.json` has it.

        Args:
            prefix: The path below which a host has mounted it. All paths, and the names of
                operations and schemas, begin with it, so that they differ from the host's.
            into: The host's own document, which is returned with the paths, schemas, security
                schemes and tags of this one added; it is not changed.
        """
        from modelserve.pages.openapi import document_of, merged

        document = document_of(self.serving, prefix=prefix.rstrip("/"))
        return document if into is None else merged(into, document)


class ModelServer(_Addressed, _Described, _Runnable):
    """Serve models over KServe's V1, the Open Inference Protocol (V2) and OpenAI's endpoints.

    An ASGI 3 application, which answers V2's calls over gRPC and WebSockets of V1 as well.

    Args:
        models: Instances of `Model`, or objects with a `name` and a `predict`.
        limits: The application's limits; a model may have tighter ones in `limits`.
        threads: How many sync hooks run at the same time.
        prefix: The path below which the application is mounted, for hosts that do not report it.
        debug: Show clients the text of unexpected exceptions.
        token: A bearer token that requests must carry, liveness and readiness excepted.
        coalesce: Send items made without a pause in one event, unless a model says otherwise.
        repository: Models of a directory, loaded in the background and by name over HTTP.
        control: Let clients load and unload models; None is where there is a repository.
        wait_for_load: Let the lifespan start only once every load has ended, a failed one too.
        origins: Web pages of these, `*` for any, may open a WebSocket, beside those of this host.
        aliases: Paths of your own, each with the built-in path that it means.
        observers: Functions to call, on the event loop, with the record of each ended request.
        playground: Serve a page to try the models in at `/playground`, and send browsers from `/`
            there; None is where the command line, or `run`, listens on loopback alone.

    It can be pickled, as can a subclass; a copy has the same arguments, models and attributes.
    Raises TypeError or ValueError for a model that cannot be served, or an unusable token.
    """

    def __init__(
        self,
        models: Iterable[Any] = (),
        *,
        limits: Limits | None = None,
        threads: int = 40,
        prefix: str = "",
        debug: bool = False,
        token: str | None = None,
        coalesce: bool = False,
        repository: ModelRepository | None = None,
        control: bool | None = None,
        wait_for_load: bool = False,
        origins: Collection[str] = (),
        aliases: Mapping[str, str] | None = None,
        observers: Iterable[Observer] = (),
        playground: bool | None = None,
    ) -> None:
        self._prefix = prefix
        self._repository = repository
        self.serving = Serving(
            limits or Limits(),
            threads=threads,
            debug=debug,
            token=token,
            coalesce=coalesce,
            control=control,
            wait_for_load=wait_for_load,
            origins=origins,
            observers=Observers.of(observers),
        )
        self._routes = self.serving.table = Routes(self.serving.registry, prefix=prefix)
        if (followed := self.serving.telemetry.followed) is not None:
            self.serving.flights = FollowedFlights(followed, self._routes.find)
        self.playground = playground
        if not isinstance(aliases, Mapping | None):
            raise TypeError(f"The aliases must be a dict of paths, not {aliases!r}")
        for path, means in (aliases or {}).items():
            self.add_alias(path, means)
        for model in _several(models):
            self.add_model(model)
        if repository is not None:
            self.serving.use(repository)

    def __getstate__(self) -> dict[str, Any]:
        return _state_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        ModelServer.__init__(self, **state["options"])  # a subclass may take other arguments
        for name, model in state["models"]:
            self.serving.registry.adopt(name, model)
        vars(self).update(state["others"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or one WebSocket, or run the lifespan.

        Raises ResponseCut if only a cut connection can show a failure to the client.
        """
        serving = self.serving
        if scope["type"] != "http":
            if (request := await _other(self, scope, receive, send)) is None:
                return
            target, scope, receive, send = request
        elif (target := self._routes.find(scope)).opens is not None:
            target, scope, receive, send = target.opens(target, scope, receive, send)
        exchange = Exchange(target.codec, scope, receive, send, monotonic())
        noted = note_running(exchange)
        try:
            rest = serving.flights.start(exchange, dispatch(serving, target, exchange))
            if rest is not None:
                await rest
        except Stopped as reason:
            await conclude(exchange, exchange.reason or reason)
            if exchange.flight is not None:
                await exchange.flight.deliver_absorbed()
        finally:
            if target.verb:  # a path that runs a model
                series = exchange.series or serving.telemetry.unknown
                exchange.error = exchange.reason or exchange.error
                seconds = monotonic() - exchange.arrived
                series.record(target.codec.protocol, target.verb, exchange, seconds, exchange.id)
            # Break reference cycles, which only the garbage collector would free.
            exchange.flight = exchange.stream = exchange.reason = None
            if not exchange.cut:
                exchange.error = None
            try:
                forget_running(noted)
            except ValueError:  # nobody awaits this any more: it is closed in another context
                pass
        if exchange.cut:
            await cut(exchange)

    def add_model(
        self, model: Any, name: str | None = None, **settings: Unpack[ModelSettings]
    ) -> None:
        """Register a model; one of the same name is replaced. It is loaded in the background.

        The settings are attributes that a `Model` has, such as `limits`.
        """
        self.serving.registry.add(model, name, settings)

    def model(
        self,
        name: str,
        *,
        verb: str = "predict",
        path: str | None = None,
        **settings: Unpack[ModelSettings],
    ) -> Callable[[F], F]:
        """Register a function as a hook of a model, or a class as a model; a decorator.

        Args:
            verb: The hook: "predict", "explain", "chat", "complete" or "embed". Functions of
                several verbs under one name are one model.
            path: A path of your own for that verb, beside the built-in one.
            settings: As for `add_model`.
        """
        if not isinstance(name, str):
            raise TypeError('model() takes the name of the model: @app.model("name")')
        if path is not None:
            self.add_alias(path, path_of(name, verb))
        return lambda target: _registered(self, target, name, verb, settings)

    def call(
        self,
        name: str,
        payload: Any,
        *,
        verb: str = "predict",
        headers: Mapping[str, str] | None = None,
    ) -> "ModelCall":
        """Call a model of this application, from a hook of another one or outside of any request.

        The call counts for the model's limits and is in its metrics and its log, with the id of the
        request that runs, unless `headers` has one. The payload goes to the model as it is.
        `ModelCall` says how the result is read. Raises ValueError for a `verb` that does not exist;
        where the model has no such hook, reading the result raises InvalidInput or HookMissing.
        """
        from modelserve.composing.calls import ModelCall

        return ModelCall(self.serving, name, payload, verb, headers)

    def lifespan(self, app: Any = None) -> AbstractAsyncContextManager[None]:
        """Load the models and, on the way out, drain and stop them.

        For a host that mounts the application and runs no lifespan for it; `app` is ignored.
        """
        return self.serving.lifespan()


def _several(models: Iterable[Any]) -> list[Any]:
    if not isinstance(models, Iterable):
        raise TypeError(f"The models of a ModelServer are a list of models, not {models!r}")
    several = list(models)
    names = Counter(name for m in several if isinstance(name := getattr(m, "name", None), str))
    for name, count in names.items():
        if count > 1:  # a slip here, while `add_model` replaces on purpose
            raise ValueError(f"{count} models of one ModelServer have the name {name!r}")
    return several


def _registered(app: ModelServer, target: F, name: str, verb: str, settings: ModelSettings) -> F:
    entry = app.serving.registry.entries.get(name)
    known = None if entry is None else entry.model
    app.add_model(with_function(target, name, verb, known), name, **settings)
    return target


async def _other(app: ModelServer, scope: Scope, receive: Receive, send: Send) -> Request | None:
    """Run the lifespan, or convert a WebSocket into a request."""
    if scope["type"] == "websocket":
        return await open_socket(app.serving, app._routes, scope, receive, send)
    if scope["type"] != "lifespan":
        raise RuntimeError(f"modelserve does not know the scope type {scope['type']!r}")
    await _run_lifespan(app, receive, send)
    return None


async def _run_lifespan(app: ModelServer, receive: Receive, send: Send) -> None:
    await receive()
    started = False
    try:
        async with app.lifespan():
            await send({"type": "lifespan.startup.complete"})
            started = True
            await receive()
    except Exception as exc:
        stage = "shutdown" if started else "startup"
        await send({"type": f"lifespan.{stage}.failed", "message": str(exc)})
        raise
    await send({"type": "lifespan.shutdown.complete"})


def _state_of(app: ModelServer) -> dict[str, Any]:
    shared = app.serving.registry.shared
    observers = app.serving.telemetry.observers
    options = {
        "limits": shared.limits,
        "threads": shared.workers.limit,
        "prefix": app._prefix,
        "debug": app.serving.debug,
        "token": app.serving.token,
        "coalesce": shared.coalesce,
        "repository": app._repository,
        "control": app.serving.control,
        "wait_for_load": app.serving.wait_for_load,
        "origins": app.serving.origins,
        "aliases": app.aliases,
        "observers": () if observers is None else observers.given,
        "playground": app.playground,
    }
    others = {key: value for key, value in vars(app).items() if key not in _REBUILT}
    return {"options": options, "models": app.serving.registry.models, "others": others}
