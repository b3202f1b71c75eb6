"""Clients of a real server on raw sockets, hundreds in one event loop, well-behaved and not.

A `Job` is one request and what its answer has to be; a fault is what a client does with it. All
choices come from one seeded source.
"""

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from eventstream import interpret
from faultapp import ERRORS, SEND_TIMEOUT, WRONG
from faultserver import request

__all__ = ["Answer", "Cut", "Job", "Swarm", "Wire", "choose_job", "never_read"]

LONGEST = 40.0  # seconds that any one exchange may take: after that the server is stuck
_BIND_LATE = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)


class Cut(Exception):
    """The server closed the connection inside an answer; `args[0]` is the answer so far."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


class Wire:
    """One connection, from any address of the loopback net."""

    def __init__(self, port: int, *, source: int = 1, receive_buffer: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self.port = port
        self.buffer = bytearray()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_IP, _BIND_LATE, 1)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.bind((f"127.0.0.{source}", 0))

    async def __aenter__(self) -> Self:
        try:
            await self.loop.sock_connect(self.sock, ("127.0.0.1", self.port))
        except BaseException:
            self.sock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the answer is still to be read
            await self.loop.sock_sendall(self.sock, data)

    async def receive(self, size: int = 65536) -> bytes:
        """Receive something; nothing is the end, a reset included."""
        try:
            data = await self.loop.sock_recv(self.sock, size)
        except ConnectionError:
            data = b""
        self.buffer += data
        return data

    async def receive_in_all(self, size: int) -> None:
        while len(self.buffer) < size and await self.receive(size - len(self.buffer)):
            pass

    async def answer(self) -> Answer:
        """Read one answer, as its headers frame it. Raises Cut."""
        head = await self._until(b"\r\n\r\n")
        if head is None:
            raise Cut(Answer(0, {}, bytes(self.buffer)))
        status_line, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        answer = Answer(int(status_line.split()[1]), headers)
        if "chunked" in headers.get("transfer-encoding", ""):
            await self._chunks(answer)
        else:
            answer.body = await self._exactly(int(headers.get("content-length", 0)), answer)
        return answer

    async def _chunks(self, answer: Answer) -> None:
        while True:
            line = await self._until(b"\r\n")
            if line is None:
                raise Cut(answer)
            chunk = await self._exactly(int(line, 16), answer)
            await self._exactly(2, answer)
            if not chunk:
                return
            answer.body += chunk

    async def _until(self, end: bytes) -> bytes | None:
        start = 0
        while (found := self.buffer.find(end, start)) < 0:
            start = max(0, len(self.buffer) - len(end))
            if not await self.receive():
                return None
        data = bytes(self.buffer[:found])
        del self.buffer[: found + len(end)]
        return data

    async def _exactly(self, size: int, answer: Answer) -> bytes:
        while len(self.buffer) < size:
            if not await self.receive():
                raise Cut(answer)
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def half_close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        if reset:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()


# --- jobs ---------------------------------------------------------------------------------------


@dataclass
class Job:
    """One request. `items` is what a good answer holds; None means that it has to fail.

    `made` is how many items a handler that fails makes before: all of them have to be there.
    """

    name: str
    path: str
    payload: Any
    accept: str = "*/*"
    items: list[Any] | None = None
    status: int | None = None
    made: int | None = None

    @property
    def data(self) -> bytes:
        body = json.dumps(self.payload).encode()
        return request("POST", self.path, body, accept=self.accept)

    def check(self, answer: Answer | Cut) -> str:
        """Check what came back; return one word for it. Raises AssertionError."""
        if isinstance(answer, Cut):
            assert self.items is None, f"{self}: a good answer was cut: {answer}"
            partial = answer.args[0]
            framed = partial.media_type in ("text/event-stream", "application/x-ndjson")
            assert not framed, f"{self}: cut instead of an error record: {partial}"
            length = self.payload.get("size", 0)
            assert self.made is None or len(partial.body) == self.made * length, f"{self}: {answer}"
            return "cut"
        if answer.status >= 400:
            assert answer.media_type == "application/json", f"{self}: {answer}"
            document = json.loads(answer.body)
            assert list(document) == ["error"], f"{self}: {answer}"
            assert "secret" not in document["error"], f"{self}: {answer}"
            if answer.status == 503 and "retry-after" in answer.headers:
                return "refused"
            assert self.items is None, f"{self}: {answer}"
            assert self.status in (None, answer.status), f"{self}: {answer}"
            return "failed"
        assert answer.status == 200, f"{self}: {answer}"
        if self.items is None:
            assert error_record(answer), f"{self}: failed, and looks complete: {answer}"
            items = items_of(answer)[:-1]
            assert self.made is None or len(items) == self.made, f"{self}: {answer}"
            return "record"
        assert items_of(answer) == self.items, f"{self}: {answer}"
        return "good"


def error_record(answer: Answer) -> str | None:
    """Return the sentence of the error record at the end of a stream."""
    if answer.media_type == "text/event-stream":
        events = interpret(answer.body).events
        last = events[-1] if events else None
        if last is not None and (last.type == "error" or '"error"' in last.data):
            return str(json.loads(last.data)["error"])
    if answer.media_type == "application/x-ndjson":
        lines = answer.body.splitlines()
        document = json.loads(lines[-1]) if lines else None
        if isinstance(document, dict) and list(document) == ["error"]:
            return str(document["error"])
    return None


def items_of(answer: Answer) -> list[Any]:
    """Return the items of an answer in whatever form; raw text is one item."""
    body = answer.body
    if answer.media_type == "text/event-stream":
        return [_value(event.data) for event in interpret(body).events]
    if answer.media_type == "application/x-ndjson":
        return [json.loads(line) for line in body.splitlines() if line]
    if answer.media_type == "application/json":
        document = json.loads(body)
        return list(document["predictions"]) if "predictions" in document else [document]
    return [body.decode()]


def _value(data: str) -> Any:
    return json.loads(data) if data.startswith("{") else data


V1_ACCEPTS = ("*/*", "text/event-stream", "application/x-ndjson", "application/json")


def good(rng: random.Random) -> Job:
    """A request whose answer has to be good, or a refusal."""
    plan: dict[str, Any] = {"count": rng.choice((0, 1, 3, 10)), "gap": rng.choice((0, 0, 0.01))}
    plan["before"] = rng.choice((0, 0, 0.02))
    plan["cleanup"] = rng.choice((0, 0, 0, 0.01))
    name = rng.choice(
        ("value", "sync-value", "grouped", "deaf")
        + ("stream", "sync-stream", "staged", "sync-staged", "stubborn") * 2
        + ("narrow", "narrow-sync", "restless", "typed", "beating", "coalescing", "sync-coalescing")
        + ("blocks-loop",) * (rng.random() < 0.3)
    )
    items: list[Any] = [{"n": n} for n in range(plan["count"])]
    accept = rng.choice(V1_ACCEPTS)
    if name == "typed" or (rng.random() < 0.2 and name not in ("stubborn", "blocks-loop")):
        plan["size"] = 50
        items = [f"{n:06}".ljust(50, ".") for n in range(plan["count"])]
    if name == "restless":
        plan["count"] = 300
        items = [{"n": n} for n in range(300)]
        plan.pop("size", None)
    is_raw = name == "typed" or ("size" in plan and accept == "*/*" and "value" not in name)
    if is_raw and name not in ("grouped", "deaf"):
        items = ["".join(items)] if items or name == "typed" else []
    path = f"/v1/models/{name}:predict"
    return Job(name, path, plan, accept, items)


def good_v2(rng: random.Random) -> Job:
    """The same over the Open Inference Protocol and its generate extension."""
    words = ["abc"] * rng.choice((1, 5, 20))
    text = {"text_input": " ".join(words), "parameters": {"gap": rng.choice((0, 0.005))}}
    about = {"model_name": "writer", "model_version": None}
    kind = rng.randrange(3)
    if kind == 0:
        items = [{"text_output": "".join(words), **about}]
        return Job("generate", "/v2/models/writer/generate", text, items=items)
    if kind == 1:
        items = [{"text_output": word, **about} for word in words]
        path = "/v2/models/writer/generate_stream"
        return Job("generate_stream", path, text, "text/event-stream", items)
    tensor = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}
    answer = {"model_name": "tensors", "outputs": [tensor]}
    path = "/v2/models/tensors/" + rng.choice(("infer", "infer_stream"))
    return Job("infer", path, {"inputs": [tensor]}, items=[answer])


def failing(rng: random.Random) -> Job:
    """A request whose handler fails, at any stage, with anything."""
    plan: dict[str, Any] = {"count": 4, "error": rng.choice(sorted(ERRORS))}
    name, stages = rng.choice(
        (
            ("stream", ("predict", "items", "finally")),
            ("sync-stream", ("predict", "items", "finally")),
            ("staged", ("preprocess", "predict", "items", "finally")),
            ("sync-staged", ("preprocess", "predict", "postprocess", "items")),
            ("value", ("predict", "finally")),
            ("sync-value", ("predict",)),
            ("typed", ("predict", "items")),
            ("narrow", ("predict", "items", "finally")),
            ("beating", ("predict", "items", "finally")),
            ("coalescing", ("predict", "items", "finally")),
            ("sync-coalescing", ("predict", "items", "finally")),
        )
    )
    plan["stage"] = rng.choice(stages)
    plan["fail_at"] = rng.randrange(4)
    plan["cleanup"] = rng.choice((0, 0.01))
    if name == "typed" or rng.random() < 0.3:
        plan["size"] = 50
    made = {"items": plan["fail_at"], "finally": plan["count"]}.get(plan["stage"], 0)
    path = f"/v1/models/{name}:predict"
    return Job(f"{name} fails", path, plan, rng.choice(V1_ACCEPTS), made=made)


def wrong(rng: random.Random) -> Job:
    """A request whose handler returns what cannot be sent."""
    plan: dict[str, Any] = {"count": 4, "kind": rng.choice(sorted(WRONG))}
    if rng.random() < 0.4:
        plan["kind"] = rng.choice((plan["kind"], "header"))
        return Job("wrong value", "/v1/models/wrong-value:predict", plan)
    plan["fail_at"] = rng.randrange(1, 4)
    return Job("wrong item", "/v1/models/wrong:predict", plan, rng.choice(V1_ACCEPTS))


def bad(rng: random.Random) -> Job:
    """An invalid request."""
    path, payload, status = rng.choice(
        (
            ("/v1/models/zz:predict", {}, 404),
            ("/v1/models/value:predict", {"instances": 5}, 400),
            ("/v1/models/value:run", {}, 404),
            ("/v1/models/stream", {}, 405),
            ("/v2/models/tensors/infer", {"inputs": 5}, 400),
            ("/v2/models/tensors/versions/3/infer", {"inputs": []}, 404),
            ("/v2/models/writer/generate", {"text_input": 5}, 400),
            ("/nothing", None, 404),
        )
    )
    return Job("bad", path, payload, status=status)


ENDLESS = (
    *("stream", "sync-stream", "staged", "stubborn", "narrow", "narrow-sync"),
    *("beating", "coalescing", "sync-coalescing"),
)


def endless(rng: random.Random, *, size: int = 0) -> Job:
    """A stream that lasts until the client disconnects, or long enough."""
    plan: dict[str, Any] = {"count": 2000, "gap": 0.01, "cleanup": rng.choice((0, 0.02))}
    if size:
        plan |= {"size": size, "gap": 0, "count": 1000}
    name = rng.choice(ENDLESS)
    if name == "stubborn":
        plan["refusals"] = rng.randrange(4)
    path = f"/v1/models/{name}:predict"
    return Job(f"{name} for ever", path, plan, rng.choice(V1_ACCEPTS[:3]))


def choose_job(rng: random.Random) -> Job:
    """Return any request that ends by itself."""
    return rng.choices((good, good_v2, failing, wrong, bad), (60, 15, 12, 5, 5))[0](rng)


# --- faults -------------------------------------------------------------------------------------


@dataclass
class Swarm:
    """Clients that send requests and misbehave until they are stopped; it counts the outcomes."""

    port: int
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_probe: float = 0.0
    stopping: bool = False
    laps: int = 0

    async def run(self, clients: int, seconds: float, *, pause: float) -> None:
        """Keep this many clients busy for some seconds, then wait until each has ended."""
        self.stopping = False
        self.laps += 1
        tasks = [asyncio.create_task(self._client(n, pause)) for n in range(clients)]
        tasks.append(asyncio.create_task(self._probe()))
        await asyncio.sleep(seconds)
        self.stopping = True
        await asyncio.gather(*tasks)

    async def _client(self, number: int, pause: float) -> None:
        rng = random.Random(f"{self.seed}-{self.laps}-{number}")
        await asyncio.sleep(rng.random() * pause)
        while not self.stopping and len(self.problems) < 20:
            fault = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
            await self._once(fault, rng)
            await asyncio.sleep(rng.expovariate(1 / pause))

    async def _once(self, fault: "Fault", rng: random.Random) -> None:
        self.kinds[fault.__name__] += 1
        try:
            async with asyncio.timeout(LONGEST):
                await fault(self, rng)
        except TimeoutError:
            self.problems.append(f"{fault.__name__}: no end after {LONGEST} s")
        except AssertionError as error:
            self.problems.append(f"{fault.__name__}: {error}"[:1000])
        except OSError as error:
            self.problems.append(f"{fault.__name__}: {error!r}")

    async def _probe(self) -> None:
        """Ask for liveness all the time: the longest answer is what others have had to wait."""
        data = request("GET", "/v2/health/live")
        while not self.stopping:
            begin = time.monotonic()
            async with Wire(self.port) as wire:
                await wire.send(data)
                answer = await wire.answer()
            assert answer.body == b'{"live":true}'
            self.slowest_probe = max(self.slowest_probe, time.monotonic() - begin)
            await asyncio.sleep(0.1)

    def wire(self, rng: random.Random, **options: int) -> Wire:
        return Wire(self.port, source=rng.randrange(2, 250), **options)

    async def read(self, wire: Wire, job: Job) -> Answer | Cut:
        """Read an answer to its end and check it."""
        answer = await self.answer(wire)
        self.outcomes[job.check(answer)] += 1
        return answer

    async def answer(self, wire: Wire) -> Answer | Cut:
        """Read an answer to its end."""
        try:
            return await wire.answer()
        except Cut as cut:
            return cut


Fault = Callable[[Swarm, random.Random], Awaitable[None]]


async def none(swarm: Swarm, rng: random.Random) -> None:
    """Ask and read, several times over one connection while the server keeps it."""
    async with swarm.wire(rng) as wire:
        for _ in range(rng.choice((1, 1, 4))):
            job = choose_job(rng)
            await wire.send(job.data)
            answer = await swarm.read(wire, job)
            if isinstance(answer, Cut) or answer.headers.get("connection") == "close":
                return


async def pipeline(swarm: Swarm, rng: random.Random) -> None:
    """Ask for several things at once, and read them in order."""
    jobs = [good(rng) for _ in range(3)]
    async with swarm.wire(rng) as wire:
        await wire.send(b"".join(job.data for job in jobs))
        for job in jobs:
            await swarm.read(wire, job)


async def send_slowly(swarm: Swarm, rng: random.Random) -> None:
    job = choose_job(rng)
    data = job.data
    async with swarm.wire(rng) as wire:
        for start in range(0, len(data), 40):
            await wire.send(data[start : start + 40])
            await asyncio.sleep(0.005)
        await swarm.read(wire, job)


async def read_slowly(swarm: Swarm, rng: random.Random) -> None:
    plan = {"count": 40, "size": 8192}
    items = ["".join(f"{n:06}".ljust(8192, ".") for n in range(40))]
    name = rng.choice(("stream", "sync-stream", "restless"))
    job = Job("slow", f"/v1/models/{name}:predict", plan, items=items)
    async with swarm.wire(rng, receive_buffer=4096) as wire:
        begun = time.monotonic()
        await wire.send(job.data)
        for _ in range(20):
            if not await wire.receive(1000):
                break
            await asyncio.sleep(0.02)
        answer = await swarm.answer(wire)
        if isinstance(answer, Cut) and time.monotonic() - begun >= SEND_TIMEOUT:
            swarm.outcomes["late"] += 1  # a busy machine: we may have read nothing for as long
        else:
            swarm.outcomes[job.check(answer)] += 1


async def cut_request(swarm: Swarm, rng: random.Random) -> None:
    """Disconnect at some byte of the request."""
    data = choose_job(rng).data
    async with swarm.wire(rng) as wire:
        await wire.send(data[: rng.randrange(len(data))])
        await asyncio.sleep(rng.choice((0, 0, 0.05)))
        wire.close(reset=rng.random() < 0.5)


async def cut_upload(swarm: Swarm, rng: random.Random) -> None:
    """Disconnect in the middle of a large request."""
    head = request("POST", "/v1/models/value:predict", content_length="5000000")
    async with swarm.wire(rng) as wire:
        await wire.send(head + b"[" + b"1," * rng.randrange(200_000))
        await asyncio.sleep(rng.choice((0, 0.05)))
        wire.close(reset=rng.random() < 0.5)


async def leave_soon(swarm: Swarm, rng: random.Random) -> None:
    """Disconnect some time after the request, whatever has come by then."""
    job = rng.choice((choose_job, endless))(rng)
    async with swarm.wire(rng) as wire:
        await wire.send(job.data)
        await asyncio.sleep(rng.random() * rng.choice((0, 0.01, 0.1, 0.5)))
        wire.close(reset=rng.random() < 0.5)


async def cut_response(swarm: Swarm, rng: random.Random) -> None:
    """Disconnect at some byte of the response."""
    job = rng.choice((choose_job, endless))(rng)
    async with swarm.wire(rng) as wire:
        await wire.send(job.data.replace(b"host:", b"connection: close\r\nhost:"))
        await wire.receive_in_all(rng.randrange(1, 600))
        wire.close(reset=rng.random() < 0.5)


async def half_close(swarm: Swarm, rng: random.Random) -> None:
    """Say that nothing more will be sent, at some point, and read what comes."""
    job = rng.choice((choose_job, endless))(rng)
    async with swarm.wire(rng) as wire:
        await wire.send(job.data)
        await asyncio.sleep(rng.random() * rng.choice((0, 0.05, 0.3)))
        wire.half_close()
        while await wire.receive():
            wire.buffer.clear()


async def never_read(swarm: Swarm, rng: random.Random) -> None:
    """Read nothing of a large stream; disconnect before or after the server does."""
    job = endless(rng, size=65536)
    async with swarm.wire(rng, receive_buffer=4096) as wire:
        await wire.send(job.data)
        await asyncio.sleep(rng.random() * 3)
        wire.close(reset=rng.random() < 0.5)


async def deadline(swarm: Swarm, rng: random.Random) -> None:
    """Give the server less time than it needs."""
    job = endless(rng)
    job.payload |= {"before": rng.choice((0, 0.1)), "gap": 0.05}
    seconds = b"x-request-timeout-seconds: %.3f\r\nhost:" % (0.01 + rng.random() / 2)
    async with swarm.wire(rng) as wire:
        await wire.send(job.data.replace(b"host:", seconds))
        await swarm.read(wire, job)


async def pipeline_and_leave(swarm: Swarm, rng: random.Random) -> None:
    """Disconnect with a second request behind a stream, which uvicorn does not report."""
    job = endless(rng)
    job.payload["count"] = 200
    async with swarm.wire(rng) as wire:
        await wire.send(job.data + good(rng).data)
        await asyncio.sleep(rng.random() * 0.2)
        wire.close(reset=rng.random() < 0.5)


async def garbage(swarm: Swarm, rng: random.Random) -> None:
    """Send what is not a request, or only begins like one."""
    data = bytearray(choose_job(rng).data)
    for _ in range(rng.choice((1, 5, 100))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    async with swarm.wire(rng) as wire:
        await wire.send(bytes(data))
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while await wire.receive():
                    pass
        assert not wire.buffer or wire.buffer.startswith(b"HTTP/1."), bytes(wire.buffer)


FAULTS: dict[Fault, int] = {
    none: 40,
    pipeline: 4,
    send_slowly: 4,
    read_slowly: 3,
    cut_request: 8,
    cut_upload: 2,
    leave_soon: 12,
    cut_response: 12,
    half_close: 6,
    never_read: 4,
    deadline: 4,
    pipeline_and_leave: 2,
    garbage: 4,
}
