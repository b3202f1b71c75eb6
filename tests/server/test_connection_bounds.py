"""What a client may send, and how long it may take: over sockets, to a server in this process."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from servercommand import Serve, every_protocol, until
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from modelserve.server.connections.mending import mended
from modelserve.server.connections.refusals import LONGEST_HEAD
from modelserve.server.connections.silent import SilentConnections

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


both = pytest.mark.parametrize("base", [HttpToolsProtocol, H11Protocol], ids=["httptools", "h11"])
httptools = pytest.mark.parametrize("base", [HttpToolsProtocol], ids=["httptools"])

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass
class Listening:
    """A server; its application says what it has been asked."""

    state: ServerState
    port: int
    go: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with the head and the body; at /wait, once `go` is set or the client has left."""
        self.running += 1
        try:
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body, more = body + message["body"], message["more_body"]
            if scope["path"] == "/wait":
                await self._wait(receive)
            names = [name.decode() for name, _ in scope["headers"]]
            asked = {"path": scope["path"], "names": names, "body": body.decode()}
            data = json.dumps(asked).encode()
            length = (b"content-length", b"%d" % len(data))
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            if scope["path"] == "/begin":
                await send({"type": "http.response.body", "body": data[:5], "more_body": True})
                await self._wait(receive)
                data = data[5:]
            await send({"type": "http.response.body", "body": data})
        finally:
            self.running -= 1

    async def _wait(self, receive: Any) -> None:
        waits = [asyncio.ensure_future(receive()), asyncio.ensure_future(self.go.wait())]
        _, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in rest:
            each.cancel()

    @property
    def connection(self) -> Any:
        (connection,) = self.state.connections
        return connection

    @asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        writer.transport.set_write_buffer_limits(high=1 << 26)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def ask(self, data: bytes) -> "Answer":
        async with self.client() as client:
            client.send(data)
            return await client.answer()


@dataclass
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            _, found, length = head.partition(b"content-length: ")
            body = await (self.reader.readexactly(int(length.split()[0])) if found else self.rest())
        return Answer(int(head.split()[1]), body)

    async def rest(self) -> bytes:
        """Read to the end of the connection; a reset is one."""
        async with asyncio.timeout(10):
            data = b""
            with suppress(ConnectionError):
                while part := await self.reader.read(1 << 16):
                    data += part
            return data


