"""LitServe: its own processes for HTTP and for each model."""

from benchmarks.competitors import ECHO, Endpoint

REQUIREMENTS = ("litserve>=0.2.16", "orjson>=3.10")
COMMAND = ("-m", "benchmarks.apps.litserve", "--port", "{port}")
IDLE = Endpoint("/idle", b'{"instances":[[1.0]],"kind":"idle"}', items=1)
ENDPOINTS = {
    "unary": ECHO,
    "bytes": Endpoint("/stream", b'{"instances":[[1.0]],"kind":"bytes"}'),
    "sync": Endpoint("/stream", b'{"instances":[[1.0]],"kind":"bytes"}'),
    "ndjson": Endpoint("/stream", b'{"instances":[[1.0]],"kind":"ndjson"}'),
    "sse": Endpoint("/stream", b'{"instances":[[1.0]],"kind":"sse"}'),
    "paced": Endpoint("/idle", b'{"instances":[[1.0]],"kind":"paced"}', items=2),
    "idle": IDLE,
    "cancel": IDLE,
}
