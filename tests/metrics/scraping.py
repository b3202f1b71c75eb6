"""Read metrics as Prometheus does."""

from prometheus_client.parser import text_string_to_metric_families

from modelserve.metrics.telemetry import Telemetry

Samples = dict[str, float]


def samples(telemetry: Telemetry) -> Samples:
    """What a scrape says: 'name{label="value",...}' in order of labels."""
    found = {}
    for family in text_string_to_metric_families(telemetry.expose()[1].decode()):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def requests(telemetry: Telemetry, model: str = "m") -> float:
    """How many requests to `v1`'s `predict` ended with 200."""
    found = samples(telemetry)
    name = f'modelserve_requests_total{{model_name="{model}",outcome="done",protocol="v1",status='
    return found.get(f'{name}"200",verb="predict"}}', 0.0)


def requests_by_model(telemetry: Telemetry) -> dict[str, float]:
    """The same for each model, without writing and parsing text."""
    return {
        sample.labels["model_name"]: sample.value
        for metric in telemetry.collect()
        for sample in metric.samples
        if sample.name == "modelserve_requests_total"
    }


def in_flight(telemetry: Telemetry, model: str = "m") -> float | None:
    return samples(telemetry).get(f'modelserve_in_flight{{model_name="{model}"}}')
