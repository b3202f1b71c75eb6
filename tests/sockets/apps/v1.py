"""Values, failures and names of every sort, over V1."""

import asyncio
import dataclasses
import datetime
import math
from collections.abc import Callable
from typing import Any

import numpy
from apps.ledger import note
from starlette.exceptions import HTTPException

from modelserve import (
    InferenceError,
    InvalidInput,
    Model,
    ModelNotFound,
    ModelNotReady,
    ModelServer,
)
from modelserve.errors import UnsupportedProtocol


@dataclasses.dataclass
class Point:
    x: int
    y: float


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def circular() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"a": 1, "b": [True, None, "ü"]},
    "list": lambda: [1, 2],
    "tuple": lambda: (1, 2),
    "int": lambda: 5,
    "float": lambda: 1.5,
    "bool": lambda: False,
    "none": lambda: None,
    "nan": lambda: {"x": math.nan, "y": math.inf, "z": -math.inf},
    "array": lambda: numpy.array([[1, 2], [3, 4]]),
    "array of floats": lambda: {"p": numpy.array([0.5, math.nan])},
    "array of half floats": lambda: numpy.array([0.5, 1], dtype=numpy.float16),
    "array of booleans": lambda: numpy.array([True, False]),
    "array of texts": lambda: numpy.array(["a", "b"]),
    "array, transposed": lambda: numpy.array([[1, 2], [3, 4]]).T,
    "array, every second": lambda: numpy.arange(6)[::2],
    "array, big-endian": lambda: numpy.array([1, 2], dtype=">i4"),
    "array, empty": lambda: numpy.empty((0, 3)),
    "array, of no dimension": lambda: numpy.array(5),
    "numpy float": lambda: [numpy.float32(1.5), numpy.float64(2.5)],
    "numpy int": lambda: {"n": numpy.int64(7), "u": numpy.uint8(8)},
    "numpy bool": lambda: numpy.bool_(True),
    "datetime": lambda: datetime.datetime(2020, 1, 2, 3, 4, 5),
    "date": lambda: [datetime.date(2020, 1, 2)],
    "dataclass": lambda: Point(1, 2.5),
    "keys": lambda: {7: "a", 2.5: "b", None: "c", True: "d"},
    "text": lambda: "hé\nllo",
    "empty text": lambda: "",
    "bytes": lambda: b"\x00\xff",
    "empty bytes": lambda: b"",
    "nested 300": lambda: nested(300),
    "nested 100000": lambda: nested(100_000),
    "circular": circular,
    "object": object,
    "set": lambda: {1, 2},
    "bytes inside": lambda: {"a": b"secret"},
    "surrogate": lambda: {"a": "\ud800"},
    "surrogate text": lambda: "\ud800",
    "huge": lambda: {"n": 2**70},
}


def fail_with(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def divide() -> Any:
    return 1 / 0


ERRORS: dict[str, Callable[[], Any]] = {
    "InvalidInput": lambda: fail_with(InvalidInput("x must be positive"))(),
    "InferenceError": lambda: fail_with(InferenceError("x"))(),
    "NotImplementedError": lambda: fail_with(NotImplementedError("secret"))(),
    "UnsupportedProtocol": lambda: fail_with(UnsupportedProtocol("v9"))(),
    "ModelNotFound": lambda: fail_with(ModelNotFound("zz"))(),
    "ModelNotReady": lambda: fail_with(ModelNotReady("zz", "Wait."))(),
    "HTTPException": lambda: fail_with(HTTPException(418, "teapot"))(),
    "HTTPException 404": lambda: fail_with(HTTPException(404))(),
    "HTTPException 503": lambda: fail_with(HTTPException(503, "later"))(),
    "ValueError": lambda: fail_with(ValueError("secret-value"))(),
    "KeyError": lambda: fail_with(KeyError("secret-key"))(),
    "ZeroDivisionError": divide,
    "OSError": lambda: fail_with(OSError(2, "secret", "/secret/path"))(),
    "ConnectionResetError": lambda: fail_with(ConnectionResetError("secret"))(),
    "TimeoutError": lambda: fail_with(TimeoutError("secret"))(),
    "AssertionError": lambda: fail_with(AssertionError("secret"))(),
    "RecursionError": lambda: fail_with(RecursionError("secret"))(),
    "MemoryError": lambda: fail_with(MemoryError("secret"))(),
    "StopIteration": lambda: fail_with(StopIteration("secret"))(),
    "StopAsyncIteration": lambda: fail_with(StopAsyncIteration("secret"))(),
    "GeneratorExit": lambda: fail_with(GeneratorExit("secret"))(),
    "CancelledError": lambda: fail_with(asyncio.CancelledError("secret"))(),
    "ExceptionGroup": lambda: fail_with(ExceptionGroup("secret", [ValueError("secret")]))(),
    "SystemExit": lambda: fail_with(SystemExit("secret"))(),
    "KeyboardInterrupt": lambda: fail_with(KeyboardInterrupt("secret"))(),
    "BaseExceptionGroup": lambda: fail_with(
        BaseExceptionGroup("secret", [asyncio.CancelledError("secret")])
    )(),
}


class Echo(Model):
    def preprocess(self, payload):
        return repr(payload) if isinstance(payload, bytes) else {"echo": payload}

    def predict(self, payload):
        return payload


class Plain(Model):
    def predict(self, payload):
        return payload


class Headers(Model):
    """Returns bytes with the headers that the payload says."""

    def predict(self, payload, response_headers=None):
        note(payload.get("key", "none"), "start")
        for name, value in payload["headers"].items():
            response_headers[name] = value
        note(payload.get("key", "none"), "end")
        return b"body" if payload.get("bytes") else {"a": 1}


class Explaining(Model):
    def predict(self, payload):
        return "predicted"

    def explain(self, payload, headers=None):
        return {"explained": payload}


NAMES = ["with space", "ünï", "per%cent", "a/b", "plus+", "%3A", "dot.v1", "-", "predict"]

app = ModelServer(
    [
        Echo("echo"),
        Plain("plain"),
        Headers("headers"),
        Explaining("explaining"),
        *(Explaining(name) for name in NAMES),
    ]
)


@app.model("values")
def values(payload):
    return VALUES[payload]()


@app.model("async-values")
async def async_values(payload):
    return VALUES[payload]()


@app.model("errors")
def errors(payload):
    return ERRORS[payload]()


@app.model("async-errors")
async def async_errors(payload):
    return ERRORS[payload]()


@app.model("logged")
async def logged(payload):
    raise ValueError(payload)


@app.model("empty-handed")
def empty_handed(payload):
    """Needs a list of instances."""
    return {"predictions": payload["instances"]}
