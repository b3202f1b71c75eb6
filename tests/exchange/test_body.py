"""One request's body."""

import gzip
import math
import threading
import tracemalloc
import zlib
from typing import Any

import anyio
import pytest

from modelserve import Limits, ModelServer
from modelserve.errors import BodyTooLarge, ClientGone
from modelserve.exchange.body import read_body
from modelserve.testing import exchange, request

PREDICT = ("POST", "/v1/models/m:predict")


async def echo(payload: Any) -> Any:
    return payload


def serve(predict: Any = echo, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    app.add_model(predict, "m")
    return app


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


async def coded(body: bytes, coding: str, **settings: Any) -> Any:
    app = serve(**settings)
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
