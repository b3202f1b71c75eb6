from pathlib import Path

import pytest
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics
from recording import python, record, shared

from modelserve.metrics.telemetry import Telemetry

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
# HELP modelserve_requests_total Requests to models that have ended.
# TYPE modelserve_requests_total counter
modelserve_requests_total{model_name="m",outcome="done",protocol="v1",status="200",verb="predict"} 2.0
"""


def test_exposition_to_the_letter() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["predict"])
    record(series, stages={"predict": 0.25})
    record(series, stages={"predict": 16, "explain": 1})  # explain is not a hook of this model
    content_type, body = telemetry.expose()
    assert content_type == b"text/plain; version=0.0.4; charset=utf-8"
    assert body.decode().startswith(EXPOSED)


@pytest.mark.parametrize("name", ['quoted " and \\', "with\nnewline", "ünïcødé", "lone \udc80"])
def test_any_model_name_can_be_exposed(name: str, tmp_path: Path) -> None:
    with shared(tmp_path) as telemetry:
        record(telemetry.model(name))
        label = name.replace("\udc80", "?")
        (count,) = (
            sample.value
            for family in prometheus.text_string_to_metric_families(telemetry.expose()[1].decode())
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
    series.in_flight.add(1)
    record(series, stages={"predict": 0.1})
    series.stream(0.0, 1.0)(2.0)
    body = telemetry.expose("application/openmetrics-text")[1].decode()
    assert body.endswith("# EOF\n")
    parsed = openmetrics.text_string_to_metric_families(body)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert families["modelserve_requests"].type == "counter"
    assert families["modelserve_requests"].samples[0].value == 1
    assert families["modelserve_in_flight"].type == "gauge"
    assert families["request_predict_seconds"].type == "histogram"


def test_prometheus_client_is_imported_by_the_first_scrape() -> None:
    code = """
import sys
from modelserve.metrics.telemetry import Telemetry
from recording import record
telemetry = Telemetry()
record(telemetry.model("m"))
assert "prometheus_client" not in sys.modules
telemetry.expose()
assert "prometheus_client" in sys.modules
"""
    python(code)
