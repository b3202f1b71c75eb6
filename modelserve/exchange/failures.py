"""Report what a pipeline has raised, to the client and in the log."""

import logging

from modelserve.concurrency.flight import Phase
from modelserve.errors import ClientGone, describe, is_expected
from modelserve.exchange.exchange import Exchange

__all__ = ["log_failure", "report_failure"]

logger = logging.getLogger("modelserve")


async def report_failure(exchange: Exchange, exc: BaseException, *, debug: bool) -> None:
    """Report an exception: as the response, as a final record, or by cutting the connection.

    Nothing is sent to a client that has left, or that has had its whole answer. An unexpected
    exception is logged; its text goes to the client only with `debug`. Raises ClientGone.
    """
    exchange.error = exc
    if isinstance(exc, ClientGone):
        return
    if not is_expected(exc):
        log_failure(exchange, "Request %s failed", exc)
    if exchange.phase != Phase.DONE:
        status, detail, headers = describe(exc, debug=debug)
        exchange.enter(Phase.SEND)
        await exchange.report(status, detail, headers)


def log_failure(exchange: Exchange, text: str, exc: BaseException) -> None:
    """Log a failure with its traceback; `text` has a place for the request's id."""
    number = exchange.id.decode()
    logger.error(text, number, exc_info=exc, extra={"request_id": number})
