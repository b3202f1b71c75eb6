"""One request and the answer to it: what came, what has been sent, what is recorded.

An exchange knows what has been sent, so it alone decides how a failure is reported: as an ordinary
status before the start, as an error record or a cut connection after it. Two tasks may write to it,
never at once: the pipeline and, once the request has a reason to end early, `report_early_end`. The
pipeline checks the reason before it sends anything. Streams are written by `streams`.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from time import monotonic
from typing import Any, Final, Protocol

import anyio
from starlette.types import Receive, Send

from modelserve.concurrency.flight import CANCELS, Flight, HostCancelled, Phase
from modelserve.errors import ClientGone, Stopped
from modelserve.exchange.sending import SendFailed, send_failure
from modelserve.limits import Deadlines
from modelserve.metrics.series import ModelSeries
from modelserve.protocols.codec import Codec, Payload
from modelserve.wire.encoders import Encoder
from modelserve.wire.head import NEW_IDS, Head, Scope, valid_id
from modelserve.wire.headers import Body, Header, error_headers, length_header

__all__ = ["Exchange"]

# Module-level names, since the attributes of a class are looked up at every request.
_BODY: Final = Phase.BODY
_SEND: Final = Phase.SEND
_DONE: Final = Phase.DONE
_PART_BYTES: Final = 1 << 20
_ID: Final = b"x-request-id"
_CLOSE: Final[Header] = (b"connection", b"close")
_LENGTHS: Final = [length_header(size) for size in range(1024)]  # the status of most answers
_NO_DEADLINES: Final = Deadlines()
_NO_SECONDS: Final[Mapping[str, float]] = {}


class StreamState(Protocol):
    """The parts of a stream that its exchange uses.

    Attributes:
        encoder: None before the first item.
        lock: Held while an event is sent, if a heartbeat sends as well; else None.
        items: How many have been sent.
        first_item: Seconds from arrival to the first; None before it.
    """

    encoder: Encoder | None
    lock: anyio.Lock | None
    items: int
    first_item: float | None

    def note_suspension(self) -> bool:
        """Note that the pipeline has suspended; return whether a generator is cleaning up."""


class _Hosted(Head):
    """A request whose host may cancel it in ways of its own."""

    __slots__ = ()

    def host_cancelled(self) -> Stopped:
        """Return the reason for a cancellation by the host: it stops, or the client has left."""
        return ClientGone() if CANCELS in (self.scope.get("extensions") or ()) else HostCancelled()


class Exchange(_Hosted):
    """One request and its answer; one object from the first byte to the last.

    The flight reads some attributes, which `concurrency.flight.Watched` describes; others are
    recorded at the end, see `metrics.ending.Ending`. The rest are:

    Attributes:
        codec: Writes the errors.
        payload: The decoded payload, until a hook is given it.
        status: The status of the answer; 0 before its start.
        sending: A `send` has begun and not returned.
        cut: The answer must not look complete: the host has to cut the connection.
        closes_connection: The answer asks the client to close the connection.
        waited: As in `concurrency.gate.Waits`; unset if it did not wait.
    """

    __slots__ = (
        "admitted", "answered", "arrived", "body_read", "closes_connection", "codec", "cut",
        "deadlines", "error", "flight", "headers_only", "payload", "phase", "reason", "receive",
        "seconds", "send", "sending", "series", "since", "status", "stream", "waited",
    )  # fmt: skip
    waited: tuple[float, float]

    def __init__(
        self, codec: Codec, scope: Scope, receive: Receive, send: Send, arrived: float
    ) -> None:
        # as in `Head`
        self.scope = scope
        self.headers = headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        self.id = next(NEW_IDS) if given is None else valid_id(given)

        self.codec = codec
        self.payload: Payload = None
        self.receive = receive
        self.send = send
        # what the flight reads
        self.arrived = self.since = arrived
        self.phase: int = _BODY
        self.deadlines = _NO_DEADLINES
        self.body_read = self.answered = False
        self.reason: Stopped | None = None
        self.flight: Flight | None = None
        # what has been sent
        self.status = 0
        self.sending = self.cut = self.closes_connection = False
        self.headers_only = scope["method"] == "HEAD"
        self.stream: StreamState | None = None
        # what is recorded
        self.series: ModelSeries | None = None
        self.error: BaseException | None = None
        self.admitted = False
        self.seconds = _NO_SECONDS

    # -- what the request waits for

    def enter(self, phase: int) -> None:
        """Note that the request waits for something else from now on."""
        self.phase = phase
        self.since = monotonic()

    def ignore_body(self) -> None:
        """Watch the client from now on; the body, if there is one, is thrown away."""
        self.body_read = True
        if self.flight is not None:
            self.flight.note_body_read()

    def check_reason(self) -> None:
        """Raise the reason if the request is being ended early: another task reports it."""
        if self.reason is not None:
            raise self.reason

    def is_interrupted_by(self, exc: BaseException) -> bool:
        """Return whether an exception comes from the request's early end, not from a hook."""
        return self.flight is not None and self.flight.is_interrupted_by(exc)

    # -- the answer

    async def send_document(
        self, status: int, headers: list[Header], buffers: Sequence[Body]
    ) -> None:
        """Send a whole answer; large buffers in parts, so that none is copied whole.

        The caller must have checked the reason. Raises ClientGone if the client has left,
        SendFailed if the host has failed.
        """
        self.phase = _SEND
        self.since = monotonic()
        body = buffers[0]
        size = len(body)
        if len(buffers) > 1 or type(body) is not bytes:
            await _send_parts(self, status, headers, buffers)
            return
        length = _LENGTHS[size] if size < 1024 else length_header(size)
        headers = [*headers, length, (_ID, self.id)]
        if self.closes_connection:
            headers.append(_CLOSE)
        if self.headers_only:
            body = b""
        self.sending = self.answered = True
        self.status = status
        try:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body, "more_body": False})
        except Exception as exc:
            raise send_failure(self, exc) from exc
        self.sending = False
        self.phase = _DONE

    async def start(self, status: int, headers: list[Header]) -> None:
        """Send the start of an answer whose body comes in parts.

        Raises the reason if the request is being ended early, ClientGone if the client has left.
        """
        self.check_reason()
        self.phase = _SEND
        self.since = monotonic()
        self.status = status
        headers.append((_ID, self.id))
        if self.closes_connection:
            headers.append(_CLOSE)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_part(self, body: bytes) -> None:
        """Send a part of the body. Raises ClientGone if the client has left."""
        self.answered = False
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def finish(self, body: bytes = b"") -> None:
        """Send the end of the body."""
        self.answered = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self.phase = _DONE

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        """Send one event; if a heartbeat sends as well, in turn."""
        lock = None if self.stream is None else self.stream.lock
        if lock is not None:
            await lock.acquire()
        self.sending = True
        try:
            await self.send(message)
        except Exception as exc:
            raise send_failure(self, exc) from exc
        finally:
            if lock is not None:
                lock.release()
        self.sending = False

    # -- failures

    async def report_early_end(self, reason: Stopped) -> None:
        """Report why the request ends early, while user code is still cleaning up."""
        self.error = reason
        if not self.sending and self.phase != _DONE:  # after an interrupted `send` hosts differ
            with anyio.move_on_after(self.deadlines.cleanup_timeout):
                try:
                    await self.report(reason.status, reason.reason, reason.headers, reason)
                except ClientGone:
                    return
                except SendFailed as failed:
                    self.reason = failed
        self.cut = self.phase != _DONE

    async def report(
        self, status: int, detail: Any, headers: Mapping[str, str], error: BaseException
    ) -> None:
        """Send an error as the response or as the last record, or note that the answer is cut."""
        encoder = None if self.stream is None else self.stream.encoder
        if not self.status:
            status, with_body, body = self.codec.error(status, detail, error)
            await self.send_document(status, [*with_body, *error_headers(headers)], [body])
        elif encoder is not None and encoder.failure is not None:
            await self.send_part(encoder.failure(status, detail))
            await self.finish()
        else:
            self.cut = True


async def _send_parts(
    exchange: Exchange, status: int, headers: list[Header], buffers: Sequence[Body]
) -> None:
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    await exchange.start(status, [*headers, length_header(sum(map(len, views)))])
    for part in () if exchange.headers_only else _parts(views):
        exchange.check_reason()
        exchange.enter(_SEND)
        await exchange.send_part(part)
    await exchange.finish()


def _parts(views: Sequence[memoryview]) -> Iterator[bytes]:
    """Yield the bytes of buffers in pieces of at most one event."""
    for view in views:
        for start in range(0, len(view), _PART_BYTES):
            yield bytes(view[start : start + _PART_BYTES])
