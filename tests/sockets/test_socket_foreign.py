"""Streamed requests and WebSockets with the clients of other people, on every host.

Run by `pytest -m foreign`, after pip install aiohttp daphne playwright and, in the environment's
folder, npm install ws; curl and chromium are Debian's. A test is skipped without its client. aiohttp,
curl and node's fetch read while they send; the browser sends first.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import rawclient
import realserver
from realserver import Server, Start, hosts

pytestmark = [
    pytest.mark.foreign,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

aiohttp = pytest.importorskip("aiohttp")

SCRIPTS = Path(__file__).parent / "foreign"
NDJSON = {"content-type": "application/x-ndjson"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The results of five rows whose second is no JSON.
ALTERNATED = [2, "not JSON", 6, 8, 10]

full_duplex = hosts("httptools", "h11", "hypercorn", "trio", "granian-ws", "modelserve")
every_host = hosts("httptools", "wsproto", "hypercorn", "trio", "granian-ws", "daphne")
models = pytest.mark.parametrize("model", ["rows", "async", "sync"])
iterators = pytest.mark.parametrize("model", ["async", "sync"])


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
needs_ws = pytest.mark.skipif(
    not (Path(sys.prefix) / "node_modules" / "ws").exists(), reason="ws is not installed"
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(autouse=True)
def _known_host(request: pytest.FixtureRequest) -> None:
    if "host" in request.fixturenames and request.getfixturevalue("host") == "daphne":
        pytest.importorskip("daphne")


def http_url(server: Server, model: str) -> str:
    return f"http://127.0.0.1:{server.port}/v1/models/{model}:predict"


def ws_url(server: Server, model: str) -> str:
    return http_url(server, model).replace("http", "ws", 1)


def row(key: str, x: int) -> bytes:
    return json.dumps({"key": key, "x": x}).encode() + b"\n"


def seen(line: Any) -> Any:
    """Return the result in an item, or what is wrong with its line."""
    return line["y"] if "y" in line else line["error"].partition(":")[0]


def nothing_runs(server: Server) -> bool:
    """Return whether all that was begun has ended, by the metrics."""
    gauges = rawclient.get(server.port, "/metrics").body.decode()
    running = re.findall(r"^modelserve_(?:in_flight|queued)\S* (\S+)$", gauges, re.MULTILINE)
    assert running
    return not any(map(float, running))


def until_nothing_runs(server: Server) -> None:
    assert realserver.until(lambda: nothing_runs(server), seconds=20, every=0.05)


# --- aiohttp ------------------------------------------------------------------------------------


class Sent:
    """A body that goes out piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for piece in pieces:
            self.put(piece)

    def put(self, piece: bytes | None) -> None:
        self._queue.put_nowait(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._queue.get()) is not None:
            yield piece


@full_duplex
@models
def test_aiohttp_reads_each_result_before_it_sends_the_next_row(
    start: Start, key: str, host: str, model: str
) -> None:
    server = start(host, "lines")

    async def main() -> list[Any]:
        sent, found = Sent(row(key, 1)), []
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(http_url(server, model), data=sent, headers=NDJSON) as response,
        ):
            for piece in (b"no JSON\n", row(key, 3), row(key, 4), row(key, 5), None):
                found.append(seen(json.loads(await response.content.readline())))
                sent.put(piece)
            assert await response.read() == b""
        return found

    assert asyncio.run(main()) == ALTERNATED
    until_nothing_runs(server)


@full_duplex
@iterators
@pytest.mark.parametrize("stage", ["sending", "head", "item"])
def test_aiohttp_leaves(start: Start, key: str, host: str, model: str, stage: str) -> None:
    server = start(host, "lines")

    async def call() -> None:
        async with aiohttp.ClientSession() as session:
            sent = Sent(row(key, 1)[:-1] if stage == "sending" else row(key, 1))
            async with session.post(http_url(server, model), data=sent, headers=NDJSON) as response:
                if stage == "item":
                    await response.content.readline()
                if stage == "sending":
                    await asyncio.sleep(60)

    async def main() -> None:
        calling = asyncio.create_task(call())
        if stage == "sending":
            await asyncio.wait([calling], timeout=0.3)
            calling.cancel()
        await asyncio.wait([calling], timeout=30)
        assert calling.done()

    asyncio.run(main())
    if stage == "item":
        server.ledger.wait(key, "end")
    until_nothing_runs(server)


