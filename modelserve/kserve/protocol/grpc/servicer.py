"""`InferenceServicer` at KServe's path, for programs that run a server of grpcio of their own.

On gRPC's own port, modelserve does without it and does more: see examples/guides/grpc.md.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeAlias

from modelserve.errors import describe, is_expected
from modelserve.kserve.protocol.dataplane import DataPlane
from modelserve.kserve.protocol.grpc import grpc_predict_v2_pb2 as pb2
from modelserve.kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceServicer
from modelserve.kserve.protocol.model_repository_extension import ModelRepositoryExtension
from modelserve.kserve.utils.utils import to_headers
from modelserve.protocols.codec import ModelRef
from modelserve.protocols.grpc import merge_responses
from modelserve.protocols.signature import tensors_in
from modelserve.protocols.v2 import as_response
from modelserve.tensors import InferRequest, InferResponse
from modelserve.tensors.grpc import is_message
from modelserve.tensors.messages import grpc_response
from modelserve.wire.grpc import code_of_http
from modelserve.wire.json import detail_text

__all__ = ["InferenceServicer", "to_headers"]

logger = logging.getLogger("modelserve")

Method: TypeAlias = Callable[["InferenceServicer", Any, Any], Awaitable[Any]]


def _method(answer: Method) -> Method:
    """Wrap a method: an exception ends its call with the right status, and is raised."""

    @wraps(answer)
    async def method(servicer: "InferenceServicer", request: Any, context: Any) -> Any:
        try:
            return await answer(servicer, request, context)
        except Exception as exc:
            await _abort(context, answer.__name__, exc)

    return method


async def _abort(context: Any, name: str, error: Exception) -> None:
    import grpc  # there is a context, so it is installed

    status, detail, _ = describe(error)
    if not is_expected(error):
        logger.error("A call of gRPC's %s failed", name, exc_info=error)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    try:
        ending = context.abort(codes[code_of_http(status)], detail_text(detail))
    except Exception:  # a context without an event loop: it has noted the status
        raise error from None
    await ending


class InferenceServicer(GRPCInferenceServiceServicer):
    """KServe's methods of the service, for a server of `grpc.aio`.

    A call that fails has the status and the sentence that it has on gRPC's own port. With a context
    whose `abort` is no coroutine, as that of grpc_testing, a method raises the error itself.
    """

    def __init__(
        self, data_plane: DataPlane, model_repository_extension: ModelRepositoryExtension
    ) -> None:
        self._models = data_plane
        self._repository = model_repository_extension

    @_method
    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Answer that the server is alive."""
        return pb2.ServerLiveResponse(live=(await self._models.live())["status"] == "alive")

    @_method
    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Answer whether every model is ready."""
        return pb2.ServerReadyResponse(ready=await self._models.ready())

    @_method
    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Answer with V2's metadata of the server."""
        self._check_token(context)
        return pb2.ServerMetadataResponse(**self._models.metadata())

    @_method
    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Answer whether a model can take requests."""
        return pb2.ModelReadyResponse(ready=await self._models.model_ready(request.name))

    @_method
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Answer with V2's metadata of a model."""
        self._check_token(context)
        about = await self._models.model_metadata(request.name)
        for key in ("inputs", "outputs"):
            about[key] = [tensor._asdict() for tensor in tensors_in(about[key])]
        return pb2.ModelMetadataResponse(**about)

    @_method
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Run a model; the responses of one that streams become one, as on gRPC's own port."""
        headers = self._check_token(context)
        given = InferRequest.from_grpc(request)
        result, _ = await self._models.infer(
            model_name=given.model_name, request=given, headers=headers
        )
        if is_message(result, "ModelInferResponse"):
            return result
        ref = ModelRef(given.model_name, given.model_version)
        if isinstance(result, list) and InferResponse in {*map(type, result)}:  # of a stream
            result = merge_responses([as_response(item, given, ref) for item in result])
        return grpc_response(as_response(result, given, ref), given)

    @_method
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Load a model."""
        self._check_token(context)
        await self._repository.load(request.model_name)
        return pb2.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)

    @_method
    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Unload a model."""
        self._check_token(context)
        await self._repository.unload(request.model_name)
        return pb2.RepositoryModelUnloadResponse(model_name=request.model_name, isUnloaded=True)

    def _check_token(self, context: Any) -> dict[str, str]:
        """Return the call's headers. Raises Unauthorized."""
        headers = dict(to_headers(context))
        self._models.check_token(headers.get("authorization"))
        return headers
