"""The access log: one line a request, in the logger `modelserve.access`."""

import logging
from typing import Final

from modelserve.metrics.ending import Ending, result_of

__all__ = ["log_request", "logger"]

logger = logging.getLogger("modelserve.access")

_LINE: Final = "%(protocol)s %(verb)s %(model)r: %(status)d %(outcome)s in %(seconds).4f s"


def log_request(
    model: str, protocol: str, verb: str, ending: Ending, seconds: float, request_id: bytes
) -> None:
    """Log a request that has ended, `seconds` after its arrival."""
    status, outcome = result_of(ending)
    stream = ending.stream
    items, first_item = (0, None) if stream is None else (stream.items, stream.first_item)
    fields = {
        "request_id": request_id.decode("latin-1"),
        "model": model,
        "protocol": protocol,
        "verb": verb,
        "status": status,
        "outcome": outcome,
        "seconds": round(seconds, 6),
        "stages": {stage: round(taken, 6) for stage, taken in ending.seconds.items()},
        "items": items,
        "first_item_seconds": None if first_item is None else round(first_item, 6),
    }
    logger.info(_LINE, fields, extra=fields)
