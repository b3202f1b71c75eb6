"""Requests that are answered while they come in."""

import json
import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from modelserve import Batching, InvalidInput, Limits, Model, ModelServer
from modelserve.testing import Cut, Exchange, exchange, request

pytestmark = pytest.mark.anyio

PATH = "/v1/models/m:predict"
LINES = {"content-type": "application/x-ndjson"}


async def doubled(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for x in instances:
        yield x * 2


def doubled_in_thread(instances: Iterator[Any]) -> Iterator[Any]:
    for x in instances:
        yield x * 2


def doubled_iterable(instances: Iterable[Any]) -> Iterator[Any]:
    for x in instances:
        yield x * 2


async def as_text(instances: "AsyncIterable[Unknown]") -> AsyncIterator[Any]:  # type: ignore[name-defined]  # noqa: F821
    async for x in instances:
        yield x * 2


async def lists(payload: Any) -> Any:
    return {"predictions": [x * 2 for x in payload["instances"]]}


def lists_in_thread(payload: Any) -> Any:
    return {"predictions": [x * 2 for x in payload["instances"]]}


async def yielding(payload: Any) -> AsyncIterator[Any]:
    for x in payload["instances"]:
        yield x * 2


ITERATORS = [doubled, doubled_in_thread, doubled_iterable, as_text]
LISTS = [lists, lists_in_thread, yielding]


def served(function: Any, **settings: Any) -> ModelServer:
    app = ModelServer()
    app.add_model(function, "m", **settings)
    return app


def sending(app: ModelServer, query: str = "", **headers: str) -> Any:
    return exchange(app, "POST", PATH + query, headers={**LINES, **headers}, body=None)


async def read(client: Exchange) -> bytes:
    return b"".join([chunk async for chunk in client])


# --- results while the request comes in ----------------------------------------------------------


@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_each_result_leaves_before_the_next_line_has_arrived(function: Any) -> None:
    async with sending(served(function)) as client:
        for n in range(3):
            client.send_body(b"%d\n" % n, more=True)
            if n == 0:
                head = await client.head()
                assert head.status == 200
                assert head.headers["content-type"] == "application/x-ndjson"
                assert head.headers["cache-control"] == "no-cache"
            assert await client.chunk() == b"%d\n" % (2 * n)
        client.send_body(b"7")  # the last line needs no end
        assert await read(client) == b"14\n"


@pytest.mark.parametrize("function", ITERATORS + LISTS)
@pytest.mark.parametrize("name", ["application/x-jsonl", "application/jsonlines; charset=utf-8"])
async def test_many_lines_are_answered_in_order(function: Any, name: str) -> None:
    async with sending(served(function), **{"content-type": name}) as client:
        body = b"".join(b"%d\n" % n for n in range(5000))
        for start in range(0, len(body), 1000):
            client.send_body(body[start : start + 1000], more=True)
        client.send_body(b"")
        assert (await client.head()).status == 200
        assert await read(client) == b"".join(b"%d\n" % (2 * n) for n in range(5000))


@pytest.mark.parametrize("function", ITERATORS + LISTS)
@pytest.mark.parametrize("body", [b"", b"\n \n"])
async def test_no_lines_are_no_results(function: Any, body: bytes) -> None:
    answer = await request(served(function), "POST", PATH, headers=LINES, body=body)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "application/x-ndjson"


async def test_results_of_one_lot_go_out_in_one_event() -> None:
    for function in (doubled, lists):
        async with sending(served(function)) as client:
            client.send_body(b"1\n2\n3\n", more=True)
            await client.head()
            assert await client.chunk() == b"2\n4\n6\n"
            client.send_body(b"")
            assert await read(client) == b""


async def test_a_hook_of_lists_is_given_what_has_arrived_and_no_more_than_256() -> None:
    sizes: list[int] = []

    async def sized(payload: Any) -> Any:
        sizes.append(len(payload["instances"]))
        return {"predictions": payload["instances"]}

    async with sending(served(sized)) as client:
        client.send_body(b"1\n", more=True)
        await client.head()
        assert await client.chunk() == b"1\n"
        client.send_body(b"1\n" * 600)
        await read(client)
    assert sizes == [1, 256, 256, 88]


@pytest.mark.parametrize("function", ITERATORS)
async def test_a_document_reaches_a_hook_that_iterates(function: Any) -> None:
    answer = await request(served(function), "POST", PATH, json={"instances": [1, 2]})
    assert (answer.status, answer.body) == (200, b"2\n4\n")


@pytest.mark.parametrize("function", ITERATORS)
@pytest.mark.parametrize("document", [{"inputs": [1]}, [1], {"instances": 3}, "x"])
async def test_a_document_without_instances_is_refused(function: Any, document: Any) -> None:
    answer = await request(served(function), "POST", PATH, json=document)
    assert answer.status == 400
    assert "instances" in answer.json()["error"]


@pytest.mark.parametrize("name", ["audio/wav", "video/mp4", "application/octet-stream"])
async def test_bytes_reach_a_hook_that_iterates(name: str) -> None:
    async def sizes(instances: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for piece in instances:
            yield {"n": len(piece)}

    async with sending(served(sizes), **{"content-type": name}) as client:
        client.send_body(b"\n" * 10, more=True)
        await client.head()
        assert await client.chunk() == b'{"n":10}\n'
        client.send_body(b"x" * 5)
        assert await read(client) == b'{"n":5}\n'


async def test_a_hook_that_iterates_may_return_a_value() -> None:
    async def total(instances: AsyncIterator[int]) -> Any:
        return {"predictions": [sum([x async for x in instances])]}

    def total_in_thread(instances: Iterator[int]) -> Any:
        return {"predictions": [sum(instances)]}

    for function in (total, total_in_thread):
        answer = await request(served(function), "POST", PATH, headers=LINES, body=b"1\n2\n3")
        assert answer.json() == {"predictions": [6]}


async def test_the_form_of_the_answer_is_chosen_by_accept() -> None:
    for function in (doubled, lists):
        app = served(function)
        sse = {**LINES, "accept": "text/event-stream"}
        answer = await request(app, "POST", PATH, headers=sse, body=b"1\nbad\n")
        assert answer.body.startswith(b"data: 2\n\ndata: {")
        collected = {**LINES, "accept": "application/json"}
        answer = await request(app, "POST", PATH, headers=collected, body=b"1\n2\n")
        assert answer.json() == {"predictions": [2, 4]}
        text = await request(app, "POST", PATH, headers=LINES, body=b'"a"\n"b"')
        assert text.body == b'"aa"\n"bb"\n'


async def test_preprocess_runs_once_for_an_iterator_and_for_each_chunk_of_lists() -> None:
    calls: list[str] = []

    class Iterates(Model):
        async def preprocess(self, instances: AsyncIterator[int]) -> AsyncIterator[int]:
            calls.append("once")
            return (x + 1 async for x in instances)

        async def predict(self, instances: AsyncIterator[int]) -> AsyncIterator[int]:
            async for x in instances:
                yield x

    class Lists(Model):
        def preprocess(self, payload: Any) -> Any:
            calls.append("chunk")
            return payload

        def predict(self, payload: Any) -> Any:
            return {"predictions": payload["instances"]}

        def postprocess(self, result: Any) -> Any:
            return {"predictions": [x + 1 for x in result["predictions"]]}

    body = b"1\n" * 300
    for model in (Iterates("m"), Lists("m")):
        answer = await request(ModelServer([model]), "POST", PATH, headers=LINES, body=body)
        assert answer.body == b"2\n" * 300
    assert calls == ["once", "chunk", "chunk"]


@pytest.mark.parametrize("key", ["explanations", "predictions"])
async def test_explain_is_streamed_too(key: str) -> None:
    class Explains(Model):
        async def explain(self, payload: Any) -> Any:
            return {key: [-x for x in payload["instances"]]}

    path = "/v1/models/m:explain"
    answer = await request(
        ModelServer([Explains("m")]), "POST", path, headers=LINES, body=b"1\n2\n"
    )
    assert answer.body == b"-1\n-2\n"


async def test_explain_of_something_else_is_told_what_to_return() -> None:
    class Explains(Model):
        async def explain(self, payload: Any) -> Any:
            return 5

    path = "/v1/models/m:explain"
    app = ModelServer([Explains("m")], debug=True)
    answer = await request(app, "POST", path, headers=LINES, body=b"1\n")
    assert answer.status == 500
    assert b"with an explanation for each" in answer.body


# --- what is wrong with a line -------------------------------------------------------------------


@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_a_bad_line_is_reported_in_its_place_and_the_stream_goes_on(function: Any) -> None:
    limits = Limits(max_line_bytes=20)
    async with sending(served(function, limits=limits)) as client:
        client.send_body(b"1\n\nbad\n3\n", more=True)
        await client.head()
        lines = b""
        while lines.count(b"\n") < 3:
            lines += await client.chunk() or b""
        client.send_body(b"[" + b"1," * 20 + b"1]\n4\n")
        lines += await read(client)
    first, bad, third, long, last = lines.splitlines()
    assert (first, third, last) == (b"2", b"6", b"8")
    assert bad.startswith(b'{"error":"not JSON: ') and bad.endswith(b'","line":3}')
    assert long == b'{"error":"longer than 20 bytes","line":5}'


async def test_lines_that_fail_together_may_have_arrays_as_results() -> None:
    def sums(payload: Any) -> Any:
        return {"predictions": np.array(payload["instances"]).sum(axis=1)}  # not of ragged rows

    answer = await request(served(sums), "POST", PATH, headers=LINES, body=b"[1]\n[1,2]\n[]\n")
    assert answer.body == b"1\n3\n0.0\n"


async def inverses(payload: Any) -> AsyncIterator[float]:
    for x in payload["instances"]:
        if x == 0:
            raise InvalidInput("zero")
        yield 10 / x


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ("", b"0\n1\n2\n", [{"error": "zero", "line": 1}, 10, 5]),
        (
            "",
            b"0\n0\n1\n0\n",
            [
                {"error": "zero", "line": 1},
                {"error": "zero", "line": 2},
                10,
                {"error": "zero", "line": 4},
            ],
        ),
        ("", b"0\n0\n", [{"error": "zero", "line": 1}, {"error": "zero", "line": 2}]),
        ("?on_error=stop", b"0\n1\n", [{"error": "line 1: zero"}]),
    ],
)
async def test_errors_and_what_a_generator_yields_keep_the_order_of_the_lines(
    query: str, body: bytes, expected: list[Any]
) -> None:
    answer = await request(served(inverses), "POST", PATH + query, headers=LINES, body=body)
    assert [json.loads(line) for line in answer.body.splitlines()] == expected


