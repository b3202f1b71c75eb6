"""KServe's helpers, except those of its Kubernetes client."""

import os
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from modelserve.kserve.constants.constants import PredictorProtocol
from modelserve.tensors import generate_uuid, get_predict_input, get_predict_response

__all__ = [
    "cpu_count",
    "generate_uuid",
    "get_predict_input",
    "get_predict_response",
    "is_v1",
    "is_v2",
    "strtobool",
    "to_headers",
]

_TRUE: Final = ("y", "yes", "t", "true", "on", "1")
_FALSE: Final = ("n", "no", "f", "false", "off", "0")


def strtobool(val: str) -> bool:
    """Convert a word for true or false to a bool. Raises ValueError for other words."""
    word = val.lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{val!r} is neither true nor false")
    return word in _TRUE


def is_v1(protocol: Any) -> bool:
    """Return whether a protocol, text or `PredictorProtocol`, is V1."""
    return _is(protocol, PredictorProtocol.REST_V1)


def is_v2(protocol: Any) -> bool:
    """Return whether a protocol, text or `PredictorProtocol`, is V2 over REST."""
    return _is(protocol, PredictorProtocol.REST_V2)


def _is(protocol: Any, known: PredictorProtocol) -> bool:
    return protocol is known or (isinstance(protocol, str) and protocol.lower() == known.value)


def to_headers(context: Any) -> dict[str, str]:
    """Return the metadata of a gRPC call as headers; binary values in base64.

    Args:
        context: The call's, of grpcio.
    """
    return {
        key: value if isinstance(value, str) else b64encode(value).decode()
        for key, value in context.invocation_metadata() or ()
    }


def cpu_count() -> int:
    """Return how many processors this process may use, by its affinity and its container."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, min(count, _quota() or count))


def _quota(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the container's quota in whole processors; None without one."""
    with suppress(OSError, ValueError):  # cgroup v2; "max" is no number
        quota, period = (cgroups / "cpu.max").read_text().split()
        return int(quota) // int(period)
    with suppress(OSError, ValueError):  # cgroup v1; -1 is no quota
        controller = cgroups / "cpu,cpuacct"
        period = (controller / "cpu.cfs_period_us").read_text()
        whole = int((controller / "cpu.cfs_quota_us").read_text()) // int(period)
        return whole if whole > 0 else None
    return None
