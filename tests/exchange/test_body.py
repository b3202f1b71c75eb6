"""One request's body."""

import base64
import gzip
import math
import random
import threading
import tracemalloc
import zlib
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.errors import BodyTooLarge, ClientGone
from modelserve.exchange.body import read_body
from modelserve.testing import Exchange, exchange, request

PREDICT = ("POST", "/v1/models/m:predict")


async def echo(payload: Any) -> Any:
    return payload


def serve(predict: Any = echo, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    app.add_model(predict, "m")
    return app


def scope_of(headers: dict[str, str]) -> dict[str, Any]:
    """Return the scope of a request, for a client that runs in a task of the test's own."""
    method, path = PREDICT
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


def host(*messages: Any) -> Any:
    """Return a `receive` that gives these messages, and fails if it is asked for more."""
    left = list(messages)

    async def receive() -> Any:
        message = left.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    receive.left = left  # type: ignore[attr-defined]
    return receive


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([part(b"", more=False)], b""),
        ([part(b"abc", more=False)], b"abc"),
        ([{"type": "http.request"}], b""),
        ([{"type": "http.request", "body": b"a"}], b"a"),
        ([part(b"a", more=True), part(b"b", more=False)], b"ab"),
        ([part(b"a", more=True), part(b"", more=False)], b"a"),
        ([part(b"", more=True), part(b"", more=True), part(b"a", more=False)], b"a"),
        ([part(b"x", more=True)] * 2000 + [part(b"y", more=False)], b"x" * 2000 + b"y"),
        ([part(b"a", more=True), {"type": "http.request"}], b"a"),
    ],
)
async def test_a_body_is_its_parts(messages: list[Any], body: bytes) -> None:
    receive = host(*messages)
    assert await read_body(receive, 10_000, b"") == body
    assert receive.left == []


@pytest.mark.anyio
async def test_a_body_in_parts_is_not_held_twice() -> None:
    size, parts = 1 << 16, 256

    async def receive() -> Any:
        nonlocal parts
        parts -= 1
        return part(bytes(size), more=parts > 0)

    tracemalloc.start()
    try:
        body = await read_body(receive, math.inf, b"")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(body) == 256 * size
    assert peak < 1.5 * len(body)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.disconnect"}],
        [part(b"[1]", more=True), {"type": "http.disconnect"}],
        [OSError("reset")],
        [part(b"[1]", more=True), RuntimeError("closed")],
    ],
)
async def test_a_body_that_is_cut_short_is_no_body(messages: list[Any]) -> None:
    with pytest.raises(ClientGone):
        await read_body(host(*messages), 10_000, b"")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("messages", "length", "fits", "left"),
    [
        ([part(b"1234", more=False)], b"4", True, 0),
        ([part(b"1234", more=False)], b"", True, 0),
        ([part(b"12", more=True), part(b"34", more=False)], b"", True, 0),
        ([part(b"12345", more=False)], b"5", False, 1),  # refused before anything is read
        ([part(b"12345", more=False)], b"", False, 0),
        ([part(b"12345", more=False)], b"4", False, 0),  # the length was a lie
        ([part(b"12345", more=False)], b"x", False, 0),
        ([part(b"12345", more=False)], b"-5", False, 0),
        ([part(b"12345", more=True), part(b"6", more=False)], b"", False, 1),
        ([part(b"12", more=True), part(b"345", more=True), part(b"", more=False)], b"", False, 1),
        ([part(b"1", more=False)], b"9" * 19, False, 1),
        ([part(b"1", more=False)], b"9" * 5000, True, 0),  # no number that a host lets through
    ],
)
async def test_a_body_over_the_limit_is_refused_as_soon_as_it_is_known(
    messages: list[Any], length: bytes, fits: bool, left: int
) -> None:
    receive = host(*messages)
    if fits:
        await read_body(receive, 4, length)
    else:
        with pytest.raises(BodyTooLarge, match="larger than 4 bytes"):
            await read_body(receive, 4, length)
    assert len(receive.left) == left


@pytest.mark.anyio
async def test_a_body_without_a_limit() -> None:
    assert await read_body(host(part(b"12", more=False)), float("inf"), b"2") == b"12"


