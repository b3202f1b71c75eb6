"""Requests whose body is streamed to the model: results are sent while it arrives.

The content type of a request and the plan of its model decide whether it is one. All refusals come
before the body is received, since hosts send `100 Continue` then. Three tasks run at the same time:
the intake receives, the pipeline runs the hooks, and the results are sent.
"""

import logging
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs

import anyio.lowlevel

from modelserve.concurrency.flight import Flight, Phase
from modelserve.errors import DeadlineExceeded, InvalidInput, UnsupportedCoding
from modelserve.exchange.bodies import BodyResults
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.intake import QUEUED_BYTES, Intake, bodies, messages
from modelserve.exchange.messages import MessageResults
from modelserve.exchange.results import Results
from modelserve.lifespan import Serving
from modelserve.models.chunks import Chunks
from modelserve.models.hooks import Plan
from modelserve.models.inference import Call, infer
from modelserve.models.instances import Instances
from modelserve.models.iterating import Iterates, arriving
from modelserve.models.model import check_forwarding
from modelserve.models.registry import Entry
from modelserve.protocols.codec import Codec, ModelRef, StreamFormat
from modelserve.wire.lines import Cutter, Lines
from modelserve.wire.media import LINE_TYPES, media_type

__all__ = ["Duplex", "duplex_for"]

logger = logging.getLogger("modelserve")

_ON_ERROR: Final = ("continue", "stop")


def duplex_for(
    serving: Serving, entry: Entry, plan: Plan, codec: Codec, ref: ModelRef, exchange: Exchange
) -> "Duplex | None":
    """Return a Duplex for a request whose body is streamed to the model; None for any other.

    Raises UnsupportedCoding, InvalidInput, NotAcceptable or HookMissing to refuse such a request.
    """
    if not codec.takes_lines:
        return None
    name = media_type(exchange.get(b"content-type").decode("latin-1"))
    cutter = codec.cutter(name, entry.limits, iterates=plan.iterates is not None)
    if cutter is None:
        return None
    if exchange.get(b"content-encoding").strip().lower() not in (b"", b"identity"):
        raise UnsupportedCoding("A streamed body must not have a content-encoding.")
    stops = _on_error(exchange) == "stop"
    duplex = Duplex(serving, entry, plan, codec, ref, exchange, cutter, stops=stops)
    duplex.stream_format(None).encoder(None, empty=True)  # raises NotAcceptable
    if plan.main.is_default:
        check_forwarding(entry.model, plan.main.name)
    return duplex


def _on_error(exchange: Exchange) -> str:
    query = parse_qs(exchange.scope.get("query_string", b"").decode("latin-1"))
    chosen = query.get("on_error", ["continue"])[-1]
    if chosen not in _ON_ERROR:
        raise InvalidInput("on_error may be continue or stop.")
    return str(chosen)


class Duplex:
    """Answers one request while it is received."""

    def __init__(
        self,
        serving: Serving,
        entry: Entry,
        plan: Plan,
        codec: Codec,
        ref: ModelRef,
        exchange: Exchange,
        cutter: Cutter,
        *,
        stops: bool,
    ) -> None:
        self._serving = serving
        self._entry = entry
        self._plan = plan
        self._codec = codec
        self._ref = ref
        self._exchange = exchange
        self._stops = stops
        self._intake = Intake(
            exchange,
            cutter,
            timeout=exchange.deadlines.input_timeout,
            reader=messages if codec.is_socket else bodies,
        )
        self._headers, self._response_headers = plan.headers_for(exchange)

    def stream_format(self, payload: Any) -> StreamFormat:
        """Return the format of the results: lines if the client has no preference."""
        format = self._codec.stream_format(
            self._exchange, payload, self._response_headers, self._ref
        )
        if isinstance(self._intake.cutter, Lines):
            format.default = LINE_TYPES[0]
        return format

    async def answer(self) -> None:
        """Wait for a slot, run the hooks on the records as they arrive, and send the results.

        Raises Overloaded, ClientGone, and what the hooks raise.
        """
        exchange, slot = self._exchange, self._serving.admission.slot
        if exchange.flight is None:
            await anyio.lowlevel.checkpoint()  # a pipeline has its flight once it has suspended
        assert exchange.flight is not None
        begin = partial(self._begin, exchange.flight)
        exchange.enter(Phase.QUEUE)
        self._intake.note_queued(share := self._serving.admission.budget.hold(0))
        try:
            async with slot(self._entry.gate, QUEUED_BYTES, exchange, share, begin):
                exchange.enter(Phase.FIRST)
                self._intake.note_admitted()
                try:
                    if self._plan.iterates is None:
                        await self._answer_chunks()
                    else:
                        await self._answer_iterator(self._plan.iterates, exchange.flight)
                finally:
                    self._log_stall()
        finally:
            self._intake.note_admitted()  # or it never will be: the share is closed

    def _begin(self, flight: Flight) -> None:
        """Begin to receive; after this, the request is not refused any more."""
        flight.start_companion(self._intake.receive)

    def _start_results(self) -> Results:
        format, streaming = self.stream_format(None), self._entry.streaming
        make = BodyResults if format.as_message is None else MessageResults
        noun = self._intake.cutter.noun
        results: Results = make(
            self._exchange,
            format,
            streaming,
            stops=self._stops,
            noun=noun,
            debug=self._serving.debug,
        )
        results.begin()
        return results

    # -- a hook of whole payloads

    async def _answer_chunks(self) -> None:
        results = self._start_results()
        seconds: dict[str, float] = {}
        self._exchange.seconds = seconds
        chunks = Chunks(
            self._plan,
            self._intake,
            results,
            self._exchange,
            make_call=partial(
                Call,
                self._entry.name,
                self._entry.workers,
                self._headers,
                self._response_headers,
                self._exchange,
            ),
            check=self._codec.check,
            seconds=seconds,
        )
        async with results.flushing():
            await chunks.run()
        await results.finish()

    # -- a hook that iterates

    async def _answer_iterator(self, how: Iterates, flight: Flight) -> None:
        instances = Instances(self._intake)
        with arriving(instances, how, flight) as payload:
            await self._answer_instances(instances, payload)

    async def _answer_instances(self, instances: Instances, payload: Any) -> None:
        exchange = self._exchange
        new_call = self._entry.new_call
        async with new_call(self._headers, self._response_headers, exchange) as call:
            exchange.seconds = call.seconds
            result = await infer(self._plan, payload, call, self._codec.check)
            if call.is_stream(result):
                results = self._start_results()
                instances.fail_record = partial(_fail, results)
                async with results.flushing():
                    await results.put_all(result, call.endings())
                    if instances.error is not None:  # the hook caught it
                        raise instances.error
                await results.finish()
                return
            if instances.error is not None:
                raise instances.error
            exchange.check_reason()
            if self._codec.always_streams:
                results = self._start_results()
                results.put((result,))
                await results.finish()
                return
            fields, buffers = self._codec.encode(
                result, exchange, None, self._response_headers, self._ref
            )
            await exchange.send_document(200, fields, buffers)

    def _log_stall(self) -> None:
        """Log that a client was cut because it does not read while it sends."""
        exchange = self._exchange
        is_cut = isinstance(exchange.reason, DeadlineExceeded) and exchange.sending
        if is_cut and self._intake.is_full:
            logger.warning(
                "Request %s was cut: the client does not read while it sends",
                exchange.id.decode(),
                extra={"request_id": exchange.id.decode()},
            )


async def _fail(results: Results, number: int, failure: Exception) -> None:
    results.fail_record(number, failure)
    await results.wait_for_room()
