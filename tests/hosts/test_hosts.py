"""The README's table of hosts is what each of them really does."""

from pathlib import Path

import matrix
import pytest

README = matrix.README.read_text()
LISTED = matrix.listed(README)


@pytest.mark.hosts
@pytest.mark.timeout(180)
@pytest.mark.flaky(reruns=1)
@pytest.mark.parametrize("row", matrix.ROWS, ids=lambda row: row.name)
def test_a_host_does_what_the_table_says(row: matrix.Row, tmp_path: Path) -> None:
    for package in row.needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    assert matrix.measure(row, tmp_path) == LISTED[row.name]


def test_the_table_lists_the_hosts_that_are_measured() -> None:
    assert list(LISTED) == [row.name for row in matrix.ROWS]
    assert matrix.table(README) == matrix.render(LISTED)
