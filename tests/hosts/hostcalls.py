"""The messages of a call of gRPC to the models of a host, and what is read of its answer."""

from typing import Any

from modelserve.protocols.grpc import classes
from modelserve.wire.grpc import MESSAGE, STATUS, Frames, is_trailers, read_trailers, unquoted

__all__ = ["asked", "read_call", "read_message"]


def asked(model: str, number: int, key: str = "") -> bytes:
    """Return the message that asks a model for a number; `key` is the id of the request."""
    tensor = {"name": "n", "datatype": "INT32", "shape": [1]}
    tensor["contents"] = {"int_contents": [number]}
    message = classes()["ModelInferRequest"](model_name=model, id=key, inputs=[tensor])
    return bytes(message.SerializeToString())


def read_message(method: str, message: bytes) -> tuple[str, list[int]]:
    """Return the error in a message of an answer, and its number."""
    found: Any = classes()[f"{method}Response"].FromString(message)  # type: ignore[attr-defined]
    error = ""
    if method == "ModelStreamInfer":
        error, found = found.error_message, found.infer_response
    return error, [number for output in found.outputs for number in output.contents.int_contents]


def read_call(method: str, body: bytes) -> tuple[int, str, list[int]]:
    """Return the code of an answer in gRPC-Web's form, what went wrong, and its numbers."""
    texts, numbers, trailers = [], [], []
    for flags, payload in Frames(float("inf")).feed(body):
        if is_trailers(flags):
            trailers += read_trailers(payload)
        else:
            text, more = read_message(method, payload)
            texts.append(text)
            numbers += more
    found = dict(trailers)
    return int(found[STATUS]), unquoted(found.get(MESSAGE, b"")) or "".join(texts), numbers
