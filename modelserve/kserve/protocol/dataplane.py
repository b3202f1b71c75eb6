"""`DataPlane` at KServe's path: a server's models, for a program with an interface of its own."""

from collections.abc import Mapping
from typing import Any

from modelserve.app import ModelServer
from modelserve.endpoints import server_document
from modelserve.errors import ServerShuttingDown, ServingError, Unauthorized
from modelserve.models.repository import ModelRepository
from modelserve.wire.head import Head

__all__ = ["DataPlane"]


class DataPlane:
    """The models of a server, without HTTP; `ModelServer.dataplane` is the one of a server.

    Calls of a model count for its limits and are in its metrics and its log, and cancelling one
    cancels the model. The program checks the token of its clients, by `check_token`.

    Args:
        server: The application.
        model_registry: Its repository.
    """

    def __init__(self, server: ModelServer, model_registry: ModelRepository) -> None:
        self._server = server
        self.model_registry = model_registry

    @staticmethod
    async def live() -> dict[str, str]:
        """Return that the server is alive."""
        return {"status": "alive"}

    async def ready(self) -> bool:
        """Return whether every model is ready and the server is not stopping."""
        try:
            await self._server.serving.check_ready()
        except ServingError:
            return False
        return True

    def metadata(self) -> dict[str, Any]:
        """Return V2's metadata of the server."""
        return server_document()

    def get_model_from_registry(self, name: str) -> Any:
        """Return a model. Raises ModelNotFound."""
        return self._server.serving.registry.get(name).model

    async def model_ready(self, model_name: str) -> bool:
        """Return whether a model can take requests. Raises ModelNotFound."""
        serving = self._server.serving
        return await serving.registry.get(model_name).is_ready() and not serving.stopping

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return V2's metadata of a model. Raises ModelNotFound, and what its hooks raise."""
        registry = self._server.serving.registry
        return await registry.metadata(registry.get(model_name))

    async def infer(
        self, model_name: str, request: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Run a model's hooks on a payload.

        Return what they give, a list of the items if the model streams, and no headers. Raises what
        the hooks raise, ModelNotFound, ModelNotReady, Overloaded and ServerShuttingDown.
        """
        return await self._call(model_name, request, headers, "predict")

    async def explain(
        self, model_name: str, request: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Run a model's hooks for an explanation, as `infer` does for a prediction."""
        return await self._call(model_name, request, headers, "explain")

    def check_token(self, authorization: str | None) -> None:
        """Raise Unauthorized if the server has a token which this header's value does not carry."""
        token = self._server.serving.token
        pairs = [(b"authorization", (authorization or "").encode())]
        if token is not None and not Head({"headers": pairs}).carries_token(token):
            raise Unauthorized

    async def _call(
        self, name: str, payload: Any, headers: Mapping[str, str] | None, verb: str
    ) -> tuple[Any, dict[str, str]]:
        serving = self._server.serving
        if serving.draining:
            raise ServerShuttingDown
        serving.registry.get(name, getattr(payload, "model_version", None))  # or ModelNotFound
        return await self._server.call(name, payload, verb=verb, headers=headers), {}
