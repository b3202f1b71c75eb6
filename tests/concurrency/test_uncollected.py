"""Calls during which the garbage collector does not run."""

import gc
import threading
from collections.abc import Iterator

import pytest

from modelserve.concurrency.uncollected import call_uncollected


@pytest.fixture(params=[True, False], ids=["on", "off"])
def enabled(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def fail() -> None:
    raise ValueError("no")


def test_the_collector_is_as_it_was(enabled: bool) -> None:
    assert call_uncollected(gc.isenabled) is False
    assert gc.isenabled() is enabled
    with pytest.raises(ValueError, match="no"):
        call_uncollected(fail)
    assert gc.isenabled() is enabled
    assert call_uncollected(lambda: call_uncollected(gc.isenabled)) is False
    assert gc.isenabled() is enabled


def test_it_is_off_until_the_last_of_several_calls_has_ended(enabled: bool) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def first() -> bool:
        begun.set()
        may_end.wait(10)
        return gc.isenabled()

    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(call_uncollected(first)))
    thread.start()
    begun.wait(10)
    assert call_uncollected(gc.isenabled) is False
    assert gc.isenabled() is False
    may_end.set()
    thread.join()
    assert seen == [False]
    assert gc.isenabled() is enabled
