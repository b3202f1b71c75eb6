"""What modelserve adds to a bare ASGI call, in-process: `pytest benchmarks -m benchmark`.

The bounds are about twice what was measured when they were written: they catch a blunder and pass
on a busy machine. To compare two commits, use `python -m benchmarks inprocess`.
"""

import pytest

from benchmarks import inprocess
from benchmarks.inprocess import CASES, Case, Cost

MOST = {
    "unary, a request": 10.0,
    "bytes, an item": 5.0,
    "NDJSON, an item": 5.0,
    "SSE, an item": 5.0,
    "chat, an item": 2.0,
    "coalesced bytes, an item": 4.0,
    "sync generator, an item": 30.0,
    "a stream of one item": 20.0,
}
"""How many times the bare application's time, and calls, each case may take."""


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cost_over_a_bare_call(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    cost = inprocess.measure(case)
    with capsys.disabled():
        print("\n" + inprocess.table([cost]))
    assert cost.ratio < MOST[case.name]
    assert cost.own_calls < cost.bare_calls * MOST[case.name]


def test_costs_survive_json_and_show_the_change() -> None:
    before, after = Cost("x", 1.0, 3.0, 10.0, 20.0, 5.0), Cost("x", 1.0, 2.5, 10.0, 18.0, 0.0)
    assert inprocess.from_json(inprocess.as_json([before])) == [before]
    assert "-0.50 us, -2.0 calls, -5.0 garbage" in inprocess.table([after], [before])
