"""modelserve under hypercorn, installed from this checkout."""

from benchmarks.competitors import HYPERCORN, ROOT, hypercorn
from benchmarks.competitors.modelserve import ENDPOINTS

__all__ = ["COMMAND", "ENDPOINTS", "REQUIREMENTS"]

REQUIREMENTS = (f"-e {ROOT}", *HYPERCORN)
COMMAND = hypercorn("benchmarks.apps.modelserve:app")
