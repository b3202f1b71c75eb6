"""The bytes that requests hold before they are admitted."""

import math

import pytest

from modelserve.concurrency.budget import Budget, Share
from modelserve.errors import Overloaded


def refusal() -> Overloaded:
    return Overloaded("full", retry_after=3)


@pytest.fixture
def budget() -> Budget:
    return Budget(100, refusal)


def test_shares_add_up(budget: Budget) -> None:
    one, other = budget.hold(60), budget.hold(40)
    assert (one.size, other.size, budget.held) == (60, 40, 100)
    one.resize(10)
    other.grow(50)
    assert (one.size, other.size, budget.held) == (10, 90, 100)
    one.close()
    assert budget.held == 90
    other.close()
    assert budget.held == 0


def test_a_share_is_closed_once(budget: Budget) -> None:
    budget.hold(5)
    share = budget.hold(60)
    for _ in range(2):
        share.close()
        assert budget.held == 5


def test_a_request_that_has_a_share_keeps_it(budget: Budget) -> None:
    share = budget.hold(60)
    assert budget.hold(70, share) is share
    assert (share.size, budget.held) == (70, 70)


def test_what_does_not_fit_is_refused_and_changes_nothing(budget: Budget) -> None:
    one, other = budget.hold(60), budget.hold(30)
    with pytest.raises(Overloaded) as caught:
        other.grow(11)
    assert caught.value.headers == {"retry-after": "3"}
    with pytest.raises(Overloaded):
        budget.hold(11)
    with pytest.raises(Overloaded):
        budget.hold(71, one)
    assert (one.size, other.size, budget.held) == (60, 30, 90)


@pytest.mark.parametrize("size", [101, 10**12])
def test_one_alone_may_hold_any_number(budget: Budget, size: int) -> None:
    empty = budget.hold(0)
    large = budget.hold(size - 1)
    large.grow(1)
    assert budget.held == size
    with pytest.raises(Overloaded):
        empty.grow(1)
    large.close()
    empty.grow(size)


def test_what_shrinks_is_never_refused(budget: Budget) -> None:
    large = budget.hold(50)
    small = budget.hold(50)
    budget.limit = 10
    large.resize(40)
    large.resize(40)
    small.resize(0)
    assert budget.held == 40


def test_no_limit() -> None:
    budget = Budget(math.inf, refusal)
    shares = [budget.hold(10**12) for _ in range(3)]
    assert budget.held == 3 * 10**12
    for share in shares:
        share.close()
    assert budget.held == 0


def test_a_share_of_nothing_holds_nothing(budget: Budget) -> None:
    assert Share(budget).size == budget.held == 0
