"""modelserve under granian, installed from this checkout."""

from benchmarks.competitors import GRANIAN, ROOT, granian
from benchmarks.competitors.modelserve import ENDPOINTS

__all__ = ["COMMAND", "ENDPOINTS", "REQUIREMENTS"]

REQUIREMENTS = (f"-e {ROOT}", *GRANIAN)
COMMAND = granian("benchmarks.apps.modelserve:app")
