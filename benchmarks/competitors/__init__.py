"""The servers compared: a module for each, with the same three names.

`REQUIREMENTS`
    what pip installs into the competitor's own environment;
`COMMAND`
    the arguments for that environment's Python; `{port}` is the port to listen on, `{spare}` is
    another free one;
`ENDPOINTS`
    what to send for each kind of work that it can do (kinds are listed in `benchmarks.works`).
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from benchmarks.payloads import CHAT_BODY, CHAT_PATH, ITEMS, ROW_BODY, STREAM_BODY, UNARY_BODY

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout, from which modelserve itself is installed."""

NAMES = (
    "bare",
    "modelserve",
    "starlette",
    "fastapi",
    "kserve",
    "litserve",
    "litserve_batched",
    "mlserver",
    "bentoml",
    "mosec",
    "mosec_batched",
    "ray",
    "modelserve_hypercorn",
    "bare_hypercorn",
    "modelserve_granian",
    "bare_granian",
)
"""Every competitor, in the order of the tables; the first is what the others are divided by."""

UVICORN = ("uvicorn>=0.34", "uvloop>=0.21", "httptools>=0.6", "orjson>=3.10")
HYPERCORN = ("hypercorn>=0.17", "uvloop>=0.21", "orjson>=3.10")
GRANIAN = ("granian>=2.5", "uvloop>=0.21", "orjson>=3.10")


@dataclass(frozen=True)
class Endpoint:
    """One request: where to send what, and how many items come back."""

    path: str
    body: bytes = STREAM_BODY
    accept: str = "*/*"
    items: int = ITEMS


class Competitor(Protocol):
    """What a module in this package offers."""

    REQUIREMENTS: Sequence[str]
    COMMAND: Sequence[str]
    ENDPOINTS: Mapping[str, Endpoint]


def load(name: str) -> Competitor:
    """Import the module of one competitor; none of them imports its server."""
    return cast(Competitor, importlib.import_module(f"{__name__}.{name}"))


def v1(model: str, *, accept: str = "*/*", items: int = ITEMS) -> Endpoint:
    """Return the V1 request for a model that streams."""
    return Endpoint(f"/v1/models/{model}:predict", accept=accept, items=items)


ECHO = Endpoint("/v1/models/echo:predict", body=UNARY_BODY, items=0)

ECHO_SYNC = Endpoint("/v1/models/echo_sync:predict", body=UNARY_BODY, items=0)

CHAT = Endpoint(CHAT_PATH, body=CHAT_BODY)

BATCHED = Endpoint("/v1/models/batched:predict", body=ROW_BODY, items=0)

V1_STREAMS = {
    "bytes": v1("bytes"),
    "ndjson": v1("ndjson"),
    "sse": v1("sse"),
    "paced": v1("paced", items=2),
    "idle": v1("idle", items=1),
    "cancel": v1("idle", items=1),
}
"""The requests of those applications that have a V1 path for each kind."""


def uvicorn(app: str) -> tuple[str, ...]:
    """Return the arguments that serve `app` by uvicorn at its fastest."""
    return (
        *("-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "{port}"),
        *("--loop", "uvloop", "--http", "httptools", "--backlog", "16384"),
        *("--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "1"),
    )


def hypercorn(app: str) -> tuple[str, ...]:
    """Return the arguments that serve `app` by hypercorn, one worker, on uvloop."""
    return (
        *("-m", "hypercorn", app, "--bind", "127.0.0.1:{port}", "--worker-class", "uvloop"),
        *("--backlog", "16384", "--log-level", "warning", "--graceful-timeout", "1"),
    )


def granian(app: str) -> tuple[str, ...]:
    """Return the arguments that serve `app` by granian, one worker, on uvloop.

    `--backpressure` is how many requests may run at once; its default would refuse idle streams.
    """
    return (
        *("-m", "granian", app, "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"),
        *("--loop", "uvloop", "--http", "1", "--no-ws", "--backlog", "16384"),
        *("--backpressure", "16384", "--log-level", "warning"),
    )
