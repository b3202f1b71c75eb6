"""`InferenceGRPCClient` at KServe's path. Needs the extra grpc."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

from modelserve.errors import ExtraMissing, InvalidInput
from modelserve.kserve.logging import trace_logger as logger
from modelserve.kserve.protocol.grpc import grpc_predict_v2_pb2 as pb2
from modelserve.kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from modelserve.tensors import InferRequest, InferResponse

__all__ = ["USE_CLIENT_DEFAULT", "InferenceGRPCClient"]

USE_CLIENT_DEFAULT: Final[Any] = object()  # a method's default time-out: the client's
_UNLIMITED: Final = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
_LEAST_ATTEMPTS: Final = 2  # gRPC accepts no policy with fewer


class InferenceGRPCClient:
    """A client of V2 over gRPC, for asyncio; an async context manager, else call `close`.

    The methods raise grpcio's RpcError for a call that fails.

    Args:
        url: The server as `host:port`; without a port, 80, or 443 over TLS.
        verbose: Log requests and responses.
        use_ssl: Speak TLS.
        root_certificates: The file of the certificates to trust; else grpcio's.
        private_key: The file of the client's key, if it has one.
        certificate_chain: The file of the client's certificate.
        creds: The credentials of the channel, instead of the files.
        channel_args: Options of the channel; without any, messages may have any size.
        timeout: Seconds that a call may take; None for any time.
        retries: The most attempts to reach a server that is unavailable.
    """

    def __init__(
        self,
        url: str,
        verbose: bool = False,
        use_ssl: bool = False,
        root_certificates: str | None = None,
        private_key: str | None = None,
        certificate_chain: str | None = None,
        creds: Any = None,
        channel_args: Sequence[tuple[str, Any]] | None = None,
        timeout: float | None = 60,
        retries: int = 3,
    ) -> None:
        grpc = _grpc()
        if ":" not in url:
            url = f"{url}:{443 if use_ssl else 80}"
        if creds is None and use_ssl:
            files = (root_certificates, private_key, certificate_chain)
            creds = grpc.ssl_channel_credentials(*map(_read, files))
        options = _options(channel_args, retries)
        if creds is None:
            self._channel = grpc.aio.insecure_channel(url, options=options)
        else:
            self._channel = grpc.aio.secure_channel(url, creds, options=options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._verbose = verbose
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

    async def infer(
        self, infer_request: InferRequest, timeout: Any = USE_CLIENT_DEFAULT, headers: Any = None
    ) -> InferResponse:
        """Send a request, and return the response. Raises InvalidInput for anything else."""
        if not isinstance(infer_request, InferRequest):
            raise InvalidInput(f"Expected an InferRequest, not {type(infer_request).__name__}.")
        message = infer_request.to_grpc()
        return InferResponse.from_grpc(await self._call("ModelInfer", message, timeout, headers))

    async def is_server_ready(self, timeout: Any = USE_CLIENT_DEFAULT, headers: Any = None) -> bool:
        """Return whether the server is ready."""
        message = pb2.ServerReadyRequest()
        return bool((await self._call("ServerReady", message, timeout, headers)).ready)

    async def is_server_live(self, timeout: Any = USE_CLIENT_DEFAULT, headers: Any = None) -> bool:
        """Return whether the server is live."""
        message = pb2.ServerLiveRequest()
        return bool((await self._call("ServerLive", message, timeout, headers)).live)

    async def is_model_ready(
        self, model_name: str, timeout: Any = USE_CLIENT_DEFAULT, headers: Any = None
    ) -> bool:
        """Return whether a model is ready."""
        message = pb2.ModelReadyRequest(name=model_name)
        return bool((await self._call("ModelReady", message, timeout, headers)).ready)

    async def _call(self, method: str, message: Any, timeout: Any, headers: Any) -> Any:
        if self._verbose:
            logger.info("gRPC's %s is asked, with the metadata %s: %s", method, headers, message)
        seconds = self._timeout if timeout is USE_CLIENT_DEFAULT else timeout
        answer = await getattr(self._stub, method)(message, timeout=seconds, metadata=headers)
        if self._verbose:
            logger.info("gRPC's %s has answered: %s", method, answer)
        return answer


def _grpc() -> Any:
    try:
        import_module("google.protobuf")
        return import_module("grpc")
    except ImportError:
        raise ExtraMissing("InferenceGRPCClient", "grpcio and protobuf", "grpc") from None


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _options(given: Sequence[tuple[str, Any]] | None, retries: int) -> list[tuple[str, Any]]:
    """Return the options of a channel, with a policy for retries unless they have one."""
    options = dict(_UNLIMITED if given is None else given)
    if retries >= _LEAST_ATTEMPTS and options.setdefault("grpc.enable_retries", 1):
        policy = {
            "maxAttempts": retries,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
        options.setdefault("grpc.service_config", json.dumps(config))
    return list(options.items())
