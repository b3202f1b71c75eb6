"""Report how a request has failed, to the client and in the log."""

from traceback import walk_tb
from typing import Final

import anyio

from modelserve.concurrency.flight import Phase
from modelserve.errors import ClientGone, ServingError, Stopped, describe, is_expected, single_cause
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.sending import SendFailed, log_failure

__all__ = ["conclude", "report_failure"]

# What code raises that takes the client's word for the form of its data.
_OF_BAD_INPUT: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
_WRITERS: Final = ("modelserve.protocols.", "modelserve.wire.")


async def report_failure(exchange: Exchange, exc: BaseException, *, debug: bool) -> None:
    """Report an exception: as the response, as a final record, or by cutting the connection.

    Nothing is sent to a client that has had its whole answer. An unexpected exception is logged;
    its text goes to the client only with `debug`. An interrupt of the process is reported like any
    failure and then raised again, as is what the host has failed with. Raises ClientGone.
    """
    exchange.error = exc
    if isinstance(exc, ClientGone):
        await _answer_nobody(exchange)
        return
    if isinstance(exc, SendFailed):
        exchange.status = exchange.status or 500  # as the host answers
        raise exc
    if not is_expected(exc):
        log_failure(exchange, "Request %s failed" + _advice(exchange, exc), exc)
    if exchange.phase != Phase.DONE:
        status, detail, headers = describe(exc, debug=debug)
        exchange.enter(Phase.SEND)
        await exchange.report(status, detail, headers, exc)
    if _is_interrupt(exc):
        raise exc


def _advice(exchange: Exchange, exc: BaseException) -> str:
    """Return how a hook's exception becomes a 400, if it may come from what the client has sent."""
    exc = single_cause(exc)
    may_be = isinstance(exc, _OF_BAD_INPUT) or type(exc).__name__ == "ValidationError"
    if exchange.status or not may_be or isinstance(exc, ServingError) or _is_of_answer(exc):
        return ""
    return "; if the client is at fault, check for it and raise InvalidInput, which is a 400"


def _is_of_answer(exc: BaseException) -> bool:
    """Return whether writing the answer has failed, not a hook."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(exc.__traceback__))
    ours = [name for name in names if name.startswith("modelserve.")]
    return bool(ours) and ours[-1].startswith(_WRITERS)


async def conclude(exchange: Exchange, reason: Stopped) -> None:
    """Do what is left to do for a request that was ended early, once its user code has ended.

    Raises what the host, or middleware, has failed with.
    """
    if isinstance(reason, SendFailed):
        raise reason.error
    if not isinstance(reason.__cause__, ServingError | None):
        log_failure(exchange, "Request %s failed while it ended", reason)
    if isinstance(reason, ClientGone):
        await _answer_nobody(exchange)


async def _answer_nobody(exchange: Exchange) -> None:
    """Send an empty 499 if nothing was sent; middleware takes no answer at all for a fault.

    A client that has not sent its whole request may have closed only its own side, and reads a 400.
    """
    if exchange.status:
        return
    status = ClientGone.status if exchange.body_read else 400
    headers = [(b"content-length", b"0"), (b"x-request-id", exchange.id)]
    with anyio.move_on_after(exchange.deadlines.cleanup_timeout):
        try:
            start = {"type": "http.response.start", "status": status, "headers": headers}
            await exchange.send(start)
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception:  # noqa: S110 - it has left
            pass


def _is_interrupt(exc: BaseException) -> bool:
    """Return whether somebody interrupts the process.

    The interpreter raises KeyboardInterrupt without arguments. One that has them is a hook's own,
    as is what `sys.exit` raises: a failure like any other.
    """
    if isinstance(exc, BaseExceptionGroup):
        return any(map(_is_interrupt, exc.exceptions))
    return isinstance(exc, KeyboardInterrupt) and not exc.args
