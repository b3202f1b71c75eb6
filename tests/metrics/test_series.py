import pytest
from recording import record
from scraping import samples

from modelserve.errors import ClientGone, InvalidInput
from modelserve.metrics.telemetry import Telemetry


def test_requests_are_counted_by_protocol_verb_status_and_outcome() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m")
    for _ in range(2):
        record(series)
        record(series, verb="explain")
        record(series, protocol="v2", verb="infer")
        record(series, status=400, error=InvalidInput("no"))
        record(series, status=0, error=ClientGone())
        record(series, error=ClientGone())
        record(series, status=204)
    counted = {
        name.removeprefix('modelserve_requests_total{model_name="m",')
        for name, value in samples(telemetry).items()
        if name.startswith("modelserve_requests_total") and value == 2
    }
    assert counted == {
        'outcome="done",protocol="v1",status="200",verb="predict"}',
        'outcome="done",protocol="v1",status="200",verb="explain"}',
        'outcome="done",protocol="v2",status="200",verb="infer"}',
        'outcome="error",protocol="v1",status="400",verb="predict"}',
        'outcome="disconnected",protocol="v1",status="499",verb="predict"}',
        'outcome="disconnected",protocol="v1",status="200",verb="predict"}',
        'outcome="done",protocol="v1",status="204",verb="predict"}',
    }


def test_seconds_of_requests_and_of_their_hooks() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["preprocess", "predict"])
    for seconds in (0.001, 0.25, 20.0):
        stages = {"preprocess": seconds / 2, "predict": seconds, "postprocess": 1.0}
        record(series, seconds=seconds, stages=stages)
    found = samples(telemetry)
    for metric, total in (
        ("modelserve_request_seconds", 20.251),
        ("request_predict_seconds", 20.251),
        ("request_preprocess_seconds", 10.1255),
    ):
        assert found[f'{metric}_sum{{model_name="m"}}'] == pytest.approx(total)
        buckets = [found[f'{metric}_bucket{{le="{le}",model_name="m"}}'] for le in (0.005, 0.25)]
        assert [*buckets, found[f'{metric}_count{{model_name="m"}}']] == [1, 2, 3]
    assert not any(name.startswith("request_postprocess") for name in found)


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


def test_streams_are_added_up() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m")
    one, other = (series.stream(arrived=0.0, now=1.0) for _ in range(2))
    one(2.0)
    other(4.0)
    found = samples(telemetry)
    assert found['modelserve_stream_items_total{model_name="m"}'] == 4
    assert found['modelserve_time_to_first_item_seconds_sum{model_name="m"}'] == 2.0
    assert found['modelserve_inter_item_seconds_sum{model_name="m"}'] == 4.0


def test_items_that_come_together_are_recorded_together() -> None:
    telemetry = Telemetry()
    tick = telemetry.model("m").stream(arrived=100.0, now=100.0)
    tick(100.5)
    tick(100.504, 4)
    found = samples(telemetry)
    assert found['modelserve_stream_items_total{model_name="m"}'] == 6
    assert found['modelserve_inter_item_seconds_count{model_name="m"}'] == 5
    assert found['modelserve_inter_item_seconds_sum{model_name="m"}'] == pytest.approx(0.504)
    assert found['modelserve_inter_item_seconds_bucket{le="0.005",model_name="m"}'] == 4


def test_gauges_and_defined_stages_are_shown_from_the_beginning() -> None:
    telemetry = Telemetry()
    series = telemetry.model("m", ["preprocess", "predict"])
    series.in_flight.add(3)
    series.queued.add(2)
    series.in_flight.add(-2)
    found = samples(telemetry)
    assert found['modelserve_in_flight{model_name="m"}'] == 1
    assert found['modelserve_queued{model_name="m"}'] == 2
    assert found['request_preprocess_seconds_count{model_name="m"}'] == 0
    assert not any(name.startswith("request_explain") for name in found)
    assert not any(name.startswith("modelserve_stream_items") for name in found)