@pytest.mark.anyio
async def test_a_compressed_body_over_the_limit_is_413_before_it_has_grown() -> None:
    body = gzip.compress(b" " * 100_000)
    response = await coded(body, "gzip", limits=Limits(max_body_bytes=1000))
    assert response.status == 413


async def coded(body: bytes, coding: str, app: Any = None, **settings: Any) -> Any:
    app = app or serve(**settings)
    return await request(app, *PREDICT, body=body, headers={"content-encoding": coding})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (gzip.compress(b"[1]"), "gzip", 200),
        (gzip.compress(b"[1]"), "X-GZIP", 200),
        (zlib.compress(b"[1]"), "deflate", 200),
        (b"[1]", "identity", 200),
        (b"[1]", "gzip", 400),
        (b"", "gzip", 400),
        (gzip.compress(b"[1]")[:-1], "gzip", 400),
        (gzip.compress(b"[1]") + b"x", "gzip", 400),
        (gzip.compress(b"[1]"), "br", 415),
        (gzip.compress(b"[1]"), "gzip, gzip", 415),
    ],
)
async def test_a_compressed_body(body: bytes, coding: str, status: int) -> None:
    response = await coded(body, coding)
    assert response.status == status
    if status == 415:
        assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.anyio
@pytest.mark.parametrize("size", [3, 4])
async def test_a_body_over_the_limit_is_413(size: int) -> None:
    app = serve(limits=Limits(max_body_bytes=3))
    headers = {"content-type": "image/png"}
    response = await request(app, *PREDICT, body=b"x" * size, headers=headers)
    assert response.status == (413 if size > 3 else 200)
    if size > 3:
        assert response.json() == {"error": "The request body is larger than 3 bytes."}


@pytest.mark.anyio
async def test_a_body_that_grows_over_the_limit_is_413_at_once() -> None:
    app = serve(limits=Limits(max_body_bytes=3))
    async with exchange(app, *PREDICT, body=None) as client:
        client.send_body(b"12", more=True)
        await anyio.wait_all_tasks_blocked()
        client.send_body(b"34", more=True)
        assert (await client.response()).status == 413
        await client.ended()


@pytest.mark.anyio
async def test_a_limit_of_nothing_admits_the_empty_body_only() -> None:
    app = serve(limits=Limits(max_body_bytes=0))
    assert (await request(app, *PREDICT, body=b"[]")).status == 413


@pytest.mark.anyio
async def test_a_404_comes_before_the_body_is_read() -> None:
    app = serve()
    async with exchange(app, "POST", "/v1/models/zz:predict", body=None) as client:
        assert (await client.response()).status == 404


@pytest.mark.anyio
async def test_the_body_is_not_asked_for_where_none_is_wanted() -> None:
    async with exchange(serve(), "GET", "/v1/models/m", body=None) as client:
        assert (await client.response()).status == 200


@pytest.mark.anyio
async def test_a_body_that_is_slow_holds_no_slot() -> None:
    app = serve(limits=Limits(concurrency=1, queue=0))
    async with exchange(app, *PREDICT, body=None) as slow:
        slow.send_body(b"[", more=True)
        await anyio.wait_all_tasks_blocked()
        assert (await request(app, *PREDICT, json=[1])).status == 200
        slow.send_body(b"]")
        assert (await slow.response()).json() == []


@pytest.mark.anyio
async def test_a_client_that_leaves_during_its_body_leaves_nothing_running() -> None:
    before = threading.active_count()
    app = serve(lambda payload: payload)
    async with exchange(app, *PREDICT, body=None) as client:
        client.send_body(b"[", more=True)
        await anyio.wait_all_tasks_blocked()
        client.hang_up()
        await client.ended()
        assert client.error is None
    assert len(app.serving.flights) == 0
    assert threading.active_count() == before


# --- large compressed bodies --------------------------------------------------------------------

NOISE = random.Random(7).randbytes(10_000)


def large(mebibytes: int) -> bytes:
    """Return the JSON of a text that shrinks to about a hundredth."""
    return b'"' + (NOISE.hex()[:9_000].encode() + b" " * ((1 << 20) - 9_000)) * mebibytes + b'"'


async def length_of(payload: Any) -> int:
    return len(payload)


