"""LitServe: one worker process for unary calls, one for streams, one (async) for idle streams.

Two processes serve HTTP, one a core: that was a third to a half faster than one.
A stream's kind comes in the request, so that three processes do for all the kinds. FastAPI reads
the annotations of `decode_request` and `encode_response`, so these two have none that say much.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import litserve
import orjson

from benchmarks.payloads import ITEM, ITEMS, PAUSE, TOKEN, as_answer, report_end


class Echo(litserve.LitAPI):
    def setup(self, device: str) -> None: ...

    def predict(self, x: Any, **kwargs: Any) -> Any:
        return as_answer(x)


def items_of(kind: str) -> Iterator[bytes]:
    """Yield the items of a stream of this kind, encoded."""
    for _ in range(ITEMS):
        if kind == "ndjson":
            yield orjson.dumps(TOKEN, option=orjson.OPT_APPEND_NEWLINE)
        elif kind == "sse":
            yield b"data: " + orjson.dumps(TOKEN) + b"\n\n"
        else:
            yield ITEM


class Stream(litserve.LitAPI):
    def setup(self, device: str) -> None: ...

    def predict(self, x: Any, **kwargs: Any) -> Iterator[bytes]:
        yield from items_of(x["kind"])

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        yield from output


class Idle(litserve.LitAPI):
    def setup(self, device: str) -> None: ...

    async def decode_request(self, request, **kwargs):  # type: ignore[no-untyped-def]
        return request

    async def predict(self, x: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        try:
            yield ITEM
            await (asyncio.sleep(PAUSE) if x["kind"] == "paced" else asyncio.Event().wait())
            yield ITEM
        finally:
            report_end()

    async def encode_response(self, output: Any, **kwargs: Any) -> Any:
        async for item in output:
            yield item


def body(kind: str) -> bytes:
    """Return the request that asks for a stream of this kind."""
    return json.dumps({"instances": [[1.0]], "kind": kind}).encode()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    server = litserve.LitServer(
        [
            Echo(api_path="/v1/models/echo:predict"),
            Stream(api_path="/stream", stream=True),
            Idle(api_path="/idle", stream=True, enable_async=True),
        ],
        accelerator="cpu",
        timeout=False,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=2,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        backlog=16384,
    )


if __name__ == "__main__":
    main()
