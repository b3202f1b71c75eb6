import copy
import inspect
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from modelserve.errors import (
    BodyTimeout,
    ClientGone,
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServerShuttingDown,
)
from modelserve.metrics.telemetry import (
    BOUNDS,
    DIRECTORY_VARIABLE,
    ModelSeries,
    Telemetry,
    outcome_of,
    shared_directory,
)

Samples = dict[str, float]

ROOT = Path(__file__).parents[2]


def samples(telemetry: Telemetry) -> Samples:
    """What a scrape says: 'name{label="value",...}' in order of labels."""
    found = {}
    for family in parse_prometheus(telemetry.expose()[1].decode()):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def ended(**extra: Any) -> Any:
    """How a request ended: well, unless something else is said."""
    usual = {"status": 200, "error": None, "admitted": True}
    of_no_stream = {"seconds": {}, "items": 0, "first_item": None}
    return SimpleNamespace(**usual | of_no_stream | extra)


ENDED = "from types import SimpleNamespace; from typing import Any\n" + inspect.getsource(ended)


def done(
    series: ModelSeries, *, seconds: float = 0.25, request_id: bytes = b"", **extra: Any
) -> None:
    extra["seconds"] = extra.pop("stages", {})
    series.record("v1", "predict", ended(**extra), seconds, request_id)


def requests(telemetry: Telemetry, model: str = "m") -> float:
    found = samples(telemetry)
    name = f'modelserve_requests_total{{model_name="{model}",outcome="done",protocol="v1",status='
    return found.get(f'{name}"200",verb="predict"}}', 0.0)


def in_flight(telemetry: Telemetry, model: str = "m") -> float | None:
    return samples(telemetry).get(f'modelserve_in_flight{{model_name="{model}"}}')


def python(code: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *args]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


WORKER = (
    ENDED
    + """
import sys
from modelserve.metrics.telemetry import Telemetry

telemetry = Telemetry()
series = telemetry.model("m", ["predict"])
series.in_flight.set(float(sys.argv[1]))
for line in sys.stdin:
    series.record("v1", "predict", ended(seconds={"predict": 0.2}), 0.25)
    print("recorded", flush=True)
"""
)


