"""Whatever bytes come instead of a request's head: an answer or an end, and a server that lives on.

MODELSERVE_HEADS_SECONDS is how long for each protocol, MODELSERVE_HEADS_SEED where to start.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faultclients import Answer, Cut, Wire
from faultserver import Command, Figures, request, serving, until

pytest_plugins = ["faultfixtures"]

SECONDS = float(os.environ.get("MODELSERVE_HEADS_SECONDS", "10"))
SEED = int(os.environ.get("MODELSERVE_HEADS_SEED", random.randrange(10**6)))
CLIENTS = 40
MIB = 1 << 20

GET = request("GET", "/v2/health/live")
CHUNKS = b"transfer-encoding: chunked\r\n"
VALUE = b'{"text_input":"a"}'

Make = Callable[[random.Random], bytes]


def some_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 20, 3000)))


def blanks(rng: random.Random) -> bytes:
    return b"".join(rng.choices((b"\r\n", b"\n", b"\r", b" ", b"\0"), k=rng.choice((1, 9, 9000))))


def long_target(rng: random.Random) -> bytes:
    return b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * rng.choice((5000, 60_000, 200_000)))


def many_fields(rng: random.Random) -> bytes:
    field = rng.choice((b"a:\r\n", b"a: b\r\n", b"cookie: x=1; y=2\r\n", b"host: x\r\n", b":\r\n"))
    end = rng.choice((b"\r\n", b""))
    return b"GET / HTTP/1.1\r\n" + field * rng.choice((10, 900, 5000, 50_000)) + end


def odd_line(rng: random.Random) -> bytes:
    method = rng.choice((b"GET", b"get", b"PRI", b"CONNECT", b"M-SEARCH", b"G\0T", b"\x16\x03\x01"))
    target = rng.choice((b"/", b"*", b"http://x/", b"x:80", b"//", b"/%", b"/\xff", b"?", b"/a b"))
    version = rng.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP"))
    return b"%b %b %b\r\nhost: x\r\n\r\n" % (method, target, version)


def odd_framing(rng: random.Random) -> bytes:
    fields = (
        *(b"content-length: 18\r\n", b"content-length: 018\r\n", b"content-length: -1\r\n"),
        *(b"content-length: 99999999999999999999999\r\n", b"content-length: 18, 18\r\n"),
        *(CHUNKS, b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: x\r\n"),
        *(b"Transfer-Encoding : chunked\r\n", b"expect: 100-continue\r\n", b"upgrade: h2c\r\n"),
        *(b"connection: upgrade\r\n", b"connection: close\r\n", b"upgrade: websocket\r\n"),
        b" folded\r\n",
    )
    some = b"".join(rng.sample(fields, rng.choice((1, 2, 3))))
    head = b"POST /v2/models/writer/generate HTTP/1.1\r\nhost: x\r\n" + some + b"\r\n"
    return head + rng.choice((VALUE, b"12\r\n%b\r\n0\r\n\r\n" % VALUE, b""))


def odd_chunks(rng: random.Random) -> bytes:
    head = b"POST /v2/models/writer/generate HTTP/1.1\r\nhost: x\r\n" + CHUNKS + b"\r\n"
    size = rng.choice((b"12", b"0012", b"12;a=b", b"12;" + b"a" * 90_000, b"-1", b"z", b"f" * 20))
    trailer = rng.choice(
        (b"", b"a: b\r\n", b"a: b\r\n" * 20_000, b"\0: b\r\n", b"content-length: 3\r\n")
    )
    return head + b"%b\r\n%b\r\n0\r\n%b\r\n" % (size, VALUE, trailer)


def mutated(rng: random.Random) -> bytes:
    data = bytearray(request("POST", "/v2/models/writer/generate", VALUE))
    for _ in range(rng.choice((1, 2, 30))):
        place = rng.randrange(len(data))
        data[place : place + rng.choice((0, 1, 1, 4))] = rng.randbytes(rng.choice((0, 1, 1, 4)))
    return bytes(data)


MAKERS: tuple[Make, ...] = (
    *(some_bytes, blanks, long_target, many_fields, odd_line, odd_framing, odd_chunks, mutated),
)


class Fuzz:
    def __init__(self, port: int) -> None:
        self.port = port
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        ends = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._client(number, ends) for number in range(CLIENTS)))

    async def _client(self, number: int, ends: float) -> None:
        rng = random.Random(f"{SEED}-{number}")
        while asyncio.get_running_loop().time() < ends:
            make = rng.choice(MAKERS)
            async with asyncio.timeout(20), Wire(self.port) as wire:
                await self._once(wire, rng, make(rng))

    async def _once(self, wire: Wire, rng: random.Random, data: bytes) -> None:
        """Send it whole or in parts, with good requests in front of and behind it."""
        before, behind = rng.choice((0, 0, 1, 3)), rng.choice((0, 0, 1, 3))
        data = GET * before + data + GET * behind
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((0, 1, 5))))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            await wire.send(data[start:end])
            await asyncio.sleep(rng.choice((0, 0.001)))
        wire.half_close() if rng.random() < 0.2 else None
        answers: list[Answer] = []
        with suppress(Cut, TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    answers.append(await wire.answer())
        answers = [answer for answer in answers if answer.status != 100]
        for answer in answers:
            assert answer.status < 500 or answer.status == 503, answer
            self.counts[str(answer.status)] += 1
        assert len(answers) <= before + behind + 1 + data.count(b"HTTP/"), (data, answers)
        self.counts["connections"] += 1


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_any_head(tmp_path: Path, figure: Figures, http: str) -> None:
    flags = ("--http", http, "--head-timeout", "1", "--timeout-keep-alive", "1")
    with serving(tmp_path, *flags) as server:
        asyncio.run(Fuzz(server.port).run(1.0))
        before = rest(server)
        fuzz = Fuzz(server.port)
        asyncio.run(fuzz.run(SECONDS))
        after = rest(server)
        figure("seed, counts", f"{SEED}, {dict(fuzz.counts.most_common())}")
        figure("RSS before and after, MiB", f"{before[0] / MIB:.0f} {after[0] / MIB:.0f}")
        assert after[0] < before[0] + 24 * MIB
        assert after[1] <= before[1], "descriptors leaked"
        assert {"200", "400", "431"} <= set(fuzz.counts)
        assert not (untidy := server.untidy()), untidy


def rest(server: Command) -> tuple[int, int]:
    """Wait until no connection is left; return the memory and the descriptors."""
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(server.usage().files)
        return len(seen) > 5 and min(seen) == max(seen[-5:])

    assert until(server.is_ready, seconds=5)
    assert until(lambda: server.account()["tasks"] < 20, seconds=10, every=0.1), server.account()
    until(is_still, seconds=8, every=0.5)
    return server.usage().rss, min(seen)
