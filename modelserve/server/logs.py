"""How the command line logs: lines for a terminal, or one JSON object a line.

The package itself configures no logging; only the command line calls `configure`.
"""

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from modelserve.errors import ResponseCut, single_cause
from modelserve.exchange.running import running_request_id
from modelserve.server.log_queue import QueuedHandler, blocking_descriptor

__all__ = [
    "HumanFormatter",
    "JsonFormatter",
    "TerminalHandler",
    "add_request_id",
    "configure",
    "default_form",
    "no_lost_call",
    "no_refusal",
    "no_response_cut",
    "print_error",
]

logger = logging.getLogger("modelserve")

# The attributes of every record, and those that uvicorn adds for its own formatter.
_NOT_EXTRA: Final = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message")
)

_CLEAR_LINE: Final = "\r\x1b[K"
_OF_REFUSED: Final = "ASGI callable returned without completing handshake."
_OF_LOST_CALL: Final = 'Failed "execute_batch"'


def print_error(text: str) -> None:
    """Print to stderr why the command cannot serve, as plain text in any form of the log."""
    for handler in logging.root.handlers:
        if isinstance(handler, QueuedHandler):  # after the lines before it, and without waiting
            handler.write(text)
            return
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def default_form() -> str:
    """Return "human" where stderr is a terminal, else "json"."""
    return "human" if sys.stderr is not None and sys.stderr.isatty() else "json"


def configure(*, form: str, level: str) -> None:
    """Log everything of a level ("info") and above to stderr, as "human" or "json" lines.

    A line that is logged while a request runs has its id, whichever library logs it.
    """
    _open_standard_descriptors()
    handler = _stderr_handler(form)
    handler.addFilter(add_request_id)
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _quiet_calls()
    logging.captureWarnings(True)
    # Python would print these as plain text, which collectors of JSON lines cannot read.
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread_failure
    for noise in (no_response_cut, no_refusal):
        logging.getLogger("uvicorn.error").addFilter(noise)
    logging.getLogger("grpc._cython.cygrpc").addFilter(no_lost_call)


def _quiet_calls() -> None:
    """Leave out the line that httpx logs of each call, below debug and unless a level is set."""
    httpx = logging.getLogger("httpx")
    if httpx.level == logging.NOTSET and logging.root.level > logging.DEBUG:
        httpx.setLevel(max(logging.WARNING, logging.root.level))


def _stderr_handler(form: str) -> logging.Handler:
    """Return a handler that never waits for the reader of stderr."""
    if sys.stderr is None:
        return logging.NullHandler()
    descriptor = blocking_descriptor(sys.stderr)
    if descriptor is not None:
        has_last_line = os.isatty(descriptor) and os.environ.get("TERM") != "dumb"
        kind = TerminalHandler if form == "human" and has_last_line else QueuedHandler
        with suppress(RuntimeError):  # no more threads
            return kind(descriptor, sys.stderr.encoding)
    return logging.StreamHandler(sys.stderr)


def _open_standard_descriptors() -> None:
    """Open the standard streams that are closed, so that no connection gets their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(null, True)


def add_request_id(record: logging.LogRecord) -> bool:
    """Add the id of the running request to a record, unless it has one."""
    request_id = running_request_id()
    if request_id is not None and not hasattr(record, "request_id"):
        record.request_id = request_id
    return True


def no_response_cut(record: logging.LogRecord) -> bool:
    """Filter out the host's traceback of a response cut on purpose: the failure was logged."""
    exc = record.exc_info[1] if record.exc_info else None
    return exc is None or not isinstance(single_cause(exc), ResponseCut)


def no_refusal(record: logging.LogRecord) -> bool:
    """Filter out uvicorn's complaint about a WebSocket that was refused with a response."""
    return record.msg != _OF_REFUSED


def no_lost_call(record: logging.LogRecord) -> bool:
    """Filter out grpcio's traceback of a status that came too late for a call that had ended."""
    exc = record.exc_info[1] if record.exc_info else None
    return type(exc).__name__ != "ExecuteBatchError" or not str(exc).startswith(_OF_LOST_CALL)


def _log_unraisable(failure: "sys.UnraisableHookArgs") -> None:
    text, exc = failure.err_msg or "Exception ignored in", failure.exc_value
    trace = (failure.exc_type, exc, failure.exc_traceback) if exc is not None else None
    logger.error("%s: %r", text, failure.object, exc_info=trace)


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    exc = failure.exc_value
    if exc is not None and not isinstance(exc, SystemExit):
        name = failure.thread.name if failure.thread is not None else "a thread"
        logger.error("Exception in thread %s", name, exc_info=exc)


class TerminalHandler(QueuedHandler):
    """Write lines to a terminal, and below them a line that changes."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._shown = False
        super().__init__(descriptor, encoding)

    def show(self, text: str) -> None:
        """Show a text, cut to the terminal's width, in the last line, unless lines wait."""
        width = shutil.get_terminal_size().columns - 1
        with self._locked():
            self._shown = self.offer(f"{_CLEAR_LINE}{text[:width]}") or self._shown

    def hide(self) -> None:
        """Clear the last line; if lines wait, the next one clears it."""
        with self._locked():
            self._shown = self._shown and not self.offer(_CLEAR_LINE)

    def write(self, text: str) -> None:
        with self._locked():
            clear = _CLEAR_LINE if self._shown else ""
            self._shown = False
            super().write(f"{clear}{text}")

    def _tell_lost(self, count: int) -> bytes:
        """Clear the last line too: the line that would do that may have been lost."""
        return _CLEAR_LINE.encode() + super()._tell_lost(count)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock under which `emit` is called."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


class JsonFormatter(logging.Formatter):
    """Format a record, with its `extra` attributes, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = _extra(record) | {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return _to_json({key: line[key] for key in (*_FIRST_KEYS, *line)})


class HumanFormatter(logging.Formatter):
    """Format a record as a line for a terminal; of its `extra` attributes, only the request id."""

    def format(self, record: logging.LogRecord) -> str:
        time = _time(record).astimezone().strftime("%H:%M:%S")
        name = record.name.removesuffix(".error")  # uvicorn.error is its main logger, errors or not
        message = record.getMessage()
        request_id = getattr(record, "request_id", None)
        if request_id is not None and request_id not in message:
            message = f"{message} [{request_id}]"
        lines = [f"{time} {record.levelname:<7} {name}: {message}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        if record.stack_info:
            lines.append(record.stack_info)
        return "\n".join(lines)


_FIRST_KEYS: Final = ("time", "level", "logger", "message")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _NOT_EXTRA}


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _to_json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # lone surrogates, integers of more than 64 bits
        return json.dumps(line, default=str, skipkeys=True)
