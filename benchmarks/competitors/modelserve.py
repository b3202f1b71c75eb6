"""modelserve under uvicorn, installed from this checkout."""

from benchmarks.competitors import (
    BATCHED,
    CHAT,
    ECHO,
    ECHO_SYNC,
    ROOT,
    UVICORN,
    V1_STREAMS,
    Endpoint,
    uvicorn,
    v1,
)

REQUIREMENTS = (f"-e {ROOT}", *UVICORN)
COMMAND = uvicorn("benchmarks.apps.modelserve:app")
ENDPOINTS = {
    "unary": ECHO,
    "unary_sync": ECHO_SYNC,
    "batched": BATCHED,
    "one_by_one": Endpoint("/v1/models/one_by_one:predict", body=BATCHED.body, items=0),
    **V1_STREAMS,
    "ndjson": v1("dicts", accept="application/x-ndjson"),
    "sse": v1("dicts", accept="text/event-stream"),
    "chat": CHAT,
    "joined": v1("joined"),
    "sync": v1("sync"),
}
