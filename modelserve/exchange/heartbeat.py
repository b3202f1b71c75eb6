"""Heartbeats of a quiet stream, so that no proxy closes its connection.

They are for a client that asked for a framed form by name: such a form can carry them.
"""

from functools import partial
from time import monotonic
from typing import Final

import anyio

from modelserve.concurrency.flight import Phase
from modelserve.exchange.exchange import Exchange

__all__ = ["start_heartbeat"]

_SEND: Final = Phase.SEND
_DONE: Final = Phase.DONE


def start_heartbeat(exchange: Exchange, idle: bytes, seconds: float) -> None:
    """Send a heartbeat after every `seconds` without an item; the answer has started.

    From now on two tasks send; each holds the lock of the stream meanwhile.
    """
    assert exchange.stream is not None and exchange.flight is not None
    exchange.stream.lock = anyio.Lock()
    exchange.flight.start_companion(partial(_beat, exchange, idle, seconds))


async def _beat(exchange: Exchange, idle: bytes, seconds: float) -> None:
    sent = monotonic()
    while exchange.phase != _DONE:
        quiet = monotonic() - max(sent, exchange.since)
        if quiet < seconds:
            await anyio.sleep(seconds - quiet)
        elif exchange.reason is not None or exchange.phase == _SEND:
            await anyio.sleep(seconds)
        else:
            await exchange.send_part(idle)
            sent = monotonic()