@pytest.mark.anyio
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
@pytest.mark.slow
async def test_a_large_body_is_decompressed_while_others_run(compress: Any) -> None:
    app = serve(length_of, limits=Limits(max_body_bytes=math.inf))
    body = compress(large(32), 1)
    turns = 0
    headers = {"content-encoding": "deflate"}
    async with exchange(app, *PREDICT, body=body, headers=headers) as client:
        while not client.over:
            await anyio.lowlevel.checkpoint()
            turns += 1
            if turns % 10 == 0:
                assert (await request(app, "GET", "/")).status == 200
        assert (await client.response()).json() == 32 << 20
    assert turns > 50
    assert app.serving.admission.budget.held == 0
    assert app.serving.decoders.running == []


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("leaving", ["client", "host", "timeout"])
async def test_a_request_that_ends_while_its_body_is_decompressed(leaving: str) -> None:
    seen: list[Any] = []

    async def predict(payload: Any) -> None:
        seen.append(payload)

    app = serve(predict, limits=Limits(max_body_bytes=math.inf))
    headers = {"content-encoding": "gzip"}
    if leaving == "timeout":
        headers["x-request-timeout-seconds"] = "0.03"
    budget, threads = app.serving.admission.budget, app.serving.decoders
    body = gzip.compress(large(200), 1)
    async with anyio.create_task_group() as group:
        client = Exchange(app, scope_of(headers), timeout=10)
        client.send_body(body)
        group.start_soon(client.run)
        while not (budget.held and threads.running == ["content-encoding"]):
            await anyio.lowlevel.checkpoint()  # each step is a call of its own
        if leaving == "client":
            client.hang_up()
        elif leaving == "host":
            group.cancel_scope.cancel()
        else:
            response = await client.response()
            assert (response.status, response.json()["error"][:8]) == (504, "timeout:")
        await client.ended()
    assert (budget.held, threads.running, seen) == (0, [], [])


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_large_body_that_is_broken_gives_back_what_it_held() -> None:
    app = serve(limits=Limits(max_body_bytes=math.inf))
    body = gzip.compress(large(8), 1)
    for broken, status in ((body[:-1], 400), (body + b"x", 400), (b"a" + body, 400)):
        assert (await coded(broken, "gzip", app=app)).status == status
    bomb = gzip.compress(bytes(64 << 20))
    response = await coded(bomb, "gzip", app=app)
    assert response.status == 413
    assert response.json()["error"].endswith("larger than 200 times its compressed size.")
    assert app.serving.admission.budget.held == 0
    assert app.serving.decoders.running == []


# --- the bytes that waiting requests hold -------------------------------------------------------

FULL = {"error": "The server is busy and its queue is full."}


@pytest.mark.anyio
async def test_uploads_in_progress_are_bounded_together() -> None:
    app = serve(length_of, limits=Limits(max_queued_bytes=100))
    budget = app.serving.admission.budget
    async with (
        exchange(app, *PREDICT, body=None) as first,
        exchange(app, *PREDICT, body=None) as second,
    ):
        first.send_body(b'"' + b"a" * 59, more=True)
        second.send_body(b'"' + b"b" * 29, more=True)
        await anyio.wait_all_tasks_blocked()
        assert budget.held == 90
        second.send_body(b"b" * 11, more=True)
        refused = await second.response()
        assert (refused.status, refused.json()) == (503, FULL)
        assert int(refused.headers["retry-after"]) >= 1
        await second.ended()
        assert budget.held == 60
        assert (await request(app, *PREDICT, json="c" * 500)).json() == 500  # it waits for nothing
        first.send_body(b"a" * 500, more=True)  # alone now
        await anyio.wait_all_tasks_blocked()
        assert budget.held == 560
        first.send_body(b'"')
        assert (await first.response()).json() == 559
        assert budget.held == 0
    metrics = (await request(app, "GET", "/metrics")).body.decode()
    assert 'outcome="refused"' in metrics


