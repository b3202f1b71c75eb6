"""The streams of `streams`, one at a time, and two waiting."""

from apps import streams

from modelserve import Limits, ModelServer

app = ModelServer(
    [
        streams.Streaming("async"),
        streams.SyncStreaming("sync"),
        streams.Unary("unary"),
        streams.Blocking("blocking"),
    ],
    limits=Limits(concurrency=1, queue=2),
)
