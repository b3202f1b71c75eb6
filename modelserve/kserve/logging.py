"""KServe's loggers; nothing is set up before `configure_logging` is called.

By default modelserve's lines go to stderr: readable on a terminal, otherwise one JSON object each.
The environment variable KSERVE_LOGLEVEL sets the level.
"""

import json
import logging
import logging.config
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from modelserve.server import logs

__all__ = [
    "KSERVE_LOGGER_NAME",
    "KSERVE_TRACE_LOGGER_NAME",
    "configure_logging",
    "logger",
    "trace_logger",
]

KSERVE_LOGGER_NAME: Final = "kserve"
KSERVE_TRACE_LOGGER_NAME: Final = "kserve.trace"

logger = logging.getLogger(KSERVE_LOGGER_NAME)
trace_logger = logging.getLogger(KSERVE_TRACE_LOGGER_NAME)


def configure_logging(log_config: dict[str, Any] | str | None = None) -> None:
    """Set up logging; without a configuration, only if it has not been set up.

    Args:
        log_config: A dictionary for `logging.config.dictConfig`, or a file: .json, .yaml and .yml
            hold such a dictionary, any other is for `logging.config.fileConfig`.
    """
    if log_config is None:
        if not logger.hasHandlers():
            _configure_by_default()
    elif isinstance(log_config, dict):
        logging.config.dictConfig(log_config)
    elif log_config.endswith((".json", ".yaml", ".yml")):
        logging.config.dictConfig(_read(Path(log_config)))
    else:
        logging.config.fileConfig(log_config, disable_existing_loggers=False)


def _configure_by_default() -> None:
    level = os.environ.get("KSERVE_LOGLEVEL", "info").lower()
    logs.configure(form=logs.default_form(), level=level)


def _read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return import_module("yaml").safe_load(text)  # uvicorn[standard] depends on it
