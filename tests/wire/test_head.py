"""One request's headers, id, time limit and body."""

import gzip
import threading
import zlib
from collections.abc import MutableMapping
from typing import Any

import anyio
import pytest

from modelserve import InvalidInput, Limits, ModelServer
from modelserve.errors import BodyTooLarge, ClientGone
from modelserve.limits import Deadlines
from modelserve.testing import exchange, request
from modelserve.wire.head import HookHeaders, Request, read_body

PREDICT = ("POST", "/v1/models/m:predict")


def request_with(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "headers": list(headers)})


async def echo(payload: Any) -> Any:
    return payload


def serve(predict: Any = echo, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    app.add_model(predict, "m")
    return app


# --- headers ------------------------------------------------------------------------------------


def test_a_header_is_bytes_and_the_last_counts() -> None:
    made = request_with((b"a", b"1"), (b"b", b""), (b"a", b"2"))
    assert [made.get(name) for name in (b"a", b"b", b"c")] == [b"2", b"", b""]


@pytest.mark.parametrize(
    ("headers", "accept"),
    [
        ([], None),
        ([(b"accept", b"")], ""),
        ([(b"accept", b"a/b")], "a/b"),
        ([(b"accept", b"a/b"), (b"x", b"y"), (b"accept", b"c/d;q=0.1")], "a/b,c/d;q=0.1"),
        ([(b"accept", b"\xff")], "ÿ"),
    ],
)
def test_the_lines_of_accept_are_joined(headers: Any, accept: str | None) -> None:
    assert request_with(*headers).accept == accept


@pytest.mark.parametrize(
    "given", [b"a", b"abc-123", b"!~", b"x" * 128, b"550e8400-e29b-41d4-a716-446655440000"]
)
def test_an_id_of_the_clients_is_kept(given: bytes) -> None:
    assert request_with((b"x-request-id", given)).id == given


@pytest.mark.parametrize(
    "given", [None, b"", b"x" * 129, b"a b", b"a\n", b"\x00", b"\xff", b"\x7f"]
)
def test_an_id_that_is_not_sane_is_replaced(given: bytes | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given)]
    ids = {request_with(*headers).id for _ in range(3)}
    assert len(ids) == 3
    assert given not in ids
    assert all(made.decode("ascii").isprintable() and 0 < len(made) <= 128 for made in ids)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/nowhere", "/v1/models/m:predict", "/v1/models/x:predict"])
async def test_every_answer_has_the_id(path: str) -> None:
    method = "POST" if "predict" in path else "GET"
    headers = {"x-request-id": "abc"}
    response = await request(serve(), method, path, json=[], headers=headers)
    assert response.headers.getlist("x-request-id") == ["abc"]


@pytest.mark.anyio
async def test_an_id_that_the_model_sets_is_not_sent_twice() -> None:
    async def predict(payload: Any, response_headers: Any) -> Any:
        response_headers["x-request-id"] = "mine"

    response = await request(serve(predict), *PREDICT, json=[], headers={"x-request-id": "abc"})
    assert len(response.headers.getlist("x-request-id")) == 1


# --- headers as hooks see them ------------------------------------------------------------------


def test_headers_are_a_mutable_mapping() -> None:
    headers = HookHeaders(raw=[(b"a", b"1"), (b"b", b"2")])
    assert isinstance(headers, MutableMapping)
    assert (headers["A"], headers.get("B"), headers.get("c"), "A" in headers) == (
        "1",
        "2",
        None,
        True,
    )
    headers["X-Made"] = "3"
    headers["A"] = "4"
    del headers["B"]
    assert dict(headers) == {"a": "4", "x-made": "3"}
    headers.update({"C": "5"})
    assert headers.setdefault("c", "6") == "5"
    assert headers.pop("C") == "5"
    assert headers.pop("c", None) is None
    assert headers.popitem()[0] in ("a", "x-made")
    headers.clear()
    assert len(headers) == 0


def test_a_header_that_is_missing_is_a_key_error() -> None:
    headers = HookHeaders(raw=[])
    with pytest.raises(KeyError):
        headers["a"]
    with pytest.raises(KeyError):
        headers.pop("a")


def test_writing_to_the_headers_leaves_the_request_alone() -> None:
    made = request_with((b"a", b"1"))
    headers = HookHeaders.of(made.scope, made.id)
    headers["a"] = "2"
    assert made.get(b"a") == b"1"
    assert made.scope["headers"] == [(b"a", b"1")]
    assert HookHeaders.of(made.scope, made.id)["a"] == "1"


@pytest.mark.anyio
async def test_requests_do_not_share_headers() -> None:
    async def predict(payload: Any, headers: Any, response_headers: Any) -> Any:
        response_headers["x-seen"] = headers.get("x-mark", "none")
        headers["x-mark"] = "written"

    app = serve(predict)
    for _ in range(2):
        response = await request(app, *PREDICT, json=[])
        assert response.headers.getlist("x-seen") == ["none"]


# --- the time limit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "limit", "timeout"),
    [
        (None, None, None),
        (None, 5.0, 5.0),
        (b"3", None, 3.0),
        (b"3", 5.0, 3.0),
        (b"9", 5.0, 5.0),
        (b"0.25", 5.0, 0.25),
        (b"1e3", None, 1000.0),
    ],
)
def test_a_request_may_ask_for_less_time(
    asked: bytes | None, limit: float | None, timeout: float | None
) -> None:
    headers = [] if asked is None else [(b"x-request-timeout-seconds", asked)]
    limits = Deadlines(timeout=limit, idle_timeout=7)
    assert request_with(*headers).deadlines(limits) == limits._replace(timeout=timeout)


@pytest.mark.parametrize(
    "asked", [b"", b"0", b"-1", b"soon", b"nan", b"inf", b"1 s", b"\xff", b","]
)
def test_a_request_may_not_ask_for_nonsense(asked: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^x-request-timeout-seconds must be"):
        request_with((b"x-request-timeout-seconds", asked)).deadlines(Deadlines())


# --- the body -----------------------------------------------------------------------------------


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
