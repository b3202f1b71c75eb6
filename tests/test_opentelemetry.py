"""Traces, with OpenTelemetry's own middleware and SDK."""

import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from client.scripted import serving

from modelserve import Batching, InvalidInput, Limits, Model, ModelServer
from modelserve.testing import exchange, request, websocket

pytest.importorskip("opentelemetry.instrumentation.asgi")

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from modelserve.opentelemetry import Tracing

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


class Traced:
    """An application in OpenTelemetry's middleware, and the spans that come out of it."""

    def __init__(self, *models: Any, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("user")
        self.models = ModelServer(
            models, observers=[Tracing(tracer_provider=self.provider, **options)]
        )
        self.app = OpenTelemetryMiddleware(
            self.models, tracer_provider=self.provider, exclude_spans=["send", "receive"]
        )

    async def predict(self, instances: Any, **options: Any) -> Any:
        return await request(self.app, *PREDICT, json={"instances": instances}, **options)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans by name; that of the request is `server`."""
        return {
            "server" if span.kind is SpanKind.SERVER else span.name: span
            for span in self.exporter.get_finished_spans()
        }

    @property
    def tree(self) -> dict[str, str | None]:
        """The name of each span's parent, by its own."""
        names = {span.context.span_id: name for name, span in self.spans.items()}
        return {
            name: None if span.parent is None else names[span.parent.span_id]
            for name, span in self.spans.items()
        }


def attributes_of(span: ReadableSpan, prefix: str) -> dict[str, Any]:
    return {k: v for k, v in (span.attributes or {}).items() if k.startswith(prefix)}


class Staged(Model):
    """A model each of whose hooks has a span of its own."""

    tracer: Any

    async def preprocess(self, payload: Any) -> Any:
        with self.tracer.start_as_current_span("in preprocess"):
            return payload["instances"]

    async def predict(self, instances: Any) -> Any:
        with self.tracer.start_as_current_span("in predict"):
            await anyio.lowlevel.checkpoint()
            return {"predictions": instances}

    def postprocess(self, result: Any) -> Any:
        with self.tracer.start_as_current_span("in postprocess"):
            return result


class AsyncStream(Staged):
    """A stream that holds a span of its own around its items."""

    async def predict(self, instances: Any) -> Any:
        with self.tracer.start_as_current_span("in predict"):
            for item in instances:
                with self.tracer.start_as_current_span(f"item {item}"):
                    yield item

    async def postprocess(self, result: AsyncIterator[Any]) -> Any:
        async for item in result:
            with self.tracer.start_as_current_span(f"post {item}"):
                yield item
        with self.tracer.start_as_current_span("in postprocess"):
            pass


class SyncStream(AsyncStream):
    def predict(self, instances: Any) -> Any:
        with self.tracer.start_as_current_span("in predict"):
            for item in instances:
                with self.tracer.start_as_current_span(f"item {item}"):
                    yield item


def traced(kind: Any, name: str = "m", **options: Any) -> Traced:
    model = kind(name)
    found = Traced(model, **options)
    model.tracer = found.tracer
    return found


async def test_spans_in_hooks_are_children_of_the_hooks_span() -> None:
    found = traced(Staged)
    assert (await found.predict([1])).status == 200
    hooks = ("preprocess", "predict", "postprocess")
    assert found.tree == {
        "server": None,
        **dict.fromkeys(hooks, "server"),
        **{f"in {hook}": hook for hook in hooks},
    }
    assert {found.spans[hook].kind for hook in hooks} == {SpanKind.INTERNAL}
    assert found.spans["predict"].attributes == {"modelserve.model": "m"}
    assert found.spans["server"].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("kind", [AsyncStream, SyncStream])
async def test_each_generator_keeps_its_own_span_from_item_to_item(kind: Any) -> None:
    found = traced(kind)
    assert (await found.predict([1, 2])).body == b"1\n2\n"
    assert found.tree == {
        "server": None,
        **dict.fromkeys(("preprocess", "predict", "postprocess"), "server"),
        "in preprocess": "preprocess",
        "in predict": "predict",
        **dict.fromkeys(("item 1", "item 2"), "in predict"),
        **dict.fromkeys(("post 1", "post 2", "in postprocess"), "postprocess"),
    }


async def test_a_span_lasts_as_long_as_its_hook() -> None:
    class Slow(Model):
        async def preprocess(self, payload: Any) -> Any:
            await anyio.sleep(0.03)
            return payload

        async def predict(self, payload: Any) -> Any:
            yield 1
            await anyio.sleep(0.05)
            yield 2

    found = traced(Slow)
    before = time.time_ns()
    await found.predict([])
    spans = found.spans
    first, second, server = (spans[name] for name in ("preprocess", "predict", "server"))
    assert None not in (first.start_time, first.end_time, second.start_time, second.end_time)
    assert before <= server.start_time <= first.start_time < first.end_time <= second.start_time  # type: ignore[operator]
    assert first.end_time - first.start_time > 20e6  # type: ignore[operator]
    assert 40e6 < second.end_time - second.start_time  # type: ignore[operator]
    assert second.end_time <= server.end_time  # type: ignore[operator]
    about = attributes_of(server, "modelserve.")
    assert about.pop("modelserve.request_id")
    assert 0.03 <= about.pop("modelserve.first_item_seconds") < 10
    assert about == {
        "modelserve.model": "m",
        "modelserve.protocol": "v1",
        "modelserve.verb": "predict",
        "modelserve.outcome": "done",
        "modelserve.items": 2,
    }


async def test_a_stream_of_100_items_is_two_spans() -> None:
    class Hundred(Model):
        async def predict(self, payload: Any) -> Any:
            for number in range(100):
                yield number

    found = traced(Hundred)
    await found.predict([])
    assert found.tree == {"server": None, "predict": "server"}


@pytest.mark.parametrize("is_sync", [True, False])
@pytest.mark.parametrize("records", [True, False])
async def test_a_hook_that_raises(records: bool, is_sync: bool) -> None:
    class Fails(Model):
        async def predict(self, payload: Any) -> Any:
            raise ValueError("a secret")

    class FailsInThread(Model):
        def predict(self, payload: Any) -> Any:
            raise ValueError("a secret")

    found = traced(FailsInThread if is_sync else Fails, record_exceptions=records)
    assert (await found.predict([])).status == 500
    for span in (found.spans["server"], found.spans["predict"]):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes_of(span, "error.") == {"error.type": "ValueError"}
    assert ("a secret" in found.spans["predict"].to_json()) is records
    assert "a secret" not in found.spans["server"].to_json()


async def test_a_stream_that_fails_is_an_error_though_its_status_is_200() -> None:
    class Fails(Model):
        async def predict(self, payload: Any) -> Any:
            yield 1
            raise ValueError("a secret")

    found = traced(Fails)
    assert (await found.predict([], headers={"accept": "text/event-stream"})).status == 200
    for span in (found.spans["server"], found.spans["predict"]):
        assert span.status.status_code is StatusCode.ERROR


async def test_bad_input_is_not_the_servers_error() -> None:
    class Refuses(Model):
        async def predict(self, payload: Any) -> Any:
            raise InvalidInput("a secret")

    found = traced(Refuses)
    assert (await found.predict([])).status == 400
    server = found.spans["server"]
    assert server.status.status_code is StatusCode.UNSET
    assert (server.attributes or {})["error.type"] == "modelserve.errors.InvalidInput"


@pytest.mark.parametrize("is_sync", [True, False])
async def test_a_client_that_leaves_ends_all_spans(is_sync: bool) -> None:
    current: list[Any] = []

    class Endless(Model):
        async def predict(self, payload: Any) -> Any:
            current.append(trace.get_current_span())
            try:
                yield 1
                await anyio.sleep_forever()
            finally:
                current.append(trace.get_current_span())

        async def preprocess(self, payload: Any) -> Any:
            return payload

    class EndlessInThread(Model):
        def predict(self, payload: Any) -> Iterator[int]:
            while True:
                yield 1
                time.sleep(0.005)

    found = traced(EndlessInThread if is_sync else Endless)
    async with exchange(found.app, *PREDICT, json={"instances": []}) as client:
        await client.head()
        await client.chunk()
        client.hang_up()
        await client.ended()
    spans = found.spans
    assert set(found.tree.items()) >= {("server", None), ("predict", "server")}
    assert attributes_of(spans["server"], "modelserve.")["modelserve.outcome"] == "disconnected"
    assert {span.status.status_code for span in spans.values()} == {StatusCode.UNSET}
    assert len(set(current)) == (0 if is_sync else 1)


async def test_what_is_refused() -> None:
    class Never(Model):
        limits = Limits(concurrency=1, queue=0)

        async def predict(self, payload: Any) -> Any:
            await anyio.sleep_forever()

    found = traced(Never)
    async with exchange(found.app, *PREDICT, json={"instances": []}) as first:
        while not found.models.serving.statistics().running:
            await anyio.lowlevel.checkpoint()
        assert (await found.predict([])).status == 503
        first.hang_up()
        await first.ended()
    found_spans = [s for s in found.exporter.get_finished_spans() if s.kind is SpanKind.SERVER]
    outcomes = [attributes_of(span, "modelserve.")["modelserve.outcome"] for span in found_spans]
    assert outcomes == ["refused", "disconnected"]
    assert [span.status.status_code is StatusCode.ERROR for span in found_spans] == [True, False]
    found.exporter.clear()
    assert (await request(found.app, "POST", "/v1/models/other:predict", json={})).status == 404
    about = attributes_of(found.spans["server"], "modelserve.")
    assert (about["modelserve.model"], about["modelserve.verb"]) == ("", "predict")
    found.exporter.clear()
    assert (await request(found.app, "GET", "/v1/models/m")).status == 200
    assert attributes_of(found.spans["server"], "modelserve.") == {}


async def test_what_another_task_answers_is_told_to_the_span_of_the_request() -> None:
    class Never(Model):
        limits = Limits(timeout=0.1)

        async def predict(self, payload: Any) -> Any:
            if payload["instances"]:
                return {"predictions": payload["instances"]}
            await anyio.sleep_forever()

    found = traced(Never)
    async with anyio.create_task_group() as group:
        group.start_soon(found.predict, [])
        group.start_soon(found.predict, [])
        group.start_soon(found.predict, [1])
    servers = [s for s in found.exporter.get_finished_spans() if s.kind is SpanKind.SERVER]
    ids = {attributes_of(span, "modelserve.")["modelserve.request_id"] for span in servers}
    assert len(servers) == len(ids) == 3
    for span in servers:
        is_late = attributes_of(span, "http.")["http.status_code"] == 504
        outcome = attributes_of(span, "modelserve.")["modelserve.outcome"]
        assert outcome == ("timeout" if is_late else "done")


async def test_a_time_limit_is_an_error() -> None:
    class Never(Model):
        limits = Limits(timeout=0.05)

        async def predict(self, payload: Any) -> Any:
            await anyio.sleep_forever()

    found = traced(Never)
    assert (await found.predict([])).status == 504
    server = found.spans["server"]
    assert server.status.status_code is StatusCode.ERROR
    assert attributes_of(server, "modelserve.")["modelserve.outcome"] == "timeout"
    assert found.tree == {"server": None, "predict": "server"}


async def test_the_wait_for_a_slot_is_a_span() -> None:
    class Slow(Model):
        limits = Limits(concurrency=1)

        async def predict(self, payload: Any) -> Any:
            await anyio.sleep(0.04)
            return {"predictions": payload["instances"]}

    found = traced(Slow)
    async with anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(found.predict, [number])
    queues = [s for s in found.exporter.get_finished_spans() if s.name == "queue"]
    servers = [s for s in found.exporter.get_finished_spans() if s.kind is SpanKind.SERVER]
    [queue] = queues
    assert queue.parent is not None
    [server] = [s for s in servers if s.context.span_id == queue.parent.span_id]
    assert queue.start_time is not None and queue.end_time is not None
    assert queue.end_time - queue.start_time > 20e6
    assert server.start_time is not None and server.end_time is not None
    assert server.start_time - 10e9 <= queue.start_time
    assert "modelserve.queue_seconds" in (server.attributes or {})


@pytest.mark.parametrize("is_sync", [True, False])
async def test_a_batch_has_links_to_its_requests(is_sync: bool) -> None:
    class Doubles(Model):
        batching = Batching()

        async def predict(self, payload: Any) -> Any:
            await anyio.sleep(0.02)
            with self.tracer.start_as_current_span("in batch"):
                return {"predictions": [2 * x for x in payload["instances"]]}

    class DoublesInThread(Model):
        batching = Batching()

        def predict(self, payload: Any) -> Any:
            time.sleep(0.02)
            with self.tracer.start_as_current_span("in batch"):
                return {"predictions": [2 * x for x in payload["instances"]]}

    found = traced(DoublesInThread if is_sync else Doubles)
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(found.predict, [number])
    spans = found.exporter.get_finished_spans()
    [batch] = [span for span in spans if span.name == "batch"]  # the first request goes alone
    predicts = {span.context.span_id for span in spans if span.name == "predict"}
    assert len(predicts) == 4
    assert len(batch.links) == 3
    assert {link.context.span_id for link in batch.links} < predicts
    assert batch.parent is not None
    assert batch.parent.span_id in {link.context.span_id for link in batch.links}
    inside = [span for span in spans if span.name == "in batch"]
    assert batch.context.span_id in {span.parent.span_id for span in inside if span.parent}


@pytest.mark.parametrize("is_sync", [True, False])
async def test_a_model_that_another_one_calls(is_sync: bool) -> None:
    found = traced(Staged, "inner")
    app = found.models

    @app.model("m")
    async def outer(payload: Any) -> Any:
        return await app.call("inner", payload)

    @app.model("m-in-thread")
    def outer_in_thread(payload: Any) -> Any:
        return app.call("inner", payload).result()

    path = f"/v1/models/{'m-in-thread' if is_sync else 'm'}:predict"
    assert (await request(found.app, "POST", path, json={"instances": [1]})).status == 200
    spans = found.exporter.get_finished_spans()
    names = {span.context.span_id: span for span in spans}
    [call] = [span for span in spans if span.name == "call"]
    assert call.parent is not None
    caller = names[call.parent.span_id]
    assert caller.name == "predict" and caller.parent is not None
    assert names[caller.parent.span_id].kind is SpanKind.SERVER
    about = attributes_of(call, "modelserve.")
    assert (about["modelserve.model"], about["modelserve.protocol"]) == ("inner", "call")
    hooks = {s.name for s in spans if s.parent and s.parent.span_id == call.context.span_id}
    assert hooks == {"preprocess", "predict", "postprocess"}
    [server] = [span for span in spans if span.kind is SpanKind.SERVER]
    assert attributes_of(server, "modelserve.")["modelserve.protocol"] == "v1"


async def test_a_websocket_and_a_streamed_request() -> None:
    class Doubles(Model):
        async def predict(self, instances: AsyncIterator[int]) -> AsyncIterator[int]:
            async for x in instances:
                with self.tracer.start_as_current_span(f"item {x}"):
                    yield 2 * x

    found = traced(Doubles)
    async with websocket(found.app, PREDICT[1]) as client:
        client.send("1")
        assert await client.message() == "2"
        client.send("")
        await client.closed()
        await client.ended()
    assert found.tree["item 1"] == "predict" and found.tree["predict"] == "server"
    found.exporter.clear()
    lines = {"headers": {"content-type": "application/x-ndjson"}, "body": b"1\n2\n"}
    assert (await request(found.app, *PREDICT, **lines)).body == b"2\n4\n"
    assert found.tree == {
        "server": None, "predict": "server", "item 1": "predict", "item 2": "predict",
    }  # fmt: skip


@pytest.mark.parametrize("opts_in", [True, False])
async def test_names_of_generative_ai_where_they_are_asked_for(
    opts_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if opts_in:
        value = "http/dup, gen_ai_latest_experimental"
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", value)

    class Chat(Model):
        async def chat(self, payload: Any) -> Any:
            yield "a secret"
            yield {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}

    found = traced(Chat)
    messages = [{"role": "user", "content": "a secret"}]
    document = {"model": "m", "messages": messages, "stream": True}
    answer = await request(found.app, "POST", "/openai/v1/chat/completions", json=document)
    assert answer.status == 200
    about = attributes_of(found.spans["server"], "gen_ai.")
    if opts_in:
        assert about.pop("gen_ai.response.id").startswith("chatcmpl-")
        assert 0 < about.pop("gen_ai.response.time_to_first_chunk") < 10
        assert about == {
            "gen_ai.provider.name": "modelserve",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.request.stream": True,
            "gen_ai.response.model": "m",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 2,
        }
    else:
        assert about == {}
    assert found.tree == {"server": None, "chat": "server"}
    assert not any("a secret" in span.to_json() for span in found.exporter.get_finished_spans())


@pytest.mark.parametrize("hook", ["complete", "embed"])
async def test_a_generation_that_fails_has_the_names_of_its_request(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")

    async def fails(self: Model, payload: Any) -> Any:
        raise ValueError("a secret")

    found = traced(type("Fails", (Model,), {hook: fails}))
    path = {"complete": "completions", "embed": "embeddings"}[hook]
    document = {"model": "m", "prompt": "a secret", "input": "a secret"}
    answer = await request(found.app, "POST", f"/openai/v1/{path}", json=document)
    assert answer.status == 500
    server = found.spans["server"]
    operation = {"complete": "text_completion", "embed": "embeddings"}[hook]
    assert attributes_of(server, "gen_ai.") == {
        "gen_ai.provider.name": "modelserve",
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": "m",
    }
    assert (server.attributes or {})["error.type"] == "ValueError"


async def test_nothing_is_recorded_where_the_host_traces_nothing() -> None:
    found = traced(Staged)
    assert (await request(found.models, *PREDICT, json={"instances": [1]})).status == 200
    assert {name: parent for name, parent in found.tree.items() if "in " not in name} == {}


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_over_a_socket(http: str) -> None:
    class Doubles(Model):
        async def preprocess(self, payload: Any) -> Any:
            return payload["instances"]

        async def predict(self, instances: Any) -> Any:
            for number in instances:
                yield 2 * number

    found = traced(Doubles)
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent}-01", "x-request-id": "one"}
    with serving(found.app, http=http) as url, httpx.Client(base_url=url) as client:
        answer = client.post(PREDICT[1], json={"instances": [1, 2]}, headers=headers)
        assert answer.text == "2\n4\n"
        with client.stream("POST", PREDICT[1], json={"instances": list(range(100))}) as stream:
            assert len(list(stream.iter_lines())) == 100
    spans = found.exporter.get_finished_spans()
    first = [span for span in spans if span.context.trace_id == int(trace_id, 16)]
    assert {span.name.removeprefix("POST ") for span in first} == {
        PREDICT[1], "preprocess", "predict",
    }  # fmt: skip
    [server] = [span for span in first if span.kind is SpanKind.SERVER]
    assert server.parent is not None and server.parent.span_id == int(parent, 16)
    assert {s.parent.span_id for s in first if s.parent and s is not server} == {
        server.context.span_id
    }
    about = attributes_of(server, "modelserve.")
    assert (about["modelserve.request_id"], about["modelserve.items"]) == ("one", 2)
    assert len(spans) == 6  # of which the stream of 100 items is half


def test_it_can_be_pickled_for_worker_processes() -> None:
    tracing = pickle.loads(pickle.dumps(Tracing(record_exceptions=True)))
    assert isinstance(tracing, Tracing)


def test_without_opentelemetry_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import modelserve\n"
        "try: import modelserve.opentelemetry\n"
        "except ImportError as exc: print(exc)"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert told == (
        "modelserve.opentelemetry needs opentelemetry-api:"
        " pip install 'modelserve[opentelemetry]'.\n"
    )
