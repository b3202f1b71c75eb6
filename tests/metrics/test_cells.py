import pytest

from modelserve.metrics.cells import BOUNDS, FAMILIES, SUM, Counter, Gauge, Histogram


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_of_buckets_are_inclusive(bound: float) -> None:
    histogram, index = Histogram(), BOUNDS.index(bound)
    histogram.observe(bound)
    assert histogram.cells[index] == 1
    histogram.observe(bound * 1.0001)
    assert histogram.cells[index : index + 2] == [1, 1]
    assert histogram.cells[SUM] == pytest.approx(2.0001 * bound)


@pytest.mark.parametrize(("kind", "cells"), [(Counter, [5.0]), (Gauge, [2.0])])
def test_a_counter_adds_to_its_new_cells_and_a_gauge_replaces_them(
    kind: type[Counter] | type[Gauge], cells: list[float]
) -> None:
    series = kind([2.0])
    found = [3.0]
    series.move(found)
    assert series.cells is found
    assert found == cells


def test_a_histogram_adds_to_its_new_cells() -> None:
    one, other = Histogram(), Histogram()
    one.observe(0.5)
    other.observe(0.5)
    one.move(other.cells)
    assert one.cells is other.cells
    assert (one.cells[BOUNDS.index(0.5)], one.cells[SUM]) == (2, 1.0)


def test_each_metric_has_the_model_as_its_first_label() -> None:
    assert {family.labels[0] for family in FAMILIES.values()} == {"model_name"}
