import json
import signal
import time
from typing import Any

import pytest

# Whoever runs the tests may ignore signals, as nohup does; the processes that they start must not.
for _signal, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    _number = getattr(signal, _signal, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# These start servers and time clients on a machine that may be busy: each has one more try, and
# pytest counts it as a rerun.
OVER_SOCKETS = (
    "sockets/",
    "faults/",
    "tests/server/",
    "test_cli",
    "test_examples",
    "test_kserve",
    "test_openai_clients",
    "test_ray_serve",
    "test_example_offline",
    "pages/test_browser",
)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def a_moment() -> float:
    """Return the CPU seconds that Python needs to count to five million, on this machine now."""
    before = time.thread_time()
    for _ in range(5_000_000):
        pass
    return time.thread_time() - before


@pytest.fixture(scope="session")
def too_deep() -> int:
    """Return how many levels of JSON this Python's writer refuses: 1,000 on 3.11, more on others."""
    levels = 1_000
    while _is_written(levels):
        levels *= 2
    return levels


def _is_written(levels: int) -> bool:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    try:
        json.dumps(value)
    except RecursionError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in OVER_SOCKETS):
            item.add_marker(pytest.mark.flaky(reruns=1))
