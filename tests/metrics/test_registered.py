"""A model's own metrics beside the server's: what the default registry adds to a scrape."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, Metric
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.registry import Collector
from recording import python, record

from modelserve.metrics.telemetry import Telemetry


@pytest.fixture
def registered() -> Iterator[list[Any]]:
    """Collectors that are taken out of the default registry again."""
    collectors: list[Any] = []
    yield collectors
    for collector in collectors:
        REGISTRY.unregister(collector)


def scrape(telemetry: Telemetry, accept: str = "") -> dict[str, Metric]:
    body = telemetry.expose(accept)[1].decode()
    parse: Any = (openmetrics if accept else prometheus).text_string_to_metric_families
    metrics = list(parse(body))
    names = [metric.name for metric in metrics]
    assert len(names) == len(set(names))
    return dict(zip(names, metrics, strict=True))


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_what_a_model_counts_is_shown(accept: str, registered: list[Any]) -> None:
    rows = Counter("own_rows_scored", "rows", ["model"])
    sizes = Histogram("own_sizes", "sizes")
    about = Info("own_about", "about")
    registered += [rows, sizes, about]
    rows.labels("m").inc(3)
    sizes.observe(2)
    telemetry = Telemetry()
    record(telemetry.model("m"))
    metrics = scrape(telemetry, accept)
    assert metrics["own_rows_scored"].samples[0].value == 3
    assert {"own_sizes", "python_info", "modelserve_requests"} <= metrics.keys()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Gauge, "request_predict_seconds"),
        (Counter, "modelserve_requests"),  # as the server's
        (Gauge, "modelserve_requests_total"),  # as its sample
        (Counter, "request_predict_seconds_sum"),
        (Histogram, "modelserve_in_flight"),
    ],
)
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_where_a_name_is_in_both_the_servers_is_shown(
    make: Any, name: str, accept: str, registered: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    registered += [make(name, "a model's"), Counter("own_other", "other")]
    telemetry = Telemetry()
    record(telemetry.model("m", ["predict"]), stages={"predict": 0.25})
    for _ in range(2):
        metrics = scrape(telemetry, accept)
        assert "a model's" not in {metric.documentation for metric in metrics.values()}
        assert {"request_predict_seconds", "modelserve_requests", "own_other"} <= metrics.keys()
    (logged,) = caplog.records
    assert logged.levelname == "WARNING"
    assert name.removesuffix("_total") in logged.getMessage()


def test_a_collector_that_fails_leaves_the_others(
    registered: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Collector):
        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("no device")

    broken = Broken()
    registered.append(broken)
    REGISTRY.register(broken)
    telemetry = Telemetry()
    record(telemetry.model("m"))
    for _ in range(2):
        assert "modelserve_requests" in scrape(telemetry)
    (logged,) = caplog.records
    assert logged.exc_info is not None


def test_the_servers_metrics_may_be_in_the_default_registry_too(
    registered: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry()
    record(telemetry.model("m"))
    registered.append(telemetry)
    REGISTRY.register(telemetry)
    assert "modelserve_requests" in scrape(telemetry)
    assert caplog.records == []


@pytest.mark.slow
def test_all_processes_are_shown_where_the_program_has_set_that_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    code = """
import sys
from prometheus_client import Counter
from modelserve.metrics.telemetry import Telemetry
Counter("own_rows", "rows").inc(2)
if sys.argv[1:] == ["scrape"]:
    text = Telemetry().expose()[1].decode()
    assert text.count("\\nown_rows_total 6.0") == 1, text
    assert text.count("\\nown_rows_total ") == 1, text
    assert "modelserve_requests_total" in text and "python_info" in text
"""
    for arguments in ([], [], ["scrape"]):
        python(code, *arguments)
