"""KServe's SDK, without its log lines and without gRPC."""

from benchmarks.competitors import ECHO, V1_STREAMS

REQUIREMENTS = ("kserve>=0.16",)
COMMAND = ("-m", "benchmarks.apps.kserve", "--port", "{port}")
ENDPOINTS = {"unary": ECHO, **V1_STREAMS}
