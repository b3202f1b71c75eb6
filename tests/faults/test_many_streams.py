"""Ten thousand streams at once in one process, and how soon a thousand handlers are cancelled."""

import asyncio
import json
import socket
import statistics
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from faultserver import Command, Figures, Usage, raise_file_limit, request, serving, until

pytest_plugins = ["faultfixtures"]

STREAMS = 10_000
ITEMS = 6
ROUNDS = 2
GROWTH = 1.05
AT_ONCE = 400  # streams that are being opened
CANCELLED = 1000
SPARE_FILES = 200
SLOWEST_CANCEL = 2.0  # seconds; a bound for machines under load; the figures show the real latency

UNLIMITED = ("--concurrency", "inf", "--timeout", "inf", "--send-timeout", "inf")
KIB, MIB = 1 << 10, 1 << 20


class Stream(asyncio.Protocol):
    """A client of one stream, as small as possible."""

    def __init__(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.request = data
        self.received = bytearray()
        self.first: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport
        self.closed_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.first.done() and b'{"n":0}' in self.received:
            self.first.set_result(None)
        if self.received.endswith(b"\r\n0\r\n\r\n") and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.first, self.done):
            if not future.done():
                future.set_result(None)

    def items(self) -> list[Any]:
        body = bytes(self.received).partition(b"\r\n\r\n")[2]
        chunks = body.split(b"\r\n")[1::2]
        return [json.loads(chunk) for chunk in chunks if chunk]

    def close(self, *, reset: bool) -> None:
        self.closed_at = time.monotonic()
        if reset:
            linger = struct.pack("ii", 1, 0)
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.close()


async def open_streams(port: int, requests: list[bytes]) -> list[Stream]:
    """Open streams, so many at a time, and return once each has its first item."""
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(AT_ONCE)

    async def open_one(number: int, data: bytes) -> Stream:
        async with room:
            source = (f"127.0.0.{2 + number % 16}", 0)
            _, stream = await loop.create_connection(
                lambda: Stream(data), "127.0.0.1", port, local_addr=source
            )
            await stream.first
            return stream

    return await asyncio.gather(*(open_one(n, data) for n, data in enumerate(requests)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_streams(tmp_path: Path, figure: Figures) -> None:
    streams = min(STREAMS, raise_file_limit() - SPARE_FILES)
    if streams < STREAMS:
        figure("files are limited: streams", str(streams))
    with serving(tmp_path, *UNLIMITED) as server:
        server.account()
        before = server.usage()
        peaks = []
        for _ in range(ROUNDS):
            peaks.append(asyncio.run(all_at_once(server, streams, figure)))
            assert until(lambda: server.slots() == 0, seconds=10), server.metrics().decode()
            assert until(lambda: server.usage().files <= before.files, seconds=10)
        first, *_, last = (peak.rss for peak in peaks)
        account = server.account()
        assert account["started"]["gated"] == account["ended"]["gated"] == streams * ROUNDS
        assert last < first * GROWTH, "memory grows"
        assert not (untidy := server.untidy()), untidy
    figure("memory a stream, KiB", f"{(first - before.rss) / streams / KIB:.1f}")
    figure(
        "RSS before, and with all open, MiB",
        " ".join(f"{u.rss / MIB:.0f}" for u in (before, *peaks)),
    )


async def all_at_once(server: Command, streams: int, figure: Figures) -> Usage:
    """Open all, see each of them end well, and return what the server used with all open."""
    data = request("POST", "/v1/models/gated:predict", b'{"count": %d}' % ITEMS)
    began = time.monotonic()
    clients = await open_streams(server.port, [data] * streams)
    opened = time.monotonic()
    assert all(client.items() == [{"n": 0}] for client in clients)
    during = server.usage()
    latency = await asyncio.to_thread(unary_latency, server)
    released = time.monotonic()
    await asyncio.to_thread(server.ask, "open-gate", {})
    async with asyncio.timeout(60):
        await asyncio.gather(*(client.done for client in clients))
    completed = time.monotonic()
    for client in clients:
        assert client.items() == [{"n": n} for n in range(ITEMS)]
        client.transport.close()
    await asyncio.sleep(0)
    figure("streams open at once", f"{streams}, {during.files} descriptors")
    figure("time to open, s", f"{opened - began:.2f}")
    figure(f"time to complete, s ({ITEMS - 1} more items each)", f"{completed - released:.2f}")
    figure("unary request with all open, ms (median)", f"{latency * 1000:.1f}")
    return during


def unary_latency(server: Command) -> float:
    seconds = []
    for _ in range(20):
        began = time.monotonic()
        server.ask("value", {})
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("model", "gap", "count", "reset"),
    [
        ("stream", 60.0, CANCELLED, False),
        ("stream", 60.0, CANCELLED, True),
        ("stream", 0.25, CANCELLED, False),
        ("staged", 60.0, CANCELLED, False),
        ("sync-stream", 0.05, 200, False),
    ],
)
def test_cancel_latency(
    tmp_path: Path, figure: Figures, model: str, gap: float, count: int, reset: bool
) -> None:
    """All clients disconnect at once; every handler's `finally` records when it ended."""
    raise_file_limit()
    with serving(tmp_path, *UNLIMITED, "--threads", "250") as server:
        asyncio.run(close_at_once(server, model, gap, count, reset, figure))
        assert not (untidy := server.untidy()), untidy


async def close_at_once(
    server: Command, model: str, gap: float, count: int, reset: bool, figure: Figures
) -> None:
    keys = [f"k{n}" for n in range(count)]
    plans = [json.dumps({"key": key, "count": 10**6, "gap": gap}).encode() for key in keys]
    url = f"/v1/models/{model}:predict"
    clients = await open_streams(server.port, [request("POST", url, plan) for plan in plans])
    await asyncio.sleep(0.5)
    for client in clients:
        client.close(reset=reset)
    began = clients[0].closed_at
    ends: dict[str, float] = {}
    while len(ends) < count and time.monotonic() < began + 20:
        await asyncio.sleep(0.2)
        ends = (await asyncio.to_thread(server.account, ends=True))["ends"]
    assert len(ends) == count, "some handlers have not ended"
    waits = sorted(ends[k] - client.closed_at for k, client in zip(keys, clients, strict=True))
    middle, late, last = waits[count // 2], waits[count * 99 // 100], waits[-1]
    figure("streams", f"{count} of {model}, an item each {gap:g} s, reset: {reset}")
    figure(
        "cancelled, ms: median, 99 %, last",
        " ".join(f"{w * 1000:.0f}" for w in (middle, late, last)),
    )
    assert last < SLOWEST_CANCEL + (gap if model == "sync-stream" else 0)
    assert until(lambda: server.slots() == 0, seconds=5)
