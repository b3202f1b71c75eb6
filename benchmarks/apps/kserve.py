"""KServe's SDK: `Model` and `ModelServer`, one worker, without its log lines and without gRPC.

Its server binds 0.0.0.0 and has no option for the address, so the host is replaced on the way in.
Its `event_loop` option has no effect with one worker (`asyncio.run` makes the loop), so uvloop,
which its documentation names as the default, is set by the loop policy.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvicorn
import uvloop
from kserve import Model, ModelServer
from kserve.logging import KSERVE_LOG_CONFIG, configure_logging

from benchmarks.payloads import ITEM, ITEMS, PAUSE, TOKEN, as_answer, report_end


class Ready(Model):
    """A model that needs no loading."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True


class Echo(Ready):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return as_answer(payload)


class Stream(Ready):
    """A model whose predict returns an async generator, chosen by its name."""

    async def predict(self, payload: Any, headers: Any = None) -> AsyncIterator[bytes]:
        return STREAMS[self.name]()


async def ready() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield ITEM


async def ndjson() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield orjson.dumps(TOKEN, option=orjson.OPT_APPEND_NEWLINE)


async def sse() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield b"data: " + orjson.dumps(TOKEN) + b"\n\n"


async def paced() -> AsyncIterator[bytes]:
    yield ITEM
    await asyncio.sleep(PAUSE)
    yield ITEM


async def idle() -> AsyncIterator[bytes]:
    try:
        yield ITEM
        await asyncio.Event().wait()
    finally:
        report_end()


STREAMS = {"bytes": ready, "ndjson": ndjson, "sse": sse, "paced": paced, "idle": idle}


class LoopbackConfig(uvicorn.Config):
    """uvicorn's configuration, bound to the loopback address whatever the caller says."""

    def __init__(self, app: Any, **options: Any) -> None:
        options["host"] = "127.0.0.1"
        super().__init__(app, **options)


def quiet_logging() -> None:
    """Give KServe the log configuration that its documentation lets a user give: warnings only."""
    loggers = {
        name: logger | {"level": "WARNING"} for name, logger in KSERVE_LOG_CONFIG["loggers"].items()
    }
    configure_logging(KSERVE_LOG_CONFIG | {"loggers": loggers})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_known_args()[0].port
    quiet_logging()
    uvicorn.Config = LoopbackConfig  # type: ignore[misc]
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())
    server = ModelServer(
        http_port=port, enable_grpc=False, enable_latency_logging=False, event_loop="uvloop"
    )
    server.start([Echo("echo"), *(Stream(name) for name in STREAMS)])


if __name__ == "__main__":
    main()