@pytest.mark.anyio
@pytest.mark.parametrize("ends", ["hang_up", "too large", "too late", "host"])
async def test_an_upload_that_ends_early_gives_back_what_it_held(ends: str) -> None:
    app = serve(limits=Limits(max_body_bytes=50))
    headers = {"x-request-timeout-seconds": "0.05"} if ends == "too late" else {}
    async with anyio.create_task_group() as group:
        client = Exchange(app, scope_of(headers), timeout=10)
        client.send_body(b"a" * 40, more=True)
        group.start_soon(client.run)
        if ends != "too late":
            await anyio.wait_all_tasks_blocked()
            assert app.serving.admission.budget.held == 40
        if ends == "hang_up":
            client.hang_up()
        elif ends == "too large":
            client.send_body(b"a" * 11, more=True)
            assert (await client.response()).status == 413
        elif ends == "too late":
            assert (await client.response()).status == 408
        else:
            group.cancel_scope.cancel()
        await client.ended()
    assert app.serving.admission.budget.held == 0


@pytest.mark.anyio
async def test_the_body_of_the_repositorys_index_counts_as_well() -> None:
    app = serve()
    async with exchange(app, "POST", "/v2/repository/index", body=None) as client:
        client.send_body(b"{", more=True)
        await anyio.wait_all_tasks_blocked()
        assert app.serving.admission.budget.held == 1
        client.send_body(b"}")
        assert (await client.response()).status == 200
    assert app.serving.admission.budget.held == 0


