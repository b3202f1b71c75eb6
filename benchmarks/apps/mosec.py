"""mosec: its Rust front, one Python worker a route; streams are server-sent events only.

With `--batched` its dynamic batching is on: up to 8 requests, or what has come within 1 ms, reach
the model as one list. Larger batches were no faster here.
"""

import sys
import time
from typing import Any

import orjson
from mosec import Runtime, Server, SSEWorker, Worker

from benchmarks.payloads import ITEM, ITEMS, PAUSE, TOKEN, as_answer


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
    if "--batched" in sys.argv:
        echo = Runtime(Batched, num=1, max_batch_size=8, max_wait_time=1)
    else:
        echo = Runtime(Echo, num=1)
    server.register_runtime(
        {
            "/v1/models/echo:predict": [echo],
            "/sse": [Runtime(Stream, num=1)],
            "/paced": [Runtime(Paced, num=1)],
        }
    )
    server.run()
