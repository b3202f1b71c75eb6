"""Send the responses of a stream, and record each of its requests."""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Final

import anyio

from modelserve.concurrency.endings import Ending, is_ending
from modelserve.concurrency.flight import Phase
from modelserve.errors import describe, is_expected
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.sending import log_failure
from modelserve.exchange.streams import Streaming
from modelserve.exchange.turns import Turn, give_way
from modelserve.metrics.series import ModelSeries, Tick
from modelserve.protocols.codec import SetHeaders
from modelserve.protocols.grpc import DONE, answer_headers, stream_ending, stream_error
from modelserve.tensors import InferRequest
from modelserve.wire.encoders import Encoder
from modelserve.wire.grpc import CONTENT_TYPE

__all__ = ["Answered", "Responses"]

_PROTOCOL: Final = "grpc"
_VERB: Final = "stream_infer"


class Answered:
    """The record of how one request was answered; the caller of the models that its hook calls.

    Attributes:
        id: That of the stream.
        streams: The model streams.
        series: The model's series; before the model is found, that of unknown models.
        waited: As in `concurrency.gate.Waits`; unset if it did not wait.
    """

    waited: tuple[float, float]

    def __init__(self, exchange: Exchange, series: ModelSeries) -> None:
        self.id = exchange.id
        self.series = series
        self._exchange: Exchange | None = exchange
        self.arrived = monotonic()
        self.status = 200
        self.error: BaseException | None = None
        self.admitted = self.streams = False
        self.seconds: Mapping[str, float] = {}
        self.items = 0
        self.first_item: float | None = None
        self._tick: Tick | None = None

    @property
    def phase(self) -> int:
        return Phase.DONE if self._exchange is None else self._exchange.phase

    @property
    def stream(self) -> "Answered | None":
        return self if self.streams else None

    def note_item(self, streaming: Streaming) -> None:
        """Count an item that is about to be sent."""
        now = monotonic()
        self.items += 1
        if self._tick is None:
            self.first_item = now - self.arrived
            self._tick = streaming.record_first(self.arrived, now)
        else:
            self._tick(now)

    def note_failure(self, error: BaseException) -> None:
        self.error = error
        self.status = describe(error)[0]

    def record(self) -> None:
        """Record the request, which has ended."""
        self.series.record(_PROTOCOL, _VERB, self, monotonic() - self.arrived, self.id)
        self.error = None  # its traceback leads back here, and to the request
        self._exchange = None


class Responses:
    """The answer of a stream.

    Attributes:
        encoder, lock, items, first_item: As in `exchange.StreamState`.
        endings: Where generators are cleaning up by themselves.
    """

    def __init__(self, exchange: Exchange, *, debug: bool) -> None:
        self.encoder: Encoder | None = Encoder(CONTENT_TYPE.decode(), bytes, stream_ending)
        self.lock: anyio.Lock | None = None
        self.items = 0
        self.first_item: float | None = None
        self.endings: Sequence[Ending] | None = None
        self._exchange = exchange
        self._debug = debug
        self._turn = Turn()

    def note_suspension(self) -> bool:
        """Note that the pipeline suspends; return whether a generator is cleaning up."""
        self._turn.note_pause()
        return self.endings is not None and is_ending(self.endings)

    async def send(self, message: bytes, response_headers: SetHeaders = None) -> None:
        """Send a message, the first with the start of the answer.

        Raises ClientGone, and the reason if the stream is being ended early.
        """
        exchange = self._exchange
        if not exchange.status:
            await exchange.start(200, answer_headers(response_headers))
        exchange.check_reason()
        exchange.enter(Phase.SEND)
        await exchange.send_part(message)
        if monotonic() >= self._turn.ends and self._turn.is_over():
            await give_way()
            self._turn.begin()

    async def send_error(self, failure: Exception, request: Any) -> None:
        """Send an error in the place of a request's responses, or of further ones."""
        if not is_expected(failure):
            log_failure(self._exchange, "A request of the stream %s failed", failure)
        detail = describe(failure, debug=self._debug)[1]
        await self.send(
            stream_error(detail, request if isinstance(request, InferRequest) else None)
        )

    async def fail_record(self, number: int, failure: Exception) -> None:
        """The same for an invalid request among those that a hook iterates."""
        await self.send_error(failure, None)

    async def finish(self) -> None:
        """End the answer."""
        exchange = self._exchange
        exchange.check_reason()
        if not exchange.status:
            await exchange.start(200, answer_headers(None))
        exchange.enter(Phase.SEND)
        await exchange.finish(DONE)
