"""The pipeline of every request: from a path to the end of its answer.

It decides whether a request may run, by the method, the token, the drain, the model and its
readiness, the limits. The codec knows the protocol, `models.inference` runs the hooks. Nothing is
created before it is needed, since most requests are small: the flight of a request, which can end
it early, exists only once the pipeline has suspended.
"""

from collections.abc import AsyncIterator
from time import monotonic
from typing import Any, Final

from starlette.types import Message

from modelserve.concurrency.budget import Share
from modelserve.concurrency.flight import Phase
from modelserve.duplex import duplex_for
from modelserve.endpoints import NO_MODEL, Endpoint, Target
from modelserve.errors import (
    BodyTooLarge,
    ClientGone,
    MethodNotAllowed,
    RouteNotFound,
    ServerShuttingDown,
    Unauthorized,
)
from modelserve.exchange.body import decoded, feed_rest, parsed, read_body, read_rest
from modelserve.exchange.early import read_ahead
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.failures import report_failure
from modelserve.exchange.forms import FormReader, form_reader
from modelserve.exchange.responses import is_response, send_response
from modelserve.exchange.streams import Stream, send_sheltered
from modelserve.lifespan import Serving, usable_entry
from modelserve.limits import TIMEOUT_HEADER, Deadlines, shortened
from modelserve.models.hooks import Plan
from modelserve.models.inference import PLAIN, Call, infer
from modelserve.models.registry import Entry, infinite_if_none
from modelserve.protocols.cloudevents import codec_for
from modelserve.protocols.codec import Codec, ModelRef, Payload
from modelserve.wire.coding import check_length, too_large

__all__ = ["dispatch"]

# Module-level names, since the attributes of a class are looked up at every request.
_BODY: Final = Phase.BODY
_QUEUE: Final = Phase.QUEUE
_FIRST: Final = Phase.FIRST


async def dispatch(serving: Serving, target: Target, exchange: Exchange) -> None:
    """Answer one request; whatever is raised on the way becomes the answer."""
    share: Share | None = None  # the bytes that the request holds while it waits
    reader: FormReader | None = None  # reads a body part by part
    try:
        endpoint = _guard(serving, target, exchange)
        if endpoint is not None:
            return await endpoint(serving, target, exchange)
        codec, ref, headers = target.codec, target.ref, exchange.headers
        if ref is NO_MODEL:  # the body names the model
            share = serving.admission.budget.hold(0)
            ref, body = await _open(serving, codec, exchange, share)
        entry = serving.registry.entries.get(ref.name)
        if entry is None or ref.version is not None:
            entry = serving.registry.get(ref.name, ref.version)
        exchange.series, exchange.deadlines = entry.series, entry.deadlines
        if TIMEOUT_HEADER in headers:
            exchange.deadlines = _deadlines(exchange, entry.deadlines)
        if entry.checks_health or not entry.model.ready:
            if share is not None:
                share.resize(len(body))
            entry = await _wait_until_usable(serving, entry, ref, exchange)
        if share is None:  # the body has not been read
            limit, plan = entry.max_body_bytes, entry.plans[target.hook]
            if headers.get(b"content-type") != b"application/json" or b"ce-specversion" in headers:
                codec = codec_for(codec.taking(plan.takes_bytes), exchange, serving.events)
                if not plan.forwards or codec.is_socket:
                    if duplex := duplex_for(serving, entry, plan, codec, ref, exchange):
                        return await duplex.answer()
                    reader = form_reader(codec, exchange, serving.decoders)
            if codec.takes_binary:
                limit = _body_limit(codec, entry, exchange)
            if plan.streams and not plan.wants_response_headers:
                _check_acceptable(codec, exchange, ref)
            if len(length := headers.get(b"content-length", b"")) > 4 or limit < 10_000:
                check_length(length, limit)
            try:
                message = await exchange.receive()
            except Exception as exc:  # whatever it is, the client has left
                raise ClientGone from exc
            body = message.get("body", b"")
            more = reader is not None or message.get("more_body") or b"content-encoding" in headers
            if more or len(body) > entry.small_bytes or message["type"] != "http.request":
                share = serving.admission.budget.hold(0)
                body = await _complete(serving, exchange, message, limit, share, reader)
            else:
                exchange.body_read = True
                if exchange.flight is not None:
                    exchange.flight.note_body_read()
            if entry.is_retired:  # replaced, or removed, while the body arrived
                share = serving.admission.budget.hold(len(body), share)
                entry = await _usable_entry(serving, ref, exchange)
            if share is None:
                exchange.payload = codec.decode(body, exchange, ref)
            else:
                await _decode(serving, entry, codec, body, exchange, ref, share)
            del message
        else:
            _check_opened(codec, entry, exchange, len(body))
        plan, size = entry.plans[target.hook], len(body)
        del body  # the body may be large, and the answer slow
        if not serving.admission.acquire_nowait(entry.gate, share):
            exchange.enter(_QUEUE)
            await serving.admission.acquire(entry.gate, size, share, who=exchange)
        answering = _respond(serving, entry, plan, codec, ref, exchange)
        await (answering if reader is None else reader.close_after(answering))
    except BaseException as exc:
        if _is_interrupted(serving, exchange, exc, share, reader):
            raise
        await report_failure(exchange, exc, debug=serving.debug)


