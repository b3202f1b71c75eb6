"""ModelStreamInfer, as Triton has it: requests come one after another, and responses go back.

Each request is independent, with its model, its slot, its limits and its metrics, and any number of
responses. Requests are answered in order. If one fails, an error takes the place of its responses,
and the stream goes on. A model whose hook iterates is given successive requests for it as they
come, and answers meanwhile; together they count as one. While no request runs, a stream holds no
slot, and a drain ends it.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy
from functools import partial
from typing import Any, Final

import anyio.lowlevel

from modelserve.concurrency.asyncio_guard import OwnContext
from modelserve.concurrency.flight import Phase
from modelserve.endpoints import Target
from modelserve.errors import ClientGone, InvalidInput
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.running import forget_running, note_running
from modelserve.exchange.sending import SendFailed
from modelserve.grpc.clock import Clock
from modelserve.grpc.requests import Requests, Run
from modelserve.grpc.responses import Answered, Responses
from modelserve.lifespan import Serving, usable_entry
from modelserve.limits import TIMEOUT_HEADER, Deadlines, shortened
from modelserve.models.hooks import Plan
from modelserve.models.inference import Call, infer
from modelserve.models.instances import Instances
from modelserve.models.iterating import arriving
from modelserve.models.registry import Entry
from modelserve.protocols.codec import ModelRef
from modelserve.protocols.grpc import stream_response, wants_ending
from modelserve.tensors import InferRequest
from modelserve.wire.coding import too_large
from modelserve.wire.lines import BadLine

__all__ = ["stream_infer"]

_LOST: Final = (ClientGone, SendFailed)  # nobody can be told of it
_NO_OUTPUTS: Final[dict[str, Any]] = {"outputs": []}


async def stream_infer(serving: Serving, target: Target, exchange: Exchange) -> None:
    """Answer the requests of a stream, until its client or a drain ends it."""
    if exchange.flight is None:
        await anyio.lowlevel.checkpoint()  # a pipeline has its flight once it has suspended
    assert exchange.flight is not None
    stream = _Stream(serving, exchange)
    exchange.flight.start_companion(stream.requests.receive)
    exchange.flight.start_companion(partial(stream.clock.keep, exchange.flight))
    while await stream.requests.wait_for_next():
        await stream.answer_next()
    await stream.responses.finish()


class _Stream:
    """One stream: reads its requests, runs the models and sends the responses."""

    def __init__(self, serving: Serving, exchange: Exchange) -> None:
        self.requests = Requests(serving, exchange)
        self.responses = exchange.stream = Responses(exchange, debug=serving.debug)
        self._serving = serving
        self._exchange = exchange
        self.clock = Clock(exchange, seconds=_seconds(exchange))

    async def answer_next(self) -> None:
        """Answer the next request; a failure is sent in its place. Raises what ends the stream."""
        exchange, requests = self._exchange, self.requests
        answered = Answered(exchange, self._serving.telemetry.unknown)
        request, noted = requests.next, note_running(answered)
        try:
            if not isinstance(request, InferRequest):
                raise InvalidInput(request.error if isinstance(request, BadLine) else "")
            await self._answer(request, answered)
        except BaseException as exc:
            answered.note_failure(exchange.reason or exc)
            is_over = exchange.is_interrupted_by(exc) or isinstance(exc, _LOST)
            if is_over or not isinstance(exc, Exception):
                raise
            await self.responses.send_error(exc, request)
        finally:
            if requests.next is request:  # otherwise a hook has taken it
                requests.take()
            answered.record()
            self.clock.rest()
            with suppress(ValueError):  # it may be closed in another context
                forget_running(noted)

    async def _answer(self, request: InferRequest, answered: Answered) -> None:
        serving, size = self._serving, self.requests.size
        note = partial(self._note_entry, answered)
        entry = await usable_entry(serving, request.model_name, request.model_version, note)
        if size > entry.max_binary_bytes:
            raise too_large(entry.max_binary_bytes)
        async with serving.admission.slot(entry.gate, size, answered):
            self._exchange.enter(Phase.FIRST)
            await self._run(entry, request, answered)

    def _note_entry(self, answered: Answered, entry: Entry) -> None:
        answered.series = entry.series
        self.clock.start(entry.deadlines)

    async def _run(self, entry: Entry, request: InferRequest, answered: Answered) -> None:
        """Run the hooks and send their results; then close what they have opened."""
        exchange, plan = self._exchange, entry.plans["predict"]
        with self._payload(plan, request) as payload:
            async with entry.new_call(*plan.headers_for(exchange), exchange) as call:
                answered.seconds = call.seconds
                answer = _Answer(self, entry, request, call)
                result = await infer(plan, payload, call, _no_check)
                if call.is_stream(result):
                    answered.streams = True
                    await answer.send_all(result, answered)
                else:
                    await answer.send(result, final=True)

    def _payload(self, plan: Plan, request: InferRequest) -> AbstractContextManager[Any]:
        """Give the request, or an iterator of it and of those that follow."""
        if plan.iterates is None:
            return nullcontext(request)
        instances = Instances(Run(self.requests, _ref(request)))
        instances.fail_record = self.responses.fail_record
        assert self._exchange.flight is not None
        return arriving(instances, plan.iterates, self._exchange.flight)


class _Answer:
    """The responses to one request, or to those that a hook iterates."""

    def __init__(self, stream: _Stream, entry: Entry, request: InferRequest, call: Call) -> None:
        self._ref = _ref(request)
        self._exchange = stream._exchange
        self._responses = stream.responses
        self._streaming = entry.streaming
        self._request = request
        if entry.plans["predict"].iterates is not None:
            self._request = _without_payload(request)
        self._call = call

    async def send(self, item: Any, *, final: bool) -> None:
        """Send a hook's result as a response; `final` if no other follows."""
        message = stream_response(item, self._request, self._ref, final=final)
        await self._responses.send(message, self._call.response_headers)

    async def send_all(self, items: AsyncIterator[Any], answered: Answered) -> None:
        """Send the items of a stream as they come."""
        exchange = self._exchange
        self._responses.endings = self._call.endings()
        mark = OwnContext(exchange)
        try:
            async for item in items:
                exchange.check_reason()
                answered.note_item(self._streaming)
                await self.send(item, final=False)
                exchange.enter(Phase.ITEM)
        finally:
            mark.leave()
            self._responses.endings = None
        if wants_ending(self._request):
            await self.send(_NO_OUTPUTS, final=True)


def _seconds(exchange: Exchange) -> float | None:
    """Return the seconds that the client gives the stream. Raises InvalidInput."""
    requested = exchange.headers.get(TIMEOUT_HEADER)
    return None if requested is None else shortened(Deadlines(), requested).timeout


def _ref(request: InferRequest) -> ModelRef:
    return ModelRef(request.model_name, request.model_version)


def _without_payload(request: InferRequest) -> InferRequest:
    """Return the form of all responses, as the first of their requests wants it."""
    form = copy(request)
    form.id, form.parameters, form.inputs = None, None, []
    return form


def _no_check(payload: Any) -> None:
    """Accept what goes to the main hook: it is what the protocol has read."""
