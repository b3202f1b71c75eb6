"""The parts of the comparison that could be wrong unnoticed."""

import os
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import accounts, competitors, footprint, plot, report
from benchmarks.client import Exchange, request
from benchmarks.compare import Measured, Results, from_json
from benchmarks.payloads import ITEM, MARK, TOKEN
from benchmarks.servers import free_ports, running
from benchmarks.works import QUICK, WORKS

FIXED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\na\r\n\r\n2\r\nbc\r\n0\r\n\r\n"
SVG = "{http://www.w3.org/2000/svg}"
EMPTY = b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"
NO_CHUNKS = b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("response", "status"), [(FIXED, 200), (CHUNKED, 200), (EMPTY, 204), (NO_CHUNKS, 503)]
)
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_response_is_whole_at_its_last_byte_only(response: bytes, status: int, step: int) -> None:
    exchange = Exchange()
    for at in range(0, len(response), step):
        assert not exchange.whole
        exchange.feed(response[at : at + step])
    assert exchange.whole
    assert exchange.status == status


def test_each_item_has_the_mark_once_and_no_request_has_it() -> None:
    assert len(ITEM) == 34
    assert ITEM.count(MARK) == 1
    assert str(TOKEN).encode().count(MARK) == 1
    assert MARK not in request("/x", b"{}")


@pytest.mark.parametrize("name", competitors.NAMES)
def test_a_competitor_has_its_three_names_and_known_kinds(name: str) -> None:
    competitor = competitors.load(name)
    assert competitor.REQUIREMENTS
    assert any("{port}" in word for word in competitor.COMMAND)
    assert "unary" in competitor.ENDPOINTS
    assert set(competitor.ENDPOINTS) <= {work.kind for work in WORKS.values()}
    assert any(
        module.startswith("benchmarks.apps.") for module in footprint.imported(competitor.COMMAND)
    )


def test_the_quick_workloads_exist() -> None:
    assert set(QUICK) <= set(WORKS)


def some_results() -> Results:
    machine = {"date": "2026-11-23", "cpu": "x", "cores": 2, "memory_gib": 24, "kernel": "6"}
    plan = {"names": ["bare", "slow"], "rounds": 3, "seconds": 1.0}
    rates = {"bare": [100.0, 200.0, 400.0], "slow": [50.0, 50.0, 50.0]}
    return Results(
        machine=machine | {"python": "3.11", "client": "wrk"},
        plan=plan,
        measured=[
            Measured(number, name, "unary-16", {"per_second": rate})
            for name in rates
            for number, rate in enumerate(rates[name])
        ],
    )


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    results = some_results()
    assert results.figure("slow", "unary-16", "per_second") == 50
    assert results.ratio("slow", "unary-16", "per_second") == 0.25
    assert results.ratio("slow", "bytes-8", "per_second") is None


def test_results_survive_json_and_become_a_table_and_a_picture() -> None:
    results = from_json(some_results().as_json())
    assert "| slow   |" in report.tables(results)
    assert "50 (0.25)" in report.tables(results)
    picture = ElementTree.fromstring(plot.svg(report.tables(results)))
    texts = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert texts[-4:] == ["bare", "1.00  (200)", "slow", "0.25  (50)"]
    widths = [float(bar.get("width", 0)) for bar in picture.iter(f"{SVG}rect")][1:]
    assert widths[1] == pytest.approx(widths[0] / 4)


def test_the_picture_in_the_readme_is_that_of_its_tables() -> None:
    folder = Path(__file__).parent
    tables = report.from_readme((folder / "README.md").read_text())
    assert (folder / "rates.svg").read_text() == plot.svg(tables)


SPIN = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.2: pass"])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_server_counts_its_children_and_leaves_no_process_behind() -> None:
    with running("spin", Path(sys.executable), ["-c", SPIN]) as server:
        deadline = time.monotonic() + 20
        while not (tail := server.log_tail()) and time.monotonic() < deadline:
            time.sleep(0.02)
        child = int(tail)
        assert child in server.pids()
        assert server.cpu_seconds() >= 0.19
        assert server.memory() > 1 << 20
    deadline = time.monotonic() + 20
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(child)


def runs(pid: int) -> bool:
    """Return whether there is such a process; one that has ended may have to wait for its reaper."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_free_ports_differ() -> None:
    assert len(set(free_ports(3))) == 3


def test_the_process_table_has_this_process() -> None:
    assert accounts.process_table()[os.getpid()][0] == os.getppid()
