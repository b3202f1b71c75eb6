"""The requests of a stream as they come: read ahead as bytes, each parsed when it is its turn."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import anyio

from modelserve.concurrency.uncollected import call_uncollected
from modelserve.errors import ServerShuttingDown, ServingError
from modelserve.exchange.body import decoded
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.intake import Intake
from modelserve.lifespan import Serving
from modelserve.limits import SMALL_BYTES
from modelserve.protocols.codec import ModelRef
from modelserve.protocols.grpc import GRPC_INFER
from modelserve.tensors import InferRequest
from modelserve.wire.grpc import Calls, Compressed, Unreadable
from modelserve.wire.lines import BadLine as Bad

__all__ = ["Bad", "Requests", "Run"]

_DRAIN_SECONDS: Final = 0.5  # between two looks, while nothing comes


class Requests:
    """The requests of one stream.

    Attributes:
        next: The one whose turn it is, or what is wrong with it; None before `wait_for_next`.
        size: Its bytes.
    """

    def __init__(self, serving: Serving, exchange: Exchange) -> None:
        self.next: InferRequest | Bad | None = None
        self.size = 0
        self._serving = serving
        self._exchange = exchange
        self._limit = serving.max_binary_bytes
        self._intake = Intake(exchange, Calls(self._limit))
        self._intake.note_admitted()

    async def receive(self) -> None:
        """Receive until the client leaves; to be a companion of the flight."""
        await self._intake.receive()

    async def wait_for_next(self) -> bool:
        """Wait for the next request; return whether there is one.

        Raises ServerShuttingDown once the server drains.
        """
        records: list[bytes] | None = None
        while self.next is None and records is None:
            if self._serving.draining:
                raise ServerShuttingDown
            with anyio.move_on_after(_DRAIN_SECONDS):
                _, records = await self._intake.take(1)
        return await self._read_first(records or ())

    async def look(self) -> bool:
        """Wait for the next request, even during a drain; return whether there is one."""
        records: Sequence[bytes] = ()
        if self.next is None:
            _, records = await self._intake.take(1)
        return await self._read_first(records)

    def take(self) -> InferRequest | Bad | None:
        """Return the next request, and let another be the next."""
        found, self.next = self.next, None
        return found

    async def _read_first(self, records: Sequence[bytes]) -> bool:
        if records:
            self.next = await self._read(records[0])
        return self.next is not None

    async def _read(self, record: bytes) -> InferRequest | Bad:
        if isinstance(record, Unreadable):
            return Bad(record.decode())
        coding = self._exchange.get(b"grpc-encoding") if isinstance(record, Compressed) else b""
        threads = self._serving.decoders
        share = self._serving.admission.budget.hold(0)
        try:
            body = await decoded(record, coding, self._limit, share, threads)
            self.size = len(body)
            if len(body) <= SMALL_BYTES:
                return self._open(body)
            opened: InferRequest = await threads.call(
                "decode", call_uncollected, partial(self._open, body)
            )
            return opened
        except ServingError as exc:
            return Bad(exc.reason)
        finally:
            share.close()

    def _open(self, body: bytes | bytearray) -> InferRequest:
        request: InferRequest = GRPC_INFER.open(body, self._exchange)[1]
        return request


class Run:
    """The requests of a stream that follow one another for one model, for a hook that iterates."""

    noun = "message"
    at_a_time = 1

    def __init__(self, requests: Requests, ref: ModelRef) -> None:
        self._requests = requests
        self._ref = ref
        self._number = 0

    @property
    def cutter(self) -> "Run":
        return self

    async def take(self, most: int) -> tuple[int, list[Any]]:
        """Return the number of the next request, and the request; none at the end of the run."""
        requests = self._requests
        if not await requests.look() or not self._is_ours(requests.next):
            return self._number, []
        self._number += 1
        return self._number, [requests.take()]

    def parse(self, records: Sequence[Any]) -> tuple[list[Any], bool]:
        return [*records], Bad not in {*map(type, records)}

    def _is_ours(self, request: Any) -> bool:
        if isinstance(request, Bad):
            return True
        return ModelRef(request.model_name, request.model_version) == self._ref