@asynccontextmanager
async def listening(protocol: type[asyncio.Protocol]) -> AsyncIterator[Listening]:
    state = ServerState()
    running = Listening(state, 0)
    config = uvicorn.Config(
        lambda *call: running.app(*call),
        interface="asgi3",
        log_config=None,
        lifespan="off",
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config, state, {}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        running.go.set()
        server.close()
        for connection in tuple(state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        await settled(lambda: not state.connections and not state.tasks)


async def settled(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (a condition of another)
            await asyncio.sleep(0.001)


def post(body: bytes = b"{}", *, path: str = "/", trailer: bytes = b"", head: bytes = b"") -> bytes:
    chunk = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer)
    first = f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode()
    return first + head + b"transfer-encoding: chunked\r\n\r\n" + chunk


# --- heads --------------------------------------------------------------------------------------

LONG = {
    "one field": b"GET / HTTP/1.1\r\nhost: x\r\na: %b\r\n\r\n" % (b"b" * LONGEST_HEAD * 2),
    "a name": b"GET / HTTP/1.1\r\nhost: x\r\n%b: b\r\n\r\n" % (b"a" * LONGEST_HEAD * 2),
    "fields": b"GET / HTTP/1.1\r\nhost: x\r\n%b\r\n" % (b"a: b\r\n" * (LONGEST_HEAD // 3)),
    "the target": b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * LONGEST_HEAD * 2),
    "no end": b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * LONGEST_HEAD,
}


@both
@pytest.mark.parametrize("what", LONG)
@pytest.mark.parametrize("behind", [b"", GET, post()], ids=["", "GET", "POST"])
async def test_head_that_is_too_long_is_refused(base: Any, what: str, behind: bytes) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        client.send(behind + LONG[what])
        if behind:
            assert (await client.answer()).status == 200
        answer = await client.answer()
        assert answer.status == 431
        assert answer.json["error"].startswith("The head of the request has more than 65536 bytes")


@both
async def test_head_that_comes_in_pieces_is_refused_before_it_is_whole(base: Any) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: x\r\na: ")
        for _ in range(60):
            client.send(b"b" * 3000)
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.answer()).status == 431


@both
@pytest.mark.parametrize("size", [10, 4000, 40_000, 64_000])
async def test_head_within_the_bound_is_served(base: Any, size: int) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        for _ in range(2):
            fields = b"".join(b"a%d: %b\r\n" % (n, b"b" * (size // 100)) for n in range(100))
            client.send(b"GET / HTTP/1.1\r\nhost: x\r\n%b\r\n" % fields[:size].rpartition(b"a")[0])
            assert (await client.answer()).status == 200


@httptools
async def test_too_many_fields_are_refused(base: Any) -> None:
    async with listening(mended(base)) as server:
        answer = await server.ask(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 10_000 + b"\r\n")
        assert answer.status == 431


# --- trailers and chunks ------------------------------------------------------------------------


@both
async def test_trailers_are_dropped_wherever_the_request_is_cut(base: Any) -> None:
    data = post(trailer=b"x-user: root\r\nauthorization: Bearer x\r\nempty:\r\n", path="/a")
    names = ["host", "transfer-encoding"]
    async with listening(mended(base)) as server:
        for cut in range(1, len(data)):
            async with server.client() as client:
                client.send(data[:cut])
                await settled(lambda: server.state.connections)
                await asyncio.sleep(0)
                client.send(data[cut:] + data)
                for _ in range(2):
                    assert (await client.answer()).json == {
                        "path": "/a",
                        "names": names,
                        "body": "{}",
                    }
                client.send(GET)
                assert (await client.answer()).json["names"] == ["host"]


@both
@pytest.mark.parametrize(
    "flood",
    [b"0\r\n" + b"x: y\r\n" * 50_000, b"0\r\nx: " + b"y" * 500_000, b"1;a=" + b"b" * 500_000],
)
async def test_flood_of_what_is_no_data_is_cut(base: Any, flood: bytes) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        client.send(b"2\r\n{}\r\n" + flood)
        assert b"200" not in await client.rest()
        await settled(lambda: not server.running)


@both
async def test_small_chunks_and_many_trailers_are_served(base: Any) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b"x" * 30_000)
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    trailers = b"".join(b"x%d: y\r\n" % n for n in range(300))
    async with listening(mended(base)) as server:
        answer = await server.ask(head + chunks + b"0\r\n" + trailers + b"\r\n")
        assert answer.json["body"] == "x" * 30_000


# --- pipelines ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("count", [60, 100, 1000])
async def test_pipelined_requests_are_answered_in_order(base: Any, count: int) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % n for n in range(count)))
        paths = [(await client.answer()).json["path"] for _ in range(count)]
        assert paths == [f"/{n}" for n in range(count)]


@both
async def test_pipelined_bodies_of_all_sizes_are_answered_in_order(base: Any) -> None:
    sizes = [0, 1, 4095, 4096, 4097, 70_000, 2, 300_000, 5] * 4
    data = b"".join(
        b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (n, size, b"x" * size)
        if n % 2
        else post(b"x" * size, path=f"/{n}")
        if size
        else GET
        for n, size in enumerate(sizes)
    )
    async with listening(mended(base)) as server, server.client() as client:
        client.send(data)
        for size in sizes:
            assert len((await client.answer()).json["body"]) == size


@httptools
async def test_number_of_requests_that_wait_is_bounded(base: Any) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n" + GET * 2000)
        await settled(lambda: server.running)
        await settled(lambda: server.connection.flow.read_paused)
        assert 100 < len(server.connection.pipeline) < 400
        server.go.set()
        for _ in range(2001):
            assert (await client.answer()).status == 200


@httptools
async def test_size_of_the_requests_that_wait_is_bounded(base: Any) -> None:
    head = b"GET / HTTP/1.1\r\n%b\r\n" % (b"a:\r\n" * 800)
    async with listening(mended(base)) as server, server.client() as client:
        client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n" + head * 100)
        await settled(lambda: server.running)
        await settled(lambda: server.connection.flow.read_paused)
        assert len(server.connection.pipeline) < 10
        server.go.set()
        for _ in range(101):
            assert (await client.answer()).status == 200


@both
@pytest.mark.parametrize("behind", [1, 50, 2000])
async def test_client_that_leaves_is_noticed_whatever_waits(base: Any, behind: int) -> None:
    async with listening(mended(base)) as server:
        watch = SilentConnections(server.state.connections, 1.0)
        async with server.client() as client:
            client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await settled(lambda: server.running)
            client.send(GET * behind)
            await asyncio.sleep(0.02)
            client.writer.transport.abort()
        await settled(lambda: watch.check(time.monotonic()) or not server.state.connections)
        await settled(lambda: not server.running)


# --- what cannot be parsed ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("path", ["/wait", "/begin"])
@pytest.mark.parametrize("between", [b"", GET])
@pytest.mark.parametrize(
    ("garbage", "status"), [(b"\x00\x01\r\n\r\n", 400), (LONG["one field"], 431)]
)
async def test_what_cannot_be_parsed_is_answered_in_its_turn(
    base: Any, path: str, between: bytes, garbage: bytes, status: int
) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        client.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() + between)
        await settled(lambda: server.running)
        client.send(garbage)
        await asyncio.sleep(0.02)
        server.go.set()
        answers = [await client.answer() for _ in range(3 if between else 2)]
        assert [answer.status for answer in answers] == [*[200] * (len(answers) - 1), status]
        assert [*answers[-1].json] == ["error"]


@both
@pytest.mark.parametrize("path", ["/wait", "/begin"])
async def test_bad_chunk_of_a_request_that_waits(base: Any, path: str) -> None:
    bad = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    async with listening(mended(base)) as server, server.client() as client:
        client.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() + bad)
        await settled(lambda: server.running)
        server.go.set()
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]


