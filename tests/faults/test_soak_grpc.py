"""A soak test of gRPC's own port: calls of each kind, given up at any moment, beside load of HTTP.

MODELSERVE_GRPC_SOAK_SECONDS is how long, MODELSERVE_SOAK_SEED where to start the choices. After each
third of the time all clients stop, and the idle server is compared with what it was after the first.
"""

import asyncio
import json
import os
import random
import signal
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from faultclients import Swarm
from faultserver import Command, Figures, Usage, at_rest, serving, until
from h2.config import H2Configuration
from h2.connection import H2Connection
from realserver import free_port

from modelserve.protocols.grpc import classes
from modelserve.wire.grpc import HEALTH, SERVICE, frame

grpc = pytest.importorskip("grpc")

pytest_plugins = ["faultfixtures"]

SECONDS = float(os.environ.get("MODELSERVE_GRPC_SOAK_SECONDS", "24"))
SEED = int(os.environ.get("MODELSERVE_SOAK_SEED", random.randrange(10**6)))
LAPS = 3
CALLERS, CHANNELS, CLIENTS = 24, 6, 20
PAUSE = 0.02  # seconds, the mean between two calls of one caller
GROWTH = 1.03

UNARY = ("CalledValue", "CalledSyncValue", "CalledStream", "CalledSyncStream")
STREAMING = ("CalledStream", "CalledSyncStream")
# Codes of what a model raises: InvalidInput, and what is not expected.
FAILURES = {"InvalidInput": "INVALID_ARGUMENT", "ValueError": "INTERNAL"}


def asked(model: str, **plan: Any) -> bytes:
    tensor = {"name": "plan", "datatype": "BYTES", "shape": [1]}
    tensor["contents"] = {"bytes_contents": [json.dumps(plan).encode()]}
    message = classes()["ModelInferRequest"](model_name=model, inputs=[tensor])
    return bytes(message.SerializeToString())


