"""Trace requests with OpenTelemetry's standard ASGI instrumentation.

Shows: that modelserve needs no integration of its own. The middleware wraps the application; hooks,
sync ones too, run in the context of its span, so that the spans they start are its children. Leaves
out: an exporter to anything but the terminal.

    pip install opentelemetry-instrumentation-asgi opentelemetry-sdk
    modelserve examples/04_opentelemetry.py

    curl localhost:8080/v1/models/double:predict -d '{"instances": [21]}'
"""

from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from modelserve import ModelServer, instances

models = ModelServer()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
tracer = provider.get_tracer("double")


@models.model("double")
def double(payload: Any) -> dict[str, list[int]]:
    with tracer.start_as_current_span("multiply") as span:
        numbers = instances(payload, int)
        span.set_attribute("instances", len(numbers))
        return {"predictions": [2 * x for x in numbers]}


trace.set_tracer_provider(provider)
app = OpenTelemetryMiddleware(models, tracer_provider=provider)