class Worker:
    """A process that records a request when it is told to, as a worker that shares a directory."""

    def __init__(self, directory: Path, running: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(running)],
            env={**os.environ, DIRECTORY_VARIABLE: str(directory)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def record(self, times: int = 1) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        for _ in range(times):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "recorded\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextmanager
def worker(directory: Path, *, running: int) -> Iterator[Worker]:
    started = Worker(directory, running)
    try:
        yield started
    finally:
        started.kill()


@contextmanager
def shared(directory: Path) -> Iterator[Telemetry]:
    telemetry = Telemetry(directory)
    try:
        yield telemetry
    finally:
        telemetry.close()


# --- outcomes


@pytest.mark.parametrize(
    ("status", "error", "admitted", "outcome"),
    [
        (200, None, True, "done"),
        (204, None, True, "done"),
        (404, None, False, "error"),
        (404, InvalidInput("no"), False, "error"),
        (400, InvalidInput("no"), True, "error"),
        (500, ValueError("no"), True, "error"),
        (200, ValueError("in mid-stream"), True, "error"),
        (503, InferenceError("upstream is down", status=503), True, "error"),
        (503, ModelNotReady("m"), True, "error"),
        (503, ModelNotReady("m"), False, "refused"),
        (503, Overloaded("full", retry_after=1), False, "refused"),
        (503, ServerShuttingDown(), False, "refused"),
        (503, ServerShuttingDown(), True, "shutdown"),
        (200, ServerShuttingDown(), True, "shutdown"),
        (504, DeadlineExceeded("timeout"), True, "timeout"),
        (504, DeadlineExceeded("timeout"), False, "timeout"),
        (200, DeadlineExceeded("idle_timeout"), True, "timeout"),
        (408, BodyTimeout("slow"), False, "timeout"),
        (0, ClientGone(), False, "disconnected"),
        (0, ClientGone(), True, "disconnected"),
        (200, ClientGone(), True, "disconnected"),
    ],
)
def test_outcome(status: int, error: BaseException | None, admitted: bool, outcome: str) -> None:
    assert outcome_of(status, error, admitted=admitted) == outcome


def test_client_gone_before_the_start_is_499() -> None:
    telemetry = Telemetry()
    done(telemetry.model("m"), status=0, error=ClientGone())
    labels = 'model_name="m",outcome="disconnected",protocol="v1",status="499",verb="predict"'
    assert samples(telemetry)[f"modelserve_requests_total{{{labels}}}"] == 1


# --- exposition


EXPOSED = """\
# HELP request_preprocess_seconds pre-process request latency
# TYPE request_preprocess_seconds histogram
# HELP request_predict_seconds predict request latency
# TYPE request_predict_seconds histogram
request_predict_seconds_bucket{le="0.005",model_name="m"} 0.0
request_predict_seconds_bucket{le="0.01",model_name="m"} 0.0
request_predict_seconds_bucket{le="0.025",model_name="m"} 0.0
request_predict_seconds_bucket{le="0.05",model_name="m"} 0.0
request_predict_seconds_bucket{le="0.075",model_name="m"} 0.0
request_predict_seconds_bucket{le="0.1",model_name="m"} 0.0
request_predict_seconds_bucket{le="0.25",model_name="m"} 1.0
request_predict_seconds_bucket{le="0.5",model_name="m"} 1.0
request_predict_seconds_bucket{le="0.75",model_name="m"} 1.0
request_predict_seconds_bucket{le="1.0",model_name="m"} 1.0
request_predict_seconds_bucket{le="2.5",model_name="m"} 1.0
request_predict_seconds_bucket{le="5.0",model_name="m"} 1.0
request_predict_seconds_bucket{le="7.5",model_name="m"} 1.0
request_predict_seconds_bucket{le="10.0",model_name="m"} 1.0
request_predict_seconds_bucket{le="+Inf",model_name="m"} 2.0
request_predict_seconds_count{model_name="m"} 2.0
request_predict_seconds_sum{model_name="m"} 16.25
# HELP request_explain_seconds explain request latency
# TYPE request_explain_seconds histogram
# HELP request_postprocess_seconds post-process request latency
# TYPE request_postprocess_seconds histogram
# HELP modelserve_requests_total model requests that have ended
# TYPE modelserve_requests_total counter
modelserve_requests_total{model_name="m",outcome="done",protocol="v1",status="200",verb="predict"} 2.0
"""


def test_exposition_to_the_letter() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["predict"])
    done(series, stages={"predict": 0.25})
    done(series, stages={"predict": 16, "explain": 1})  # explain is not a hook of this model
    content_type, body = telemetry.expose()
    assert content_type == b"text/plain; version=0.0.4; charset=utf-8"
    assert body.decode().startswith(EXPOSED)


def test_a_stream() -> None:
    telemetry = Telemetry()
    tick = telemetry.model("m").stream(arrived=100.0, now=100.5)
    for now in (100.5, 100.75, 102.75):
        tick(now)
    found = samples(telemetry)
    assert found['modelserve_stream_items_total{model_name="m"}'] == 4
    assert found['modelserve_time_to_first_item_seconds_sum{model_name="m"}'] == 0.5
    assert found['modelserve_time_to_first_item_seconds_count{model_name="m"}'] == 1
    assert found['modelserve_inter_item_seconds_sum{model_name="m"}'] == 2.25
    assert found['modelserve_inter_item_seconds_count{model_name="m"}'] == 3
    assert found['modelserve_inter_item_seconds_bucket{le="0.005",model_name="m"}'] == 1
    assert found['modelserve_inter_item_seconds_bucket{le="0.25",model_name="m"}'] == 2
    assert found['modelserve_inter_item_seconds_bucket{le="1.0",model_name="m"}'] == 2


