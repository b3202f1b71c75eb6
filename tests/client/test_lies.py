"""Every way of calling, against a server that answers wrongly: one exception, and nothing is left."""

import gzip
import socket
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from clocks import Jump, run, wait_long
from scripted import Script, chunked, scripted, whole

from modelserve.client import AnswerError, AsyncClient, Client, ClientError, CutShort
from modelserve.client import Unreadable as Odd
from modelserve.client.answers import retry_after
from modelserve.client.failures import sentence_in

pytestmark = pytest.mark.anyio

FILES = Path("/proc/self/fd")
NDJSON = "application/x-ndjson"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
CUT = "The answer was cut short."
NONE = "The server closed the connection without an answer."
ODD = "The answer of the server cannot be read."
ERROR = whole(b'{"error":"mine"}', status="500 x")

# Answers, the items that come before the end, and the exception that is the end.
LIES: list[tuple[bytes, list[Any], type[ClientError] | None, str]] = [
    (b"", [], CutShort, NONE),
    (b"HTTP/1.1 200 O", [], CutShort, NONE),
    (HEAD, [], CutShort, NONE),
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", [], Odd, ODD),
    (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00", [], Odd, ODD),
    (b"HTTP/1.1 abc OK\r\n\r\n", [], Odd, ODD),
    (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", [], Odd, ODD),
    (HEAD + b"no header\r\n\r\n", [], Odd, ODD),
    (HEAD + b"content-length: -2\r\n\r\n{}", [], Odd, ODD),
    (HEAD + b"content-length: 2\r\ncontent-length: 5\r\n\r\n{}abc", [], Odd, ODD),
    (whole(b"1", x="y" * 90_000), [1], None, ""),
    (whole(b"1", x="y" * 300_000), [], Odd, ODD),
    (b"HTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n" * 3 + whole(b"1"), [1], None, ""),
    # lengths
    (whole(b"1\n2\n", content_type=NDJSON, content_length="10"), [1, 2], CutShort, CUT),
    (whole(b"1\n2\n3\n", content_type=NDJSON, content_length="2"), [1], None, ""),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n9\r\n1\n2\n3", [1, 2], CutShort, CUT),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n1\n\r\nzz\r\n", [1], Odd, ODD),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n2;a=b\r\n1\n\r\n0\r\nx: 1\r\n\r\n", [1], None, ""),
    (HEAD + b'\r\n1\n{"a"', [1], CutShort, CUT),
    # types
    (whole(b"1\n2\n"), [], Odd, ODD),
    (whole(b'"\xff"'), [], Odd, ODD),
    (whole(b""), [], Odd, ODD),
    (whole(gzip.compress(b"1"), content_encoding="gzip"), [], Odd, ODD),
    (chunked(NDJSON, b"1\n", b"<html>\n"), [1], Odd, ODD),
    (chunked("text/event-stream", b"data: [1]\n\ndata: 2"), [[1]], CutShort, CUT),
    # errors
    (chunked(NDJSON, b'1\n{"error":"mine"}\n2\n'), [1], AnswerError, "mine"),
    (whole(b"<h1>", status="500 x"), [], AnswerError, "The server answered with status 500."),
    (ERROR[:-9], [], AnswerError, "The server answered with status 500."),
    (ERROR.replace(b"length: 16", b"length: 99"), [], AnswerError, "mine"),
    (
        whole(b"", status="301 x", location="https://b/"),
        [],
        AnswerError,
        "The server answered with status 301; it redirects to https://b/",
    ),
]  # fmt: skip


def sync_call(url: str, method: str, **settings: Any) -> tuple[list[Any], ClientError | None]:
    """Return the items that come, and how they end."""
    items: list[Any] = []
    with Client(url, **settings) as client:
        try:
            for item in getattr(client, method)("m", [1]):
                items.append(item)  # noqa: PERF402 - it may be cut
        except ClientError as exc:
            return items, exc
    return items, None


async def async_call(
    url: str, method: str, **settings: Any
) -> tuple[list[Any], ClientError | None]:
    items: list[Any] = []
    async with AsyncClient(url, **settings) as client:
        try:
            found = getattr(client, method)("m", [1])
            async for item in found if method == "pipe" else await found:
                items.append(item)  # noqa: PERF401
        except ClientError as exc:
            return items, exc
    return items, None


@pytest.mark.parametrize("method", ["stream", "pipe"])
@pytest.mark.parametrize(("answer", "items", "error", "sentence"), LIES)
async def test_a_lie_is_one_exception(
    method: str,
    answer: bytes,
    items: list[Any],
    error: type[ClientError] | None,
    sentence: str,
    anyio_backend_name: str,
) -> None:
    with scripted(answer) as (url, _), anyio.fail_after(30):
        found, problem = await async_call(url, method)
        assert (found, type(problem), str(problem or "")) == (items, error or type(None), sentence)
        if anyio_backend_name == "asyncio":
            found, problem = await anyio.to_thread.run_sync(sync_call, url, method)
            assert (found, str(problem or "")) == (items, sentence)


STALLS = [
    (b"HTTP/1.1 200 O", []),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n", []),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\n1\n2", [1]),
    (chunked(NDJSON, b"1\n2\n", end=b""), [1, 2]),
]


