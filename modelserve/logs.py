"""How the command line logs: lines for a terminal, or one JSON object a line.

The package itself configures no logging; only the command line calls `configure`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from modelserve.errors import ResponseCut, single_cause

__all__ = ["HumanFormatter", "JsonFormatter", "configure", "is_news"]

# What every record has, and what uvicorn adds for its own formatter.
_NOT_EXTRA: Final = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message")
)


def configure(*, form: str, level: str) -> None:
    """Log everything of a level ("info") and above to stderr, as "human" or "json" lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Say whether a record of the host's tells more than that we have cut a response on purpose."""
    exc = record.exc_info[1] if record.exc_info else None
    return exc is None or not isinstance(single_cause(exc), ResponseCut)


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
    """Format a record as a line for a terminal; messages say the important part of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        time = _time(record).astimezone().strftime("%H:%M:%S")
        name = record.name.removesuffix(".error")  # uvicorn calls its own so
        lines = [f"{time} {record.levelname:<7} {name}: {record.getMessage()}"]
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