def _is_interrupted(
    serving: Serving,
    exchange: Exchange,
    exc: BaseException,
    share: Share | None,
    reader: FormReader | None,
) -> bool:
    """Release what a failed request still holds; return whether it was ended early."""
    if share is not None:
        share.close()
    if reader is not None:
        reader.close()
    if exchange.is_interrupted_by(exc):
        return True
    exchange.closes_connection = serving.draining and exchange.has_connection
    return False


def _guard(serving: Serving, target: Target, exchange: Exchange) -> Endpoint | None:
    """Return the endpoint of a request, None for a model; raise what refuses the request.

    Any request begins the loads that are pending: there may be no lifespan.
    """
    if serving.registry.pending:
        serving.load_pending()
    method = exchange.scope["method"]
    if method not in target.endpoints:
        raise MethodNotAllowed(sorted(target.endpoints)) if target.endpoints else RouteNotFound
    token = serving.token
    if not (token is None or target.public or exchange.carries_token(token)):
        raise Unauthorized
    if serving.draining and not target.always:
        raise ServerShuttingDown
    return target.endpoints[method]


async def _usable_entry(serving: Serving, ref: ModelRef, exchange: Exchange) -> Entry:
    """Return the model that now has a name. Raises ModelNotFound, ModelNotReady."""

    def note(entry: Entry) -> None:
        exchange.series, exchange.deadlines = entry.series, _deadlines(exchange, entry.deadlines)

    exchange.phase = _QUEUE
    return await usable_entry(serving, ref.name, ref.version, note)


def _deadlines(exchange: Exchange, deadlines: Deadlines) -> Deadlines:
    """Return deadlines with the client's own time-out. Raises InvalidInput."""
    requested = exchange.headers.get(TIMEOUT_HEADER)
    return deadlines if requested is None else shortened(deadlines, requested)


async def _open(
    serving: Serving, codec: Codec, exchange: Exchange, share: Share
) -> tuple[ModelRef, Any]:
    """Read the body of a request that names its model, within the application's limits.

    Return the model and the body; the payload is set on the exchange. Raises InvalidInput, and
    BodyTooLarge.
    """
    exchange.deadlines = _deadlines(exchange, serving.deadlines)
    limit = serving.max_binary_bytes if codec.takes_binary else serving.max_body_bytes
    body = await read_body(exchange.receive, limit, exchange.get(b"content-length"), share)
    _note_body_read(exchange)
    body, coding = codec.unwrap(body, exchange)
    if coding:
        body = await decoded(body, coding, limit, share, serving.decoders)

    def open_() -> tuple[ModelRef, Payload]:
        codec.check_cost(body, exchange, infinite_if_none(serving.limits.max_json_values))
        return codec.open(body, exchange)

    ref, exchange.payload = await parsed(open_, len(body), share, serving.decoders)
    return ref, body


def _check_opened(codec: Codec, entry: Entry, exchange: Exchange, size: int) -> None:
    """Check what has been opened, once the model is known. Raises BodyTooLarge, InvalidInput."""
    limit = entry.max_binary_bytes if codec.takes_binary else entry.max_body_bytes
    if size > limit:
        raise too_large(limit)
    codec.check_opened(exchange.payload)


async def _complete(
    serving: Serving,
    exchange: Exchange,
    message: Message,
    limit: float,
    share: Share,
    reader: FormReader | None,
) -> Any:
    """Read the rest of the body and undo its coding; return its bytes or, if given, its reader.

    After the end of the body the client can only leave. Most bodies come in one message and have no
    coding: they need no further coroutine.
    """
    coding = exchange.get(b"content-encoding")
    body: bytes | bytearray = b""
    if reader is None or coding:
        body = await read_rest(message, exchange.receive, limit, share)
    else:
        await feed_rest(message, exchange.receive, limit, share, reader)
    _note_body_read(exchange)
    body = await decoded(body, coding, limit, share, serving.decoders)
    if reader is None:
        return body
    if coding:
        await reader.feed(body)
    await reader.finish()
    return reader


def _note_body_read(exchange: Exchange) -> None:
    exchange.phase = _QUEUE
    exchange.body_read = True
    if exchange.flight is not None:
        exchange.flight.note_body_read()


