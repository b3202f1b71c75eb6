"""Report how a request has failed, to the client and in the log."""

from traceback import walk_tb
from typing import Final

import anyio

from modelserve.concurrency.flight import Phase
from modelserve.errors import ClientGone, ServingError, Stopped, describe, is_expected, single_cause
from modelserve.exchange.exchange import Exchange
from modelserve.exchange.sending import SendFailed, log_failure

__all__ = ["conclude", "report_failure"]

# Exceptions of code that does not check the form of the client's data.
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

    Nothing is sent to a client that has its whole answer. An unexpected exception is logged; the
    client gets its text only with `debug`. An interrupt of the process is reported like any failure
    and then raised again, like an exception of the host. Raises ClientGone.
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
    """Return advice on making a hook's exception a 400, if the client's data may have caused it."""
    exc = single_cause(exc)
    may_be = isinstance(exc, _OF_BAD_INPUT) or type(exc).__name__ == "ValidationError"
    if exchange.status or not may_be or isinstance(exc, ServingError) or _is_of_answer(exc):
        return ""
    return "; if the client is at fault, check for it and raise InvalidInput, which is a 400"


def _is_of_answer(exc: BaseException) -> bool:
    """Return whether writing the answer failed, rather than a hook."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(exc.__traceback__))
    ours = [name for name in names if name.startswith("modelserve.")]
    return bool(ours) and ours[-1].startswith(_WRITERS)


async def conclude(exchange: Exchange, reason: Stopped) -> None:
    """Finish a request that was ended early, once its user code has ended.

    Raises the exception of the host, or of middleware, if one failed.
    """
    if isinstance(reason, SendFailed):
        raise reason.error
    if not isinstance(reason.__cause__, ServingError | None):
        log_failure(exchange, "Request %s failed while it ended", reason)
    if isinstance(reason, ClientGone):
        await _answer_nobody(exchange)


async def _answer_nobody(exchange: Exchange) -> None:
    """Send an empty 499 if nothing was sent: middleware fails without any answer.

    A client that has not sent its whole request may have closed only its own side, and gets a 400.
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
    """Return whether an exception is an interrupt of the process.

    The interpreter raises KeyboardInterrupt without arguments. One with arguments was raised by a
    hook, and is a failure like any other; so is the SystemExit of `sys.exit`.
    """
    if isinstance(exc, BaseExceptionGroup):
        return any(map(_is_interrupt, exc.exceptions))
    return isinstance(exc, KeyboardInterrupt) and not exc.args
