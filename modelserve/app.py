"""`ModelServer`, the ASGI application, and the one walk that every request takes.

One instance owns models, limits and worker threads.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any, TypeVar

from modelserve.concurrency.flight import Receive
from modelserve.endpoints import Endpoint, Target
from modelserve.errors import (
    MethodNotAllowed,
    ResponseCut,
    RouteNotFound,
    ServerShuttingDown,
    ServingError,
    Stopped,
    Unauthorized,
)
from modelserve.exchange.exchange import Reply, Send
from modelserve.lifespan import Serving
from modelserve.limits import Limits
from modelserve.models.repository import ModelRepository
from modelserve.quick import DONE, Attempt, try_quickly
from modelserve.routes import Routes
from modelserve.wire.head import Request, Scope

__all__ = ["ModelServer"]

F = TypeVar("F", bound=Callable[..., Any])


class ModelServer:
    """Serve models over KServe's V1 protocol and the Open Inference Protocol; an ASGI 3 application.

    Args:
        models: Instances of `Model`, or objects with a `name` and a `predict`.
        limits: The application's limits; a model may have tighter ones in `limits`.
        threads: How many sync hooks run at the same time.
        prefix: The path below which the application is mounted, for hosts that do not say.
        debug: Show clients the text of unexpected exceptions.
        token: A bearer token that requests must carry, liveness and readiness excepted.
        coalesce: Send items that are made without a pause in one event, unless a model says
            otherwise; off, one item is one event.
        repository: Models of a directory, loaded in the background and by name over HTTP.

    Raises TypeError or ValueError for a model that cannot be served.
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
    ) -> None:
        self.serving = Serving(
            limits or Limits(), threads=threads, debug=debug, token=token, coalesce=coalesce
        )
        self._routes = Routes(self.serving.registry, prefix=prefix)
        for model in models:
            self.add_model(model)
        if repository is not None:
            self.serving.use(repository)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan.

        Raises ResponseCut where only that can tell a failure.
        """
        if scope["type"] != "http":
            await self._run_other(scope, receive, send)
            return
        arrived = monotonic()
        target = self._routes.find(scope)
        attempt = None
        if target is not None and target.is_quick:
            attempt = try_quickly(self.serving, target, scope, receive, send, arrived)
            if attempt is DONE:
                return
        request = Request(scope, receive)
        flight = self.serving.flights.open(arrived, native=attempt is not None)
        reply = Reply(send, flight, request.id)
        try:
            rest = flight.begin(self._walk(target, request, reply, attempt))
            if rest is not None:
                flight.farewell = reply.farewell
                await rest
        except Stopped as reason:
            if not isinstance(reason.__cause__, ServingError | None):
                reply.log("Request %s failed while it ended", reason)
        finally:
            if target is not None and target.codec is not None:  # it ran a model, or would have
                reply.error = flight.reason or reply.error
                series = reply.series or self.serving.telemetry.unknown
                seconds = monotonic() - arrived
                series.record(target.codec.protocol, target.verb, reply, seconds, request.id)
            # Cycles otherwise, which only the collector would find.
            flight.farewell = flight.reason = reply.error = None
        if reply.cut:
            raise ResponseCut("The response was cut short on purpose.") from None

    async def _walk(
        self, target: Target | None, request: Request, reply: Reply, attempt: Attempt | None
    ) -> None:
        """Go through the endpoint; whatever it raises becomes the answer."""
        serving = self.serving
        try:
            reply.bodiless = request.scope["method"] == "HEAD"
            if serving.registry.pending:
                serving.load_pending()
            if target is None:
                raise RouteNotFound
            endpoint = attempt.go_on if attempt is not None else self._endpoint(target, request)
            rest = await endpoint(serving, target, request, reply)
            if rest is not None:
                await rest
        except BaseException as exc:
            if reply.flight.interrupted(exc):
                raise
            reply.closes_connection = serving.draining and request.has_connection
            await reply.fail(exc, debug=serving.debug)

    def _endpoint(self, target: Target, request: Request) -> Endpoint:
        """Return the endpoint of a request that may have it; raises what is the answer otherwise."""
        serving, method = self.serving, request.scope["method"]
        endpoint = target.methods.get(method)
        if endpoint is None:
            raise MethodNotAllowed(sorted(target.methods))
        if not (serving.token is None or target.public or request.may_pass(serving.token)):
            raise Unauthorized
        if serving.draining and not target.always:
            raise ServerShuttingDown
        return endpoint

    def add_model(self, model: Any, name: str | None = None) -> None:
        """Register a model; one of the same name is replaced. It is loaded in the background."""
        self.serving.registry.add(model, name)

    def model(self, name: str) -> Callable[[F], F]:
        """Register a function as the `predict` of a model, or a class as a model; a decorator."""

        def register(target: F) -> F:
            self.add_model(target, name)
            return target

        return register

    def lifespan(self, app: Any = None) -> AbstractAsyncContextManager[None]:
        """Load the models and, on the way out, drain and stop them.

        For a host that mounts the application and runs no lifespan for it. It takes the host's
        application as an argument, as Starlette passes it, and ignores it.
        """
        return self.serving.lifespan()

    async def _run_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise RuntimeError(f"modelserve does not know the scope type {scope['type']!r}")

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        started = False
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                started = True
                await receive()
        except Exception as exc:
            stage = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{stage}.failed", "message": str(exc)})
            raise
        await send({"type": "lifespan.shutdown.complete"})
