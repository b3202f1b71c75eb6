"""Models of every kind, for the page's tests and its picture."""

import asyncio
import base64
import math
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from modelserve import InferenceError, InferRequest, InvalidInput, Model, ModelServer

WORDS = [
    "A",
    "server",
    "that",
    "streams",
    "sends",
    "each",
    "item",
    "as",
    "soon",
    "as",
    "it",
    "is",
    "made.",
]


class Writer(Model):
    example: ClassVar = {"instances": [{"prompt": "The interpreter", "max_tokens": 12}]}

    async def predict(self, payload: Any) -> AsyncIterator[str]:
        options = payload["instances"][0]
        for number in range(options["max_tokens"]):
            await asyncio.sleep(0.01)
            yield WORDS[number % len(WORDS)] + " "

    async def explain(self, payload: Any) -> Any:
        return {"explanation": {"prompt": payload["instances"][0]["prompt"]}}

    async def chat(self, request: Any) -> AsyncIterator[str]:
        said = [each["content"] for each in request["messages"] if each["role"] == "user"]
        for word in f"You said {said[-1]} as message {len(said)}.".split(" "):
            await asyncio.sleep(0.005)
            yield word + " "

    async def embed(self, request: Any) -> Any:
        return [[0.25, 0.5]]


class Sums(Model):
    """Takes tensors of V2, which its metadata declare."""

    def get_input_types(self) -> Any:
        return [{"name": "rows", "datatype": "INT32", "shape": [-1, 2]}]

    def predict(self, payload: InferRequest) -> Any:
        (total,) = [sum(tensor.data) for tensor in payload.inputs]
        output = {"name": "sum", "shape": [1], "datatype": "INT64", "data": [total]}
        return {"outputs": [output]}


class House(BaseModel):
    rooms: int = Field(3, ge=1, description="How many rooms it has")
    kind: Literal["flat", "house"] = "flat"
    garden: bool = False
    note: str | None = None


class Broken(Model):
    def load(self) -> bool:
        raise RuntimeError("no disk")

    def predict(self, payload: Any) -> Any:
        return payload


app = ModelServer([Writer("writer"), Broken("broken"), Sums("sums")], control=True)
STOPPED: list[str] = []


@app.model("double", example={"instances": [1, 2]})
def double(payload: Any) -> Any:
    return {"predictions": [2 * each for each in payload["instances"]]}


@app.model("echo")
async def echo(payload: Any) -> Any:
    return payload


@app.model("prices")
def prices(instances: list[House]) -> Any:
    return {"predictions": [20 * house.rooms + 5 * house.garden for house in instances]}


@app.model("count", example={"instances": [10_000]})
async def count(payload: Any) -> AsyncIterator[Any]:
    for number in range(payload["instances"][0]):
        yield {"number": number, "square": number * number}


@app.model("endless", example={"instances": ["x"]})
async def endless(payload: Any) -> AsyncIterator[Any]:
    try:
        while True:
            yield {"still": "here"}
            await asyncio.sleep(0.01)
    finally:
        STOPPED.append(payload["instances"][0])


@app.model("stopped")
async def stopped(payload: Any) -> Any:
    return {"predictions": STOPPED}


@app.model("sensor", example={"instances": [200]})
async def sensor(payload: Any) -> AsyncIterator[float]:
    for number in range(payload["instances"][0]):
        await asyncio.sleep(0.001)
        yield round(math.sin(number / 12) + math.sin(number / 3.7) / 3, 4)


@app.model("years", example={"instances": [0]})
async def years(payload: Any) -> AsyncIterator[str]:
    for word in ("2024", " was", " before ", "2025"):
        yield word


@app.model("markup", example={"instances": [0]})
async def markup(payload: Any) -> AsyncIterator[str]:
    yield "<img src=x onerror=alert(1)>"
    yield "<script>alert(2)</script>"


@app.model("picture", example={"instances": [64]})
def picture(payload: Any, headers: Any, response_headers: Any) -> bytes:
    response_headers["content-type"] = "image/png"
    return _png(payload["instances"][0], 140)


@app.model("pictures", example={"instances": [4]})
async def pictures(payload: Any) -> AsyncIterator[Any]:
    for step in range(payload["instances"][0]):
        image = base64.b64encode(_png(48, step * 60 % 256)).decode()
        yield {"step": step, "image": {"b64": image}}


@app.model("voice", example={"instances": [1]})
def voice(payload: Any, headers: Any, response_headers: Any) -> bytes:
    response_headers["content-type"] = "audio/wav"
    return _wav()


@app.model("loud")
async def loud(pieces: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for piece in pieces:
        yield {"bytes": len(piece), "begins": piece[:4].hex()}


@app.model("picky")
async def picky(pieces: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for piece in pieces:
        yield {"bytes": len(piece)}
        raise InvalidInput("One piece is enough.")


@app.model("size")
def size(payload: bytes) -> Any:
    return {"bytes": len(payload)}


@app.model("average")
async def average(instances: AsyncIterator[float]) -> AsyncIterator[Any]:
    total = 0.0
    number = 0
    async for each in instances:
        total, number = total + each, number + 1
        yield {"average": total / number}


@app.model("refuses", example={"instances": [1]})
async def refuses(payload: Any) -> AsyncIterator[Any]:
    raise InvalidInput("The model does not like this input.")
    yield


@app.model("breaks", example={"instances": [5]})
async def breaks(payload: Any) -> AsyncIterator[str]:
    for number in range(payload["instances"][0]):
        await asyncio.sleep(0.01)
        yield f"word{number} "
    raise InferenceError("The index is gone.")


def _png(side: int, blue: int) -> bytes:
    rows = b"".join(
        b"\0" + b"".join(bytes((x * 255 // side, y * 255 // side, blue)) for x in range(side))
        for y in range(side)
    )
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunks(parts))


def _chunks(parts: Any) -> Iterator[bytes]:
    for kind, data in parts:
        checked = kind + data
        yield struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def _wav(rate: int = 8000) -> bytes:
    samples = (int(8000 * math.sin(2 * math.pi * 440 * number / rate)) for number in range(rate))
    data = b"".join(struct.pack("<h", sample) for sample in samples)
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )
