"""The models that every host serves; what happens in them goes into a file, one line an event."""

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from modelserve import Limits, Model, ModelServer

__all__ = ["FLOOD", "serve"]

BLOCK = os.urandom(64 * 1024)  # what no middleware makes smaller
FLOOD = 64 * 1024 * 1024  # bytes, more than any host should take for a client that reads nothing


class Noted(Model):
    """A model that notes events under a request's key, and waits until a request is released."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.folder = folder

    def note(self, key: str, event: str) -> None:
        with (self.folder / "ledger").open("a") as file:
            file.write(f"{key} {event}\n")

    async def released(self, key: str) -> None:
        while not (self.folder / key).exists():  # noqa: ASYNC110 - touched by another process
            await anyio.sleep(0.01)


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


def serve(prefix: str = "") -> ModelServer:
    folder = Path(os.environ["HOSTED_FOLDER"])
    kinds = {"echo": Echo, "steps": Steps, "flood": Flood, "break": Break, "double": Double}
    models = [kind(name, folder) for name, kind in kinds.items()]
    return ModelServer(models, prefix=prefix, limits=Limits(drain_timeout=1))
