"""OpenTelemetry: an observer that adds the facts about a request to its trace.

The span of a request is made by the host's instrumentation, such as OpenTelemetry's own middleware
for ASGI. This module adds attributes to it, and child spans for the steps inside. Without such a
span, nothing is recorded. Payloads and headers never are.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from typing import Any, Final

from modelserve.errors import Stopped
from modelserve.observers import RequestRecord

try:
    from opentelemetry import context, trace
    from opentelemetry.trace import Link, Span, StatusCode
except ImportError as exc:
    raise ImportError(
        "modelserve.opentelemetry needs opentelemetry-api: pip install 'modelserve[opentelemetry]'."
    ) from exc

__all__ = ["Tracing"]

_OPT_IN: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"
_GEN_AI: Final = "gen_ai_latest_experimental"
_OPERATIONS: Final = {"completions": "text_completion"}  # others have the verb's name
_NANOSECONDS: Final = 1e9


class Tracing:
    """Add the facts about each request to the current span, and spans below it.

        app = ModelServer([...], observers=[Tracing()])

    The span gets `modelserve.model`, `.protocol`, `.verb`, `.outcome`, `.request_id`, and where
    they apply `.items`, `.first_item_seconds` and `.queue_seconds`; with a failure of the server,
    the status ERROR and `error.type`. Its children are `queue` and one for each hook, whose own
    spans are children of that. A model that another one calls is a span `call`, below the hook that
    calls. A call for several requests is a span `batch`, below one of them, with links to all.

    Args:
        tracer_provider: Makes the spans; None is OpenTelemetry's global one.
        record_exceptions: Add the exceptions of hooks to their spans, with text and traceback,
            which may contain payloads. Without it, only their types.

    Requests of OpenAI's protocol get the attributes of the conventions for generative AI
    (`gen_ai.*`), which are not stable yet, if the environment variable
    OTEL_SEMCONV_STABILITY_OPT_IN contains `gen_ai_latest_experimental` when this object is made.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        record_exceptions: bool = False,
    ) -> None:
        self._provider = tracer_provider
        self._record_exceptions = record_exceptions
        opted_in = os.environ.get(_OPT_IN, "").split(",")
        self._describes_generations = _GEN_AI in (name.strip() for name in opted_in)
        self._tracer: trace.Tracer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tracer": None}  # a tracer cannot be pickled

    def __call__(self, record: RequestRecord) -> None:
        """Describe a request that has ended, unless its span has too, and its wait for a slot."""
        self.answer(record)
        if record.queued is not None and trace.get_current_span().get_span_context().is_valid:
            waiting = self._start("queue", record.model, start_time=_nanoseconds(record.queued))
            waiting.end(_nanoseconds(record.queued + record.queue_seconds))

    def answer(self, record: RequestRecord) -> None:
        """Describe a request by attributes of the current span."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attributes(dict(_attributes(record)))
        if self._describes_generations and record.protocol == "openai":
            span.set_attributes(dict(_of_generation(record)))
        if record.error is not None:
            span.set_attribute("error.type", _type_of(record.error))
        if _is_fault(record):
            span.set_status(StatusCode.ERROR, record.outcome)

    def start_step(self, model: str, step: str, joined: Sequence[Context]) -> "_SpanScope":
        """Start the span of a hook, a call or a batch."""
        links = [Link(span.get_span_context()) for span in map(_span_in, joined)]
        if trace.get_current_span().get_span_context().is_valid:
            span = self._start(step, model, links=links)
        else:
            span = trace.INVALID_SPAN
        return _SpanScope(span, record_exceptions=self._record_exceptions)

    def _start(self, name: str, model: str, **options: Any) -> Span:
        if self._tracer is None:
            self._tracer = trace.get_tracer("modelserve", tracer_provider=self._provider)
        return self._tracer.start_span(name, attributes={"modelserve.model": model}, **options)


class _SpanScope:
    """One span, current while the code of its step runs.

    If that code has another current span when it pauses, such as one around a `yield`, that span is
    current again when it goes on.
    """

    __slots__ = ("_context", "_record_exceptions", "_span", "_tokens")

    def __init__(self, span: Span, *, record_exceptions: bool) -> None:
        self._span = span
        self._record_exceptions = record_exceptions
        self._context = trace.set_span_in_context(span)
        self._tokens: list[Any] = []

    def enter(self) -> None:
        self._tokens.append(context.attach(self._context))

    def leave(self) -> None:
        self._context = context.get_current()
        context.detach(self._tokens.pop())

    def end(self, error: BaseException | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, Stopped):
            self._span.set_attribute("error.type", _type_of(error))
            self._span.set_status(StatusCode.ERROR)
            if self._record_exceptions:
                self._span.record_exception(error)
        self._span.end()


def _attributes(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    for name in ("model", "protocol", "verb", "outcome", "request_id"):
        yield f"modelserve.{name}", getattr(record, name)
    if record.first_item_seconds is not None:
        yield "modelserve.items", record.items
        yield "modelserve.first_item_seconds", record.first_item_seconds
    if record.queued is not None:
        yield "modelserve.queue_seconds", record.queue_seconds


def _of_generation(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    """Yield attributes of the conventions for generative AI.

    https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
    """
    yield "gen_ai.provider.name", "modelserve"
    yield "gen_ai.operation.name", _OPERATIONS.get(record.verb, record.verb)
    yield "gen_ai.request.model", record.model
    generation = record.generation
    if generation is None:  # it failed before there was an answer
        return
    yield "gen_ai.response.model", generation.model
    if generation.streams:
        yield "gen_ai.request.stream", True
        if record.first_item_seconds is not None:
            yield "gen_ai.response.time_to_first_chunk", record.first_item_seconds
    if generation.id is not None:
        yield "gen_ai.response.id", generation.id
    if generation.finish_reasons:
        yield "gen_ai.response.finish_reasons", generation.finish_reasons
    if generation.input_tokens is not None:
        yield "gen_ai.usage.input_tokens", generation.input_tokens
    if generation.output_tokens is not None:
        yield "gen_ai.usage.output_tokens", generation.output_tokens


def _is_fault(record: RequestRecord) -> bool:
    """Return whether the server failed, rather than the client."""
    if record.outcome in ("done", "disconnected"):
        return record.status >= 500
    return not 400 <= record.status < 500


def _type_of(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _span_in(where: Context) -> Span:
    current: Callable[[], Span] = trace.get_current_span
    return where.run(current)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)
