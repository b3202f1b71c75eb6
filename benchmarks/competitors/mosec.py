"""mosec: its only stream is server-sent events from a sync worker, one request at a time."""

from benchmarks.competitors import ECHO, Endpoint

REQUIREMENTS = ("mosec>=0.9", "orjson>=3.10")
COMMAND = (
    *("-m", "benchmarks.apps.mosec", "--address", "127.0.0.1", "--port", "{port}"),
    *("--timeout", "600000", "--log-level", "error"),
)
ENDPOINTS = {
    "unary": ECHO,
    "sse": Endpoint("/sse"),
    "paced": Endpoint("/paced", items=2),
}