@pytest.mark.parametrize("method", ["stream", "pipe"])
@pytest.mark.parametrize(("answer", "items"), STALLS)
def test_a_server_that_stalls(
    anyio_backend: str, method: str, answer: bytes, items: list[Any]
) -> None:
    begun, over = threading.Event(), threading.Event()

    def stall(connection: socket.socket, rest: bytes) -> None:
        connection.sendall(answer)
        begun.set()
        over.wait(30)

    async def main(jump: Jump) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_long, jump, begun)
            found, problem = await async_call(url, method, timeout=60)
            tasks.cancel_scope.cancel()
        over.set()
        assert (found, str(problem)) == (items, "Nothing came from the server for 60 s.")

    with scripted(stall) as (url, _):
        run(anyio_backend, main)


def flood(head: bytes, piece: bytes) -> Script:
    """Send the same bytes until nobody reads them."""

    def script(connection: socket.socket, rest: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return script


async def test_a_connection_that_has_ended_meanwhile_is_not_used_again() -> None:
    ended = threading.Semaphore(0)

    def answer_and_close(connection: socket.socket, rest: bytes) -> None:
        connection.sendall(whole(b"1").replace(b"connection: close\r\n", b""))
        connection.shutdown(socket.SHUT_WR)
        ended.release()

    with scripted(answer_and_close) as (url, heads), anyio.fail_after(30):
        async with AsyncClient(url) as client:
            for _ in range(3):
                assert await client.predict("m", 1) == 1
                await anyio.to_thread.run_sync(ended.acquire)
        assert len(heads) == 3


async def test_closing_a_client_ends_the_calls_of_other_tasks() -> None:
    begun, over = threading.Event(), threading.Event()

    def say_nothing(connection: socket.socket, rest: bytes) -> None:
        begun.set()
        over.wait(30)

    with scripted(say_nothing) as (url, _), anyio.fail_after(30):
        client = AsyncClient(url)
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(ClientError):
                    await client.predict("m", 1)

            tasks.start_soon(call)
            await anyio.to_thread.run_sync(begun.wait, 30)
            await anyio.wait_all_tasks_blocked()
            await client.aclose()
        over.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpx's
async def test_a_refusal_of_a_large_body_is_read() -> None:
    def refuse(connection: socket.socket, rest: bytes) -> None:
        connection.sendall(whole(b'{"error":"too large"}', status="413 x"))

    body = b"x" * 20_000_000  # more than the buffers of sockets hold
    with scripted(refuse) as (url, _), anyio.fail_after(30):
        async with AsyncClient(url) as client:
            with pytest.raises(AnswerError, match="too large"):
                await client.predict("m", body)


@pytest.mark.parametrize("method", ["stream", "pipe"])
async def test_an_error_without_an_end_is_not_read_to_its_end(method: str) -> None:
    endless = flood(b"HTTP/1.1 500 x\r\n\r\n", b"x" * 65536)
    with scripted(endless) as (url, _), anyio.fail_after(30):
        _, problem = await async_call(url, method)
        assert str(problem) == "The server answered with status 500."
        _, problem = await anyio.to_thread.run_sync(sync_call, url, method)
        assert str(problem) == "The server answered with status 500."


@pytest.mark.parametrize("method", ["stream", "pipe"])
async def test_a_client_may_leave_a_stream_without_an_end(method: str) -> None:
    endless = flood(HEAD + b"\r\n", b"1\n" * 1000)

    def leave() -> None:
        with Client(url) as client:
            assert next(getattr(client, method)("m", [1])) == 1

    with scripted(endless) as (url, _), anyio.fail_after(30):
        await anyio.to_thread.run_sync(leave)
        async with AsyncClient(url) as client:
            found = getattr(client, method)("m", [1])
            found = found if method == "pipe" else await found
            assert await anext(found) == 1
            await found.aclose()
            assert [item async for item in found] == []


def test_nothing_is_left_behind() -> None:
    def go_wrong() -> None:
        for method in ("stream", "pipe"):
            for answer in (b"", ERROR, HEAD, whole(b"{]"), chunked(NDJSON, b"1\n", end=b"")):
                with scripted(answer) as (url, _):
                    sync_call(url, method)
                    for backend in ("asyncio", "trio"):
                        anyio.run(async_call, url, method, backend=backend)

    def held() -> int:
        return len(list(FILES.iterdir())) + threading.active_count()

    if not FILES.exists():
        pytest.skip("there is no /proc")
    go_wrong()  # what is imported and started once
    before, end = held(), time.monotonic() + 30
    go_wrong()
    while held() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert held() <= before


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        (
            {
                "retry-after": "Sun, 06 Nov 2099 08:49:37 GMT",
                "date": "Sun, 06 Nov 2099 08:49:07 GMT",
            },
            30.0,
        ),
        ({"retry-after": f"Sun, 06 Nov {10**20} 08:49:37 GMT"}, None),
        ({"retry-after": "Sun, 99 Nov 1994 08:49:37 GMT"}, None),
    ],
)
def test_when_to_ask_again(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"error": "a"}, "a"),
        ({"error": {"message": "a", "code": 5}}, "a"),
        ({"detail": "a"}, "a"),
        ({"detail": [{"loc": ["body", "x", 0], "msg": "a"}, {}]}, "body.x.0: a"),
        ({"detail": [{"msg": 5}]}, None),
        ({"detail": []}, None),
        ({"error": None}, None),
        (["error"], None),
    ],
)
def test_the_sentence_in_a_document(document: Any, sentence: str | None) -> None:
    assert sentence_in(document) == sentence
