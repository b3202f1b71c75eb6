"""LitServe with its batching, for a model of 5 ms a call; unary calls only."""

from benchmarks.competitors import BATCHED, ECHO
from benchmarks.competitors.litserve import REQUIREMENTS

__all__ = ["COMMAND", "ENDPOINTS", "REQUIREMENTS"]

COMMAND = ("-m", "benchmarks.apps.litserve_batched", "--port", "{port}")
ENDPOINTS = {"unary": ECHO, "batched": BATCHED}
