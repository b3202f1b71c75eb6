"""Rows in and items out at the same time: `pipe` of both clients, at a small application."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from clocks import Jump, run, turns, wait_long
from scripted import chunked, scripted, serving, whole

from modelserve.client import (
    AnswerError,
    AsyncClient,
    Client,
    CutShort,
    ItemError,
    TimedOut,
    Unreachable,
)

pytestmark = pytest.mark.anyio

NDJSON = "application/x-ndjson"
seen: dict[str, Any] = {}
gone = threading.Event()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer each line, as it comes, with what it is; the path says what else happens."""
    assert scope["type"] == "http"
    path = scope["path"]
    seen.update(scope=scope, headers=dict(scope["headers"]), bytes=0)
    if path.endswith("/refused:predict"):
        await answer(send, 404, b'{"error":"no such model"}')
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", NDJSON.encode())]})  # fmt: skip
    rest, number = b"", 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            gone.set()
            return
        seen["bytes"] += len(message["body"])
        *lines, rest = (rest + message["body"]).split(b"\n")
        results = b""
        for line in lines:
            number += 1
            results += result(path, line, number)
        if results:
            await send({"type": "http.response.body", "body": results, "more_body": True})
        if path.endswith("/stops:predict") or not message.get("more_body"):
            break
    last = b'{"error":"line 1: bad"}\n' if path.endswith("/stops:predict") else b""
    await send({"type": "http.response.body", "body": last})


def result(path: str, line: bytes, number: int) -> bytes:
    try:
        json.loads(line)
    except ValueError:
        return b'{"error":"not JSON","line":%d}\n' % number
    return line + b"\n"


async def answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(app, lifespan="off") as address:
        yield address


async def collect(url: str, rows: Any, *, model: str = "m", **settings: Any) -> list[Any]:
    async with AsyncClient(url) as client:
        return [item async for item in client.pipe(model, rows, **settings)]


async def test_rows_become_items(url: str) -> None:
    rows = [1, "zwei\n", {"n": None}, b"[4]", b"{]\n"]
    assert await collect(url, rows) == [1, "zwei\n", {"n": None}, [4], ItemError(5, "not JSON")]
    assert await collect(url, []) == []


def test_rows_become_items_in_an_ordinary_program(url: str) -> None:
    with Client(url) as client:
        assert list(client.pipe("m", iter(range(1000)))) == list(range(1000))


async def test_the_first_item_comes_before_the_second_row(url: str) -> None:
    came = anyio.Event()

    async def rows() -> AsyncIterator[int]:
        yield 1
        await came.wait()
        yield 2

    async with AsyncClient(url) as client:
        items = client.pipe("m", rows())
        with anyio.fail_after(30):
            assert await anext(items) == 1
            came.set()
            assert [item async for item in items] == [2]


def test_the_first_item_comes_before_the_second_row_in_an_ordinary_program(url: str) -> None:
    came = threading.Event()

    def rows() -> Iterator[int]:
        yield 1
        assert came.wait(30)
        yield 2

    with Client(url) as client:
        items = client.pipe("m", rows())
        assert next(items) == 1
        came.set()
        assert list(items) == [2]


async def test_the_head(url: str) -> None:
    async with AsyncClient(f"{url}/ml", token="t", headers={"X-A": "1"}) as client:
        items = client.pipe("a b", [1], verb="explain", version="2", on_error="stop")
        assert [item async for item in items] == [1]
    scope, headers = seen["scope"], seen["headers"]
    assert scope["raw_path"] == b"/ml/v1/models/a%20b/versions/2:explain"
    assert scope["query_string"] == b"on_error=stop"
    assert headers[b"content-type"] == NDJSON.encode()
    assert headers[b"authorization"] == b"Bearer t"
    assert headers[b"accept-encoding"] == b"identity"
    assert headers[b"x-a"] == b"1"
    assert b"expect" not in headers
    assert b"host" in headers


async def test_pieces_of_a_binary_body(url: str) -> None:
    assert await collect(url, [b"[1", b"]\n"], content_type="audio/wav") == [[1]]
    assert seen["headers"][b"content-type"] == b"audio/wav"
    with pytest.raises(TypeError, match="must be bytes, not int"):
        await collect(url, [1], content_type="audio/wav")


# --- what goes wrong ----------------------------------------------------------------------------


async def endless() -> AsyncIterator[Any]:
    while True:
        yield "x" * 1000


async def test_an_early_refusal_ends_the_sending(url: str) -> None:
    with anyio.fail_after(30), pytest.raises(AnswerError, match="no such model") as caught:
        await collect(url, endless(), model="refused")
    assert caught.value.status == 404


async def test_the_end_of_the_answer_ends_the_sending(url: str) -> None:
    with anyio.fail_after(30), pytest.raises(AnswerError, match="line 1: bad"):
        await collect(url, endless(), model="stops")


async def test_an_error_of_the_source_comes_out_and_the_server_sees_it(url: str) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    gone.clear()
    with pytest.raises(KeyError, match="mine"):
        await collect(url, rows())
    assert await anyio.to_thread.run_sync(gone.wait, 30)
    gone.clear()
    with Client(url) as client, pytest.raises(KeyError, match="mine"):
        list(client.pipe("m", rows()))
    assert await anyio.to_thread.run_sync(gone.wait, 30)


