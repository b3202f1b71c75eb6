"""Call a model server from a program: one payload, streams, tensors, and rows without end.

    with Client("http://localhost:8080") as client:
        client.predict("double", [1, 2])

`AsyncClient` is the same for asyncio and trio. Both need the extra `client`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modelserve.client.aio import AsyncClient
    from modelserve.client.failures import (
        AnswerError,
        ClientError,
        CutShort,
        TimedOut,
        Unreachable,
        Unreadable,
    )
    from modelserve.client.items import ItemError
    from modelserve.client.sync import Client

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "ClientError",
    "CutShort",
    "ItemError",
    "TimedOut",
    "Unreachable",
    "Unreadable",
]

# Models that call a predictor import some modules of this package, and not the clients.
_MODULES: Final = {
    "AnswerError": "failures",
    "AsyncClient": "aio",
    "Client": "sync",
    "ClientError": "failures",
    "CutShort": "failures",
    "ItemError": "items",
    "TimedOut": "failures",
    "Unreachable": "failures",
    "Unreadable": "failures",
}

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
