"""The head of one request: its headers, its id and its token."""

import subprocess
import sys
from collections.abc import MutableMapping
from typing import Any

import pytest

from modelserve import ModelServer
from modelserve.testing import request
from modelserve.wire.head import Head, HookHeaders

PREDICT = ("POST", "/v1/models/m:predict")


def head_with(*headers: tuple[bytes, bytes], **scope: Any) -> Head:
    return Head({"type": "http", "headers": list(headers), **scope})


async def echo(payload: Any) -> Any:
    return payload


def serve(predict: Any = echo, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    app.add_model(predict, "m")
    return app


# --- headers ------------------------------------------------------------------------------------


def test_a_header_is_bytes_and_the_last_counts() -> None:
    head = head_with((b"a", b"1"), (b"b", b""), (b"a", b"2"))
    assert [head.get(name) for name in (b"a", b"b", b"c")] == [b"2", b"", b""]


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
    assert head_with(*headers).accept == accept


@pytest.mark.parametrize(
    "given", [b"a", b"abc-123", b"!~", b"x" * 128, b"550e8400-e29b-41d4-a716-446655440000"]
)
def test_a_valid_id_of_the_client_is_kept(given: bytes) -> None:
    assert head_with((b"x-request-id", given)).id == given


@pytest.mark.parametrize(
    "given", [None, b"", b"x" * 129, b"a b", b"a\n", b"\x00", b"\xff", b"\x7f"]
)
def test_an_id_that_is_not_valid_is_replaced(given: bytes | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given)]
    ids = {head_with(*headers).id for _ in range(3)}
    assert len(ids) == 3
    assert given not in ids
    assert all(made.decode("ascii").isprintable() and 0 < len(made) <= 128 for made in ids)


def test_forked_workers_make_other_ids() -> None:
    code = (
        "import os\n"
        "from modelserve.wire.head import NEW_IDS\n"
        "readable, writable = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.write(writable, next(NEW_IDS))\n"
        "    os._exit(0)\n"
        "assert os.read(readable, 99) != next(NEW_IDS)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        (b"Bearer secret", True),
        (b"bearer secret", True),
        (b"BEARER  secret ", True),
        (b"Bearer secrets", False),
        (b"Bearer ", False),
        (b"Basic secret", False),
        (b"secret", False),
        (b"Bearer \xff", False),
        (b"", False),
    ],
)
def test_a_bearer_token(given: bytes, passes: bool) -> None:
    assert head_with((b"authorization", given)).carries_token("secret") is passes


def test_a_request_without_a_token() -> None:
    assert not head_with().carries_token("secret")


@pytest.mark.parametrize(
    ("version", "has_connection"), [("1.0", True), ("1.1", True), ("2", False), ("3", False)]
)
def test_only_some_protocols_have_a_connection_to_close(version: str, has_connection: bool) -> None:
    assert head_with(http_version=version).has_connection is has_connection
    assert not head_with().has_connection


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


@pytest.mark.parametrize(
    "given",
    [(), (b"abc",), (b"",), (b"a b",), (b"x" * 129,), (b"abc", b"abc"), (b"abc", b"def"), (b"a b", b"abc")],
)  # fmt: skip
def test_hooks_read_the_id_whether_the_client_sent_one_or_not(given: tuple[bytes, ...]) -> None:
    head = head_with((b"a", b"1"), *((b"x-request-id", value) for value in given), (b"b", b"2"))
    headers = head.hook_headers()
    assert headers.getlist("x-request-id") == [head.id.decode()]
    assert (headers["a"], headers["b"]) == ("1", "2")
    assert len(head.scope["headers"]) == len(given) + 2


@pytest.mark.anyio
async def test_a_hook_reads_the_id_of_its_answer() -> None:
    async def predict(payload: Any, headers: Any) -> Any:
        return headers["x-request-id"]

    response = await request(serve(predict), *PREDICT, json=[])
    assert response.body.decode() == response.headers["x-request-id"]


def test_writing_to_the_headers_leaves_the_request_alone() -> None:
    head = head_with((b"a", b"1"))
    headers = head.hook_headers()
    headers["a"] = "2"
    assert head.get(b"a") == b"1"
    assert head.scope["headers"] == [(b"a", b"1")]
    assert head.hook_headers()["a"] == "1"


@pytest.mark.anyio
async def test_requests_do_not_share_headers() -> None:
    async def predict(payload: Any, headers: Any, response_headers: Any) -> Any:
        response_headers["x-seen"] = headers.get("x-mark", "none")
        headers["x-mark"] = "written"

    app = serve(predict)
    for _ in range(2):
        response = await request(app, *PREDICT, json=[])
        assert response.headers.getlist("x-seen") == ["none"]
