"""The service's stub and base class, at the path of KServe's generated code. Needs the extra grpc.

Messages may be of generated code as well as of ours; those that are read are ours.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from modelserve.errors import ExtraMissing
from modelserve.kserve.protocol.grpc import grpc_predict_v2_pb2 as pb2
from modelserve.tensors.grpc import messages

__all__ = [
    "GRPCInferenceServiceServicer",
    "GRPCInferenceServiceStub",
    "add_GRPCInferenceServiceServicer_to_server",
]

_SERVICE: Final = "GRPCInferenceService"


class GRPCInferenceServiceStub:
    """The service's methods as attributes, to be called over a channel of grpcio, async or not.

    Raises ExtraMissing without protobuf.
    """

    def __init__(self, channel: Any) -> None:
        for method in _methods():
            call = getattr(channel, _form(method))(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=_serialized,
                response_deserializer=_class(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    if TYPE_CHECKING:  # the methods

        def __getattr__(self, name: str) -> Any: ...


class GRPCInferenceServiceServicer:
    """The base class of servicers; a method that one lacks is UNIMPLEMENTED."""


def add_GRPCInferenceServiceServicer_to_server(servicer: Any, server: Any) -> None:
    """Let a server of grpcio, async or not, answer the service's methods that a servicer has.

    Raises ExtraMissing without grpcio or protobuf.
    """
    try:
        grpc = import_module("grpc")
    except ImportError:
        raise ExtraMissing("gRPC", "grpcio", "grpc") from None
    handlers = {
        method.name: getattr(grpc, f"{_form(method)}_rpc_method_handler")(
            getattr(servicer, method.name),
            request_deserializer=_class(method.input_type).FromString,
            response_serializer=_serialized,
        )
        for method in _methods()
        if hasattr(servicer, method.name)
    }
    service = pb2.DESCRIPTOR.services_by_name[_SERVICE].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _methods() -> Iterator[Any]:
    yield from pb2.DESCRIPTOR.services_by_name[_SERVICE].methods


def _class(descriptor: Any) -> Any:
    return messages()[descriptor.name]


def _form(method: Any) -> str:
    """Return how grpcio names what a method takes and gives."""
    sides = (method.client_streaming, method.server_streaming)
    return "_".join("stream" if streams else "unary" for streams in sides)


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