async def _decode(
    serving: Serving,
    entry: Entry,
    codec: Codec,
    body: Any,
    exchange: Exchange,
    ref: ModelRef,
    share: Share,
) -> None:
    """Decode a body that may be large, within the model's limits, and set the payload."""
    if not isinstance(body, bytes | bytearray):  # it was parsed as it arrived
        exchange.payload = codec.decode(body, exchange, ref)
        return

    def decode() -> Payload:
        codec.check_cost(body, exchange, entry.max_json_values)
        return codec.decode(body, exchange, ref)

    exchange.payload = await parsed(decode, len(body), share, serving.decoders)


async def _wait_until_usable(
    serving: Serving, entry: Entry, ref: ModelRef, exchange: Exchange
) -> Entry:
    """Return the model once it can take a request, or the one that has replaced it meanwhile.

    Raises ModelNotReady, and ModelNotFound where it was removed.
    """
    exchange.phase = _QUEUE  # if the model is still loading
    if entry.loading and not serving.hosted and not exchange.body_read:
        limit = max(entry.max_body_bytes, entry.max_binary_bytes)
        await read_ahead(exchange, serving.admission.budget.hold(0), limit)
    entry = await _usable_entry(serving, ref, exchange)
    exchange.phase = _BODY
    return entry


def _body_limit(codec: Codec, entry: Entry, exchange: Exchange) -> float:
    """Return the limit of the body, in bytes: JSON and raw tensors have limits of their own.

    If the declared length of the JSON exceeds JSON's limit, that limit holds for the whole body: a
    body within it is shorter than its JSON is said to be, and counts as JSON alone.
    """
    json_length = codec.json_length(exchange)
    if json_length is None:
        return entry.max_body_bytes
    try:
        check_length(json_length, entry.max_body_bytes)
    except BodyTooLarge:
        return entry.max_body_bytes
    return entry.max_binary_bytes


def _check_acceptable(codec: Codec, exchange: Exchange, ref: ModelRef) -> None:
    """Refuse, before any hook runs, a stream in no acceptable form. Raises NotAcceptable."""
    if exchange.headers.get(b"accept", b"*/*") != b"*/*":
        codec.stream_format(exchange, None, None, ref).encoder(None, empty=True)


async def _respond(
    serving: Serving, entry: Entry, plan: Plan, codec: Codec, ref: ModelRef, exchange: Exchange
) -> None:
    """Run the hooks of an admitted request and send their result.

    Then close what the hooks have opened, and release the slot. This is what `Admission.slot` and
    a block of `Call` do, spelled out: most requests need no `Call`, nor a coroutine to acquire.
    """
    payload, exchange.payload = exchange.payload, None
    exchange.admitted, exchange.phase = True, _FIRST
    exchange.since = monotonic()
    call: Call | None = None
    headers = response_headers = None
    try:
        if plan.wants_headers or plan.wants_response_headers:
            headers, response_headers = plan.headers_for(exchange)
        if plan.is_direct:
            codec.check(payload)
            try:
                if plan.main.takes_payload_alone:
                    result = await plan.main.function(payload)
                else:
                    result = await plan.main.call(payload, headers, response_headers)
            finally:
                exchange.seconds = {plan.main.name: monotonic() - exchange.since}
        if not plan.is_direct or type(result) not in PLAIN:
            call = entry.new_call(headers, response_headers, exchange)
            exchange.seconds = call.seconds
            if plan.is_direct:
                result = await call.take_over(plan.main, exchange.since, result)
            else:
                result = await infer(plan, payload, call, codec.check)
        is_stream = call is not None and call.is_stream(result)
        if call and not is_stream and type(result) not in PLAIN and is_response(result):
            call.close_later(getattr(result, "body_iterator", None))
            await send_response(exchange, result, response_headers)
        elif is_stream or codec.always_streams:
            items = result if is_stream else _stream_of_one(result)
            form = codec.stream_format(exchange, payload, response_headers, ref)
            coalesces = call is not None and call.coalesces
            streaming = entry.streaming._replace(coalesce=True) if coalesces else entry.streaming
            endings = None if call is None else call.endings()
            del result, payload, headers  # a stream would keep in memory what is held here
            stream = Stream(exchange, form, streaming)
            if endings is None:
                await stream.send(items)
            else:
                await send_sheltered(stream, exchange, items, endings)
        else:
            if exchange.reason is not None:
                raise exchange.reason
            fields, buffers = codec.encode(result, exchange, payload, response_headers, ref)
            await exchange.send_document(200, fields, buffers)
    finally:
        try:
            if call is not None and not call.is_finished:
                await call.closing()
        finally:
            serving.admission.release(entry.gate)


async def _stream_of_one(value: Any) -> AsyncIterator[Any]:
    yield value
