"""Ray Serve with its batching, one replica; unary calls only."""

from benchmarks.competitors import BATCHED, ECHO

REQUIREMENTS = ("ray[serve]>=2.50", "uvloop>=0.21", "httptools>=0.6", "orjson>=3.10")
COMMAND = ("-m", "benchmarks.apps.ray", "--port", "{port}")
ENDPOINTS = {"unary": ECHO, "batched": BATCHED}
