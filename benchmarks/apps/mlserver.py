"""MLServer: V2 inference, and its stream of server-sent events.

`parallel_workers=0`, gzip and metrics off: what its documentation says for streams. Its command
line does not start with uvloop 0.23, so uvloop's loop is made here.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator

import uvloop
from mlserver import MLModel, MLServer, ModelSettings, Settings, types

from benchmarks.payloads import CALL_SECONDS, ITEM, ITEMS, MOST_IN_A_BATCH, PAUSE, report_end


def text_response(name: str) -> types.InferenceResponse:
    """Return one item as MLServer sends it: a whole V2 response."""
    output = types.ResponseOutput(name="text", shape=[1], datatype="BYTES", data=[ITEM.decode()])
    return types.InferenceResponse(model_name=name, outputs=[output])


class Echo(MLModel):
    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        given = payload.inputs[0]
        output = types.ResponseOutput(
            name="output", shape=given.shape, datatype=given.datatype, data=given.data
        )
        return types.InferenceResponse(model_name=self.name, outputs=[output])

    async def predict_stream(
        self, payloads: AsyncIterator[types.InferenceRequest]
    ) -> AsyncIterator[types.InferenceResponse]:
        async for _ in payloads:
            response = text_response(self.name)
            for _ in range(ITEMS):
                yield response


class Batched(Echo):
    """One call at a time, as a model on one device is; MLServer starts several batches at once."""

    async def load(self) -> bool:
        self.lock = asyncio.Lock()
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        async with self.lock:
            await asyncio.sleep(CALL_SECONDS)
        return await super().predict(payload)


class Paced(MLModel):
    async def predict_stream(
        self, payloads: AsyncIterator[types.InferenceRequest]
    ) -> AsyncIterator[types.InferenceResponse]:
        yield text_response(self.name)
        await asyncio.sleep(PAUSE)
        yield text_response(self.name)


class Idle(MLModel):
    async def predict_stream(
        self, payloads: AsyncIterator[types.InferenceRequest]
    ) -> AsyncIterator[types.InferenceResponse]:
        try:
            yield text_response(self.name)
            await asyncio.Event().wait()
        finally:
            report_end()


MODELS = {"echo": Echo, "batched": Batched, "paced": Paced, "idle": Idle}


async def serve(settings: Settings) -> None:
    """Run MLServer with the three models."""
    models = [
        ModelSettings(name=name, implementation=f"benchmarks.apps.mlserver.{model.__name__}")
        for name, model in MODELS.items()
    ]
    batched = next(model for model in models if model.name == "batched")
    batched.max_batch_size, batched.max_batch_time = MOST_IN_A_BATCH, CALL_SECONDS
    await MLServer(settings).start(models)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    options = parser.parse_args()
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=options.port,
        grpc_port=options.grpc_port,
        parallel_workers=0,
        gzip_enabled=False,
        metrics_endpoint=None,
    )
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
