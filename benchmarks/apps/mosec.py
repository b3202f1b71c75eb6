"""mosec: its Rust front, one Python worker a route; streams are server-sent events only.

With `--batched` its dynamic batching is on: up to 8 requests, or what has come within 1 ms, reach
the model as one list. Larger batches were no faster here. A model of 5 ms a call is batched up to
32, and waits as long as a call takes.
"""

import sys
import time
from typing import Any

import orjson
from mosec import Runtime, Server, SSEWorker, Worker

from benchmarks.payloads import CALL_SECONDS, ITEM, ITEMS, MOST_IN_A_BATCH, PAUSE, TOKEN, as_answer


class Echo(Worker):
    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)

    def forward(self, data: Any) -> Any:
        return as_answer(data)


class Batched(Echo):
    def forward(self, data: Any) -> Any:
        return [as_answer(one) for one in data]


class Slow(Batched):
    def forward(self, data: Any) -> Any:
        time.sleep(CALL_SECONDS)
        return super().forward(data)


class Stream(SSEWorker):
    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def forward(self, data: Any) -> Any:
        for _ in range(ITEMS):
            self.send_stream_event(orjson.dumps(TOKEN).decode())
        return {}


class Paced(SSEWorker):
    def forward(self, data: Any) -> Any:
        self.send_stream_event(ITEM.decode().strip())
        time.sleep(PAUSE)
        self.send_stream_event(ITEM.decode().strip())
        return {}


if __name__ == "__main__":
    server = Server()
    routes = {
        "/v1/models/echo:predict": [Runtime(Echo, num=1)],
        "/sse": [Runtime(Stream, num=1)],
        "/paced": [Runtime(Paced, num=1)],
    }
    if "--batched" in sys.argv:
        routes["/v1/models/echo:predict"] = [
            Runtime(Batched, num=1, max_batch_size=8, max_wait_time=1)
        ]
        wait = round(CALL_SECONDS * 1000)
        routes["/v1/models/batched:predict"] = [
            Runtime(Slow, num=1, max_batch_size=MOST_IN_A_BATCH, max_wait_time=wait)
        ]
    server.register_runtime(routes)
    server.run()
