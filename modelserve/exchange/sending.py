"""Interpret an exception of the host's `send`: the client has left, or something else failed."""

import logging
from typing import Final, Protocol

import anyio

from modelserve.errors import ClientGone, Stopped

__all__ = ["SendFailed", "is_gone", "log_failure", "send_failure"]

logger = logging.getLogger("modelserve")

# Hosts have their own exceptions for a client that has left; some are not an OSError.
_GONE_NAME: Final = "disconnect"
_GONE: Final = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
_GONE_OF_TRIO: Final = {"BrokenResourceError", "ClosedResourceError"}
# Texts of such a RuntimeError: of uvloop, and of hosts whose client has closed a WebSocket.
_GONE_TEXTS: Final = ("the handler is closed", "websocket.close")


class Logged(Protocol):
    """The parts of a request that the log of failures uses; `reason` is why it ends early."""

    id: bytes
    reason: Stopped | None


class SendFailed(Stopped):
    """A host, or middleware, failed in `send`; nothing can be sent any more.

    The failure has been logged; `error` is the exception, to be raised out of the application.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__("sending failed")
        self.error = error


def send_failure(request: Logged, exc: Exception) -> Stopped:
    """Return what to raise for an exception of `send`; log it unless the client has left."""
    if isinstance(request.reason, ClientGone) or is_gone(exc):
        return ClientGone()
    log_failure(request, "Sending the answer to request %s failed", exc)
    return SendFailed(exc)


def log_failure(request: Logged, text: str, exc: BaseException) -> None:
    """Log a failure with its traceback; `text` has a place for the request's id."""
    number = request.id.decode()
    logger.error(text, number, exc_info=exc, extra={"request_id": number})


def is_gone(exc: BaseException) -> bool:
    """Return whether an exception of `send` says that the client has left."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(is_gone, exc.exceptions))
    if isinstance(exc, _GONE):
        return True
    if isinstance(exc, RuntimeError) and any(text in str(exc) for text in _GONE_TEXTS):
        return True
    names = {kind.__name__ for kind in type(exc).__mro__}
    return bool(names & _GONE_OF_TRIO) or any(_GONE_NAME in name.lower() for name in names)
