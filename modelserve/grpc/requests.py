"""The requests of a stream: read ahead as bytes, each parsed in its turn."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Final

import anyio

from modelserve.concurrency.budget import Budget
from modelserve.errors import Overloaded, ServerShuttingDown, ServingError
from modelserve.exchange.body import decoded, parsed
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.intake import Intake
from modelserve.lifespan import Serving
from modelserve.limits import SMALL_BYTES
from modelserve.protocols.codec import ModelRef
from modelserve.protocols.grpc import GRPC_INFER
from modelserve.tensors import InferRequest
from modelserve.wire.grpc import Calls, Compressed, Unreadable
from modelserve.wire.lines import BadLine

__all__ = ["Requests", "Run"]

_REFUSED: Final = Unreadable()  # in the place of a message for which there is no room


class Requests:
    """The requests of one stream.

    Attributes:
        next: The next request, or its error; None before `wait_for_next`.
        size: Its bytes.
    """

    def __init__(self, serving: Serving, exchange: Exchange) -> None:
        self.next: InferRequest | BadLine | None = None
        self.size = 0
        self._serving = serving
        self._exchange = exchange
        self._limit = serving.max_binary_bytes
        self._budget = serving.admission.budget
        self._arriving = _Arriving(self._limit, self._budget)
        self._intake = Intake(exchange, self._arriving)
        self._intake.note_admitted()
        self._records: deque[bytes] = deque()
        self._has_ended = self._is_refused = False

    async def receive(self) -> None:
        """Receive until the client leaves; runs as a companion of the flight."""
        try:
            await self._intake.receive()
        finally:
            self._arriving.close()

    async def wait_for_next(self) -> bool:
        """Wait for the next request; return whether there is one.

        Raises ServerShuttingDown once the server drains, and as `look`.
        """
        while not self._serving.draining:
            if self.next or self._records or self._has_ended or self._is_refused:
                return await self.look()
            with anyio.CancelScope() as scope, self._serving.sleepers.woken_by(scope.cancel):
                if not self._serving.draining:  # it may begin in another thread
                    await self._wait()
        if await self._is_over():
            return False
        raise ServerShuttingDown

    async def _is_over(self) -> bool:
        """Return whether the client has asked for all it wants, and has been answered."""
        if self.next or self._records or not self._intake.ended:
            return False
        await self._wait()  # not at all, at the end
        return self._has_ended

    async def look(self) -> bool:
        """Wait for the next request, even during a drain; return whether there is one.

        Raises Overloaded, from then on, where there is no room for it.
        """
        if self._is_refused:
            raise self._budget.refusal()
        if self.next is None:
            if not self._records:
                await self._wait()
            if self._records:
                record = self._records.popleft()
                self._arriving.note_taken(record)
                self.next = await self._read(record)
        return self.next is not None

    async def _wait(self) -> None:
        """Wait for records, and keep them."""
        _, records = await self._intake.take()
        self._records.extend(records)
        self._has_ended = not records

    def take(self) -> InferRequest | BadLine | None:
        """Return the next request, and move on to the one after it."""
        found, self.next = self.next, None
        return found

    async def _read(self, record: bytes) -> InferRequest | BadLine:
        if record is _REFUSED:
            self._is_refused = True
            raise self._budget.refusal()
        if isinstance(record, Unreadable):
            return BadLine(record.decode())
        coding = self._exchange.get(b"grpc-encoding") if isinstance(record, Compressed) else b""
        threads = self._serving.decoders
        share = self._budget.hold(0)
        try:
            share.resize(_counted(len(record)))
            body = await decoded(record, coding, self._limit, share, threads)
            self.size = len(body)
            opened: InferRequest = await parsed(
                partial(self._open, body), len(body), share, threads
            )
            return opened
        except Overloaded:
            self._is_refused = True
            raise
        except ServingError as exc:
            return BadLine(exc.reason)
        finally:
            share.close()

    def _open(self, body: bytes | bytearray) -> InferRequest:
        request: InferRequest = GRPC_INFER.open(body, self._exchange)[1]
        return request


class _Arriving(Calls):
    """The messages of a stream as they arrive, counted against a budget while they wait.

    Where there is no room for one, nothing that comes after it is kept.
    """

    def __init__(self, limit: float, budget: Budget) -> None:
        super().__init__(limit)
        self._share = budget.hold(0)
        self._whole = 0  # bytes of messages that nobody has taken
        self._is_open = True

    def feed(self, piece: bytes) -> list[bytes]:
        if not self._is_open:
            return []
        records = super().feed(piece)
        self._whole += sum(map(len, records))
        try:
            self._share.resize(self._waiting())
        except ServingError:
            self._is_open = False
            self._rest.clear()
            self._skipped = 0
            small = [*takewhile(_is_small, records)]
            self._whole -= sum(map(len, records[len(small) :]))
            return [*small, _REFUSED]
        return records

    def note_taken(self, record: bytes) -> None:
        """Count a message no longer."""
        self._whole -= len(record)
        self._share.resize(min(self._share.size, self._waiting()))

    def close(self) -> None:
        """Keep nothing from now on."""
        self._is_open = False
        self._share.close()

    def _waiting(self) -> int:
        return _counted(self._whole + len(self._rest))


def _counted(size: int) -> int:
    """Return how many bytes of what waits are counted: none if they are few, as over HTTP."""
    return size if size > SMALL_BYTES else 0


def _is_small(record: bytes) -> bool:
    return len(record) <= SMALL_BYTES


class Run:
    """Successive requests of a stream for one model, for a hook that iterates."""

    noun = "message"
    at_a_time = 1

    def __init__(self, requests: Requests, ref: ModelRef) -> None:
        self._requests = requests
        self._ref = ref
        self._number = 0

    @property
    def cutter(self) -> "Run":
        return self

    async def take(self) -> tuple[int, list[Any]]:
        """Return the number of the next request, and the request; none at the end of the run."""
        requests = self._requests
        if not await requests.look() or not self._is_ours(requests.next):
            return self._number, []
        self._number += 1
        return self._number, [requests.take()]

    def parse(self, records: Sequence[Any]) -> tuple[list[Any], bool]:
        return [*records], BadLine not in {*map(type, records)}

    def _is_ours(self, request: Any) -> bool:
        if isinstance(request, BadLine):
            return True
        return ModelRef(request.model_name, request.model_version) == self._ref
