"""BentoML: one service with one worker; uvloop and httptools beside it, which uvicorn picks up."""

from benchmarks.competitors import BATCHED, ECHO, Endpoint

REQUIREMENTS = ("bentoml>=1.4", "uvloop>=0.21", "httptools>=0.6", "orjson>=3.10")
COMMAND = (
    *("-m", "bentoml", "serve", "benchmarks.apps.bentoml:Echo"),
    *("--host", "127.0.0.1", "--port", "{port}"),
)
ENDPOINTS = {
    "unary": ECHO,
    "batched": Endpoint("/batched", BATCHED.body, items=0),
    "bytes": Endpoint("/bytes"),
    "sync": Endpoint("/sync"),
    "ndjson": Endpoint("/ndjson"),
    "sse": Endpoint("/sse"),
    "paced": Endpoint("/paced", items=2),
    "idle": Endpoint("/idle", items=1),
    "cancel": Endpoint("/idle", items=1),
}