def test_items_that_come_together_are_told_together() -> None:
    telemetry = Telemetry()
    tick = telemetry.model("m").stream(arrived=100.0, now=100.0)
    tick(100.5)
    tick(100.504, 4)
    found = samples(telemetry)
    assert found['modelserve_stream_items_total{model_name="m"}'] == 6
    assert found['modelserve_inter_item_seconds_count{model_name="m"}'] == 5
    assert found['modelserve_inter_item_seconds_sum{model_name="m"}'] == pytest.approx(0.504)
    assert found['modelserve_inter_item_seconds_bucket{le="0.005",model_name="m"}'] == 4


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_of_buckets_are_inclusive(bound: float) -> None:
    telemetry = Telemetry()
    histogram = telemetry.model("m").first_item
    histogram.observe(bound)
    histogram.observe(bound * 1.0001)
    found = samples(telemetry)
    name = "modelserve_time_to_first_item_seconds_bucket"
    assert found[f'{name}{{le="{bound}",model_name="m"}}'] == 1
    assert found[f'{name}{{le="+Inf",model_name="m"}}'] == 2


def test_gauges_and_defined_stages_are_shown_from_the_beginning() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["preprocess", "predict"])
    series.in_flight.set(3)
    series.queued.set(2)
    series.in_flight.add(-2)
    found = samples(telemetry)
    assert found['modelserve_in_flight{model_name="m"}'] == 1
    assert found['modelserve_queued{model_name="m"}'] == 2
    assert found['request_preprocess_seconds_count{model_name="m"}'] == 0
    assert not any(name.startswith("request_explain") for name in found)
    assert not any(name.startswith("modelserve_stream_items") for name in found)


def test_unknown_models_share_an_empty_name() -> None:
    telemetry = Telemetry()
    done(telemetry.unknown, status=404, error=InvalidInput("no"))
    done(telemetry.unknown, status=404, error=InvalidInput("no"))
    labels = 'model_name="",outcome="error",protocol="v1",status="404",verb="predict"'
    found = samples(telemetry)
    assert found[f"modelserve_requests_total{{{labels}}}"] == 2
    assert found['modelserve_request_seconds_count{model_name=""}'] == 2
    assert not any(name.startswith("modelserve_in_flight") for name in found)


def test_model_registered_again_keeps_its_series() -> None:
    telemetry = Telemetry()
    first = telemetry.model("m", ["predict"])
    assert telemetry.model("m", ["explain"]) is first
    assert set(first.stages) == {"predict", "explain"}


@pytest.mark.parametrize("name", ['quoted " and \\', "with\nnewline", "ünïcødé", "lone \udc80"])
def test_any_model_name_can_be_exposed(name: str, tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        done(telemetry.model(name))
        label = name.replace("\udc80", "?")
        (count,) = (
            sample.value
            for family in parse_prometheus(telemetry.expose()[1].decode())
            for sample in family.samples
            if sample.name == "modelserve_requests_total" and sample.labels["model_name"] == label
        )
        assert count == 1


OPENMETRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3"
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, b"text/plain; version=0.0.4; charset=utf-8"),
        ("", b"text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", b"text/plain; version=0.0.4; charset=utf-8"),
        ("text/html, application/xhtml+xml", b"text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0", OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text; version=x", b"text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_accept(accept: str | None, content_type: bytes) -> None:
    assert Telemetry().expose(accept)[0].startswith(content_type)


def test_openmetrics_form() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["predict"])
    series.in_flight.set(1)
    done(series, stages={"predict": 0.1})
    series.stream(0.0, 1.0)(2.0)
    body = telemetry.expose("application/openmetrics-text")[1].decode()
    assert body.endswith("# EOF\n")
    parsed = openmetrics.text_string_to_metric_families(body)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert families["modelserve_requests"].type == "counter"
    assert families["modelserve_requests"].samples[0].value == 1
    assert families["modelserve_in_flight"].type == "gauge"
    assert families["request_predict_seconds"].type == "histogram"


def test_collects_into_a_registry_of_the_host() -> None:
    telemetry = Telemetry()
    done(telemetry.model("m"))
    registry = CollectorRegistry(auto_describe=True)
    registry.register(telemetry)
    assert b'modelserve_requests_total{model_name="m"' in generate_latest(registry)


# --- what is not done early