@both
async def test_bad_chunk_of_a_request_that_is_running(base: Any) -> None:
    bad = b"POST /wait HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with listening(mended(base)) as server, server.client() as client:
        client.send(bad)
        await settled(lambda: server.running)
        client.send(b"zz\r\n")
        answer = await client.answer()
        assert (answer.status, [*answer.json]) == (400, ["error"])
        server.go.set()
        assert await client.rest() == b""


@both
async def test_nothing_is_sent_into_a_response_that_has_begun(
    base: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async with listening(mended(base)) as server, server.client() as client:
        server.app = begin  # type: ignore[method-assign]
        client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        await client.reader.readuntil(b"1\r\na\r\n")
        client.send(b"zz\r\n")
        assert await client.rest() == b""
    assert "Traceback" not in caplog.text


# --- another protocol ---------------------------------------------------------------------------

UPGRADE = b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAA\r\n"


@both
async def test_body_of_a_request_that_asks_for_http_2_is_read(base: Any) -> None:
    """Java's client and `curl --http2` ask so; the body may hold what looks like a request."""
    data = post(GET, head=UPGRADE, trailer=b"x: y\r\n", path="/a")
    async with listening(mended(base)) as server:
        for cut in range(1, len(data), 3):
            async with server.client() as client:
                client.send(data[:cut])
                await settled(lambda: server.state.connections)
                client.send(data[cut:] + GET.replace(b"host", UPGRADE + b"host") + GET)
                assert (await client.answer()).json["body"].encode() == GET
                assert (await client.answer()).json["path"] == "/"
                assert (await client.answer()).json["names"] == ["host"]


@both
async def test_bad_framing_of_a_request_that_asks_for_http_2(base: Any) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\n%btransfer-encoding: gzip\r\n\r\n" % UPGRADE
    async with listening(mended(base)) as server, server.client() as client:
        client.send(head + GET)
        assert (await client.answer()).status in (400, 501)
        assert await client.rest() == b""


# --- clients that send nothing ------------------------------------------------------------------

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n"


@both
@pytest.mark.parametrize(
    ("sent", "drips", "answers"),
    [
        (b"", b"", b""),
        (b"GET", b"", b"HTTP/1.1 408 Request Timeout"),
        (b"GET / HTTP/1.1\r\na: ", b"b", b"HTTP/1.1 408 Request Timeout"),
        (GET + b"GET /", b"a", b"HTTP/1.1 200 OK"),
        (HEAD, b"", b""),
        (HEAD + b"12345", b"", b""),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            b"a: b\r\n",
            b"",
        ),
    ],
    ids=["nothing", "begin", "drips", "second", "no body", "half a body", "trailers"],
)
async def test_client_that_does_not_send_what_is_waited_for_is_cut(
    base: Any, sent: bytes, drips: bytes, answers: bytes
) -> None:
    async with listening(mended(base)) as server, server.client() as client:
        watch = SilentConnections(server.state.connections, 10.0)
        client.send(sent)
        if sent.startswith(GET):
            await client.answer()
        await settled(lambda: server.state.connections)
        await asyncio.sleep(0.02)
        for now in (100.0, 103.0, 106.0, 109.0):
            watch.check(now)
            client.send(drips)
            await asyncio.sleep(0.01)
            assert server.state.connections
        watch.check(113.5)
        rest = await client.rest()
        assert rest.startswith(answers if not sent.startswith(GET) else b"HTTP/1.1 408")
        assert bool(rest) == bool(answers)
        await settled(lambda: not server.running and not server.state.connections)


