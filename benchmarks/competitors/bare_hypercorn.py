"""The bare ASGI application under hypercorn: the ceiling on that host."""

from benchmarks.competitors import HYPERCORN, hypercorn
from benchmarks.competitors.bare import ENDPOINTS

__all__ = ["COMMAND", "ENDPOINTS", "REQUIREMENTS"]

REQUIREMENTS = HYPERCORN
COMMAND = hypercorn("benchmarks.apps.bare:app")