@full_duplex
@pytest.mark.parametrize("slow", ["reader", "writer", "half duplex"])
def test_aiohttp_at_its_own_pace(start: Start, key: str, host: str, slow: str) -> None:
    server, count = start(host, "lines"), 20_000
    rows = [row(key, x) for x in range(count)]

    async def pieces() -> AsyncIterator[bytes]:
        for first in range(0, count, 1000):
            yield b"".join(rows[first : first + 1000])
            await asyncio.sleep(0.02 if slow == "writer" else 0)

    async def main() -> list[Any]:
        data = b"".join(rows) if slow == "half duplex" else pieces()
        async with (
            aiohttp.ClientSession(read_bufsize=1024) as session,
            session.post(http_url(server, "async"), data=data, headers=NDJSON) as response,
        ):
            await asyncio.sleep(0.5 if slow == "reader" else 0)
            return [seen(json.loads(line)) async for line in response.content]

    assert asyncio.run(main()) == [2 * x for x in range(count)]
    until_nothing_runs(server)


# --- curl ---------------------------------------------------------------------------------------

CURL = ["curl", "-sS", "-N", "-T", ".", "-X", "POST", "-H", "content-type: application/x-ndjson"]
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
@full_duplex
@models
def test_curl_prints_each_result_before_it_is_given_the_next_row(
    start: Start, key: str, host: str, model: str
) -> None:
    server, found = start(host, "lines"), []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([*CURL, http_url(server, model)], **pipes) as curl:
        for piece in (row(key, 1), b"no JSON\n", row(key, 3), row(key, 4), row(key, 5)):
            curl.stdin.write(piece)
            curl.stdin.flush()
            found.append(seen(json.loads(curl.stdout.readline())))
        curl.stdin.close()
        assert curl.stdout.read() == b""
        assert curl.wait(20) == 0
    assert found == ALTERNATED
    until_nothing_runs(server)


@needs_curl
@full_duplex
@iterators
def test_curl_is_killed(start: Start, key: str, host: str, model: str) -> None:
    server = start(host, "lines")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([*CURL, http_url(server, model)], **pipes) as curl:
        curl.stdin.write(row(key, 1))
        curl.stdin.flush()
        assert seen(json.loads(curl.stdout.readline())) == 2
        curl.kill()
        curl.stdin.close()
    server.ledger.wait(key, "end")
    until_nothing_runs(server)


# --- node ---------------------------------------------------------------------------------------