@both
async def test_clients_that_are_not_waited_for_are_left_alone(base: Any) -> None:
    """An idle one, one whose request runs, one that sends slowly."""
    async with (
        listening(mended(base)) as server,
        server.client() as idle,
        server.client() as running,
        server.client() as slow,
    ):
        watch = SilentConnections(server.state.connections, 10.0)
        idle.send(GET)
        await idle.answer()
        running.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        slow.send(HEAD)
        await settled(lambda: server.running == 2)
        for number in range(10):
            watch.check(100.0 + 6 * number)
            slow.send(b"x")
            await asyncio.sleep(0.01)
        assert (await slow.answer()).status == 200
        server.go.set()
        assert (await running.answer()).status == 200
        assert len(server.state.connections) == 3


def test_no_time_limit() -> None:
    class Late:
        cycle = None
        scope = None
        timeout_keep_alive_task = None
        transport: Any = None

        class flow:
            read_paused = False

    Late.transport = type("Transport", (), {"is_closing": lambda _: False})()
    watch = SilentConnections({Late()}, float("inf"))
    for now in range(0, 10**6, 10):
        watch.check(float(now))  # `abort` of its transport would raise


# --- uvicorn itself -----------------------------------------------------------------------------
# Where one of these fails with a new release, what is mended here can go.


@httptools
async def test_uvicorn_still_makes_headers_of_trailers(base: Any) -> None:
    async with listening(base) as server:
        answer = await server.ask(post(trailer=b"x-user: root\r\n"))
        assert "x-user" in answer.json["names"]


@httptools
async def test_uvicorn_still_takes_heads_of_any_length(base: Any) -> None:
    async with listening(base) as server:
        assert (await server.ask(LONG["one field"])).status == 200


@httptools
async def test_uvicorn_still_parses_all_that_is_pipelined(base: Any) -> None:
    async with listening(base) as server, server.client() as client:
        client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n" + GET * 1000)
        await settled(lambda: server.running)
        assert len(server.connection.pipeline) > 500


@httptools
async def test_uvicorn_still_loses_the_body_of_a_request_for_another_protocol(base: Any) -> None:
    async with listening(base) as server:
        assert (await server.ask(post(b"{}", head=UPGRADE))).json["body"] == ""


@httptools
async def test_uvicorn_still_answers_garbage_before_what_is_in_front_of_it(base: Any) -> None:
    async with listening(base) as server, server.client() as client:
        client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n\x00\r\n\r\n")
        assert (await client.answer()).status == 400


async def test_uvicorn_still_answers_a_long_head_with_400_under_h11() -> None:
    async with listening(H11Protocol) as server:
        assert (await server.ask(LONG["no end"])).status == 400


# --- the command --------------------------------------------------------------------------------


@every_protocol
@pytest.mark.slow
def test_head_timeout_of_the_command(serve: Serve, flags: str) -> None:
    running = serve("served.py", "--head-timeout", "0.4", *flags.split())
    with running.open() as silent, running.send("GET / HTTP/1.1\r\n") as slow:
        assert silent.recv(1) == b""
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")
    assert running.get("/v2/health/live") == (200, {"live": True})


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("place", ["tls", "unix", "workers"])
def test_bounds_hold_everywhere(
    serve: Serve, tls: list[str], tmp_path: Path, flags: str, place: str
) -> None:
    options: dict[str, Any] = {"unix": {"address": ("--uds", str(tmp_path / "socket"))}}
    more = {"tls": tls, "workers": ["--workers", "2"]}.get(place, [])
    running = serve(
        "served.py", "--head-timeout", "1", *more, *flags.split(), **options.get(place, {})
    )
    with running.open() as silent, running.send("GET / HTTP/1.1\r\n") as slow:
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")
        assert silent.recv(1) == b""
    with running.send(LONG["one field"].decode()) as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 431")
    with running.send(GET.decode() * 500) as client:
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 500:
            part = client.recv(1 << 16)
            assert part
            answers += part
    assert "Traceback" not in running.log


@pytest.mark.slow
@every_protocol
def test_thousands_of_silent_clients_are_gone_in_time(serve: Serve, flags: str) -> None:
    running = serve("served.py", "--head-timeout", "3", *flags.split())
    files = Path(f"/proc/{running.process.pid}/fd")
    before, port = len(list(files.iterdir())), running.port
    with ExitStack() as clients:
        for _ in range(900):
            clients.enter_context(socket.create_connection(("127.0.0.1", port)))
        until(lambda: len(list(files.iterdir())) > before + 800)
        until(lambda: len(list(files.iterdir())) <= before, within=10)
