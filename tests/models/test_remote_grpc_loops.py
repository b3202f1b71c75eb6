"""Models that send their payloads on over gRPC, in one event loop after another, and on trio."""

from pathlib import Path

import anyio
import pytest
from grpcserver import served

from modelserve import Model, ModelServer
from modelserve.testing import Response, lifespan, request

TENSOR = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}


def transformer(host: str) -> ModelServer:
    app = ModelServer()
    app.add_model(Model("echo"), predictor_host=host, protocol="grpc-v2")
    return app


async def ask(app: ModelServer) -> Response:
    async with lifespan(app):
        return await request(app, "POST", "/v2/models/echo/infer", json={"inputs": [TENSOR]})


def test_on_trio() -> None:
    response = anyio.run(ask, transformer("there"), backend="trio")
    sentence = "A predictor can be called over gRPC on asyncio only, and this is trio."
    assert (response.status, response.json()) == (501, {"error": sentence})


@pytest.mark.slow
def test_one_model_in_two_event_loops(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        app = transformer(server.grpc)
        for backend, status in (("asyncio", 200), ("trio", 501), ("asyncio", 200)):
            for _ in range(2):
                assert anyio.run(ask, app, backend=backend).status == status
