"""`ModelRepositoryExtension` at KServe's path: a server's models listed, loaded and unloaded."""

from modelserve.app import ModelServer
from modelserve.endpoints import check_controllable, index_of, load_model

__all__ = ["ModelRepositoryExtension"]


class ModelRepositoryExtension:
    """What V2's repository does; `ModelServer.model_repository_extension` is that of a server.

    Args:
        server: The application.
    """

    def __init__(self, server: ModelServer) -> None:
        self._serving = server.serving

    async def index(self, filter_ready: bool = False) -> list[dict[str, str]]:
        """Return Triton's repository index, of all models or of those that are ready."""
        return await index_of(self._serving, ready_only=filter_ready)

    async def load(self, model_name: str) -> None:
        """Load a model. Raises ModelNotReady, ModelNotFound, Forbidden if that is turned off."""
        check_controllable(self._serving)
        await load_model(self._serving, model_name)

    async def unload(self, model_name: str) -> None:
        """Unload a model. Raises ModelNotFound, Forbidden if that is turned off."""
        check_controllable(self._serving)
        await self._serving.loading.unload(model_name)