async def test_a_row_that_is_not_json_comes_out(url: str) -> None:
    with pytest.raises(TypeError):
        await collect(url, [1, object()])


@pytest.mark.parametrize("how", ["close", "cancel", "client"])
async def test_leaving_closes_the_connection_and_the_source(url: str, how: str) -> None:
    closed = anyio.Event()

    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.set()

    gone.clear()
    async with AsyncClient(url) as client:
        items = client.pipe("m", rows())
        assert await anext(items) == 1
        if how == "close":
            await items.aclose()
        elif how == "cancel":
            with anyio.move_on_after(0.05):
                await anext(items)
    with anyio.fail_after(30):
        await closed.wait()
        assert await anyio.to_thread.run_sync(gone.wait, 30)


async def test_leaving_an_ordinary_program(url: str) -> None:
    hold = threading.Event()

    def rows() -> Iterator[int]:
        yield 1
        hold.wait(30)

    def run() -> None:
        with Client(url) as client:
            items = client.pipe("m", rows())
            assert next(items) == 1
            items.close()  # type: ignore[attr-defined]

    gone.clear()
    with anyio.fail_after(30):
        await anyio.to_thread.run_sync(run)
        assert await anyio.to_thread.run_sync(gone.wait, 30)
    hold.set()


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        (b"", 0),
        (b"HTTP/1.1 200 O", 0),
        (chunked(NDJSON, b"1\n", end=b""), 1),
        (chunked(NDJSON, b"1\n{", end=b""), 1),
    ],
)
async def test_a_server_that_cuts(answer: bytes, items: int) -> None:
    found = []
    with scripted(answer) as (url, _), pytest.raises(CutShort):
        async with AsyncClient(url) as client:
            async for item in client.pipe("m", endless()):
                found.append(item)  # noqa: PERF401 - it is cut
    assert len(found) == items


async def test_an_unauthorized_answer_while_rows_are_sent() -> None:
    refusal = whole(b'{"error":"Unauthorized"}', status="401 x")
    with scripted(refusal) as (url, _), anyio.fail_after(30):
        with pytest.raises(AnswerError) as caught:
            await collect(url, endless())
        assert caught.value.status == 401


async def test_a_document_is_one_item() -> None:
    with scripted(whole(b'{"predictions":[1]}')) as (url, _):
        assert await collect(url, [1]) == [{"predictions": [1]}]


@pytest.mark.parametrize("seconds", [600, 59.9995])  # the last ends as the limit does, gathered
@pytest.mark.slow
def test_a_slow_source_is_no_slow_server(url: str, anyio_backend: str, seconds: float) -> None:
    async def main(jump: Jump) -> None:
        came = [anyio.Event() for _ in range(20)]

        async def rows() -> AsyncIterator[int]:
            for n, event in enumerate(came):
                await turns()
                jump(seconds)
                yield n
                await turns()
                jump(0.001)
                await event.wait()
            jump(seconds)

        async with AsyncClient(url, timeout=60) as client:
            async for item in client.pipe("m", rows()):
                came[item].set()
        assert all(event.is_set() for event in came)

    run(anyio_backend, main)


@pytest.mark.slow
def test_a_server_that_reads_no_more(anyio_backend: str) -> None:
    begun, over = threading.Event(), threading.Event()

    def read_the_head_only(connection: socket.socket, rest: bytes) -> None:
        begun.set()
        over.wait(30)

    async def main(jump: Jump) -> None:
        async with AsyncClient(url, timeout=60) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(wait_long, jump, begun)
            with pytest.raises(TimedOut, match="for 60 s"):
                async for _item in client.pipe("m", endless()):
                    pass
            tasks.cancel_scope.cancel()
        over.set()

    with scripted(read_the_head_only) as (url, _):
        run(anyio_backend, main)


@pytest.mark.slow
async def test_a_reader_that_waits_holds_the_source_back(url: str) -> None:
    taken = 0

    async def rows() -> AsyncIterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "x" * 1000

    async with AsyncClient(url) as client:
        items = client.pipe("m", rows())
        await anext(items)
        held = -1
        with anyio.fail_after(30):
            while held != taken:
                held = taken
                await anyio.sleep(0.3)
        assert taken < 30_000  # the buffers of sockets hold some megabytes


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
               "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
               "-keyout", "key.pem", "-out", "cert.pem"]  # fmt: skip
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return folder
    pytest.skip("openssl is not installed")


async def test_over_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"ssl_certfile": certificate / "cert.pem", "ssl_keyfile": certificate / "key.pem"}
    with serving(app, lifespan="off", **files) as url:
        with pytest.raises(Unreachable, match="certificate"):
            await collect(url, [1])
        async with AsyncClient(url, verify=False) as client:
            assert [item async for item in client.pipe("m", [1])] == [1]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
        assert await collect(url, range(3)) == [0, 1, 2]
        async with AsyncClient(url) as client:
            assert [item async for item in await client.stream("m", b"1\n")] == [1]


# --- memory -------------------------------------------------------------------------------------

MANY = """
import resource, sys
from modelserve.client import Client
with Client(sys.argv[1]) as client:
    rows = ({"n": n, "text": "x" * 40} for n in range(int(sys.argv[2])))
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in client.pipe("m", rows))
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first)
"""


@pytest.mark.slow
def test_memory_stays_flat(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY, url, "50000"], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 50_000
    assert grown < 20_000  # KiB