class Slow(Model):
    """A model whose load lasts until the test lets it end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.may_load = anyio.Event()

    async def load(self) -> bool:
        await self.may_load.wait()
        self.ready = True
        return self.ready

    async def predict(self, payload: Any) -> Any:
        return payload


@pytest.mark.anyio
async def test_a_body_counts_while_the_model_that_takes_over_is_loading() -> None:
    app = serve()
    budget = app.serving.admission.budget
    async with exchange(app, *PREDICT, body=None) as client:
        await anyio.wait_all_tasks_blocked()
        later = Slow("m")
        app.add_model(later)
        app.serving.load_pending()
        client.send_body(b'"' + b"a" * 98 + b'"')
        await anyio.wait_all_tasks_blocked()
        assert budget.held == 100
        later.may_load.set()
        assert (await client.response()).body == b"a" * 98
    assert budget.held == 0


# --- bodies of many JSON values -----------------------------------------------------------------

V2_DOCUMENT = b'{"inputs":[{"name":"x","shape":[%d],"datatype":"INT8","data":[%s]}]}'
V2_BINARY = (
    b'{"inputs":[{"name":"x","shape":[%d],"datatype":"INT8","parameters":{"binary_data_size":%d}}]}'
)
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
STRUCTURED = {"content-type": "application/cloudevents+json"}
EVENT_DOCUMENT = b'{"specversion":"1.0","id":"1","source":"s","type":"t",%s}'
INFER = ("POST", "/v2/models/m/infer")
GENERATE = ("POST", "/v2/models/m/generate")
FEW, MANY = b"1,1", b",".join([b"1"] * 200)


def binary(count: int) -> tuple[bytes, dict[str, str]]:
    head = V2_BINARY % (count, count)
    return head + b"," * count, {"inference-header-content-length": str(len(head))}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("route", "form", "headers"),
    [
        (PREDICT, b'{"instances":[%s]}', {}),
        (PREDICT, b"[%s]", {"content-type": "application/x-www-form-urlencoded"}),
        (PREDICT, b"[%s]", {"content-type": "application/vnd.own+json; charset=utf-8"}),
        (PREDICT, b"[%s]", EVENT),
        (PREDICT, b"[%s]", EVENT | {"content-type": "text/csv"}),
        (PREDICT, EVENT_DOCUMENT % b'"data":[%s]', STRUCTURED),
        (INFER, b'{"inputs":[],"parameters":{},"more":[%s]}', {}),
        (INFER, b'{"inputs":[],"more":[%s]}', EVENT),
        (INFER, EVENT_DOCUMENT % b'"data":{"inputs":[],"more":[%s]}', STRUCTURED),
        (GENERATE, b'{"text_input":"a","parameters":{"x":[%s]}}', {}),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
async def test_a_body_of_too_many_values_is_413(
    route: tuple[str, str], form: bytes, headers: dict[str, str], cut: bool
) -> None:
    app = serve(number_of, limits=Limits(max_json_values=100))
    headers = {"content-type": "application/json"} | headers
    for values, status in ((FEW, 200), (MANY, 413)):
        body = form % values
        async with exchange(app, *route, body=None, headers=headers) as client:
            for part in [body[:9], body[9:]] if cut else [body]:
                client.send_body(part, more=part is not body and part != body[9:])
            response = await client.response()
        assert response.status == status, response.body
    assert response.json() == {"error": "The request body has more than 100 JSON values."}
    assert app.serving.admission.budget.held == 0


async def number_of(payload: Any) -> Any:
    return {"text_output": "a"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("route", "body", "headers"),
    [
        (PREDICT, b"[," * 500, {"content-type": "image/png"}),
        (PREDICT, b"1,2\n" * 500, EVENT | {"content-type": "text/csv"}),
        (PREDICT, b'{"instances":["%s"]}' % (b'[,{\\"' * 500), {}),
        (INFER, *binary(2000)),
        (GENERATE, b'{"text_input":"%s"}' % (b"a, b: [c] {d} " * 500), {}),
    ],
)
async def test_what_is_no_value_does_not_count(
    route: tuple[str, str], body: bytes, headers: dict[str, str]
) -> None:
    app = serve(number_of, limits=Limits(max_json_values=100))
    assert (await request(app, *route, body=body, headers=headers)).status == 200


@pytest.mark.anyio
async def test_the_data_of_an_event_in_base64_counts() -> None:
    app = serve(number_of, limits=Limits(max_json_values=100))
    for values, status in ((FEW, 200), (MANY, 413)):
        data = b'"data_base64":"%s"' % base64.b64encode(b"[" + values + b"]")
        body = EVENT_DOCUMENT % data
        assert (await request(app, *PREDICT, body=body, headers=STRUCTURED)).status == status


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("application", "model", "values", "status"),
    [(60, None, 50, 200), (60, 20, 50, 413), (20, 60, 50, 413), (None, 60, 70, 413)],
)
async def test_the_models_limit_and_the_applications_hold(
    application: float | None, model: float | None, values: int, status: int
) -> None:
    class Limited(Model):
        limits = Limits(max_json_values=model)

        async def predict(self, payload: Any) -> Any:
            return len(payload)

    app = ModelServer([Limited("m")], limits=Limits(max_json_values=application))
    body = b"[" + b"1," * (values - 4) + b"1]"
    assert (await request(app, *PREDICT, body=body)).status == status


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_large_body_is_decoded_while_others_run() -> None:
    app = serve(number_of)
    raw = (b"\0\0\0\0" + b"\1\0\0\0x") * 400_000
    head = V2_BINARY.replace(b"INT8", b"BYTES") % (800_000, len(raw))
    headers = {"inference-header-content-length": str(len(head))}
    turns = 0
    async with exchange(app, *INFER, body=head + raw, headers=headers) as client:
        while not client.over:
            await anyio.lowlevel.checkpoint()
            turns += 1
            if turns % 10 == 0:
                assert (await request(app, "GET", "/")).status == 200
        assert (await client.response()).status == 200
    assert turns > 20
    assert app.serving.admission.budget.held == 0
    assert app.serving.decoders.running == []


@pytest.mark.anyio
async def test_a_large_body_that_cannot_be_decoded_is_400() -> None:
    for body in (b"[" + b"1," * 400_000, b"1," * 400_000):
        headers = {"content-type": "application/json"}
        response = await request(serve(), *PREDICT, body=body, headers=headers)
        assert response.status == 400
        assert response.json()["error"].startswith("Unrecognized request format")


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_client_that_leaves_while_its_body_is_decoded() -> None:
    seen: list[Any] = []

    async def predict(payload: Any) -> None:
        seen.append(payload)

    app = serve(predict, limits=Limits(concurrency=1, queue=0))
    raw = (b"\0\0\0\0" + b"\1\0\0\0x") * 400_000
    head = V2_BINARY.replace(b"INT8", b"BYTES") % (800_000, len(raw))
    headers = {"inference-header-content-length": str(len(head))}
    async with exchange(app, *INFER, body=head + raw, headers=headers) as client:
        while not app.serving.decoders.running:
            await anyio.lowlevel.checkpoint()
        client.hang_up()
        await client.ended()
    assert seen == []
    assert app.serving.admission.budget.held == 0
    assert app.serving.decoders.running == []
    assert (await request(app, *PREDICT, json=[1])).status == 200