@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_a_bad_line_may_end_the_stream(function: Any) -> None:
    async with sending(served(function), "?on_error=stop") as client:
        client.send_body(b"1\n", more=True)
        await client.head()
        assert await client.chunk() == b"2\n"
        client.send_body(b"2\nbad\n3\n", more=True)
        *results, last = (await read(client)).splitlines()
        assert results in ([b"4"], [])  # a thread may not have made it yet
        assert last.startswith(b'{"error":"line 3: not JSON: ')


async def test_a_bad_line_waits_for_what_a_thread_has_yielded_before_it() -> None:
    class Held(Model):
        """Its items are held, one after the other, where they have left the thread."""

        release = anyio.Semaphore(0)
        has_run_ahead = threading.Event()

        def predict(self, instances: Iterator[Any]) -> Iterator[Any]:
            for number, x in enumerate(instances, 1):
                yield x
                if number == 3:
                    self.has_run_ahead.set()

        async def postprocess(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for item in items:
                await self.release.acquire()
                yield item

    app = ModelServer([model := Held("m")])
    async with sending(app) as client:
        client.send_body(b"1\n2\n3\nnope\n4\n")
        await anyio.to_thread.run_sync(model.has_run_ahead.wait)
        for _ in range(4):
            await anyio.wait_all_tasks_blocked()
            model.release.release()
        found = (await client.response()).body.splitlines()
        bad = found.pop(3)
        assert found == [b"1", b"2", b"3", b"4"]
        assert bad.startswith(b'{"error":"not JSON')


@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_a_bad_line_is_an_honest_status_where_nothing_was_sent(function: Any) -> None:
    app = served(function)
    collected = {**LINES, "accept": "application/json"}
    answer = await request(app, "POST", PATH, headers=collected, body=b"1\nbad\n")
    assert answer.status == 400
    assert answer.json()["error"].startswith("line 2: not JSON: ")
    stopped = await request(app, "POST", PATH + "?on_error=stop", headers=LINES, body=b"bad\n1")
    assert stopped.status == 400


async def test_a_bad_line_that_comes_first_is_a_record() -> None:
    for function in (doubled, doubled_in_thread, lists):
        async with sending(served(function)) as client:
            client.send_body(b"bad\n", more=True)
            assert (await client.head()).status == 200
            assert b'"line":1' in (await client.chunk() or b"")
            client.send_body(b"1")
            assert await read(client) == b"2\n"


async def test_a_bad_line_cuts_a_stream_that_cannot_say_so() -> None:
    async def echoes(instances: AsyncIterator[str]) -> AsyncIterator[str]:
        async for x in instances:
            yield x

    async with sending(served(echoes), accept="text/plain") as client:
        client.send_body(b'"a"\n', more=True)
        await client.head()
        assert await client.chunk() == b"a"
        client.send_body(b"bad\n")
        with pytest.raises(Cut):
            await read(client)


async def test_an_iterator_that_returns_a_value_sees_the_bad_line() -> None:
    async def total(instances: AsyncIterator[int]) -> Any:
        return {"predictions": [sum([x async for x in instances])]}

    async def swallows(instances: AsyncIterator[int]) -> Any:
        try:
            return {"predictions": [sum([x async for x in instances])]}
        except InvalidInput:
            return {"predictions": []}

    for function in (total, swallows):
        answer = await request(served(function), "POST", PATH, headers=LINES, body=b"1\nbad\n3")
        assert answer.status == 400
        assert answer.json()["error"].startswith("line 2: not JSON: ")


async def positive(payload: Any) -> Any:
    if any(x < 0 for x in payload["instances"]):
        raise InvalidInput("Expected what is positive.")
    return {"predictions": [1 / x for x in payload["instances"]]}


@pytest.mark.parametrize("batching", [None, Batching(max_size=4)])
async def test_an_item_that_fails_fails_alone(
    batching: Batching | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = served(positive, batching=batching)
    answer = await request(app, "POST", PATH, headers=LINES, body=b"1\n-1\n2\n0\n4\n")
    assert answer.body.splitlines() == [
        b"1.0",
        b'{"error":"Expected what is positive.","line":2}',
        b"0.5",
        b'{"error":"Internal Server Error","line":4}',
        b"0.25",
    ]
    assert "Line 4 of request" in caplog.text and "Line 2" not in caplog.text


@pytest.mark.parametrize("batching", [None, Batching(max_size=4)])
async def test_an_exception_in_a_predictions_place_is_that_lines(
    batching: Batching | None,
) -> None:
    calls = 0

    async def odd(payload: Any) -> Any:
        nonlocal calls
        calls += 1
        return {"predictions": [x if x % 2 else InvalidInput("even") for x in payload["instances"]]}

    answer = await request(
        served(odd, batching=batching), "POST", PATH, headers=LINES, body=b"1\n2\n3\n"
    )
    assert answer.body == b'1\n{"error":"even","line":2}\n3\n'
    assert calls == 1


async def test_a_model_that_fails_before_its_first_result_is_a_500() -> None:
    async def broken(payload: Any) -> Any:
        raise RuntimeError("secret")

    async def broken_iterator(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for _ in instances:
            raise RuntimeError("secret")
        yield 1

    for function in (broken, broken_iterator):
        answer = await request(served(function), "POST", PATH, headers=LINES, body=b"1\n2\n")
        assert (answer.status, answer.json()) == (500, {"error": "Internal Server Error"})


async def test_a_model_without_the_hook_is_a_501() -> None:
    app = served(lists)
    path = "/v1/models/m:explain"
    assert (await request(app, "POST", path, headers=LINES, body=b"1\n")).status == 501


async def test_an_iterator_that_fails_later_ends_with_a_record() -> None:
    async def fails(instances: AsyncIterator[int]) -> AsyncIterator[int]:
        async for x in instances:
            if x == 3:
                raise InvalidInput("No threes.")
            yield x

    answer = await request(served(fails), "POST", PATH, headers=LINES, body=b"1\n2\n3\n4\n")
    assert answer.body == b'1\n2\n{"error":"No threes."}\n'


@pytest.mark.parametrize("body", [b"1\n", b'"%d"\n' % 10**99 * 2000])
async def test_a_header_that_cannot_be_sent_is_a_500(body: bytes) -> None:
    class Unsendable(Model):
        async def predict(
            self, instances: AsyncIterator[Any], headers: Any = None, response_headers: Any = None
        ) -> AsyncIterator[Any]:
            response_headers["x-bad"] = "a\r\nb: c"
            async for x in instances:
                yield x

    app = ModelServer([Unsendable("m")])
    response = await request(app, "POST", PATH, headers=LINES, body=body)
    assert response.status == 500


async def test_another_number_of_results_fails_the_request() -> None:
    async def one(payload: Any) -> Any:
        return {"predictions": [1]}

    async def none(payload: Any) -> Any:
        return "text"

    for function in (one, none):
        answer = await request(served(function), "POST", PATH, headers=LINES, body=b"1\n2\n")
        assert answer.status == 500


# --- before the body -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (404, "/v1/models/other:predict", {}),
        (406, PATH, {"accept": "image/png"}),
        (415, PATH, {"content-encoding": "br"}),
        (400, PATH + "?on_error=maybe", {}),
    ],
)
async def test_what_can_be_refused_is_refused_before_the_body(
    status: int, path: str, headers: dict[str, str]
) -> None:
    async def never() -> Any:
        raise AssertionError("the body was asked for")

    for function in (doubled, lists):
        app = served(function)
        async with exchange(app, "POST", path, headers={**LINES, **headers}, body=None) as client:
            client._receive = never  # type: ignore[method-assign]
            assert (await client.head()).status == status


async def test_a_full_queue_is_told_before_the_body() -> None:
    app = served(doubled, limits=Limits(concurrency=1, queue=0))
    async with sending(app) as first:
        first.send_body(b"1\n", more=True)
        assert (await first.head()).status == 200
        async with sending(app) as second:  # which sends nothing
            assert (await second.head()).status == 503
        first.send_body(b"")
        assert await read(first) == b"2\n"


# --- limits, leaving, back-pressure --------------------------------------------------------------


class Watching(Model):
    """A model that says how its hook has ended."""

    def __init__(self, *, sync: bool = False, **limits: Any) -> None:
        super().__init__("m")
        self.limits = Limits(**limits)
        self.taken = 0
        self.cleaned = False
        if sync:
            self.predict = self.in_thread  # type: ignore[method-assign, assignment]

    async def predict(self, instances: AsyncIterator[Any]) -> AsyncIterator[Any]:  # type: ignore[override]
        try:
            async for x in instances:
                self.taken += 1
                yield x
        finally:
            await anyio.lowlevel.checkpoint()
            self.cleaned = True

    def in_thread(self, instances: Iterator[Any]) -> Iterator[Any]:
        try:
            for x in instances:
                self.taken += 1
                yield x
        finally:
            self.cleaned = True


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("stage", ["nothing", "part", "line", "result", "all"])
async def test_a_client_that_leaves_ends_the_hook(sync: bool, stage: str) -> None:
    model = Watching(sync=sync)
    app = ModelServer([model])
    async with sending(app) as client:
        if stage == "part":
            client.send_body(b"[1", more=True)
        elif stage in ("line", "result"):
            client.send_body(b"1\n", more=True)
        elif stage == "all":
            client.hold()
            client.send_body(b"1\n")
        if stage == "result":
            await client.head()
            assert await client.chunk() == b"1\n"
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()
    assert model.cleaned or not model.taken
    assert len(app.serving.flights) == 0
    assert app.serving.admission.gate.running == 0
    if stage == "result":
        assert model.cleaned


@pytest.mark.parametrize("sync", [False, True])
async def test_input_timeout_ends_a_request_whose_client_sends_no_line(sync: bool) -> None:
    model = Watching(sync=sync, input_timeout=0.3)
    async with sending(ModelServer([model])) as client:
        client.send_body(b"[1", more=True)
        assert (await client.head()).status == 408
        assert b"input_timeout: no line was received for 0.3 s" in await read(client)
    async with sending(ModelServer([model])) as client:
        client.send_body(b"1\n", more=True)
        assert (await client.head()).status == 200
        assert await client.chunk() == b"1\n"
        assert await read(client) == b'{"error":"input_timeout: no line was received for 0.3 s"}\n'
    assert model.cleaned


async def test_other_limits_on_time_hold() -> None:
    for limits, text in ((Limits(idle_timeout=0.3), b"idle"), (Limits(timeout=0.3), b"timeout")):
        async with sending(served(doubled, limits=limits)) as client:
            client.send_body(b"1\n", more=True)
            await client.head()
            assert await client.chunk() == b"2\n"
            assert text in await read(client)


@pytest.mark.parametrize("function", [doubled, doubled_in_thread, lists])
async def test_a_client_that_does_not_read_stops_being_read(
    function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = served(function, limits=Limits(send_timeout=0.3))
    line = b'"' + b"x" * 998 + b'"\n'
    async with sending(app) as client:
        client.hold()
        for _ in range(40):  # 4 MB
            client.send_body(line * 100, more=True)
        await client.ended()
        left = len(client._to_app)
    assert left > 15, "the server has read on"
    assert "the client does not read while it sends" in caplog.text
    assert app.serving.admission.gate.running == 0


@pytest.mark.parametrize("function", [doubled, doubled_in_thread])
async def test_a_flood_of_bad_lines_is_held_back_too(function: Any) -> None:
    app = served(function, limits=Limits(send_timeout=0.3))
    async with sending(app) as client:
        client.hold()
        for _ in range(100):
            client.send_body(b"bad\n" * 10_000, more=True)
        await client.ended()
        assert len(client._to_app) > 50


async def test_a_slow_reader_gets_everything() -> None:
    line = b'"' + b"x" * 998 + b'"\n'
    for function in (doubled, doubled_in_thread, lists):
        async with sending(served(function)) as client:
            client.hold()
            for _ in range(40):
                client.send_body(line * 100, more=True)
            client.send_body(b"")
            await anyio.wait_all_tasks_blocked()
            client.resume()
            await client.head()
            assert (await read(client)).count(b"\n") == 4000


async def test_a_hook_may_stop_reading() -> None:
    async def two(instances: AsyncIterator[int]) -> AsyncIterator[int]:
        async for x in instances:
            yield x
            if x == 2:
                break

    async with sending(served(two)) as client:
        client.send_body(b"1\n2\n3\n", more=True)
        await client.head()
        assert await read(client) == b"1\n2\n"


async def test_a_time_limit_of_the_hooks_own_loses_no_instance() -> None:
    async def windows(instances: AsyncIterator[int]) -> AsyncIterator[list[int]]:
        window: list[int] = []
        while True:
            try:
                with anyio.fail_after(0.05):
                    window.append(await anext(instances))
            except TimeoutError:
                yield window
                window = []
            except StopAsyncIteration:
                yield window
                return

    async with sending(served(windows)) as client:
        client.send_body(b"1\n2\n", more=True)
        await client.head()
        assert await client.chunk() == b"[1,2]\n"
        client.send_body(b"3\n")
        assert (await read(client)).endswith(b"[3]\n")


# --- heartbeats ----------------------------------------------------------------------------------


def beating(function: Any, *, before_first: bool = False) -> ModelServer:
    return served(function, heartbeat=0.01, heartbeat_before_first=before_first)


@pytest.mark.parametrize("function", ITERATORS + LISTS)
async def test_a_heart_beats_while_neither_side_has_anything_to_say(function: Any) -> None:
    async with sending(beating(function), accept=LINES["content-type"]) as client:
        client.send_body(b"1\n", more=True)
        await client.head()
        assert await client.chunk() == b"2\n"
        assert [await client.chunk(), await client.chunk()] == [b"\n", b"\n"]
        client.send_body(b"2\n")
        assert (await read(client)).strip() == b"4"
        await client.ended()


@pytest.mark.parametrize("function", [doubled, doubled_in_thread, lists])
async def test_a_heart_may_beat_before_the_first_line(function: Any) -> None:
    app = beating(function, before_first=True)
    async with sending(app, accept="text/event-stream") as client:
        assert (await client.head()).status == 200
        assert [await client.chunk(), await client.chunk()] == [b":\n\n", b":\n\n"]
        client.send_body(b"1\n")
        assert b"data: 2\n\n" in await read(client)


async def test_a_model_that_fails_after_a_heartbeat_ends_with_a_record() -> None:
    async def fails(payload: Any) -> Any:
        raise ValueError("secret")

    async with sending(beating(fails, before_first=True), accept=LINES["content-type"]) as client:
        await client.head()
        client.send_body(b"1\n")
        last = (await read(client)).splitlines()[-1]
        assert last == b'{"error":"Internal Server Error","line":1}'


async def test_only_a_client_that_asks_for_lines_hears_the_heart() -> None:
    async with sending(beating(doubled, before_first=True)) as client:
        client.send_body(b"1\n", more=True)
        await client.head()
        assert await client.chunk() == b"2\n"
        await anyio.sleep(0.1)
        client.send_body(b"2\n")
        assert await read(client) == b"4\n"


async def test_heartbeats_do_not_make_a_quiet_stream_look_busy() -> None:
    app = served(doubled, heartbeat=0.01, limits=Limits(idle_timeout=0.2))
    async with sending(app, accept=LINES["content-type"]) as client:
        client.send_body(b"1\n", more=True)
        await client.head()
        assert b"idle_timeout" in (await read(client)).splitlines()[-1]


async def test_a_client_that_leaves_between_heartbeats_ends_the_hook() -> None:
    ended = anyio.Event()

    async def hook(instances: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for x in instances:
                yield x
        finally:
            ended.set()

    async with sending(beating(hook), accept=LINES["content-type"]) as client:
        client.send_body(b"1\n", more=True)
        await client.head()
        while await client.chunk() != b"\n":
            pass
        client.hang_up()
        await client.ended()
    assert ended.is_set()


# --- what is settled at registration -------------------------------------------------------------


async def test_an_iterator_that_a_hook_cannot_read_is_refused_at_registration() -> None:
    async def reads_sync(instances: Iterator[int]) -> Any: ...

    def reads_async(instances: AsyncIterator[int]) -> Iterator[int]:
        yield 1

    with pytest.raises(
        TypeError, match="is async and takes an Iterator: it needs an AsyncIterator"
    ):
        served(reads_sync)
    with pytest.raises(TypeError, match="is a sync generator: it needs an Iterator"):
        served(reads_async)

    async def value(instances: AsyncIterator[int]) -> Any: ...

    with pytest.raises(TypeError, match="takes an iterator, which cannot be batched"):
        served(value, batching=Batching())


async def test_an_iterable_of_an_ordinary_hook_is_a_payload() -> None:
    async def ordinary(payload: Iterable[Any]) -> Any:
        return {"predictions": [*payload]}

    answer = await request(served(ordinary), "POST", PATH, json={"instances": [1]})
    assert answer.json() == {"predictions": ["instances"]}


async def test_a_preprocess_that_takes_a_payload_goes_before_an_iterator() -> None:
    class Splits(Model):
        async def preprocess(self, payload: dict[str, Any]) -> AsyncIterator[int]:
            return (x async for x in doubled(_listed(payload["instances"])))

        async def predict(self, instances: AsyncIterator[int]) -> AsyncIterator[int]:
            async for x in instances:
                yield x

    answer = await request(ModelServer([Splits("m")]), "POST", PATH, json={"instances": [1]})
    assert answer.body == b"2\n"


async def _listed(values: list[int]) -> AsyncIterator[int]:
    for value in values:
        yield value


async def test_rows_join_the_batches_of_other_requests() -> None:
    sizes: list[int] = []
    started, release = anyio.Event(), anyio.Event()

    async def slow(payload: Any) -> Any:
        sizes.append(len(payload["instances"]))
        started.set()
        await release.wait()
        return {"predictions": payload["instances"]}

    app = served(slow, batching=Batching(max_size=32))
    async with sending(app) as first, sending(app) as second, sending(app) as third:
        first.send_body(b"1\n")
        await started.wait()
        second.send_body(b"2\n2\n")
        third.send_body(b"3\n3\n3\n")
        await anyio.wait_all_tasks_blocked()
        release.set()
        for client, body in ((first, b"1\n"), (second, b"2\n2\n"), (third, b"3\n3\n3\n")):
            await client.head()
            assert await read(client) == body
    assert sizes == [1, 5]


async def test_a_streamed_request_is_recorded_like_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "modelserve.access")
    app = served(lists)
    await request(app, "POST", PATH, headers=LINES, body=b"1\n2\n")
    [record] = (r for r in caplog.records if r.name == "modelserve.access")
    assert vars(record)["items"] == 2 and vars(record)["outcome"] == "done"
    assert "predict" in vars(record)["stages"]
    answer = await request(app, "GET", "/metrics")
    assert 'modelserve_stream_items_total{model_name="m"} 2' in answer.body.decode()
