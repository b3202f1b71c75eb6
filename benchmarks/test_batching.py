"""What batching adds to a request, and how full the steps of a stepped model are.

The bounds are far from what was measured when they were written, as in `test_inprocess`.
"""

import pytest

from benchmarks import batching


@pytest.mark.benchmark
def test_batching_costs_little() -> None:
    idle, waiting = batching.measure_requests()
    print(idle, waiting)
    assert idle.ratio < 2.0
    assert waiting.ratio < 2.5


@pytest.mark.benchmark
def test_steps_follow_each_other_and_a_slow_reader_costs_the_others_nothing() -> None:
    alone = batching.measure_steps(slow_reader=False)
    beside = batching.measure_steps(slow_reader=True)
    print(alone, beside)
    assert alone > 0.85
    assert beside > 0.9 * alone
