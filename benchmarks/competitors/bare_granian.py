"""The bare ASGI application under granian: the ceiling on that host."""

from benchmarks.competitors import GRANIAN, granian
from benchmarks.competitors.bare import ENDPOINTS

__all__ = ["COMMAND", "ENDPOINTS", "REQUIREMENTS"]

REQUIREMENTS = GRANIAN
COMMAND = granian("benchmarks.apps.bare:app")
