from prometheus_client import CollectorRegistry, generate_latest
from recording import record
from scraping import samples

from modelserve.errors import InvalidInput
from modelserve.metrics.telemetry import Telemetry


def test_unknown_models_share_an_empty_name() -> None:
    telemetry = Telemetry()
    record(telemetry.unknown, status=404, error=InvalidInput("no"))
    record(telemetry.unknown, status=404, error=InvalidInput("no"))
    labels = 'model_name="",outcome="error",protocol="v1",status="404",verb="predict"'
    found = samples(telemetry)
    assert found[f"modelserve_requests_total{{{labels}}}"] == 2
    assert found['modelserve_request_seconds_count{model_name=""}'] == 2
    assert not any(name.startswith("modelserve_in_flight") for name in found)


def test_a_model_that_is_registered_again_keeps_its_series() -> None:
    telemetry = Telemetry()
    first = telemetry.model("m", ["predict"])
    assert telemetry.model("m", ["explain"]) is first
    assert set(first.stages) == {"predict", "explain"}


def test_the_first_request_opens_it_until_it_is_closed() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m")
    assert not telemetry.opened
    record(series)
    assert telemetry.opened
    telemetry.close()
    assert not telemetry.opened
    series.stream(0.0, 1.0)
    assert telemetry.opened


def test_collects_into_a_registry_of_the_host() -> None:
    telemetry = Telemetry()
    record(telemetry.model("m"))
    registry = CollectorRegistry(auto_describe=True)
    registry.register(telemetry)
    assert b'modelserve_requests_total{model_name="m"' in generate_latest(registry)
