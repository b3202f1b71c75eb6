"""The messages of the Open Inference Protocol over gRPC, at the path of KServe's generated code.

They are the classes of `InferRequest.to_grpc`, in a pool of their own, made when a name is first
asked for: `ModelInferRequest` and so on, and `DESCRIPTOR`, which has the service. Asking raises
ExtraMissing without protobuf.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from modelserve.errors import ExtraMissing
from modelserve.tensors.grpc import messages

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        found: Mapping[str, Any] = messages()
        if name in found:
            return found[name]
        if name == "DESCRIPTOR":
            return found["ModelInferRequest"].DESCRIPTOR.file
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = {*globals()}
    with suppress(ExtraMissing):
        names |= {*messages(), "DESCRIPTOR"}
    return sorted(names)
