"""Trace requests with OpenTelemetry.

Shows: OpenTelemetry's own ASGI middleware around the application, which makes the span of a request
and takes over the client's trace; `Tracing`, which adds to that span what modelserve knows, and a
child for each hook and for the wait for a slot; and a span in a hook. Leaves out: an exporter to
anything but the terminal.

Without `exclude_spans` the middleware makes one more span for each item of a stream.

    pip install 'modelserve[opentelemetry]' opentelemetry-instrumentation-asgi opentelemetry-sdk
    modelserve examples/04_opentelemetry.py

    curl localhost:8080/v1/models/double:predict -d '{"instances": [21]}'
    curl localhost:8080/v1/models/count:predict -d '{"instances": [100]}'
"""

from collections.abc import AsyncIterator
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from modelserve import ModelServer, instances
from modelserve.opentelemetry import Tracing

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("double")

models = ModelServer(observers=[Tracing()])


@models.model("double")
def double(payload: Any) -> dict[str, list[int]]:
    with tracer.start_as_current_span("multiply") as span:
        numbers = instances(payload, int)
        span.set_attribute("instances", len(numbers))
        return {"predictions": [2 * x for x in numbers]}


@models.model("count")
async def count(payload: Any) -> AsyncIterator[int]:
    [last] = instances(payload, int)
    for number in range(last):
        yield number


app = OpenTelemetryMiddleware(models, exclude_spans=["send", "receive"])
