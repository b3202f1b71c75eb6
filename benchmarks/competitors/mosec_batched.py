"""mosec with dynamic batching, the way it is meant to be fast; unary calls only."""

from benchmarks.competitors import BATCHED, ECHO
from benchmarks.competitors.mosec import COMMAND as UNBATCHED
from benchmarks.competitors.mosec import REQUIREMENTS

__all__ = ["COMMAND", "ENDPOINTS", "REQUIREMENTS"]

COMMAND = (*UNBATCHED, "--batched")
ENDPOINTS = {"unary": ECHO, "batched": BATCHED}
