"""Handlers that are ended early, and clean up."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import anyio

from modelserve import Limits, Model, ModelServer


class CleansUp(Protocol):
    started: anyio.Event

    async def clean_up(self) -> None: ...


def serve(predict: Any, *, limits: Limits | None = None, **hooks: Any) -> ModelServer:
    model = Model("m")
    vars(model).update(predict=predict, **hooks)
    return ModelServer([model], limits=limits)


def streaming(steps: CleansUp, *, before: int = 1) -> Any:
    async def predict(payload: Any) -> AsyncIterator[Any]:
        try:
            for number in range(before):
                yield {"n": number}
            steps.started.set()
            await anyio.sleep(60)
        finally:
            await steps.clean_up()

    return predict


def unary(steps: CleansUp) -> Any:
    async def predict(payload: Any) -> Any:
        try:
            steps.started.set()
            await anyio.sleep(60)
        finally:
            await steps.clean_up()

    return predict