def test_prometheus_client_is_imported_by_the_first_scrape() -> None:
    code = (
        ENDED
        + """
import sys
from modelserve.metrics.telemetry import Telemetry
telemetry = Telemetry()
telemetry.model("m").record("v1", "predict", ended(), 1)
assert "prometheus_client" not in sys.modules
telemetry.expose()
assert "prometheus_client" in sys.modules
"""
    )
    python(code)


def test_environment_is_read_by_the_first_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "too early"))
    telemetry = Telemetry()
    series = telemetry.model("m")
    series.in_flight.set(1)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "made"))
    done(series)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert requests(telemetry) == 1
    assert in_flight(telemetry) == 1
    telemetry.close()


def test_pickled_without_values() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["predict"])
    gauge = series.in_flight
    gauge.set(1)
    done(series)
    twin, twin_series, twin_gauge = pickle.loads(pickle.dumps((telemetry, series, gauge)))
    assert requests(twin) == 0
    done(twin_series)
    twin_gauge.set(4)
    assert requests(twin) == 1
    assert in_flight(twin) == 4
    assert requests(telemetry) == 1


def test_deep_copy_counts_for_itself(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        done(telemetry.model("m"))
        twin = copy.deepcopy(telemetry)
        done(twin.model("m"))
        assert (requests(telemetry), requests(twin)) == (2, 2)
        twin.close()


# --- several workers


def test_workers_are_summed_up(tmp_path: Path) -> None:
    with (
        shared(tmp_path) as telemetry,
        worker(tmp_path, running=2) as one,
        worker(tmp_path, running=3) as two,
    ):
        series = telemetry.model("m", ["predict"])
        series.in_flight.set(1)
        done(series, stages={"predict": 0.2})
        one.record(2)
        two.record(3)
        found = samples(telemetry)
        assert requests(telemetry) == 6
        assert in_flight(telemetry) == 6
        assert found['request_predict_seconds_count{model_name="m"}'] == 6
        assert found['request_predict_seconds_sum{model_name="m"}'] == pytest.approx(1.2)
        assert found['request_predict_seconds_bucket{le="0.1",model_name="m"}'] == 0
        assert found['request_predict_seconds_bucket{le="0.25",model_name="m"}'] == 6


def test_killed_worker_leaves_its_counters_and_takes_its_gauges(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry, worker(tmp_path, running=2) as one:
        telemetry.open()
        one.record(2)
        assert (requests(telemetry), in_flight(telemetry)) == (2, 2)
        one.kill()
        assert (requests(telemetry), in_flight(telemetry)) == (2, None)


def test_new_worker_takes_over_the_file_of_a_dead_one(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        telemetry.model("m").in_flight.set(1)
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


def test_closed_and_opened_again_goes_on_in_its_file(tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        series = telemetry.model("m")
        series.in_flight.set(1)
        done(series)
        telemetry.close()
        done(series)
        assert (requests(telemetry), in_flight(telemetry)) == (2, 0)
        assert len(list(tmp_path.iterdir())) == 1


def test_forked_child_has_its_own_file(tmp_path: Path) -> None:
    code = (
        ENDED
        + """
import os, sys
from modelserve.metrics.telemetry import Telemetry
telemetry = Telemetry(sys.argv[1])
series = telemetry.model("m")
def record():
    series.record("v1", "predict", ended(), 1)
record()
held = series.stream(0.0, 1.0)
series.in_flight.set(1)
child = os.fork()
if not child:
    record()
    record()
    os._exit(0)
os.waitpid(child, 0)
record()
assert b'status="200",verb="predict"} 4.0' in telemetry.expose()[1], telemetry.expose()
"""
    )
    python(code, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_child_that_outlives_a_worker_does_not_keep_its_gauges(tmp_path: Path) -> None:
    code = (
        ENDED
        + """
import os, sys
from modelserve.metrics.telemetry import Telemetry
telemetry = Telemetry(sys.argv[1])
series = telemetry.model("m")
tick = series.stream(0.0, 1.0)
series.in_flight.set(1)
child = os.fork()
if not child:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
"""
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    assert process.wait() == 0
    with shared(tmp_path) as telemetry:
        assert samples(telemetry)['modelserve_stream_items_total{model_name="m"}'] == 1
        assert in_flight(telemetry) in (None, 0)
    process.communicate()


def test_grows_while_it_is_in_use_and_being_read(tmp_path: Path) -> None:
    with shared(tmp_path) as writer, shared(tmp_path) as reader:
        reader.open()
        long_name = "x" * 100_000
        series = [writer.model(name) for name in (*map(str, range(2000)), long_name)]
        for one in series:
            done(one)
        for one in series:
            done(one)
        counted = {key[1]: v for key, v in reader._totals().items() if "requests" in key[0]}
        assert counted == {one.name: [2.0] for one in series}
    with shared(tmp_path) as heir:
        done(heir.model(long_name))
        assert heir._totals()[("modelserve_request_seconds", long_name)][-1] == 0.75


def test_record_that_was_never_finished_leaves_nothing(tmp_path: Path) -> None:
    with shared(tmp_path) as killed:
        done(killed.model("m"))
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    path.write_bytes(written.rstrip(b"\0").ljust(len(written), b"g"))
    with shared(tmp_path) as heir:
        done(heir.model("m"))
        done(heir.model("n"))
        assert (requests(heir), requests(heir, "n")) == (2, 1)


def test_full_disk_costs_sharing_not_counting(tmp_path: Path) -> None:
    code = (
        ENDED
        + """
import logging, resource, sys
from modelserve.metrics.telemetry import Telemetry
telemetry = Telemetry(sys.argv[1])
telemetry.open()
logging.getLogger("modelserve").addHandler(logging.StreamHandler(sys.stdout))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in range(500):
    telemetry.model(str(number)).record("v1", "predict", ended(), 1)
assert telemetry.expose()[1].count(b'modelserve_requests_total{') == 500
"""
    )
    assert python(code, str(tmp_path)).count("Other workers will not show") == 1
    with shared(tmp_path) as reader:
        reader.open()
        assert 100 < sum(key[0] == "modelserve_requests_total" for key in reader._totals()) < 500


def test_unusable_directory_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    telemetry = Telemetry(occupied)
    done(telemetry.model("m"))
    done(telemetry.model("m"))
    assert requests(telemetry) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("garbage", [b"x", b"garbage!" * 3, b"\x00" * 5, bytes(1 << 16)])
def test_damaged_files_do_no_harm(garbage: bytes, tmp_path: Path) -> None:
    with shared(tmp_path) as reader:
        reader.open()
        (own,) = tmp_path.iterdir()
        (tmp_path / own.name.replace("0", "7")).write_bytes(garbage)
        done(reader.model("m"))
        assert requests(reader) == 1
    own.write_bytes(garbage)
    with shared(tmp_path) as heir:
        done(heir.model("m"))
        assert requests(heir) == 1


def test_directory_that_disappears_leaves_the_worker_its_own_numbers(tmp_path: Path) -> None:
    with shared_directory() as directory:
        telemetry = Telemetry(directory)
        done(telemetry.model("m"))
    assert not Path(directory).exists()
    done(telemetry.model("m"))
    done(telemetry.model("n"))
    assert (requests(telemetry), requests(telemetry, "n")) == (2, 1)
    telemetry.close()


# --- the line in the log


def test_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="modelserve.access"):
        done(
            Telemetry().model("m"),
            stages={"predict": 0.20000004},
            items=3,
            first_item=0.1,
            request_id=b"abc-1",
        )
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage() == "v1 predict 'm': 200 done in 0.2500 s"
    expected = {
        "request_id": "abc-1",
        "model": "m",
        "protocol": "v1",
        "verb": "predict",
        "status": 200,
        "outcome": "done",
        "seconds": 0.25,
        "stages": {"predict": 0.2},
        "items": 3,
        "first_item_seconds": 0.1,
    }
    assert {name: getattr(record, name) for name in expected} == expected


def test_no_log_line_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="modelserve.access"):
        done(Telemetry().model("m"))
    assert not caplog.records
