"""Ray Serve: one replica behind its proxy, batching by `serve.batch`.

Up to 32 requests, or what has come while a call would take; the limit on ongoing requests is above
what a batch holds, as its documentation says.
"""

import argparse
import asyncio
import os
import time
from typing import Any

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.payloads import CALL_SECONDS, MOST_IN_A_BATCH, as_answer


@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
class Models:
    @serve.batch(max_batch_size=MOST_IN_A_BATCH, batch_wait_timeout_s=CALL_SECONDS)
    async def batched(self, payloads: list[Any]) -> list[Any]:
        await asyncio.sleep(CALL_SECONDS)
        return [as_answer(payload) for payload in payloads]

    async def __call__(self, request: Request) -> Response:
        payload = orjson.loads(await request.body())
        if request.url.path == "/v1/models/batched:predict":
            answer = await self.batched(payload)
        else:
            answer = as_answer(payload)
        return Response(orjson.dumps(answer), media_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(include_dashboard=False, num_cpus=2, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"enable_access_log": False},
    )
    serve.run(Models.bind(), route_prefix="/")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
