"""The streams of `streams`, under limits on body, first item, gap, whole and sending."""

from apps import streams

from modelserve import Limits, ModelServer

app = ModelServer(
    [
        streams.Streaming("async"),
        streams.SyncStreaming("sync"),
        streams.Unary("unary"),
        streams.Blocking("blocking"),
    ],
    limits=Limits(
        max_body_bytes=100_000,
        first_item_timeout=0.2,
        idle_timeout=0.3,
        timeout=0.6,
        send_timeout=0.4,
    ),
)
