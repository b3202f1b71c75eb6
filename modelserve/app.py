"""`ModelServer`, the ASGI application: one instance owns models, limits and worker threads."""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from modelserve.lifetime import Receive
from modelserve.limits import Limits
from modelserve.repository import ModelRepository
from modelserve.requests import Scope
from modelserve.responses import Send
from modelserve.routes import Routes
from modelserve.serving import Serving

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
        self._serving = Serving(
            limits or Limits(), threads=threads, debug=debug, token=token, coalesce=coalesce
        )
        self._routes = Routes(self._serving, prefix=prefix)
        for model in models:
            self.add_model(model)
        if repository is not None:
            self._serving.use(repository)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "http":
            await self._routes(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise RuntimeError(f"modelserve does not know the scope type {scope['type']!r}")

    def add_model(self, model: Any, name: str | None = None) -> None:
        """Register a model; one of the same name is replaced. It is loaded in the background."""
        self._serving.registry.add(model, name)

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
        return self._serving.lifespan()

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
