"""The workloads of every server: the same requests, the same items.

Imported by the applications in their own environments, so only the standard library is used.
"""

import functools
import os
import time
from typing import Any

ITEMS = 1000
"""Items in one measured stream."""

MARK = b"~"
"""A byte that is in every item exactly once: counting it counts items, whatever the framing."""

ITEM = MARK + b"the quick brown fox jumps over.." + b"\n"
"""One ready-made item of 34 bytes."""

TOKEN = {"token": "~quick", "index": 7, "p": 0.5}
"""One item as a dict."""

PAUSE = 0.02
"""Seconds between the two items of a paced stream."""

WORD = "~quick "
"""One item of a chat."""

CHAT_PATH = "/v1/chat/completions"
CHAT_BODY = b'{"model":"chat","messages":[{"role":"user","content":"Hi"}],"stream":true}'
"""A request for a streamed answer to a chat."""


def chat_chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    """Return a chunk of that answer, with the members that modelserve writes."""
    return {
        "id": "chatcmpl-0000000000000000000000000000",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "chat",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
    }


CALL_SECONDS = 0.005
"""How long a call of the model takes that is batched, whatever is in the batch."""

MOST_IN_A_BATCH = 32

ROW_BODY = b'{"instances":[[5.0,6.0,7.0,8.0]]}'
"""One item, so that it does not matter who counts items and who counts requests."""

UNARY_BODY = b'{"instances":[[1.0,2.0,3.0,4.0],[5.0,6.0,7.0,8.0]]}'
STREAM_BODY = b'{"instances":[[1.0]]}'

REPORT_VARIABLE = "BENCHMARK_REPORT"
"""Names the file that gets a record for every idle stream that has ended (see `report_end`)."""

RECORD_BYTES = 8


@functools.cache
def _report() -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return os.open(os.environ.get(REPORT_VARIABLE, os.devnull), flags)


def report_end() -> None:
    """Record that an idle stream's clean-up has run, and when (CLOCK_MONOTONIC).

    Records of eight bytes never lie across two pages, so a reader never sees half of one.
    """
    os.write(_report(), time.monotonic_ns().to_bytes(RECORD_BYTES, "little"))


def as_answer(payload: Any) -> dict[str, Any]:
    """Return the V1 answer that echoes `payload`."""
    return {"predictions": payload["instances"]}