class Callers:
    """Clients of one server, with random choices, and what came of their calls."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.rng = random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.problems: list[str] = []

    async def run(self, seconds: float) -> None:
        ends = asyncio.get_running_loop().time() + seconds
        address = f"127.0.0.1:{self.port}"
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(CHANNELS)]
        await asyncio.gather(
            *(self._call_until(ends, channels[n % CHANNELS]) for n in range(CALLERS))
        )
        for channel in channels:
            await channel.close()

    async def _call_until(self, ends: float, channel: Any) -> None:
        kinds: list[Callable[[Any], Awaitable[None]]] = [
            self.value, self.failure, self.given_up, self.late, self.items, self.left,
            self.unread, self.both_ways, self.watched, self.killed,
        ]  # fmt: skip
        while asyncio.get_running_loop().time() < ends:
            kind = self.rng.choice(kinds)
            self.kinds[kind.__name__] += 1
            try:
                await asyncio.wait_for(kind(channel), 60)
            except Exception as exc:
                self.problems.append(f"{kind.__name__}: {exc!r}")
            await asyncio.sleep(self.rng.expovariate(1 / PAUSE))

    def infer(self, channel: Any, plan: dict[str, Any], **options: Any) -> Any:
        method = channel.unary_unary(f"{SERVICE}/ModelInfer")
        return method(asked(self.rng.choice(UNARY), **plan), **options)

    def stream(self, channel: Any, *plans: dict[str, Any], models: Any = STREAMING) -> Any:
        method = channel.stream_stream(
            f"{SERVICE}/ModelStreamInfer",
            response_deserializer=classes()["ModelStreamInferResponse"].FromString,  # type: ignore[attr-defined]
        )
        model = self.rng.choice(models)
        return method(iter([asked(model, **plan) for plan in plans]))

    # -- calls that end well

    async def value(self, channel: Any) -> None:
        await self.infer(channel, {"before": self.rng.random() * 0.02})

    async def items(self, channel: Any) -> None:
        count = self.rng.randrange(1, 30)
        call = self.stream(
            channel, {"count": count}, {"count": 2, "stage": "predict"}, {"count": 1}
        )
        errors = [bool(message.error_message) async for message in call]
        assert errors == [False] * count + [True, False], errors

    async def both_ways(self, channel: Any) -> None:
        plans = [{"before": 0.002}] * self.rng.randrange(1, 10)
        call = self.stream(channel, *plans, models=("CalledBoth",))
        errors = [message.error_message async for message in call]
        assert errors == [""] * len(plans), errors

    # -- calls that fail

    async def failure(self, channel: Any) -> None:
        error = self.rng.choice([*FAILURES])
        await self._ends(self.infer(channel, {"stage": "predict", "error": error}), FAILURES[error])

    async def late(self, channel: Any) -> None:
        seconds = self.rng.random() * 0.05
        plan = {"before": 0.5, "count": 50, "cleanup": 0.01}
        await self._ends(self.infer(channel, plan, timeout=seconds), "DEADLINE_EXCEEDED")

    async def _ends(self, call: Any, code: str) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as exc:
            assert exc.code().name == code, exc
        else:
            raise AssertionError(f"not {code}")

    # -- clients that leave

    async def given_up(self, channel: Any) -> None:
        call = self.infer(channel, {"before": 0.2, "count": 3, "cleanup": 0.02})
        await asyncio.sleep(self.rng.random() * 0.05)
        call.cancel()

    async def left(self, channel: Any) -> None:
        call = self.stream(channel, {"count": 10_000, "gap": 0.001, "cleanup": 0.01})
        for _ in range(self.rng.randrange(20)):
            await call.read()
        call.cancel()

    async def unread(self, channel: Any) -> None:
        call = self.stream(channel, {"count": 10_000, "size": 65_536})
        await call.read()
        await asyncio.sleep(self.rng.random() * 0.2)
        call.cancel()

    async def watched(self, channel: Any) -> None:
        call = channel.unary_stream(f"{HEALTH}/Watch")(b"")
        assert await call.read() == b"\x08\x01"
        call.cancel()

    async def killed(self, channel: Any) -> None:
        """Reset the connection in the middle of a call, as a process that is killed does."""
        method, model = self.rng.choice(
            [("ModelInfer", "CalledValue"), ("ModelStreamInfer", "CalledStream")]
        )
        state = H2Connection(H2Configuration(header_encoding="utf-8"))
        state.initiate_connection()
        pseudo = {
            ":method": "POST",
            ":path": f"{SERVICE}/{method}",
            ":scheme": "http",
            ":authority": "a",
        }
        headers = [*pseudo.items(), ("content-type", "application/grpc"), ("te", "trailers")]
        state.send_headers(1, headers)
        body = frame(asked(model, before=0.1, count=1000, gap=0.001))
        state.send_data(
            1, body[: self.rng.randrange(len(body) * 2)], end_stream=self.rng.random() < 0.5
        )
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(state.data_to_send())
        await writer.drain()
        await asyncio.sleep(self.rng.random() * 0.1)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 120)
def test_soak_grpc(tmp_path: Path, figure: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    port = free_port()
    with serving(tmp_path, "--timeout-keep-alive", "5", "--grpc-port", str(port)) as server:
        callers, swarm = Callers(port, SEED), Swarm(server.port, SEED)

        async def lap() -> None:
            await asyncio.gather(
                callers.run(SECONDS / LAPS), swarm.run(CLIENTS, SECONDS / LAPS, pause=0.5)
            )

        asyncio.run(start_threads(callers))
        rests: list[tuple[Usage, dict[str, Any]]] = []
        for _ in range(LAPS):
            asyncio.run(lap())
            rests.append(at_rest(server))
            problems = [*callers.problems, *swarm.problems]
            assert not problems, "\n".join(problems[:20])
        report(figure, callers, rests)
        check(rests)
        files = rests[0][0].files  # those of HTTP are kept for 5 s after a reset
        assert until(lambda: server.usage().files <= files, seconds=20), "descriptors leaked"
        assert not (untidy := server.untidy()), untidy
        asyncio.run(drain(server, port))


async def start_threads(callers: Callers) -> None:
    """Start all 40 threads of hooks, so that their number grows no further."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{callers.port}") as channel:
        method = channel.unary_unary(f"{SERVICE}/ModelInfer")
        message = asked("CalledSyncValue", before=0.5)
        await asyncio.gather(*(method(message) for _ in range(60)))


async def drain(server: Command, port: int) -> None:
    """Stop the server under calls: those that run end well, and so does the process."""
    callers = Callers(port, SEED)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls = [callers.infer(channel, {"before": 1.0}) for _ in range(10)]
        idle = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")()
        await asyncio.sleep(0.5)
        server.signal(signal.SIGTERM)
        await asyncio.gather(*calls)
        assert await idle.code() is grpc.StatusCode.UNAVAILABLE
    assert server.exit_code(within=20) == 0


def check(rests: list[tuple[Usage, dict[str, Any]]]) -> None:
    (before, first), *later = rests
    for usage, account in later:
        assert usage.threads <= before.threads + 4, "threads leaked"  # grpcio starts some
        assert account["tasks"] <= first["tasks"], "tasks leaked"
    after, last = later[-1]
    assert after.rss <= before.rss * 1.25, "memory grows"  # in grpcio it is not even
    for name in ("objects", "blocks"):
        assert last[name] <= first[name] * GROWTH, f"{name} leaked"


def report(figure: Figures, callers: Callers, rests: list[tuple[Usage, dict[str, Any]]]) -> None:
    figure("seconds, callers, seed", f"{SECONDS:g}, {CALLERS}, {SEED}")
    figure("calls", f"{callers.kinds.total()}: {dict(callers.kinds.most_common())}")
    figure("RSS when idle, MiB", " ".join(f"{u.rss / (1 << 20):.1f}" for u, _ in rests))
    figure("threads when idle", " ".join(f"{u.threads}" for u, _ in rests))
    figure("descriptors when idle", " ".join(f"{u.files}" for u, _ in rests))
    for name in ("tasks", "objects", "blocks"):
        figure(f"{name} when idle", " ".join(f"{account[name]}" for _, account in rests))
