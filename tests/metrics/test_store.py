import subprocess
import sys
from pathlib import Path

import pytest
from recording import python, record, shared, worker
from scraping import in_flight, requests, requests_by_model, samples

from modelserve.metrics.shared import DIRECTORY_VARIABLE
from modelserve.metrics.telemetry import Telemetry


def test_the_environment_is_read_by_the_first_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "too early"))
    telemetry = Telemetry()
    series = telemetry.model("m")
    series.in_flight.add(1)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "made"))
    record(series)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert requests(telemetry) == 1
    assert in_flight(telemetry) == 1
    telemetry.close()


def test_workers_are_summed_up(tmp_path: Path) -> None:
    with (
        shared(tmp_path) as telemetry,
        worker(tmp_path, running=2) as one,
        worker(tmp_path, running=3) as two,
    ):
        series = telemetry.model("m", ["predict"])
        series.in_flight.add(1)
        record(series, stages={"predict": 0.2})
        one.record(2)
        two.record(3)
        found = samples(telemetry)
        assert requests(telemetry) == 6
        assert in_flight(telemetry) == 6
        assert found['request_predict_seconds_count{model_name="m"}'] == 6
        assert found['request_predict_seconds_sum{model_name="m"}'] == pytest.approx(1.2)
        assert found['request_predict_seconds_bucket{le="0.1",model_name="m"}'] == 0
        assert found['request_predict_seconds_bucket{le="0.25",model_name="m"}'] == 6


def test_a_killed_worker_leaves_its_counters_and_takes_its_gauges(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry, worker(tmp_path, running=2) as one:
        telemetry.open()
        one.record(2)
        assert (requests(telemetry), in_flight(telemetry)) == (2, 2)
        one.kill()
        assert (requests(telemetry), in_flight(telemetry)) == (2, None)


def test_a_new_worker_takes_over_the_file_of_a_dead_one(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        telemetry.model("m").in_flight.add(1)
        telemetry.open()
        for generation in (1, 2, 3):
            with worker(tmp_path, running=generation) as one:
                one.record(2)
                assert (requests(telemetry), in_flight(telemetry)) == (
                    2 * generation,
                    1 + generation,
                )
        assert len(list(tmp_path.iterdir())) == 2
        assert (requests(telemetry), in_flight(telemetry)) == (6, 1)


def test_closed_and_opened_again_continues_in_its_file(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        series = telemetry.model("m")
        series.in_flight.add(1)
        record(series)
        telemetry.close()
        record(series)
        assert (requests(telemetry), in_flight(telemetry)) == (2, 0)
        assert len(list(tmp_path.iterdir())) == 1


def test_a_forked_child_has_its_own_file(tmp_path: Path) -> None:
    code = """
import os, sys
from modelserve.metrics.telemetry import Telemetry
from recording import record
telemetry = Telemetry(sys.argv[1])
series = telemetry.model("m")
record(series)
held = series.stream(0.0, 1.0)
series.in_flight.add(1)
child = os.fork()
if not child:
    record(series)
    record(series)
    os._exit(0)
os.waitpid(child, 0)
record(series)
assert b'status="200",verb="predict"} 4.0' in telemetry.expose()[1], telemetry.expose()
"""
    python(code, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_child_that_outlives_a_worker_does_not_keep_its_gauges(tmp_path: Path) -> None:
    code = """
import os, sys
from modelserve.metrics.telemetry import Telemetry
telemetry = Telemetry(sys.argv[1])
series = telemetry.model("m")
tick = series.stream(0.0, 1.0)
series.in_flight.add(1)
child = os.fork()
if not child:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.wait() == 0
    with shared(tmp_path) as telemetry:
        assert samples(telemetry)['modelserve_stream_items_total{model_name="m"}'] == 1
        assert in_flight(telemetry) in (None, 0)
    process.communicate()


def test_a_full_disk_costs_sharing_not_counting(tmp_path: Path) -> None:
    code = """
import logging, resource, sys
from modelserve.metrics.telemetry import Telemetry
from recording import record
telemetry = Telemetry(sys.argv[1])
telemetry.open()
logging.getLogger("modelserve").addHandler(logging.StreamHandler(sys.stdout))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in range(500):
    record(telemetry.model(str(number)))
assert telemetry.expose()[1].count(b'modelserve_requests_total{') == 500
"""
    assert python(code, str(tmp_path)).count("Other workers will not show") == 1
    with shared(tmp_path) as reader:
        reader.open()
        assert 100 < len(requests_by_model(reader)) < 500


def test_without_file_locks_each_process_counts_for_itself(tmp_path: Path) -> None:
    code = """
import logging, sys
sys.modules["fcntl"] = None
from modelserve.metrics.telemetry import Telemetry
from recording import record
logging.basicConfig(stream=sys.stdout, format="%(message)s")
telemetry = Telemetry(sys.argv[1])
for _ in range(2):
    record(telemetry.model("m"))
assert b'status="200",verb="predict"} 2.0' in telemetry.expose()[1]
telemetry.close()
"""
    directory = tmp_path / "metrics"
    assert python(code, str(directory)) == (
        "The metrics cover this process alone: "
        "workers share them by file locks (fcntl), which this system lacks\n"
    )
    assert python(code, "") == ""


def test_an_unusable_directory_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    telemetry = Telemetry(occupied)
    record(telemetry.model("m"))
    record(telemetry.model("m"))
    assert requests(telemetry) == 2
    assert [line.levelname for line in caplog.records] == ["WARNING"]