def node(script: str, *arguments: str) -> list[Any]:
    """Run a script; return the values that it prints."""
    command = ["node", str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_node
@full_duplex
@models
def test_node_reads_each_result_before_it_sends_the_next_row(
    start: Start, key: str, host: str, model: str
) -> None:
    server = start(host, "lines")
    found = node("streams.mjs", http_url(server, model), "alternate", key)
    assert [seen(item) for item in found] == ALTERNATED
    until_nothing_runs(server)


@needs_node
@full_duplex
@iterators
def test_node_aborts(start: Start, key: str, host: str, model: str) -> None:
    server = start(host, "lines")
    assert node("streams.mjs", http_url(server, model), "abort", key) == [{"y": 2}, "AbortError"]
    server.ledger.wait(key, "end")
    until_nothing_runs(server)


@needs_node
@full_duplex
def test_node_sees_a_refusal_while_it_sends(start: Start, key: str, host: str) -> None:
    server = start(host, "lines")
    [[status, document]] = node("streams.mjs", http_url(server, "none"), "refused", key)
    assert (status, list(document)) == (404, ["error"])


@needs_node
@full_duplex
def test_node_sends_many_rows(start: Start, key: str, host: str) -> None:
    server = start(host, "lines")
    assert node("streams.mjs", http_url(server, "async"), "many", key) == [20_000]


def ws(server: Server, model: str, *sent: Any, leaves: str = "") -> dict[str, Any]:
    url = ws_url(server, model)
    [found] = node("sockets.cjs", sys.prefix, url, json.dumps(sent), leaves)
    return dict(found)


@needs_node
@needs_ws
@every_host
@pytest.mark.parametrize("model", ["echo", "thread", "lists"])
def test_messages_of_ws(start: Start, host: str, model: str) -> None:
    server = start(host, "sockets")
    found = ws(server, model, "1", "nope", [0, 255], '"é"', "")
    assert json.loads(found["messages"].pop(1))["message"] == 2
    end = {"code": 1000, "reason": "", "protocol": "modelserve.v1"}
    assert found == {"messages": ["1", [0, 255], '"é"'], **end}
    until_nothing_runs(server)


@needs_node
@needs_ws
@every_host
def test_ws_sees_how_it_ends(start: Start, host: str) -> None:
    server = start(host, "sockets")
    found = ws(server, "echo", '"fail"')
    reason = "" if host == "daphne" else "told to fail"  # daphne sends no reasons
    assert (found["code"], found["reason"]) == (4429, reason)
    assert ws(server, "none")["status"] == (403 if host == "daphne" else 404)


@needs_node
@needs_ws
@every_host
@pytest.mark.parametrize("how", ["closes", "terminates"])
def test_ws_leaves(start: Start, host: str, key: str, how: str) -> None:
    server = start(host, "sockets")
    assert ws(server, "watched", f'"{key}"', leaves=how)["messages"] == [f'"{key}"']
    server.ledger.wait(key, "end")
    until_nothing_runs(server)


# --- a browser ----------------------------------------------------------------------------------

TALK = """([url, sent, protocols]) => new Promise((resolve) => {
    const socket = new WebSocket(url, protocols), messages = [];
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
        for (const m of sent) socket.send(Array.isArray(m) ? new Uint8Array(m) : m);
    };
    socket.onmessage = ({ data }) => {
        messages.push(typeof data === "string" ? data : [...new Uint8Array(data)]);
    };
    socket.onclose = ({ code, reason }) => resolve([messages, code, reason, socket.protocol]);
})"""
OPEN = """([url, sent]) => new Promise((resolve) => {
    window.socket = new WebSocket(url);
    socket.onopen = () => socket.send(sent);
    socket.onmessage = resolve;
})"""
FETCH = """async ([url, body, most]) => {
    const leave = new AbortController();
    const headers = { "content-type": "application/x-ndjson" };
    const response = await fetch(url, { method: "POST", headers, body, signal: leave.signal });
    const found = [];
    let text = "";
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
        const lines = (text + piece).split("\\n");
        text = lines.pop();
        found.push(...lines.map((line) => JSON.parse(line)));
        if (found.length >= most) { leave.abort(); break; }
    }
    return [response.status, found];
}"""

browser_hosts = hosts("modelserve", "httptools", "hypercorn", "granian-ws")


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def home(server: Server, name: str = "127.0.0.1") -> str:
    return f"http://{name}:{server.port}/v2/health/live"


@needs_browser
@browser_hosts
def test_a_page_talks(start: Start, host: str, page: Any) -> None:
    server = start(host, "sockets")
    page.goto(home(server))
    sent = ["1", "nope", [0, 255], ""]
    messages, code, reason, protocol = page.evaluate(
        TALK, [ws_url(server, "echo"), sent, ["bearer.eA", "modelserve.v1"]]
    )
    assert json.loads(messages.pop(1))["message"] == 2
    assert (messages, code, reason, protocol) == (["1", [0, 255]], 1000, "", "modelserve.v1")
    found = page.evaluate(TALK, [ws_url(server, "echo"), ['"fail"'], []])
    assert found[1:] == [4429, "told to fail", ""]
    until_nothing_runs(server)


@needs_browser
@browser_hosts
def test_a_page_of_another_origin_does_not(start: Start, host: str, page: Any) -> None:
    server = start(host, "sockets")
    page.goto(home(server, "localhost"))
    assert page.evaluate(TALK, [ws_url(server, "echo"), ["1", ""], []])[:2] == [[], 1006]


@needs_browser
@browser_hosts
def test_a_page_is_left(start: Start, host: str, key: str, page: Any) -> None:
    server = start(host, "sockets")
    page.goto(home(server))
    page.evaluate(OPEN, [ws_url(server, "watched"), f'"{key}"'])
    page.goto("about:blank")
    server.ledger.wait(key, "end")
    until_nothing_runs(server)


@needs_browser
@browser_hosts
@models
def test_a_page_fetches(start: Start, host: str, key: str, model: str, page: Any) -> None:
    server = start(host, "lines")
    page.goto(home(server))
    rows = [row(key, 1), b"no JSON\n", row(key, 3), row(key, 4), row(key, 5)]
    body = b"".join(rows).decode()
    status, items = page.evaluate(FETCH, [http_url(server, model), body, 100])
    assert (status, [seen(item) for item in items]) == (200, ALTERNATED)
    many = b"".join(row(key, x) for x in range(50_000)).decode()
    status, items = page.evaluate(FETCH, [http_url(server, model), many, 10])
    assert [item["y"] for item in items[:10]] == [2 * x for x in range(10)]
    until_nothing_runs(server)
