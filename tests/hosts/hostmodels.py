"""The models that every host serves; what happens in them goes into a file, one line an event."""

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from modelserve import InvalidInput, Limits, Model, ModelServer
from modelserve.tensors import InferOutput, InferRequest, InferResponse

__all__ = ["FLOOD", "serve"]

BLOCK = os.urandom(64 * 1024)  # what no middleware makes smaller
FLOOD = 64 * 1024 * 1024  # bytes, more than any host should take for a client that reads nothing


def note(folder: Path, key: str, event: str) -> None:
    with (folder / "ledger").open("a") as file:
        file.write(f"{key} {event}\n")


class Noted(Model):
    """A model that notes events under a request's key, and waits until a request is released."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.folder = folder

    def note(self, key: str, event: str) -> None:
        note(self.folder, key, event)

    async def released(self, key: str) -> None:
        while not (self.folder / key).exists():  # noqa: ASYNC110 - touched by another process
            await anyio.sleep(0.01)


class Server(ModelServer):
    """A model server that notes requests."""

    folder: Path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            note(self.folder, "app", "request")
        await super().__call__(scope, receive, send)


class Echo(Noted):
    def load(self) -> None:
        self.note("app", "load")

    def stop(self) -> None:
        self.note("app", "stop")

    async def predict(self, payload: Any) -> Any:
        return {"predictions": payload["instances"]}


class Steps(Noted):
    """Two items; the second one once the request is released."""

    async def predict(self, payload: Any) -> AsyncIterator[dict[str, int]]:
        key = payload["key"]
        try:
            yield {"item": 1}
            await self.released(key)
            yield {"item": 2}
        finally:
            self.note(key, "cleaning")
            await anyio.sleep(0.2)
            self.note(key, "clean")


class Flood(Noted):
    limits = Limits(send_timeout=2)

    async def predict(self, payload: Any) -> AsyncIterator[bytes]:
        key = payload["key"]
        try:
            for _ in range(FLOOD // len(BLOCK)):
                yield BLOCK
            self.note(key, "done")
        finally:
            self.note(key, "clean")


class Break(Noted):
    """Bytes that have no form for an error, then an error."""

    async def predict(self, payload: Any) -> AsyncIterator[bytes]:
        yield b"begun"
        raise RuntimeError(uuid.uuid4().hex)


class Double(Noted):
    async def predict(self, instances: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in instances:
            yield 2 * number


class Total(Noted):
    """The sum of a tensor; zeros are refused."""

    async def predict(self, payload: InferRequest) -> InferResponse:
        numbers = payload.inputs[0].data
        if not any(numbers):
            raise InvalidInput("no zeros, bitte schön")
        return self.answer(sum(numbers))

    def answer(self, number: int) -> InferResponse:
        return InferResponse("", self.name, [InferOutput("total", [1], "INT32", [number])])


class Countdown(Total):
    """The numbers before that of a tensor; the last, 0, once a file has the request's id."""

    async def predict(self, payload: InferRequest) -> AsyncIterator[InferResponse]:
        key = payload.id or ""
        try:
            for number in reversed(range(1, payload.inputs[0].data[0])):
                yield self.answer(number)
            await self.released(key)
            yield self.answer(0)
        finally:
            self.note(key, "clean")


def serve(prefix: str = "") -> ModelServer:
    folder = Path(os.environ["HOSTED_FOLDER"])
    kinds = {"echo": Echo, "steps": Steps, "flood": Flood, "break": Break, "double": Double}
    kinds |= {"total": Total, "countdown": Countdown}
    models = [kind(name, folder) for name, kind in kinds.items()]
    limits = Limits(drain_timeout=1)
    app = Server(models, prefix=prefix, limits=limits, wait_for_load=True)
    app.folder = folder
    return app
