"""Serve app.py on Ray: several replicas, and a model that runs in processes of its own.

    pip install 'modelserve[inputs]' 'ray[serve]'
    cd examples/12_ray_serve && RAY_SERVE_ENABLE_HA_PROXY=1 serve run serve_app:front

    curl -N localhost:8000/v1/models/writer:predict -d '{"instances": [{"words": 10}]}'
    curl -N localhost:8000/v1/models/far-writer:predict -d '{"instances": [{"words": 10}]}'

README.md says why each setting is as it is.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from app import TIMEOUT, Wish, Writer, build
from ray import serve

from modelserve import Model, ModelServer

STREAMS = 32  # that a replica runs at the same time; requests wait at Ray's proxy, not here
CPUS = 0.3  # of a CPU, for each replica: these models do little; a large one needs num_gpus
ENDING = {
    "graceful_shutdown_timeout_s": TIMEOUT + 10,  # a stream is ended by our limit, not killed
    "graceful_shutdown_wait_loop_s": 1,
}


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=4,
    max_queued_requests=8,
    backpressure_config={"status_code": 503, "retry_after_s": 2},
    ray_actor_options={"num_cpus": CPUS},
    **ENDING,
)
class Writing:
    """The model in processes of its own, which may be fewer than the others and have the GPUs."""

    def __init__(self) -> None:
        self.writer = Writer("writing")
        self.writer.load()

    async def write(self, wishes: list[Wish]) -> AsyncIterator[str]:
        async with aclosing(self.writer.write(wishes)) as words:
            async for word in words:
                yield word


class FarWriter(Model):
    """The same model, behind a handle."""

    def __init__(self, name: str, writing: Any) -> None:
        super().__init__(name)
        self.writing = writing.options(stream=True)

    async def predict(self, instances: list[Wish]) -> AsyncIterator[str]:
        words = self.writing.write.remote(instances)
        try:
            async for word in words:
                yield word
        finally:
            words.cancel()  # if the client left, or a limit on time has passed


@serve.deployment(
    autoscaling_config={
        "min_replicas": 2,
        "max_replicas": 4,
        "target_ongoing_requests": STREAMS // 2,
    },
    max_ongoing_requests=STREAMS,
    max_queued_requests=200,
    backpressure_config={"status_code": 503, "retry_after_s": 2},
    ray_actor_options={"num_cpus": CPUS},
    **ENDING,
)
@serve.ingress()
class Front:
    """The application of app.py, with one model more."""

    def __init__(self, writing: Any) -> None:
        self.models = build()
        self.models.add_model(FarWriter("far-writer", writing))

    def __serve_build_asgi_app__(self) -> ModelServer:
        return self.models

    async def check_health(self) -> None:
        await self.models.ready()  # Ray sends requests once this has returned


front = Front.bind(Writing.bind())
